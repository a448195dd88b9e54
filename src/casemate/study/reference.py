"""Our own committed results at the larger scales, to be shown beside those of a smaller one.

`reference/full.json` and `reference/medium.json` are copies of the files that `casemate report` writes and that
`docs/results` holds; a test compares them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from casemate.study.claims import Judgement
from casemate.study.results import Judged
from casemate.study.scales import Scale
from casemate.study.verdicts import EPS

ORDER = ("full", "medium")
"""The larger first."""


@dataclass(frozen=True)
class Reference:
    """What the report shows of a committed run."""

    scale: str
    content: Mapping[str, Any]

    def cell(self, model: str, what: str) -> str:
        """An accuracy with its interval in percent; a dash if that run has none."""
        found = self.content["models"].get(model, {}).get(what)
        if found is None:
            return "-"
        return f"{100 * found['value']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"

    def verdict(self, says: str) -> str:
        """The verdict on a claim in that run."""
        return self.content["claims"].get(says, "not measured")


def summarised(models: Mapping[str, Judged], claims: Sequence[Judgement], about: Mapping[str, Any]) -> dict[str, Any]:
    """What a later report at a smaller scale will show of this one."""
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
    return {**about, "eps": EPS, "models": rows, "claims": known}


def reference_for(scale: Scale, dataset: str) -> Reference | None:
    """The committed run to show beside one at `scale`: the largest of the larger ones; None at full scale."""
    for name in ORDER:
        if scale.name == name:
            return None
        place = resources.files("casemate.study").joinpath("reference", f"{name}.json")
        if place.is_file():
            content = json.loads(place.read_text())
            return Reference(name, content) if content["dataset"] == dataset else None
    return None
