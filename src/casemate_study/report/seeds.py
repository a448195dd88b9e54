"""The table that shows which differences between models are the same when they are trained with further seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from casemate.evaluation import Estimate
from casemate_study.claims import artifacts_by_seed, results_from
from casemate_study.claims.rules import points
from casemate_study.claims.verdicts import EPS
from casemate_study.report.comparison import Table
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import PairedComparison, compare_accuracy, compare_masks
from casemate_study.results.stored import Artifacts

_MEASURES = {
    "clean": "without an attack",
    "fgsm": f"FGSM {EPS:g}",
    "ball": f"BIM {EPS:g}",
    "worst": f"worst case {EPS:g}",
}
_ORDERS = {1: "above", -1: "below", 0: "no difference shown"}


@final
@dataclass(frozen=True, kw_only=True)
class _AtSeed:
    """One accuracy of a model with one seed, and its paired comparison with E1's of the same seed."""

    accuracy: Estimate
    against: PairedComparison | None
    """None for E1 itself, and where E1 was not measured."""

    def __str__(self) -> str:
        if self.against is None:
            return f"{self.accuracy:n}"
        return f"{self.accuracy:n}; {_ORDERS[self.against.order]}, {points(self.against.difference)}"


def _at_seed(models: Mapping[str, ModelResults], name: str, measure: str) -> _AtSeed | None:
    """One accuracy of the model called `name` among `models` of one seed; None if it is not measured."""
    mine, baseline = models.get(name), models.get("E1")
    if mine is None:
        return None
    if measure == "clean":
        accuracy = None if mine.clean is None else mine.clean.accuracy
    else:
        accuracy = mine.worst_case(EPS) if measure == "worst" else mine.accuracy_under(measure, EPS)
    if accuracy is None:
        return None
    if baseline is None or name == "E1":
        return _AtSeed(accuracy=accuracy, against=None)
    if measure == "clean":
        against = compare_accuracy(mine.artifact("clean"), baseline.artifact("clean"))
    elif measure == "worst":
        masks = mine.robust_mask(EPS), baseline.robust_mask(EPS)
        against = None if masks[0] is None or masks[1] is None else compare_masks(masks[0], masks[1])
    else:
        against = compare_accuracy(mine.artifact(measure, "ce"), baseline.artifact(measure, "ce"), "eps", EPS)
    return _AtSeed(accuracy=accuracy, against=against)


def _survival(found: Mapping[int, _AtSeed | None]) -> str:
    """Whether the order against E1 is the same with every seed, as text; empty if fewer than two are known."""
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
    against E1 (undefended) with every seed, and whether that order is always the same. None without further seeds.

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
        for measure, words in _MEASURES.items():
            found = {number: _at_seed(results, name, measure) for number, results in by_seed.items()}
            if any(found.values()):
                cells = ("-" if each is None else str(each) for each in found.values())
                rows.append((models[name].title, words, *cells, _survival(found)))
    return Table(
        ("model", "accuracy", *(f"seed {number}" for number in by_seed), "against E1"),
        rows,
        "Accuracy with its 95 % interval; then the order against E1 of the same seed by the paired test on the same "
        "images, and the difference with its interval. Worst case: over those of FGSM, BIM and PGD-40 that were run "
        "with every seed.",
    )
