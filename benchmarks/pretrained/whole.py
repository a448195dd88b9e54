"""A pretrained model's evaluation on all test images, 500 at a time; see README.md.

`python benchmarks/pretrained/whole.py MODEL [--parts 1 2 ...]` evaluates the parts that are missing, and writes
whole.md. Every part is a result file of its own, so that several machines, or several days, share an evaluation.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casemate import data, progress_bars
from casemate.benchmark.measures import Attacked
from casemate.evaluation import share
from casemate.evaluation.fingerprints import fingerprint
from casemate.files import cache_folder, write_text
from casemate.models import Classifier, open_model, pretrained_names
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE / "whole.md", HERE / "whole"
EPS = 0.1
SIZE = 500
"""Images in a part."""
MEASURE = Attacked(eps=(EPS,), images=None, seed=0, budget="standard")


def path_of(name: str, part: int) -> Path:
    """The result file of a part; parts count from 0."""
    return RESULTS / f"{name}-{part}.json"


def compute(name: str, model: Classifier, part: int) -> dict[str, Any]:
    """The evaluation of one part."""
    images = data.load("fashion-mnist").test[part * SIZE : (part + 1) * SIZE]
    found = MEASURE.compute(model, images, cache_folder() / "store", progress_bars())
    return {
        "model": name,
        "fingerprint": fingerprint(model),
        "eps": EPS,
        "first": part * SIZE,
        "budget": MEASURE.budget,
        "seed": MEASURE.seed,
        **found,
        "provenance": surroundings("cpu", torch.get_num_threads()),
    }


def finished(name: str, model: Classifier, parts: int) -> list[dict[str, Any]]:
    """The results of the parts that are there, of these weights."""
    paths = [path_of(name, each) for each in range(parts)]
    found = [json.loads(each.read_text(encoding="utf-8")) for each in paths if each.exists()]
    return [each for each in found if each["fingerprint"] == fingerprint(model)]


def row(name: str, parts: list[dict[str, Any]]) -> str:
    """The results of a model's finished parts together."""
    digits = np.array(list("".join(each["correct"] for each in parts)), dtype=int)
    weakening = sorted(
        {finding["check"] for each in parts for finding in each["findings"] if finding["severity"] != "note"}
    )
    verdicts = sorted({each["verdicts"][0] for each in parts})
    alone = sum(each["only_without_gradients"][0] for each in parts)
    commits = sorted({each["provenance"]["commit"] for each in parts})
    hours = sum(each["seconds"] for each in parts) / 3600
    cells = [f"`{name}`", f"{len(digits):,}", str(share(digits >= 1)), str(share(digits >= 2)), ", ".join(verdicts)]
    cells += [", ".join(weakening) or "-", str(alone), f"{hours:.1f}", ", ".join(commits)]
    return f"| {' | '.join(cells)} |"


def page(parts: int) -> str:
    """The results in Markdown."""
    heads = ["Model", "Images so far", "Clean", f"Robust {EPS:g}", "Verdict of each part", "Weakened by"]
    heads += ["By Square alone", "Hours of one core", "Commit"]
    lines = [
        "# Pretrained models on all test images, in parts",
        "",
        f"Written by `whole.py`. Fashion-MNIST's test images, Linf {EPS:g}, budget `standard`, seed {MEASURE.seed}, "
        f"evaluated {SIZE:,} at a time. By Square alone: images that it fools, and no gradient attack of `thorough`.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    for name in pretrained_names():
        if found := finished(name, open_model(name).model, parts):
            lines.append(row(name, found))
    return "\n".join([*lines, ""])


def main() -> None:
    """Evaluate what is missing, and write the page."""
    parts = len(data.load("fashion-mnist").test) // SIZE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="MODEL", choices=pretrained_names())
    parser.add_argument("--parts", type=int, nargs="*", default=range(parts), help="from 0; all if not given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if wrong := [each for each in given.parts if not 0 <= each < parts]:
        print(f"there is no part {wrong[0]}: expected 0 to {parts - 1}", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(given.threads)
    RESULTS.mkdir(exist_ok=True)
    model = open_model(given.model).model
    for part in given.parts:
        if part not in {each["first"] // SIZE for each in finished(given.model, model, parts)}:
            result = json.dumps(compute(given.model, model, part), indent=1)
            write_text(path_of(given.model, part), result + "\n")
            write_text(PAGE, page(parts))


if __name__ == "__main__":
    main()
