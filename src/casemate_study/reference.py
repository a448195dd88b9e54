"""Our own committed results at larger scales, shown beside those of a smaller one.

`reference/full.json` and `reference/medium.json` are copies of the reference.json files that `casemate report` writes
and `docs/results` holds; a test compares them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, final

from casemate.evaluation import Estimate
from casemate_study.claims import Judgement
from casemate_study.claims.verdicts import EPS
from casemate_study.experiments.scales import Scale
from casemate_study.results.models import ModelResults
from casemate_study.results.reading import read_as

ORDER = ("full", "medium")
"""The larger first."""


@final
@dataclass(frozen=True, kw_only=True)
class CommittedRun:
    """The numbers of one run, as `reference_json` writes them."""

    scale: str
    dataset: str
    models: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict[str, Mapping[str, Estimate]])
    """Accuracies by the name of the model, then "clean", "fgsm", "ball" or "worst"."""
    claims: Mapping[str, str] = field(default_factory=dict[str, str])
    """Verdicts by the paper's claim."""
    compared: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    """Our numbers beside the paper's, by name."""


@final
@dataclass(frozen=True)
class Reference:
    """Committed runs at larger scales, the largest first.

    Each entry is that of the first run that has it, as text after the name of its scale; None if no run has it.
    """

    runs: tuple[CommittedRun, ...]

    @property
    def scales(self) -> str:
        """The names of the scales, joined by "or"."""
        return " or ".join(run.scale for run in self.runs)

    def _first(self, entry: Callable[[CommittedRun], object]) -> str | None:
        return next((f"{run.scale}: {found}" for run in self.runs if (found := entry(run)) is not None), None)

    def accuracy(self, model: str, measure: str) -> str | None:
        """An accuracy of a model: "clean", "fgsm", "ball" or "worst"."""
        return self._first(lambda run: run.models.get(model, {}).get(measure))

    def claim(self, says: str) -> str | None:
        """The verdict on a claim of the paper."""
        return self._first(lambda run: run.claims.get(says))

    def compared(self, name: str) -> str | None:
        """Our number of this name beside the paper's, with its sample size."""
        return self._first(lambda run: f"{run.compared[name]:n}" if name in run.compared else None)


def reference_json(
    models: Mapping[str, ModelResults],
    claims: Sequence[Judgement],
    compared: Mapping[str, Estimate],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The numbers that a later report at a smaller scale shows beside its own, as JSON."""
    rows: dict[str, dict[str, Any]] = {}
    for name, each in models.items():
        found = {
            "clean": each.clean.accuracy if each.clean else None,
            "fgsm": each.accuracy_under("fgsm", EPS),
            "ball": each.accuracy_under("ball", EPS),
            "worst": each.worst_case(EPS),
        }
        rows[name] = {measure: estimate.as_json() for measure, estimate in found.items() if estimate is not None}
    known = {each.claim.says: each.verdict for each in claims if each.verdict != "not measured"}
    numbers = {name: estimate.as_json() for name, estimate in compared.items()}
    return {**about, "eps": EPS, "models": rows, "claims": known, "compared": numbers}


def _committed(scale: str) -> CommittedRun | None:
    place = resources.files("casemate_study").joinpath("reference", f"{scale}.json")
    return read_as(CommittedRun, json.loads(place.read_text()), str(place)) if place.is_file() else None


def reference_for(scale: Scale, dataset: str) -> Reference | None:
    """The committed runs on the same data that are larger than `scale`; None if there is none."""
    larger = ORDER[: ORDER.index(scale.name)] if scale.name in ORDER else ORDER
    runs = [run for name in larger if (run := _committed(name)) is not None and run.dataset == dataset]
    return Reference(tuple(runs)) if runs else None
