"""Per-example results as a table: one row per image, attack and value; written as Parquet."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import polars as pl

from casemate.attacks import AttackResult, Status
from casemate.evaluate.clean import CleanResult
from casemate.evaluate.curves import Curve
from casemate.evaluate.worst import WorstCase
from casemate.files import writing

_STATUS_NAMES = np.array([status.name.lower() for status in Status])


def clean_table(result: CleanResult) -> pl.DataFrame:
    """Columns: index, label, prediction, loss, confidence, gap."""
    return pl.DataFrame(
        {
            "index": np.arange(len(result.labels)),
            "label": result.labels,
            "prediction": result.prediction,
            "loss": result.loss,
            "confidence": result.confidence,
            "gap": result.gap,
        }
    )


def attack_table(result: AttackResult, labels: np.ndarray) -> pl.DataFrame:
    """Columns: index, label, prediction, loss, norm, status (by name)."""
    return pl.DataFrame(
        {
            "index": np.arange(len(labels)),
            "label": labels,
            "prediction": result.prediction.cpu().numpy(),
            "loss": result.loss.cpu().numpy(),
            "norm": result.norm.cpu().numpy(),
            "status": _STATUS_NAMES[result.status.cpu().numpy()],
        }
    )


def curve_table(curve: Curve, labels: np.ndarray) -> pl.DataFrame:
    """Columns: index, label, the axis (eps or steps), worst; of a complete sweep also those of `LastIterates`."""
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
    return pl.DataFrame(columns)


def worst_table(found: WorstCase, labels: np.ndarray) -> pl.DataFrame:
    """Columns: index, label, eps, and for every attack whether it was withstood."""
    count, width = found.every.shape
    columns = {
        "index": np.repeat(np.arange(count), width),
        "label": np.repeat(labels, width),
        "eps": np.tile(np.array(found.values, dtype=np.float64), count),
    }
    return pl.DataFrame(columns | {name: hits.ravel() for name, hits in found.each.items()})


def write_table(table: pl.DataFrame, path: Path) -> Path:
    """Write Parquet, whole or not at all."""
    with writing(path) as temporary:
        table.write_parquet(temporary)
    return path
