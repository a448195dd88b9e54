"""The table of the numbers that the paper states beside ours, and why they differ, by stated rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from casemate.data import Dataset
from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate_study.claims.rules import agrees
from casemate_study.experiments import paper
from casemate_study.experiments.scales import Scale
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E4_STEP_SIZES, e4_prefix
from casemate_study.reference import Reference
from casemate_study.report.comparison import Table
from casemate_study.results.independent import share_of
from casemate_study.results.stored import Artifacts, StoredClean, StoredCurve, StoredTraining, find_result

_MENTIONED = 0.0005
"""Share of images with a gradient of exactly zero, from which on a row mentions it: less would be printed as 0.0 %."""


@final
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of the table that compares the paper's numbers with ours: paper, ours, difference, why."""

    name: str
    """The task whose artifact holds our number, and which of its numbers, such as "E2/fgsm/ce, eps 0.1"; equal at every
    scale."""
    what: str
    paper: str
    ours: str
    estimate: Estimate
    """Our number, which `ours` gives as text."""
    stated: float
    """The paper's number, which `paper` gives as text."""
    difference: str
    why: str

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON, with `estimate` as a dictionary (value, low, high, n)."""
        return vars(self) | {"estimate": self.estimate.as_json()}


@final
@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Our accuracy under an attack in one of the settings that the paper leaves open, such as the loss that FGSM
    ascends.
    """

    name: str
    words: str
    left: Estimate
    zero: Estimate
    """Share of images whose input gradient is exactly zero, so that the attack does not move them."""


def other_data(dataset: Dataset) -> str | None:
    """None if `dataset` is the paper's data set; otherwise the name of the paper's, "Fashion-MNIST"."""
    return None if dataset.name == "fashion-mnist" else "Fashion-MNIST"


def comparisons(artifacts: Artifacts, scale: Scale, instead_of: str | None) -> list[Comparison]:
    """The rows that compare the paper's accuracies with ours: without an attack (E1, its classes, E5, the teacher and
    students of E9), of E1 under FGSM at 0.1 and after 25 iterations of BIM, and of E6 under FGSM at 0.2. Losses and
    times are among the claims.

    Rows whose artifact is not finished are omitted. `instead_of` is the paper's data set if ours is
    another, else None.
    """
    steps = {f"step {size}, {TITLES[loss]}": f"{e4_prefix(size)}/{loss}" for size in E4_STEP_SIZES for loss in LOSSES}
    fgsm = {TITLES[loss]: f"E2/fgsm/{loss}" for loss in LOSSES}
    defended = {TITLES[loss]: f"E6/fgsm/{loss}" for loss in LOSSES}
    caveat = _caveat(scale, instead_of)
    return [
        *_clean_rows(artifacts, caveat),
        *_attack_rows(paper.FGSM_AT_01, _settings(artifacts, fgsm, "eps", 0.1), caveat),
        *_attack_rows(paper.BIM_AT_25, _settings(artifacts, steps, "steps", 25), caveat),
        *_attack_rows(paper.ADVERSARIAL_AT_02, _settings(artifacts, defended, "eps", 0.2), caveat),
    ]


def comparison_table(rows: Sequence[Comparison], reference: Reference | None) -> Table:
    """The rows as a table of the report; with `reference`, also our numbers in committed runs at larger scales."""
    beside = () if reference is None else (f"ours at scale {reference.scales}",)
    return Table(
        ("what", "paper", "ours", *beside, "difference", "why"),
        [
            (
                row.what,
                row.paper,
                row.ours,
                *(() if reference is None else (reference.compared(row.name) or "-",)),
                row.difference,
                row.why,
            )
            for row in rows
        ],
        "",
    )


def _caveat(scale: Scale, instead_of: str | None) -> str:
    """A sentence on why our numbers decide nothing about the paper's (other data, small scale); empty if they can."""
    if instead_of:
        return f"Another data set than the paper's {instead_of}: this decides nothing. "
    return (
        "" if scale.decides else f"Scale {scale.name} cannot decide this: it trains on {scale.train_images:,} images. "
    )


def _row(name: str, statement: paper.Statement, estimate: Estimate, why: str, setting: str | None = None) -> Comparison:
    return Comparison(
        name=name,
        what=f"{statement.experiment}: {statement.what}" + (f"; {setting}" if setting else ""),
        paper=f"{statement.in_percent} (section {statement.where})",
        ours=f"{estimate:n}",
        estimate=estimate,
        stated=statement.value,
        difference=f"{100 * (estimate.value - statement.value):+.1f} points",
        why=why,
    )


def _clean_rows(artifacts: Artifacts, caveat: str) -> list[Comparison]:
    """The rows on accuracies without an attack: E1's (the undefended network's) over all test images and in its worst
    and best class, E5's (test, validation, training), and those of the teacher and of every student of E9.

    Rule for "why": the paper's number, allowing for its rounding, lies within our interval (`agrees`); or on which side
    of it, and what the paper leaves open.
    """
    rows = []
    for name, statement, estimate, setting in _clean_accuracies(artifacts):
        if agrees(estimate, statement):
            why = "The paper's number, rounded as it is, lies within our interval."
        else:
            side = "above" if statement.value > estimate.high else "below"
            why = (
                f"The paper's number lies {side} our interval. The paper gives no batch size, learning rate, number of "
                "epochs or seed, and does not say on which split the number was taken."
            )
        rows.append(_row(name, statement, estimate, caveat + why, setting))
    return rows


def _clean_accuracies(artifacts: Artifacts) -> list[tuple[str, paper.Statement, Estimate, str | None]]:
    """Our accuracies without an attack of which the paper states a number: the row's name, the paper's number, ours,
    and the model where several are compared with the same number.
    """
    found: list[tuple[str, paper.Statement, Estimate, str | None]] = []
    e1 = find_result(artifacts, "E1/clean", StoredClean)
    if e1 is not None:
        classes = [each for each in e1.per_class if each is not None]
        worst, best = (pick(classes, key=lambda each: each.value) for pick in (min, max))
        found = [
            ("E1/clean, accuracy", paper.TEST_ACCURACY, e1.accuracy, None),
            ("E1/clean, worst class", paper.WORST_CLASS, worst, None),
            ("E1/clean, best class", paper.BEST_CLASS, best, None),
            ("E1/clean, accuracy of the teacher", paper.TEACHER_ACCURACY, e1.accuracy, None),
        ]
    for name in artifacts:
        model, _, measure = name.partition("/")
        clean = find_result(artifacts, name, StoredClean) if measure == "clean" else None
        if clean is not None and model == "E5":
            found.append((f"{name}, accuracy", paper.AUGMENTED_TEST, clean.accuracy, None))
        elif clean is not None and model.startswith("E9-") and not model.startswith("E9-teacher"):
            found.append((f"{name}, accuracy", paper.STUDENT_ACCURACY, clean.accuracy, model))
    e5 = find_result(artifacts, "E5/train", StoredTraining)
    if e5 is not None:
        validated, trained = (
            share_of(e5.best.val_accuracy, e5.validation_images),
            share_of(e5.best.accuracy, e5.train_images),
        )
        found.append(("E5/train, validation accuracy", paper.AUGMENTED_VALIDATION, validated, None))
        found.append(("E5/train, training accuracy", paper.AUGMENTED_TRAINING, trained, None))
    return sorted(found, key=lambda each: each[1].experiment)


def _settings(artifacts: Artifacts, names: Mapping[str, str], axis: str, value: float) -> list[_Setting]:
    """The settings in which a curve has a point at `value`, with the accuracy there.

    `names` gives the curve's task by the setting's description; `axis` is "eps" or "steps".
    """
    found = []
    for words, name in names.items():
        curve = find_result(artifacts, name, StoredCurve)
        point = None if curve is None else curve.at(value)
        if curve is not None and point is not None:
            zero = curve.zero_gradients
            found.append(_Setting(name=f"{name}, {axis} {value:g}", words=words, left=point.last, zero=zero))
    return found


def _attack_rows(statement: paper.Statement, settings: Sequence[_Setting], caveat: str) -> list[Comparison]:
    """The rows that compare one number of the paper with ours in each setting.

    Rule for "why": whether the paper's number, allowing for its rounding, lies within the setting's interval
    (`agrees`); if not, the nearest setting's row calls it unexplained.
    """
    nearest = min(settings, key=lambda each: abs(each.left.value - statement.value), default=None)
    rows = []
    for each in settings:
        if agrees(each.left, statement):
            why = "The paper's number, rounded as it is, lies within our interval for this setting."
        elif each is nearest:
            why = "The nearest of ours, but the paper's number lies outside its interval: unexplained by this setting."
        else:
            why = "The paper's number lies outside our interval."
        if each.zero.value >= _MENTIONED:
            why += f" {percent(each.zero.value)} of the images had no gradient to follow under this loss."
        rows.append(_row(each.name, statement, each.left, caveat + why, each.words))
    return rows
