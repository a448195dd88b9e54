"""The pretrained models under the original AutoAttack, beside casemate's evaluation of the same images; see README.md.

`AUTOATTACK_SRC=CLONE python benchmarks/pretrained/run.py [MODEL ...]` attacks the models that are missing and writes
the page. Exit code 2: the clone is missing, or a card has no evaluation of these images.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "strength"))
from originals import autoattack, commit_of, original_autoattack

from casemate import data
from casemate.attacks import frozen
from casemate.evaluation import mcnemar, share
from casemate.files import write_text
from casemate.models import ModelMetadata, open_model, pretrained_names
from casemate.provenance import commit, processor

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE / "results.md", HERE / "results"
EPS = 0.1
IMAGES = 1000
"""Test images, the first ones."""


def metadata_of(name: str) -> ModelMetadata:
    """What is stored beside the weights of a pretrained model."""
    found = open_model(name).description
    assert found is not None, f"{name} is a file here"
    return found


def casemate_of(name: str) -> dict[str, Any] | None:
    """What casemate's evaluation of the first images left at `EPS`, from the model's card; None if it has none."""
    metrics = metadata_of(name).metrics
    for each in metrics["measures"]:
        if each["images"] == IMAGES and EPS in each["eps"] and each["budget"] == "standard":
            digits = np.array(list(each["correct"]), dtype=int)
            return {
                "fingerprint": metrics["fingerprint"],
                "clean": digits > 0,
                "robust": digits > 1 + each["eps"].index(EPS),
            }
    return None


def compute(name: str, source: str) -> dict[str, Any]:
    """What the original AutoAttack leaves of a model."""
    model, description = open_model(name).model, metadata_of(name)
    images, labels = data.load("fashion-mnist").test[:IMAGES].tensors()
    network = model.network  # plain PyTorch, without the checks of a `Classifier`
    with torch.no_grad():
        clean = network(images).argmax(1) == labels
    with frozen(network):
        found = autoattack(original_autoattack(source), network, images[clean], labels[clean], "linf", EPS)
    return {
        "model": name,
        "fingerprint": description.metrics["fingerprint"],
        "eps": EPS,
        "original": commit_of(source),
        "commit": commit(),
        "torch": torch.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "clean": "".join(map(str, clean.int().tolist())),
        **found,
    }


def row(name: str) -> str | None:
    """The row of a model; None if something is missing, or of other weights."""
    path, ours = RESULTS / f"{name}.json", casemate_of(name)
    if ours is None or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["fingerprint"] != ours["fingerprint"]:
        return None
    clean = np.array(list(found["clean"]), dtype=int) > 0
    theirs = np.zeros(IMAGES, dtype=bool)
    left = np.array(found["robust"], dtype=bool)
    left[found["unconfirmed"]] = True
    theirs[clean] = left
    assert (clean == ours["clean"]).all(), f"{name}: the clean predictions differ"
    only = (int((ours["robust"] & ~theirs).sum()), int((theirs & ~ours["robust"]).sum()))
    p_value = mcnemar(ours["robust"], theirs)
    return (
        f"| `{name}` | {share(ours['robust'])} | {share(theirs)} | {only[0]} | {only[1]} | {p_value:.2g} "
        f"| {found['processor_seconds']:.0f} |"
    )


def page() -> str:
    """The results in Markdown."""
    lines = [
        "# Pretrained models: casemate's evaluation beside the original AutoAttack",
        "",
        f"Written by `run.py`. The first {IMAGES:,} test images of Fashion-MNIST, Linf {EPS:g}; casemate's budget "
        "`standard`, AutoAttack's `standard`. p: McNemar's test that both leave equally many.",
        "",
        "| Model | casemate | AutoAttack | left by casemate only | by AutoAttack only | p | AutoAttack's seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(each for name in pretrained_names() if (each := row(name)) is not None), ""])


def main() -> None:
    """Attack what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(pretrained_names())}; all if none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    RESULTS.mkdir(exist_ok=True)
    for name in given.models or pretrained_names():
        if casemate_of(name) is None:
            print(f"the card of {name} has no evaluation of the first {IMAGES} images at {EPS:g}", file=sys.stderr)
            sys.exit(2)
        if row(name) is None:
            source = os.environ.get("AUTOATTACK_SRC", "")
            if not Path(source, "autoattack").is_dir():
                print("AUTOATTACK_SRC names no clone of github.com/fra31/auto-attack", file=sys.stderr)
                sys.exit(2)
            write_text(RESULTS / f"{name}.json", json.dumps(compute(name, source), indent=1) + "\n")
            print(row(name), flush=True)
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
