"""What a training passes to experiment trackers: its settings, and a row of numbers for each epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from casemate.data.augment import Augmentation
from casemate.progress import Observer, Tracked, track
from casemate.training.config import TrainConfig
from casemate.training.objective import Objective


def track_training(
    observer: Observer,
    settings: TrainConfig,
    objective: Objective,
    augment: Sequence[Augmentation],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Pass on the settings of a training that begins, and the epochs that an earlier process trained."""
    named = {name: value for name, value in asdict(settings).items() if not callable(value)}
    named |= {"objective": {"name": type(objective).__name__}, "augment": [type(each).__name__ for each in augment]}
    track(observer, Tracked(settings=named))
    for row in history:
        track_epoch(observer, row)


def track_epoch(observer: Observer, row: Mapping[str, Any]) -> None:
    """Pass on the row of an epoch, see `TrainResult.history`."""
    numbers = {f"epoch/{name}": float(value) for name, value in row.items() if name != "epoch"}
    track(observer, Tracked(numbers=numbers, step=row["epoch"]))
