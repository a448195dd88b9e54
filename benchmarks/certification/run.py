"""How much time a certificate saves an evaluation, and what each method of certification takes.

`python benchmarks/certification/run.py` evaluates the pretrained model `certified` twice on the same images, in turn:
with all images attacked, and by `evaluate_certified`, which attacks what is not certified and a sample of what is. It
writes `result.json` and the tables in `docs/certificates.md`. With the names of cases as arguments it runs only these,
and keeps the other rows of `result.json`; the case `methods` certifies by each method.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import torch

from casemate import Classifier, LabelledImages, evaluate_clean
from casemate.certification import Method, certify
from casemate.data import load
from casemate.evaluation import Budget, run_cascade
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.certified import SAMPLE, evaluate_certified
from casemate.files import write_json, write_text
from casemate.models import open_model
from casemate.provenance import commit, surroundings
from casemate.timing import duration

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "certificates.md"
RESULT = HERE / "result.json"
MARK = "<!-- benchmarks/certification/run.py: {} {} -->"
MODEL = "certified"
METHOD: Method = "crown-ibp"
SEED = 0
METHODS, METHOD_IMAGES, METHOD_EPS = "methods", 500, (0.1, 0.15)
_T = TypeVar("_T")


class Case(NamedTuple):
    """One evaluation, made in both ways."""

    images: int
    eps: tuple[float, ...]
    budget: Budget


CASES = {
    "few images": Case(500, (0.1,), "standard"),
    "more images": Case(1000, (0.1,), "standard"),
    "a quick look": Case(2000, (0.05, 0.1), "quick"),
}


def main() -> None:
    """Evaluate in both ways, certify by each method, write the result."""
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or [*CASES, METHODS]
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() and sys.argv[1:] else {}
    if (found.get("model"), found.get("method")) != (MODEL, METHOD):
        found = {}  # rows of another model do not belong beside these
    data, model = load("fashion-mnist"), open_model(MODEL).model
    rows = found.setdefault("rows", {})
    for name in chosen:
        if name == METHODS:
            found[METHODS] = by_method(model, data.test[:METHOD_IMAGES])
        else:
            rows[name] = compared(model, data.test[: CASES[name].images], CASES[name])
            print(name, {key: each for key, each in rows[name].items() if not isinstance(each, list)}, flush=True)
    found |= {"command": "python benchmarks/certification/run.py", "model": MODEL, "method": METHOD}
    found |= {"sample": SAMPLE, "seed": SEED, "surroundings": surroundings("cpu", 1)}
    write_json(RESULT, found)
    write_tables(found)


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """What `work` returns, and the seconds of processor time that it took; other programs change it too, but less."""
    start = time.process_time()
    return work(), time.process_time() - start


def compared(model: Classifier, images: LabelledImages, case: Case) -> dict[str, Any]:
    """The same evaluation with all images attacked, and with a certificate."""

    def attacked() -> Any:
        attacks = attacks_for(case.budget, "linf", case.eps[0], randomised=False)
        clean = evaluate_clean(model, images).correct
        return run_cascade(model, attacks, images, case.eps, correct=clean, seed=SEED)

    def certified() -> Any:
        return evaluate_certified(model, images, eps=case.eps, method=METHOD, budget=case.budget, seed=SEED)

    all_attacked, slow = timed(attacked)
    spared, fast = timed(certified)
    return {
        "images": len(images),
        "eps": list(case.eps),
        "budget": case.budget,
        "certified": [each.value for each in spared.certified_accuracy],
        "attacked": [each.value for each in spared.robust_accuracy],
        "clean": spared.clean_accuracy.value,
        "void": spared.is_void,
        "undecided": spared.undecided,
        "sampled": spared.sampled,
        "share_of_time_for_bounds": spared.certificate_seconds / spared.seconds,
        "different_outcomes": int((all_attacked.robust != spared.robust).any(1).sum()),
        "attacked_images": {
            "all attacked": int(spared.clean.sum()),
            "certified": int(spared.attacked.any(1).sum()),
        },
        "cpu_seconds": {"all attacked": slow, "certified": fast},
        "factor": slow / fast,
        "commit": commit(),
    }


def by_method(model: Classifier, images: LabelledImages) -> list[dict[str, Any]]:
    """What each method proves of the images at each radius, and the processor time that it takes."""
    rows: list[dict[str, Any]] = []
    for eps in METHOD_EPS:
        for method in get_args(Method):
            found, seconds = timed(
                lambda eps=eps, method=method: certify(model, *images.tensors(), eps=eps, method=method)
            )
            row = {"eps": eps, "method": method, "images": len(images), "cpu_seconds": seconds, "commit": commit()}
            rows.append(row | {"certified": found.certified.double().mean().item()})
            print(rows[-1], flush=True)
    return rows


def write_tables(found: dict[str, Any]) -> None:
    """Write both tables into the page, as far as they are measured."""
    made = found["surroundings"]
    where = f"one thread, processor time ({made['processor']}, PyTorch {made['libraries']['torch']}, commit "
    rows = [found["rows"][name] for name in CASES if name in found["rows"]]
    saved = [
        f"`{found['command']}`: the pretrained model `{found['model']}`; {where}"
        f"{', '.join(sorted({row['commit'] for row in rows}))}); Linf, `{found['method']}`, a sample of "
        f"{found['sample']}, seed {found['seed']}, one run each. Other programs ran beside it, so times are rough; the "
        "numbers of images attacked do not depend on that.",
        "",
        "| test images | eps | budget | certified, % | withstood attacks, % | images attacked: all, with certificate | "
        "seconds: all, with certificate | faster | images with another outcome |",
        f"|{' --- |' * 9}",
        *(
            f"| {row['images']:,} | {', '.join(f'{each:g}' for each in row['eps'])} | {row['budget']} | "
            f"{_percent(row['certified'])} | {_percent(row['attacked'])} | {_both(row['attacked_images'])} | "
            f"{_both(row['cpu_seconds'])} | {row['factor']:.1f} times | {row['different_outcomes']} |"
            for row in rows
        ),
    ]
    write_between("saved", saved)
    methods = found.get(METHODS, [])
    if methods:
        names = get_args(Method)
        cells = {
            (row["eps"], row["method"]): f"{100 * row['certified']:.1f} % in {duration(row['cpu_seconds'])}"
            for row in methods
        }
        commits = ", ".join(sorted({row["commit"] for row in methods}))
        lines = [
            f"The first {methods[0]['images']} test images and the model `{found['model']}`; {where}{commits}):",
            "",
            f"| eps | {' | '.join(f'`{name}`' for name in names)} |",
            f"|{' --- |' * (1 + len(names))}",
            *(f"| {eps:g} | {' | '.join(cells[eps, name] for name in names)} |" for eps in METHOD_EPS),
        ]
        write_between(METHODS, lines)


def write_between(part: str, lines: list[str]) -> None:
    """Replace what stands between two marks of the page."""
    begin, end = MARK.format(part, "begin"), MARK.format(part, "end")
    before, _, rest = PAGE.read_text().partition(begin)
    write_text(PAGE, before + "\n".join([begin, *lines, end]) + rest.partition(end)[2])


def _both(found: dict[str, float]) -> str:
    return f"{found['all attacked']:,.0f}, {found['certified']:,.0f}"


def _percent(shares: list[float]) -> str:
    return ", ".join(f"{100 * each:.1f}" for each in shares)


if __name__ == "__main__":
    main()
