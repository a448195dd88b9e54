"""The report's section on hypotheses of why the paper's accuracy of E1 under FGSM is not ours, with their numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate_study.experiments import paper
from casemate_study.experiments.hypotheses import E2_CONDITIONS, HYPOTHESES, MEAN_OF, UNCHANGED
from casemate_study.experiments.specs import LOSSES
from casemate_study.report.comparison import Table
from casemate_study.results.hypotheses import (
    WANTED,
    Trial,
    explaining_trials,
    hypotheses_after_epochs,
    hypotheses_by_epoch,
    numbered,
    trials_of,
)
from casemate_study.results.stored import Artifacts, StoredHypotheses

_HEAD = tuple(f"ascending {TITLES[loss]}" for loss in LOSSES)
_MOST = 6
"""The largest number of trials that the sentence names."""


@final
@dataclass(frozen=True, kw_only=True)
class HypothesesSection:
    """The section: its tables, and a sentence that follows from them by a rule."""

    tables: tuple[Table, ...]
    conclusion: str


def _cell(estimate: Estimate | None, *, count: bool = True) -> str:
    """Text of a table cell: the accuracy with its interval, with n (`count`), and a note if the interval includes the
    paper's number.
    """
    if estimate is None:
        return "-"
    words = f"{estimate:n}" if count else str(estimate)
    return f"{words}, includes {percent(WANTED)}" if estimate.low <= WANTED <= estimate.high else words


def _final_table(found: StoredHypotheses) -> Table:
    """A table with one numbered row per hypothesis, tried on the final weights: accuracy by the loss ascended."""
    rows = [(numbered(name), *(_cell(found.single[name][loss]) for loss in LOSSES)) for name in HYPOTHESES]
    pairs = [trial for trial in trials_of(found, None) if len(trial.hypotheses) > 1]
    by_loss = {trial.loss: f"{trial.numbers}: {_cell(trial.accuracy)}" for trial in pairs}
    if by_loss:
        rows.append(("the two that raise it most with this loss, combined", *(by_loss.get(x, "-") for x in LOSSES)))
    clean = ", ".join(f"{estimate:n} of {part} images" for part, estimate in found.clean.items())
    return Table(
        ("what is changed in E2's measure", *_HEAD),
        rows,
        f"E1's final weights, accuracy at the last iterate of FGSM at eps {E2_CONDITIONS['eps']:g}, with 95 % "
        f"intervals (Wilson); a cell says so if its interval includes the paper's {percent(WANTED)}. Without an "
        f"attack: {clean}.",
    )


def _epochs_table(by_epoch: Mapping[int, StoredHypotheses]) -> Table | None:
    """A table with one row per number of epochs: accuracy without an attack, under FGSM as in E2, and with the
    hypotheses that come nearest to the paper's number, by the loss ascended. None if fewer than two are measured.
    """
    if len(by_epoch) < 2:
        return None
    rows: list[tuple[str, ...]] = []
    counts: set[int] = set()
    for epoch, found in by_epoch.items():
        clean = found.clean["test"]
        under = [found.single[UNCHANGED][loss] for loss in LOSSES]
        nearest = [f"{each.numbers}: {_cell(each.accuracy, count=False)}" for each in _nearest(found, epoch)]
        rows.append((str(epoch), str(clean), *(_cell(each, count=False) for each in under), *nearest))
        counts.add(clean.n)
    near = tuple(f"nearest, {TITLES[loss]}" for loss in LOSSES)
    return Table(
        ("E1 after epoch", "clean", *(f"as in E2, {TITLES[loss]}" for loss in LOSSES), *near),
        rows,
        f"As in E2: FGSM at eps 0.1 on test images. Nearest: the hypothesis, or the pair, whose accuracy is nearest to "
        f"{percent(WANTED)}, by its numbers in the table above. n = {', '.join(f'{n:,}' for n in sorted(counts))}; "
        "fewer with hypothesis 6.",
    )


def _nearest(found: StoredHypotheses, epoch: int) -> list[Trial]:
    """For each loss the trial whose accuracy is nearest to the paper's."""
    by_loss: dict[str, list[Trial]] = {loss: [] for loss in LOSSES}
    for trial in trials_of(found, epoch):
        by_loss[trial.loss].append(trial)
    return [min(by_loss[loss], key=lambda trial: abs(trial.accuracy.value - WANTED)) for loss in LOSSES]


def _zero_table(found: StoredHypotheses) -> Table:
    """A table of the shares of images and of pixels without a gradient, for each way to compute the gradient."""
    ways = {"own": "each image's own loss", "mean": f"the mean loss of {MEAN_OF:,} images, denormals flushed to zero"}
    rows: list[tuple[str, ...]] = []
    for way, words in ways.items():
        by_loss = found.zero_gradients[way]
        rows.append((f"images, gradient of {words}", *(f"{by_loss[loss].images:n}" for loss in LOSSES)))
        rows.append((f"pixels, gradient of {words}", *(f"{by_loss[loss].pixels:n}" for loss in LOSSES)))
    return Table(
        ("share exactly zero", *(TITLES[loss] for loss in LOSSES)),
        rows,
        "An attack that follows the gradient's sign does not change pixels whose gradient is zero. Images: those with "
        "a zero gradient in every pixel, Wilson interval; pixels: mean over the images, bootstrap interval.",
    )


def _conclusion(artifacts: Artifacts, tried: int) -> str:
    """The last sentence. Rule: trials whose interval includes the paper's number may explain it; unexplained if none
    does. Among many trials some may include it by chance, so the sentence says how many there are.
    """
    explaining = explaining_trials(artifacts)
    statement = paper.FGSM_AT_01
    number = f"the paper's {percent(statement.value)} (section {statement.where})"
    if not explaining:
        return f"None of the {tried} measures (hypotheses and pairs, losses, epochs) reproduces {number}: unexplained."
    named = "; ".join(map(str, explaining[-_MOST:]))
    verb = "has" if len(explaining) == 1 else "have"
    more = f"; and {len(explaining) - _MOST} more" if len(explaining) > _MOST else ""
    return (
        f"Of the {tried} measures (hypotheses and pairs, losses, epochs) {len(explaining)} {verb} an interval that "
        f"includes {number}, which may be explained by: {named}{more}."
    )


def hypotheses_section(artifacts: Artifacts) -> HypothesesSection | None:
    """The section on the hypotheses that were tried; None if those on the final weights are not finished."""
    by_epoch = hypotheses_by_epoch(artifacts)
    found = by_epoch.get(None)
    if found is None:
        return None
    tried = sum(len(list(trials_of(each, epoch))) for epoch, each in by_epoch.items())
    epochs = hypotheses_after_epochs(artifacts)
    tables: Sequence[Table | None] = (_final_table(found), _epochs_table(epochs), _zero_table(found))
    return HypothesesSection(
        tables=tuple(table for table in tables if table is not None),
        conclusion=_conclusion(artifacts, tried),
    )
