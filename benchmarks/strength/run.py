"""casemate's budget `standard` beside the originals, on the reported networks; see README.md.

`python benchmarks/strength/run.py [NETWORK ...]` computes the cells that are missing and writes the page,
`results.md`, from all that are there.

Exit code 0: no cell is missing. 2: a network is missing.
"""

import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import originals
import torch
from cells import Cell, has_networks, parser_of
from networks import NETWORKS, load, network_of, weights_of
from originals import Norm, write

from casemate import data
from casemate.attacks import AbstractAttack
from casemate.evaluation import mcnemar
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.cascade import run_cascade
from casemate.files import write_text
from casemate.provenance import commit, processor

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE / "results.md"
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
CHANCE = 0.05
"""The p-value of McNemar's test below which a difference is more than chance."""


def plan(names: Iterable[str] = ()) -> list[Cell]:
    """All cells of these networks, or of all reported ones, in the order in which they are computed."""
    chosen = list(map(network_of, names)) if names else [each for each in NETWORKS if each.reported]
    return [Cell(results=RESULTS, network=network, norm=norm) for network in chosen for norm in NORMS]


def budget_of(cell: Cell) -> dict[str, AbstractAttack]:
    """The attacks of the budget `standard`, as it is now, at the smallest eps of a cell."""
    return attacks_for("standard", cell.norm, cell.eps[0], randomised=False)


def has_this_budget(cell: Cell, found: dict[str, Any]) -> bool:
    """Whether a cell was computed with the budget as it is now, and not with one of an earlier commit."""
    now = {name: attack.record() for name, attack in budget_of(cell).items()}
    return found.get("attacks") == json.loads(json.dumps(now))


def compute(cell: Cell, folder: Path) -> dict[str, Any]:
    """The results of a cell. `robust` is about the images classified correctly, in their order, at each eps."""
    model = load(cell.network.name, folder)
    at = originals.Cell(network=cell.network, norm=cell.norm, eps=None).images
    images = data.load("fashion-mnist").test[at]
    attacks = budget_of(cell)
    start, cpu = time.perf_counter(), time.process_time()
    done = run_cascade(model, attacks, images, cell.eps, norm=cell.norm, batch_size=originals.BATCH)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - cpu
    right = done.first_success != -2
    return {
        "network": cell.network.name,
        "weights": weights_of(cell.network.name, folder),
        "norm": cell.norm,
        "eps": cell.eps,
        "first": at.start,
        "n": len(images),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),
        "attacks": done.attacks,
        "attempts": [asdict(each) for each in done.attempts],
        "clean": right.astype(int).tolist(),
        "robust": done.robust[right].T.astype(int).tolist(),
    }


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """casemate and the originals at one eps, on the same images of one network."""

    network: str
    norm: Norm
    eps: float
    n: int
    ours: np.ndarray
    """Which of the correctly classified images casemate leaves."""
    original: np.ndarray
    """Which of them the original AutoAttack leaves."""
    together: np.ndarray | None
    """Which of them it and adv-lib's minimum-norm attacks leave together; None if those were not run."""
    seconds: float
    """Seconds of the processor of the original at this eps."""

    @property
    def p_value(self) -> float:
        """Of McNemar's test that both leave equally many."""
        return mcnemar(self.ours, self.original)

    @property
    def is_worse(self) -> bool:
        """Whether casemate leaves more, and not by chance."""
        return bool(self.ours.sum() > self.original.sum()) and self.p_value < CHANCE

    @property
    def text(self) -> str:
        """A row of the Markdown table, in numbers of images."""
        together = "" if self.together is None else str(int(self.together.sum()))
        counts = f"{int(self.ours.sum())} | {int(self.original.sum())} | {together}"
        return f"| {self.network} | {self.norm} | {self.eps:g} | {len(self.ours)} | {counts} | {self.p_value:.2g} |"


def rows(cell: Cell, found: dict[str, Any]) -> Iterator[Row]:
    """A row for each eps of a cell for which the original's results are there, of the same weights and images."""
    near = originals.read(originals.Cell(network=cell.network, norm=cell.norm, eps=None), found["weights"])
    for column, eps in enumerate(cell.eps):
        theirs = originals.read(originals.Cell(network=cell.network, norm=cell.norm, eps=eps), found["weights"])
        if theirs is None or theirs["clean"] != found["clean"]:
            continue
        left = np.array(theirs["robust"], dtype=bool)
        left[theirs["unconfirmed"]] = True
        together = None
        if near is not None:
            distance = np.array(
                [[np.inf if far is None else far for far in each["distance"]] for each in near["attacks"].values()]
            )
            together = left & (distance.min(0) > eps * (1 + 1e-5))
        yield Row(
            network=cell.network.name,
            norm=cell.norm,
            eps=eps,
            n=found["n"],
            ours=np.array(found["robust"][column], dtype=bool),
            original=left,
            together=together,
            seconds=theirs["processor_seconds"],
        )


def outside(made: Iterable[Row]) -> str:
    """A sentence on networks trained in Linf, in L2 and L1, where AutoAttack overstates most.

    Of the cells those where it leaves 40 to 75 % of the images.
    """
    trained = {each.name for each in NETWORKS if each.recipe.kind != "plain" and each.recipe.norm == "linf"}
    ours, together = list[int](), list[int]()
    for each in made:
        between = 0.4 <= each.original.sum() / each.n <= 0.75
        if each.network in trained and each.norm in ("l2", "l1") and between and each.together is not None:
            ours.append(int(each.ours.sum()))
            together.append(int(each.together.sum()))
    more = sum(one > other for one, other in zip(ours, together, strict=True))
    return (
        f"Networks trained in Linf, in L2 and L1, where the original leaves 40 to 75 %: {len(ours)} cells, in which "
        f"casemate leaves {sum(ours)} images, the original and adv-lib's attacks together {sum(together)}; casemate "
        f"leaves more than both together in {more} of them."
    )


def page(cells: Iterable[Cell]) -> str:
    """The page of results, in Markdown."""
    made, seconds, earlier = list[Row](), list[str](), list[str]()
    for cell in cells:
        found = cell.read()
        if not found:
            continue
        if not has_this_budget(cell, found):
            earlier.append(f"{cell.network.name} in {cell.norm} ({found['commit']})")
        mine = list(rows(cell, found))
        made += mine
        if len(mine) == len(cell.eps):
            theirs = sum(each.seconds for each in mine)
            ours = found["processor_seconds"]
            seconds.append(f"| {cell.network.name} | {cell.norm} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |")
    worse = [each for each in made if each.is_worse]
    lines = [
        "# Strength: casemate beside the originals",
        "",
        "Written by `python benchmarks/strength/run.py`; the files are in `results/` and `originals/`, README.md says",
        "what was run. Numbers of images that are left, of those that the network classifies correctly: by casemate's",
        "budget `standard` (one run for all eps of a norm), by the original AutoAttack, and by that and adv-lib's",
        "minimum-norm attacks together.",
        "",
        f"{len(made)} cells: casemate leaves {sum(int(each.ours.sum()) for each in made)} images, the original "
        f"{sum(int(each.original.sum()) for each in made)}. Significantly more than the original (McNemar's test, 5 %) "
        f"in {len(worse)} cells{': ' if worse else ''}{', '.join(f'{e.network} {e.norm} {e.eps:g}' for e in worse)}.",
        "",
        outside(made),
        "",
        *([f"With an earlier form of the budget, still to be run again: {', '.join(earlier)}.", ""] if earlier else []),
        "| network | norm | eps | correct | casemate | original | with adv-lib | p |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(each.text for each in made),
        "",
        "## Seconds",
        "",
        "Of the processor, for the three eps of a norm together, one thread. Both ran beside other work, at different",
        "times.",
        "",
        "| network | norm | casemate | original | ratio |",
        "| --- | --- | --- | --- | --- |",
        *seconds,
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compute what is missing; return the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="the networks; default: all reported ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cells = [] if options.page else plan(options.names)
    if not has_networks(cells, options.folder):
        return 2
    for cell in cells:
        kept = cell.read()
        same = kept.get("weights") == weights_of(cell.network.name, options.folder)
        if same and has_this_budget(cell, kept):
            continue
        found = compute(cell, options.folder)
        write(cell.path, found)
        left = ", ".join(str(sum(each)) for each in found["robust"])
        print(
            f"{time.strftime('%H:%M:%S')} {cell.path.stem}: {left} left, {found['processor_seconds']:.0f} s", flush=True
        )
    write_text(PAGE, page(plan()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
