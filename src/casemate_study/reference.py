"""Our own committed results at the larger scales, to be shown beside those of a smaller one.

`reference/full.json` and `reference/medium.json` are copies of the files that `casemate report` writes and that
`docs/results` holds; a test compares them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import resources
from typing import Any, final

from casemate_study.claims import Judgement
from casemate_study.claims.verdicts import EPS
from casemate_study.experiments.scales import Scale
from casemate_study.results import Estimate, ModelResults

ORDER = ("full", "medium")
"""The larger first."""


@final
@dataclass(frozen=True)
class Reference:
    """Committed runs at larger scales, the largest first. Each entry is of the first run that has it."""

    runs: tuple[Mapping[str, Any], ...]
    """What `summarised` left of each."""

    @property
    def scales(self) -> str:
        """The scales that entries are of, in words."""
        return " or ".join(run["scale"] for run in self.runs)

    def entry(self, words: Callable[[Any], str], *path: str) -> str | None:
        """The entry at `path` in words, after the name of its scale; None if no run has it.

        Paths: "models", name, "clean", "fgsm", "ball" or "worst"; "claims", what the paper says; "compared", name.
        """
        for run in self.runs:
            found: Any = reduce(lambda place, name: place.get(name, {}), path, run)
            if found:
                return f"{run['scale']}: {words(found)}"
        return None


def summarised(
    models: Mapping[str, ModelResults],
    claims: Sequence[Judgement],
    compared: Mapping[str, Estimate],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What a later report at a smaller scale will show of this one: `compared` are our numbers beside the paper's."""
    rows: dict[str, Any] = {}
    for name, each in models.items():
        found = {
            "clean": each.clean["accuracy"] if each.clean else None,
            "fgsm": each.left("fgsm", EPS),
            "ball": each.left("ball", EPS),
            "worst": each.worst(EPS),
        }
        rows[name] = {what: estimate for what, estimate in found.items() if estimate is not None}
    known = {each.claim.says: each.verdict for each in claims if each.verdict != "not measured"}
    return {**about, "eps": EPS, "models": rows, "claims": known, "compared": dict(compared)}


def _committed(scale: str) -> dict[str, Any] | None:
    place = resources.files("casemate_study").joinpath("reference", f"{scale}.json")
    return json.loads(place.read_text()) if place.is_file() else None


def reference_for(scale: Scale, dataset: str) -> Reference | None:
    """The committed runs on the same data that are larger than `scale`; None if there is none."""
    larger = ORDER[: ORDER.index(scale.name)] if scale.name in ORDER else ORDER
    runs = [run for name in larger if (run := _committed(name)) is not None and run["dataset"] == dataset]
    return Reference(tuple(runs)) if runs else None
