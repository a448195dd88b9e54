"""The table of a benchmark: one row per model, from the files of its folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from casemate.benchmark.entry import Entry
from casemate.benchmark.folder import BenchmarkFolder
from casemate.benchmark.measures import AbstractMeasure, Attacked, Certified
from casemate.benchmark.plan import BenchmarkPlan
from casemate.evaluation import Estimate


@final
@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """What is known of one model so far."""

    name: str
    entry: Entry
    training: Mapping[str, Any] | None
    """Parameters, epoch, seconds, processor seconds, threads, fingerprint and where; None if it is not trained."""
    results: Mapping[AbstractMeasure, Mapping[str, Any]]
    """The finished measurements."""

    def clean(self) -> Estimate | None:
        """Accuracy without an attack on all test images; None if the model is not trained."""
        return None if self.training is None else Estimate.from_json(self.training["test_accuracy"])

    def clean_of_first(self) -> Estimate | None:
        """Accuracy without an attack on the first test images, those of `robust`; None before they are attacked."""
        found = next((each for measure, each in self.results.items() if measure.images is not None), None)
        return None if found is None else Estimate.from_json(found["clean"])

    def robust(self, eps: float, *, whole: bool = False) -> list[Estimate]:
        """Accuracy under attack at `eps`: on the first test images, or with `whole` on all of them, by seed."""
        return self._found(eps, "robust", whole=whole)

    def widest(self, eps: float, what: Literal["robust", "certified"]) -> Estimate | None:
        """The estimate at `eps` on all test images, or else on the first ones; of several seeds, the first."""
        return next(iter([*self._found(eps, what, whole=True), *self._found(eps, what, whole=False)]), None)

    def verdict(self, eps: float) -> str | None:
        """The verdict at `eps` on all test images, or else on the first ones; None before they are attacked."""
        known = [
            (measure, found["verdicts"][measure.eps.index(eps)])
            for measure, found in self.results.items()
            if isinstance(measure, Attacked) and eps in measure.eps
        ]
        whole = [word for measure, word in known if measure.images is None]
        return next(iter([*whole, *(word for _, word in known)]), None)

    def findings(self) -> list[str]:
        """The findings that weaken or void a number, by check, of all evaluations."""
        return [
            f"{each['check']} ({each['severity']})"
            for found in self.results.values()
            for each in found.get("findings", [])
            if each["severity"] != "note"
        ]

    def is_void(self) -> bool:
        """Whether attacks fooled certified images, so that no certificate counts."""
        return any(found.get("void", False) for found in self.results.values())

    def as_json(self) -> dict[str, Any]:
        """All of it, for benchmark.json."""
        return {
            "model": self.name,
            "kind": self.entry.kind,
            "entry": self.entry.as_json(),
            "training": None if self.training is None else dict(self.training),
            "measures": [{**measure.as_json(), **found} for measure, found in self.results.items()],
        }

    def _found(self, eps: float, what: str, *, whole: bool) -> list[Estimate]:
        return [
            Estimate.from_json(found[what][measure.eps.index(eps)])
            for measure, found in self.results.items()
            if what in found
            and eps in measure.eps
            and (measure.images is None) == whole
            # of a certified model the attacks on all of the same images are stronger than those on the rest
            and not (what == "robust" and isinstance(measure, Certified) and not whole)
        ]


def benchmark_rows(plan: BenchmarkPlan, folder: BenchmarkFolder) -> list[BenchmarkRow]:
    """The rows of all models of a plan, with what is finished. Raises `SettingError`, `StoreError`."""
    rows: list[BenchmarkRow] = []
    for name, entry in plan.entries.items():
        training = folder.training(name, entry)
        results: dict[AbstractMeasure, Mapping[str, Any]] = {}
        if training is not None:
            for measure in plan.measures(name):
                found = folder.result(name, measure, str(training["fingerprint"]))
                if found is not None:
                    results[measure] = found
        rows.append(BenchmarkRow(name=name, entry=entry, training=training, results=results))
    return rows
