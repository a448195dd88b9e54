"""The table that shows which differences between models are the same when they are trained with further seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from casemate.evaluation import Estimate
from casemate_study.claims import artifacts_by_seed, results_from
from casemate_study.claims.rules import points, under_pgd
from casemate_study.claims.temperatures import teacher_of
from casemate_study.claims.verdicts import EPS
from casemate_study.report.comparison import Table
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import PairedComparison, compare_accuracy, compare_masks
from casemate_study.results.stored import Artifacts

_MEASURES = (("clean", 0.0), ("fgsm", EPS), ("ball", EPS), ("pgd", 0.01), ("pgd", 0.025), ("worst", EPS))
"""What is compared, at which eps: PGD at small ones, where it leaves something of every model."""
_TITLES = {"clean": "without an attack", "fgsm": "FGSM", "ball": "BIM", "pgd": "PGD-40", "worst": "worst case"}
_ORDERS = {1: "above", -1: "below", 0: "no difference shown"}


@final
@dataclass(frozen=True, kw_only=True)
class _AtSeed:
    """One accuracy of a model with one seed, and its paired comparison with its baseline's of the same seed."""

    accuracy: Estimate
    against: PairedComparison | None
    """None for E1 itself, and where the baseline was not measured."""

    def __str__(self) -> str:
        if self.against is None:
            return f"{self.accuracy:n}"
        return f"{self.accuracy:n}; {_ORDERS[self.against.order]}, {points(self.against.difference)}"


def _baseline(name: str) -> str:
    """The model that one with further seeds is compared with: a student's teacher, else E1 (undefended)."""
    return teacher_of(name) if name.startswith(("E9-", "E10-")) and "teacher" not in name else "E1"


def _at_seed(models: Mapping[str, ModelResults], name: str, measure: str, eps: float) -> _AtSeed | None:
    """One accuracy of the model called `name` among `models` of one seed; None if it is not measured."""
    mine, baseline = models.get(name), models.get(_baseline(name))
    if mine is None:
        return None
    accuracy = _accuracy(mine, measure, eps)
    if accuracy is None:
        return None
    if baseline is None or name == "E1":
        return _AtSeed(accuracy=accuracy, against=None)
    if measure == "clean":
        against = compare_accuracy(mine.artifact("clean"), baseline.artifact("clean"))
    elif measure == "worst":
        masks = mine.robust_mask(eps), baseline.robust_mask(eps)
        against = None if masks[0] is None or masks[1] is None else compare_masks(masks[0], masks[1])
    elif measure == "pgd":
        against = under_pgd(mine, baseline).get(eps)
    else:
        against = compare_accuracy(mine.artifact(measure, "ce"), baseline.artifact(measure, "ce"), "eps", eps)
    return _AtSeed(accuracy=accuracy, against=against)


def _accuracy(model: ModelResults, measure: str, eps: float) -> Estimate | None:
    if measure == "clean":
        return None if model.clean is None else model.clean.accuracy
    if measure == "worst":
        return model.worst_case(eps)
    return model.under_strongest(eps) if measure == "pgd" else model.accuracy_under(measure, eps)


def _spread(found: Mapping[int, _AtSeed | None]) -> str:
    """The highest accuracy minus the lowest over the seeds, as text; empty if fewer than two are known."""
    known = [each.accuracy.value for each in found.values() if each is not None]
    return f"{100 * (max(known) - min(known)):.1f} points" if len(known) > 1 else ""


def _survival(found: Mapping[int, _AtSeed | None]) -> str:
    """Whether the order against the baseline is the same with every seed, as text; empty if fewer than two are
    known.
    """
    orders = {seed: each.against.order for seed, each in found.items() if each is not None and each.against is not None}
    if len(orders) < 2:
        return ""
    if len(set(orders.values())) > 1:
        return "differs: " + ", ".join(f"{_ORDERS[order]} with seed {seed}" for seed, order in orders.items())
    order = next(iter(orders.values()))
    return (
        f"no difference shown with any of {len(orders)}" if order == 0 else f"{_ORDERS[order]} with all {len(orders)}"
    )


def seeds_table(models: Mapping[str, ModelResults], artifacts: Artifacts, seed: int) -> Table | None:
    """A table with one row per accuracy of each model that was trained with further seeds: its value and its order
    against its baseline (`_baseline`) with every seed, by how much the seeds differ, and whether that order is always
    the same. None without further seeds.

    `seed` is this run's own. Its worst case is over the attacks that the further seeds have too.
    """
    further = artifacts_by_seed(artifacts)
    names = {name for each in further.values() for name in each}
    same = {name: artifact for name, artifact in artifacts.items() if name in names}
    by_seed = {number: results_from(models, each) for number, each in {seed: same, **further}.items()}
    trained = [name for name in models if any(name in by_seed[number] for number in further)]
    if not trained:
        return None
    rows: list[tuple[str, ...]] = []
    for name in trained:
        for measure, eps in _MEASURES:
            words = f"{_TITLES[measure]} {eps:g}" if eps else _TITLES[measure]
            found = {number: _at_seed(results, name, measure, eps) for number, results in by_seed.items()}
            if any(found.values()):
                cells = ("-" if each is None else str(each) for each in found.values())
                rows.append((models[name].title, words, *cells, _spread(found), _survival(found)))
    return Table(
        ("model", "accuracy", *(f"seed {number}" for number in by_seed), "spread", "against baseline"),
        rows,
        "Accuracy with its 95 % interval; then the order against the baseline of the same seed (a student's teacher, "
        "else E1) by the paired test on the same images, and the difference with its interval. Spread: the highest "
        "accuracy minus the lowest. Worst case: over those of FGSM, BIM and PGD-40 that were run with every seed.",
    )
