"""A pretrained model's evaluation on all test images, 500 at a time; see README.md.

`python benchmarks/pretrained/whole.py MODEL [--parts 1 2 ...] [--seed S]` evaluates the parts that are missing, and
writes whole.md. Every part is a result file of its own, so that several machines, or several days, share an evaluation.
When the last part of a model and a seed is there, whole.json holds the sum of them as a row of `casemate benchmark`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casemate import data, progress_bars
from casemate.benchmark.measures import Attacked, accuracies
from casemate.data import LabelledImages
from casemate.evaluation import Estimate, share
from casemate.evaluation.fingerprints import fingerprint
from casemate.evaluation.verdict import CONVENTION, UNTRUSTED
from casemate.files import cache_folder, write_json, write_text
from casemate.models import Classifier, open_model, pretrained_names
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
PAGE, RESULTS, SUMS = HERE / "whole.md", HERE / "whole", HERE / "whole.json"
EPS = 0.1
SIZE = 500
"""Images in a part."""
SEEDS = 3
"""Seeds of the attacks, from 0."""

Parts = dict[tuple[str, int], list[dict[str, Any]]]
"""The results of finished parts by model and seed."""


def measure(seed: int) -> Attacked:
    """What is measured of each part."""
    return Attacked(eps=(EPS,), images=None, seed=seed, budget="standard")


def path_of(name: str, part: int, seed: int = 0) -> Path:
    """The result file of a part; parts count from 0."""
    return RESULTS / f"{name}{f'-seed-{seed}' if seed else ''}-{part}.json"


def finished(name: str, part: int, seed: int, weights: str) -> dict[str, Any] | None:
    """The result of a part; None if it is not there, or of other weights than those with this fingerprint."""
    path = path_of(name, part, seed)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found if found is not None and found["fingerprint"] == weights else None


def compute(name: str, part: int, seed: int, model: Classifier, images: LabelledImages) -> dict[str, Any]:
    """The evaluation of one part."""
    made = measure(seed)
    found = made.compute(model, images, cache_folder() / "store", progress_bars())
    return {
        "model": name,
        "fingerprint": fingerprint(model),
        "eps": EPS,
        "first": part * SIZE,
        "budget": made.budget,
        "seed": seed,
        **found,
        "provenance": surroundings("cpu", torch.get_num_threads()),
    }


def together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of parts as one measurement, in the form in which `casemate benchmark` has them.

    The verdict is that of all images, from the same borders; it is not to be trusted if a finding voids a part.
    """
    digits = np.array(list("".join(each["correct"] for each in parts)), dtype=int)
    clean, robust = digits >= 1, digits >= 2
    withstood = share(robust[clean])
    findings = [finding for each in parts for finding in each["findings"]]
    grades = CONVENTION.reached(withstood.low, withstood.high)
    is_void = any(finding["severity"] == "voids" for finding in findings)
    return {
        **accuracies(clean, robust[:, None]),
        "verdicts": [UNTRUSTED if is_void else " or ".join(grades)],
        "findings": [each for number, each in enumerate(findings) if each not in findings[:number]],
        "first_to_fool": {
            attack: sum(each["first_to_fool"][attack] for each in parts) for attack in parts[0]["first_to_fool"]
        },
        "only_without_gradients": [sum(each["only_without_gradients"][0] for each in parts)],
        "seconds": sum(each["seconds"] for each in parts),
        "parts": len(parts),
        "provenance": parts[0]["provenance"],
    }


def row(name: str, seed: int, parts: list[dict[str, Any]]) -> str:
    """The results of a model's finished parts together."""
    found = together(parts)
    weakening = sorted({each["check"] for each in found["findings"] if each["severity"] != "note"})
    commits = sorted({each["provenance"]["commit"] for each in parts})
    clean, robust = Estimate.from_json(found["clean"]), Estimate.from_json(found["robust"][0])
    cells = [
        f"`{name}`",
        str(seed),
        f"{clean.n:,}",
        str(clean),
        str(robust),
        found["verdicts"][0],
        ", ".join(weakening) or "-",
    ]
    cells += [str(found["only_without_gradients"][0]), f"{found['seconds'] / 3600:.1f}", ", ".join(commits)]
    return f"| {' | '.join(cells)} |"


def results(parts: int) -> Parts:
    """The finished parts of every model and seed that has some."""
    found: Parts = {}
    for name in pretrained_names():
        weights = fingerprint(open_model(name).model)
        for seed in range(SEEDS):
            held = [each for part in range(parts) if (each := finished(name, part, seed, weights)) is not None]
            if held:
                found[name, seed] = held
    return found


def sums(known: Parts, parts: int) -> dict[str, Any]:
    """For each model and seed with all parts, their sum, as a table that tools/merge_benchmark.py reads."""
    return {
        "rows": [
            {
                "model": name,
                "training": {"fingerprint": held[0]["fingerprint"]},
                "measures": [measure(seed).as_json() | together(held)],
            }
            for (name, seed), held in known.items()
            if len(held) == parts
        ]
    }


def page(known: Parts) -> str:
    """The results in Markdown."""
    heads = ["Model", "Seed", "Images so far", "Clean", f"Robust {EPS:g}", "Verdict", "Weakened by"]
    heads += ["By Square alone", "Hours of one core", "Commit"]
    lines = [
        "# Pretrained models on all test images, in parts",
        "",
        f"Written by `whole.py`. Fashion-MNIST's test images, Linf {EPS:g}, budget `standard`, evaluated {SIZE:,} at a "
        "time, the first ones first. The seed is that of the attacks. By Square alone: images that it fools, and no "
        "gradient attack of `thorough`.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    return "\n".join([*lines, *(row(name, seed, held) for (name, seed), held in known.items()), ""])


def write(parts: int) -> None:
    """Write whole.md, and whole.json."""
    known = results(parts)
    write_text(PAGE, page(known))
    write_json(SUMS, sums(known, parts))


def main() -> None:
    """Evaluate what is missing, and write the page."""
    test = data.load("fashion-mnist").test
    parts = len(test) // SIZE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="MODEL", choices=pretrained_names())
    parser.add_argument("--parts", type=int, nargs="*", default=range(parts), help="from 0; all if not given")
    parser.add_argument("--seed", type=int, choices=range(SEEDS), default=0, help="of the attacks; 0 if not given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    if wrong := [each for each in given.parts if not 0 <= each < parts]:
        print(f"there is no part {wrong[0]}: expected 0 to {parts - 1}", file=sys.stderr)
        sys.exit(2)
    torch.set_num_threads(given.threads)
    RESULTS.mkdir(exist_ok=True)
    model = open_model(given.model).model
    weights = fingerprint(model)
    for part in given.parts:
        if finished(given.model, part, given.seed, weights) is None:
            result = compute(given.model, part, given.seed, model, test[part * SIZE : (part + 1) * SIZE])
            write_text(path_of(given.model, part, given.seed), json.dumps(result, indent=1) + "\n")
        write(parts)


if __name__ == "__main__":
    main()
