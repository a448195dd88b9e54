"""Committed runs: our results at the scales full, paper and medium, which reports at smaller scales show beside theirs.

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

ORDER = ("full", "paper", "medium")
"""The scales that may have a committed run, the larger first."""


@final
@dataclass(frozen=True, kw_only=True)
class CommittedRun:
    """The numbers of one committed run of ours, read from what `reference_json` wrote."""

    scale: str
    dataset: str
    models: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict[str, Mapping[str, Estimate]])
    """Accuracy by the model's name, then by measure: "clean", or at eps 0.1 "fgsm", "ball" (BIM), "worst" (case)."""
    claims: Mapping[str, str] = field(default_factory=dict[str, str])
    """Our verdict on each claim of the paper ("holds", ...), by the claim's text."""
    compared: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])
    """Our numbers (not the paper's) that a report compares with the paper's, by `paper_comparison.Comparison.name`."""


@final
@dataclass(frozen=True)
class Reference:
    """Our committed runs at larger scales, the largest first.

    Each method looks one result up in the first run that has it and returns it as text after the name of that run's
    scale, such as "full: 62.0 % (58.9 to 65.0)"; None if no run has it.
    """

    runs: tuple[CommittedRun, ...]

    @property
    def scales(self) -> str:
        """The names of the runs' scales, joined by "or": "full or medium"."""
        return " or ".join(run.scale for run in self.runs)

    def _first(self, entry: Callable[[CommittedRun], object]) -> str | None:
        return next((f"{run.scale}: {found}" for run in self.runs if (found := entry(run)) is not None), None)

    def accuracy(self, model: str, measure: str) -> str | None:
        """Accuracy of a model in our committed runs, as "SCALE: accuracy (interval)"; None if no run has it.

        `measure` is "clean", or at eps 0.1 "fgsm", "ball" (BIM with clip ball) or "worst" (all the study's attacks).
        """
        return self._first(lambda run: run.models.get(model, {}).get(measure))

    def claim(self, says: str) -> str | None:
        """Our verdict on the paper's claim with the text `says`, as "SCALE: verdict"; None if no run has one."""
        return self._first(lambda run: run.claims.get(says))

    def compared(self, name: str) -> str | None:
        """Our number (not the paper's) called `name` in a committed run, as "SCALE: number (interval, n = size)".

        `name` is that of a row of `paper_comparison.comparisons`; None if no committed run has it.
        """
        return self._first(lambda run: f"{run.compared[name]:n}" if name in run.compared else None)


def reference_json(
    models: Mapping[str, ModelResults],
    claims: Sequence[Judgement],
    compared: Mapping[str, Estimate],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The numbers of a run as JSON, in the form of `CommittedRun`: once committed, reports at smaller scales show them.

    `models` gives the accuracies, `claims` the verdicts, `compared` our numbers beside the paper's; what is not
    measured is omitted. `about` (scale, data set and seed) is copied.
    """
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
    """Our committed runs on the data set called `dataset` at scales larger than `scale`; None if there are none, or if
    `scale` decides the claims itself.
    """
    if scale.decides:
        return None
    larger = ORDER[: ORDER.index(scale.name)] if scale.name in ORDER else ORDER
    runs = [run for name in larger if (run := _committed(name)) is not None and run.dataset == dataset]
    return Reference(tuple(runs)) if runs else None
