"""A finished evaluation and what became of each of its images, read from the files that `casemate evaluate` wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from casemate.errors import RecordError
from casemate.evaluation import Estimate, Verdict, share
from casemate.files import read_json
from casemate.report.evaluation_result import EvaluationResult
from casemate.report.folder import RESULT
from casemate.tables import Table, is_missing, read_table

_COLUMNS = ("index", "label", "prediction", "adversarial_prediction", "first_success", "fooled_at")


@final
@dataclass(frozen=True, kw_only=True)
class FinishedEvaluation:
    """An evaluation as result.json and the table of examples beside it state it, with a row for each image."""

    folder: Path
    result: EvaluationResult
    content: Mapping[str, Any]
    """The parsed content of result.json."""
    images_sha256: str
    """SHA-256 of the images and their labels."""
    labels: np.ndarray
    """The true classes, integers `(n,)`."""
    prediction: np.ndarray
    """The classes predicted without an attack, integers `(n,)`."""
    adversarial_prediction: np.ndarray
    """The classes predicted for the adversarial images, integers `(n,)`."""
    fooled_by: np.ndarray
    """The name of the attack that fooled each image first, `(n,)`; None for images that no attack fooled."""
    fooled_at: np.ndarray
    """The smallest eps at which each image is misclassified, `(n,)`: 0 without an attack, infinity if none does it."""

    @property
    def correct(self) -> np.ndarray:
        """Which images are classified correctly without an attack, booleans `(n,)`."""
        return self.fooled_at > 0

    def robust(self, eps: float) -> np.ndarray:
        """Which images are classified correctly under every attack at every eps up to this one, booleans `(n,)`."""
        return self.fooled_at > eps

    def verdict(self, eps: float) -> Verdict:
        """The verdict at one of the radii."""
        return next(each for each in self.result.verdicts if float(each.eps) == float(eps))


def read_finished(path: Path) -> FinishedEvaluation:
    """The evaluation in a folder, or beside its result.json.

    Raises `RecordError` if one of the files is missing, damaged or of an incompatible version, or if they contradict
    each other; `MissingExtraError` for a Parquet table without polars.
    """
    file = path / RESULT if path.is_dir() else path
    content = read_json(file, RecordError)
    if not isinstance(content, dict) or "attack" in content or "verdicts" not in content:
        raise RecordError(f"{file} is no result of an evaluation; expected the result.json of `casemate evaluate`")
    result = EvaluationResult.from_json(content, str(file))
    sha256 = content.get("images_sha256")
    if not isinstance(sha256, str):
        raise RecordError(f"{file} does not identify its images (images_sha256): evaluate again")
    table = read_table(file.parent / "examples", RecordError)
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise RecordError(f"the table of examples beside {file} has no {', '.join(missing)}: evaluate again")
    try:
        found = FinishedEvaluation(
            folder=file.parent,
            result=result,
            content=content,
            images_sha256=sha256,
            labels=_whole(table, "label"),
            prediction=_whole(table, "prediction"),
            adversarial_prediction=_whole(table, "adversarial_prediction"),
            fooled_by=_names(table, "first_success"),
            fooled_at=np.where(is_missing(table["fooled_at"]), np.inf, _numbers(table, "fooled_at")),
        )
        in_order = np.array_equal(_whole(table, "index"), np.arange(result.images))
    except (TypeError, ValueError) as error:
        raise RecordError(f"the table of examples beside {file} cannot be read: {error}. Evaluate again") from error
    _check(found, str(file), in_order=in_order)
    return found


def _check(found: FinishedEvaluation, where: str, *, in_order: bool) -> None:
    """Raise `RecordError` unless the table has a row per image, and gives the accuracies that result.json states."""
    classes = len(found.result.classes)
    stated = {"accuracy without an attack": (found.correct, found.result.verdict.number.clean)} | {
        f"robust accuracy at eps {each.number.shown_eps}": (found.robust(each.eps), each.number.robust)
        for each in found.result.verdicts
    }
    named = (found.labels, found.prediction, found.adversarial_prediction)
    if in_order and all(((each >= 0) & (each < classes)).all() for each in named):
        wrong = [name for name, (hits, number) in stated.items() if not _agree(share(hits), number)]
    else:
        wrong = ["images and classes"]
    if wrong:
        raise RecordError(
            f"{where} and the table of examples beside it contradict each other ({', '.join(wrong)}); expected files "
            "of one evaluation, unchanged: evaluate again"
        )


def _agree(one: Estimate, other: Estimate) -> bool:
    """Whether two shares are equal; the ends of their intervals may differ in the last digits."""
    return (one.value, one.n) == (other.value, other.n)


def _numbers(table: Table, name: str) -> np.ndarray:
    """A column of numbers; 0 where one is missing."""
    return np.ma.filled(np.ma.masked_array(table[name]).astype(np.float64), 0.0)


def _names(table: Table, name: str) -> np.ndarray:
    """A column of texts; None where one is missing."""
    column, missing = np.ma.getdata(table[name]), is_missing(table[name])
    return np.array([None if absent else str(each) for each, absent in zip(column, missing, strict=True)], dtype=object)


def _whole(table: Table, name: str) -> np.ndarray:
    """A column of whole numbers, none missing. Raises `ValueError` for another."""
    column = table[name]
    if is_missing(column).any() or not np.issubdtype(column.dtype, np.integer):
        raise ValueError(f"the column {name} has other values than whole numbers")
    return np.ma.getdata(column).astype(np.int64)
