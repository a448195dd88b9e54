"""The option --track: experiment trackers that take what a command does and finds."""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import UseAppendAction, arg

from casemate._version import __version__
from casemate.cli.shared.options import check_folder
from casemate.errors import SettingError
from casemate.progress import Observer, Tracked, observers, track
from casemate.settings import unknown_name
from casemate.torchrun import place
from casemate.tracking import MLflow, TensorBoard
from casemate.tracking.mlflow_run import check_mlflow
from casemate.tracking.tensorboard_run import check_tensorboard

_MLFLOW, _TENSORBOARD = "mlflow", "tensorboard"
Track = Annotated[
    UseAppendAction[tuple[str, ...]],
    arg(
        metavar="TRACKER",
        help="Store settings, numbers and results in an experiment tracker: mlflow (server and experiment by MLflow's "
        "own environment variables), mlflow:URI, tensorboard (in a folder beside the results) or tensorboard:FOLDER. "
        "Repeat it for several.",
        help_behavior_hint="(default: none)",
    ),
]


def check_trackers(texts: Sequence[str]) -> None:
    """Raise, before any work, if a tracker is unknown, given twice, not installed, or cannot be reached."""
    for text in texts:
        kind, where = _parsed(text)
        if texts.count(text) > 1:
            raise SettingError(f"--track {text} is given twice; give it once")
        if kind == _MLFLOW:
            check_mlflow(where)
        else:
            check_tensorboard()
            if where is not None:
                check_folder(Path(where), "name another folder in --track")


@contextmanager
def tracking(
    texts: Sequence[str],
    observer: Observer,
    *,
    name: str,
    folder: Path,
    settings: Mapping[str, Any],
    pictures: bool = True,
) -> Iterator[Observer]:
    """A context that yields `observer` together with the trackers of --track, whose runs end with it.

    If an earlier run of the same command was stopped, its run is continued. Of several processes that compute one
    thing together (torchrun) only the first has trackers.

    Args:
        texts: the values of --track.
        observer: receives progress, and messages on the trackers.
        name: of the run, such as train-model.
        folder: the default for TensorBoard.
        settings: of the command, as JSON.
        pictures: whether images may be stored.
    """
    if not texts or not place().is_first:
        yield observer
        return
    resume = _identity(name, folder, settings)
    with ExitStack() as stack:
        made = [_tracker(text, name, folder, resume, observer, pictures=pictures) for text in texts]
        for each in made:
            stack.enter_context(each)
            observer.message(f"Tracked in {each.place}.")
        everyone = observers(observer, *made)
        track(everyone, Tracked(settings={"command": name.split("-")[0], **settings, "casemate": __version__}))
        yield everyone


def _parsed(text: str) -> tuple[str, str | None]:
    """The kind of a tracker and its place, None without one. Raises `SettingError`."""
    kind, colon, where = text.partition(":")
    if kind not in (_MLFLOW, _TENSORBOARD):
        raise unknown_name("tracker", text, (_MLFLOW, _TENSORBOARD))
    if colon and not where:
        what = "URI" if kind == _MLFLOW else "FOLDER"
        raise SettingError(f"--track {text} names no place after the colon; write {kind} or {kind}:{what}")
    return kind, where or None


def _tracker(
    text: str, name: str, folder: Path, resume: str, observer: Observer, *, pictures: bool
) -> MLflow | TensorBoard:
    kind, where = _parsed(text)
    if kind == _MLFLOW:
        return MLflow(uri=where, run_name=name, resume=resume, pictures=pictures, on_failure=observer.message)
    place, inside = (folder, None) if where is None else (Path(where), name)
    return TensorBoard(place, run_name=inside, resume=resume, pictures=pictures, on_failure=observer.message)


def _identity(name: str, folder: Path, settings: Mapping[str, Any]) -> str:
    """A hash of the command's settings, its folder and this machine: a repeated command has the same."""
    about = [name, socket.gethostname(), str(folder.resolve()), settings]
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:20]
