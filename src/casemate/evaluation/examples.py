"""Per-example results as a table: one row per image, attack and value (see `casemate.tables`)."""

from dataclasses import fields

import numpy as np

from casemate.attacks import AttackResult, Status
from casemate.evaluation.cascade_result import MISCLASSIFIED, ROBUST
from casemate.evaluation.clean import CleanResult
from casemate.evaluation.curves import Curve, WorstCase
from casemate.evaluation.evaluation import Evaluation
from casemate.tables import Table

_STATUS_NAMES = np.array([status.name.lower() for status in Status], dtype=object)


def clean_table(result: CleanResult) -> Table:
    """Table of clean predictions, one row per image. Columns: index, label, prediction, loss, confidence, gap."""
    return {
        "index": np.arange(len(result.labels)),
        "label": result.labels,
        "prediction": result.prediction,
        "loss": result.loss,
        "confidence": result.confidence,
        "gap": result.gap,
    }


def example_table(result: AttackResult, labels: np.ndarray) -> Table:
    """Table of an attack's results, a row per image. Columns: index, label, prediction, loss, norm, status (a name)."""
    return {
        "index": np.arange(len(labels)),
        "label": labels,
        "prediction": result.prediction.cpu().numpy(),
        "loss": result.loss.cpu().numpy(),
        "norm": result.norm.cpu().numpy(),
        "status": _STATUS_NAMES[result.status.cpu().numpy()],
    }


def curve_table(curve: Curve, labels: np.ndarray) -> Table:
    """Table of a curve, one row per image and value. Columns: index, label, the axis (eps or steps), worst.

    A curve with last iterates also has the columns right, prediction, loss, norm and status.
    """
    count, width = curve.worst.shape
    columns = {
        "index": np.repeat(np.arange(count), width),
        "label": np.repeat(labels, width),
        curve.axis: np.tile(np.array(curve.values, dtype=np.float64), count),
        "worst": curve.worst.ravel(),
    }
    if curve.last is not None:
        columns |= {field.name: getattr(curve.last, field.name).ravel() for field in fields(curve.last)}
        columns["status"] = _STATUS_NAMES[columns["status"]]
    return columns


def worst_table(found: WorstCase, labels: np.ndarray) -> Table:
    """Table with a row per image and eps. Columns: index, label, eps, and by attack whether the image withstood it."""
    count, width = found.every.shape
    columns = {
        "index": np.repeat(np.arange(count), width),
        "label": np.repeat(labels, width),
        "eps": np.tile(np.array(found.values, dtype=np.float64), count),
    }
    return columns | {name: hits.ravel() for name, hits in found.each.items()}


def evaluation_table(found: Evaluation, adversarial_prediction: np.ndarray) -> Table:
    """Table with a row per image; `adversarial_prediction` is the class predicted for its adversarial image, `(n,)`.

    Columns: index, label, prediction, adversarial_prediction; first_success (the attack that fooled the image first),
    fooled_at (the smallest eps at which one did) and distance, all three missing if none did. For an image that is
    misclassified without an attack, fooled_at and distance are 0.
    """
    cascade = found.cascade
    names = [*cascade.attacks, None, None]  # of MISCLASSIFIED and ROBUST, which are -2 and -1
    first = np.where(cascade.first_success == MISCLASSIFIED, 0, 1 + np.argmin(cascade.robust, axis=1))
    lost = cascade.first_success != ROBUST
    return {
        "index": np.arange(len(lost)),
        "label": found.clean.labels,
        "prediction": found.clean.prediction,
        "adversarial_prediction": adversarial_prediction,
        "first_success": np.array([names[place] for place in cascade.first_success], dtype=object),
        "fooled_at": np.ma.masked_array(np.array([0.0, *found.values])[first], ~lost),
        "distance": np.ma.masked_array(cascade.distance, ~lost | np.isnan(cascade.distance)),
    }
