"""What a training passes to experiment trackers: its settings, and a row of numbers for each epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
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
    named |= {"objective": _about(objective), "augment": list(map(_about, augment))}
    track(observer, Tracked(settings=named))
    for row in history:
        track_epoch(observer, row)


def _about(part: object) -> dict[str, Any]:
    """The class of an objective or an augmentation, and its fields; of a network only the class."""
    found: dict[str, Any] = {"name": type(part).__name__}
    for each in fields(part) if is_dataclass(part) else ():
        value = getattr(part, each.name)
        plain = value is None or isinstance(value, str | int | float | tuple | list)
        found[each.name] = value if plain else _about(value)
    return found


def track_epoch(observer: Observer, row: Mapping[str, Any]) -> None:
    """Pass on the row of an epoch, see `TrainResult.history`."""
    numbers = {f"epoch/{name}": float(value) for name, value in row.items() if name != "epoch"}
    track(observer, Tracked(numbers=numbers, step=row["epoch"]))
