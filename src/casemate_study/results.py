"""Reading stored results: points of curves, everything known of one model, and paired comparisons of two."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from casemate.engine import Artifact
from casemate.errors import StoreError
from casemate.evaluation import Verdict, mcnemar, mean, read_verdicts, share, verdict_on
from casemate.tables import Table, read_table
from casemate_study.experiments.models import StudyModel
from casemate_study.experiments.specs import LOSSES

Artifacts = Mapping[str, Artifact]
Estimate = Mapping[str, float]
"""value, low, high, n."""

_LEVEL = 0.05
"""Of the paired tests: below it two models differ."""


def point_at(artifact: Artifact, axis: str, value: float) -> dict[str, Any] | None:
    """The point of a stored curve where `axis` ("eps" or "steps") is `value`, if it was computed."""
    return next((point for point in artifact.result["points"] if abs(point[axis] - value) < 1e-9), None)


@final
@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a whole evaluation found at one eps."""

    verdict: Verdict
    raised: Mapping[str, str]
    """By name, the severity of the checks that found something."""

    @property
    def robust(self) -> Estimate:
        """Robust accuracy: the worst case over all its attacks."""
        return self.verdict.number.robust.as_json()


@final
@dataclass(frozen=True)
class ModelResults:
    """One model with all that was measured of it; what is not finished is None."""

    model: StudyModel
    artifacts: Artifacts

    @property
    def title(self) -> str:
        """The model's title."""
        return self.model.title

    def artifact(self, measure: str, loss: str | None = None) -> Artifact | None:
        """The piece of a measure: clean, fgsm, ball, range, pgd, eot, divided, evaluation."""
        return self.artifacts.get(self.model.artifact(measure, loss))

    @property
    def clean(self) -> dict[str, Any] | None:
        """The result on images that nobody attacked."""
        artifact = self.artifact("clean")
        return None if artifact is None else artifact.result

    @property
    def trained(self) -> dict[str, Any] | None:
        """The result of its training."""
        artifact = self.artifacts.get(self.model.source.task)
        return None if artifact is None else artifact.result

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Seconds of the training, without later epochs that only another model uses, and seconds per epoch."""
        trained = self.trained
        if trained is None:
            return None
        stopped = trained["stopped_at"] if self.model.source.weights == "best" else None
        rows = trained["history"][:stopped]
        total = sum(row["seconds"] for row in rows)
        return total, total / len(rows)

    def under(self, measure: str, eps: float, loss: str = "ce") -> dict[str, Any] | None:
        """The point of an attack's curve: last, worst, loss."""
        artifact = self.artifact(measure, loss)
        return None if artifact is None else point_at(artifact, "eps", eps)

    def left(self, measure: str, eps: float, loss: str = "ce") -> Estimate | None:
        """The accuracy that an attack's last iterate leaves."""
        point = self.under(measure, eps, loss)
        return None if point is None else point["last"]

    @property
    def randomised(self) -> bool:
        """Whether it answers at random."""
        return self.model.source.inference is not None

    def strongest(self, eps: float) -> Estimate | None:
        """The accuracy under the strongest attack that was run: PGD with restarts, or for a randomised model EOT."""
        if self.randomised:
            artifact = self.artifact("eot")
            point = None if artifact is None else point_at(artifact, "eps", eps)
            return None if point is None else point["last"]
        artifact = self.artifact("pgd")
        point = None if artifact is None else point_at(artifact, "eps", eps)
        return None if point is None else point["every"]

    def standing(self, eps: float) -> np.ndarray | None:
        """Which images withstood everything that was tried within `eps`: no iterate of any attack fooled them.

        Of a randomised model, whose answers differ by chance, only the last answer under averaged gradients counts.
        """
        if self.randomised:
            artifact = self.artifact("eot")
            return None if artifact is None or point_at(artifact, "eps", eps) is None else right(artifact, "eps", eps)
        curves = [self.artifact(measure, loss) for measure in ("fgsm", "ball") for loss in LOSSES]
        found = [_column(artifact, eps, "worst") for artifact in curves if artifact and point_at(artifact, "eps", eps)]
        pgd = self.artifact("pgd")
        if pgd is not None and point_at(pgd, "eps", eps):
            found.append(right(pgd, "eps", eps))
        return np.logical_and.reduce([each[: min(map(len, found))] for each in found]) if found else None

    def worst(self, eps: float) -> Estimate | None:
        """The share of images that withstood everything that was tried."""
        standing = self.standing(eps)
        return None if standing is None else share(standing).as_json()

    def evaluated(self, eps: float) -> Evaluated | None:
        """What the whole evaluation found at `eps`. Raises `RecordError` for one that another version stored."""
        artifact = self.artifact("evaluation")
        if artifact is None:
            return None
        verdicts = read_verdicts(artifact.result, f"the stored evaluation of {self.title}")
        found = next((each for each in verdicts if abs(each.eps - eps) < 1e-9), None)
        if found is None:
            return None
        raised = {each["check"]: each["state"] for each in artifact.result["checks"] if each["sentence"] is not None}
        return Evaluated(verdict=found, raised=raised)

    def attacked(self, eps: float) -> Verdict | None:
        """The verdict on the images that withstood the study's own attacks within `eps`, which nothing checked."""
        standing, clean = self.standing(eps), self.artifact("clean")
        if standing is None or clean is None:
            return None
        correct, labels = right(clean), _table(clean.folder)["label"]
        n = min(len(standing), len(correct))
        return verdict_on(
            eps,
            norm="linf",
            budget="own",
            correct=correct[:n],
            withstood=standing[:n],
            labels=labels[:n],
            classes=len(clean.result["classes"]),
            findings=(),
            checked=False,
        )

    def verdict(self, eps: float) -> Verdict | None:
        """The verdict at `eps`: that of the whole evaluation, if there is one and the study's attacks leave more."""
        own, whole = self.attacked(eps), self.evaluated(eps)
        if whole is None or (own is not None and own.fallen and not whole.verdict.fallen):
            return own
        return whole.verdict

    def zero(self, loss: str) -> Estimate | None:
        """The share of images whose gradient is exactly zero under a loss."""
        return None if self.clean is None else self.clean["zero_gradients"][loss]


@lru_cache(maxsize=512)
def _table(folder: Path) -> Table:
    return read_table(folder / "examples", StoreError)


def _rows(artifact: Artifact, axis: str | None, value: float | None) -> Table:
    table = _table(artifact.folder)
    if axis is None or value is None:
        return table
    chosen = np.abs(table[axis] - value) < 1e-9
    return {name: column[chosen] for name, column in table.items()}


def right(artifact: Artifact, axis: str | None = None, value: float | None = None) -> np.ndarray:
    """Which images were right: clean, at the last iterate of a curve, or after every attack of a worst case."""
    rows = _rows(artifact, axis, value)
    if "right" in rows:
        return rows["right"]
    if "prediction" in rows:
        return rows["prediction"] == rows["label"]
    attacks = [name for name in rows if name not in ("index", "label", "eps")]
    return np.logical_and.reduce([rows[name] for name in attacks])


def _column(artifact: Artifact, eps: float, name: str) -> np.ndarray:
    return _rows(artifact, "eps", eps)[name]


Order = Literal[-1, 0, 1]


@final
@dataclass(frozen=True)
class Compared:
    """Two models, or two attacks, on the same images."""

    first: float
    second: float
    order: Order
    """1: the first is larger, -1: the second is, 0: no difference at the 5 % level of the paired test."""
    n: int


def _order(difference: float, real: bool) -> Order:
    return 0 if not real or difference == 0 else (1 if difference > 0 else -1)


def compare_accuracy(
    first: Artifact | None, second: Artifact | None, axis: str | None = None, value: float | None = None
) -> Compared | None:
    """Which leaves more images right, by McNemar's test on the images that both were measured on."""
    if first is None or second is None:
        return None
    return compare_flags(right(first, axis, value), right(second, axis, value))


def compare_flags(one: np.ndarray, other: np.ndarray) -> Compared | None:
    """The same of two lists of images that were right, the same images first in both."""
    n = min(len(one), len(other))
    if n == 0:
        return None
    one, other = one[:n], other[:n]
    a, b = float(one.mean()), float(other.mean())
    return Compared(a, b, _order(a - b, mcnemar(one, other) < _LEVEL), n)


def compare_loss(
    first: Artifact | None, second: Artifact | None, axis: str | None = None, value: float | None = None
) -> Compared | None:
    """Which has the larger mean cross-entropy, by the bootstrap interval of the paired difference."""
    if first is None or second is None:
        return None
    one, other = (_rows(artifact, axis, value)["loss"].astype(np.float64) for artifact in (first, second))
    n = min(len(one), len(other))
    known = np.isfinite(one[:n]) & np.isfinite(other[:n])
    if not known.any():
        return None
    one, other = one[:n][known], other[:n][known]
    interval = mean(one - other)
    return Compared(
        float(one.mean()), float(other.mean()), _order(interval.value, interval.low > 0 or interval.high < 0), len(one)
    )
