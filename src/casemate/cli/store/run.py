"""What `casemate store` does: list finished artifacts and unfinished work, and remove what is no longer of use."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from casemate.engine import Producer, Store, is_current
from casemate.engine.evaluations import (
    about_evaluations,
    evaluation_folders,
    evaluations_on,
    is_current_evaluation,
    is_in_use,
    last_used,
    remove_evaluation,
)
from casemate.engine.objects import Objects
from casemate.engine.store import Held, size_of
from casemate.errors import StoreError
from casemate.extensions import PRODUCERS, extensions, load_extension
from casemate.progress import NULL_OBSERVER, Observer


def _producers() -> dict[str, Producer]:
    """The producers of all installed packages, by the kind of task that each computes.

    Raises `CasemateError` if one cannot be imported: its artifacts would all look stale.
    """
    return {kind: each for point in extensions(PRODUCERS) for kind, each in load_extension(point).items()}


def _opened(location: Path | str | None, observer: Observer) -> Store:
    """The store at `location`. Raises `StoreError` if nothing was ever stored on shared storage there."""
    store = Store(location, observer=observer)
    if store.objects is not None:
        store.objects.expect_store()
    return store


@final
@dataclass(frozen=True)
class _Evaluations:
    """The pieces of evaluations with one plan, in a folder of this machine or on shared storage."""

    place: str
    about: Mapping[str, Any]
    pieces: int
    size: int
    used: float | None
    """When the folder was last used, in seconds since the epoch; None on shared storage, where nobody notes it."""
    running: bool
    """Whether a process of this machine uses the folder."""
    folder: Path | None
    names: tuple[str, ...] = ()
    """Of its objects on shared storage."""

    def remove(self, store: Store) -> int:
        """Remove them; return the bytes freed. Raises `StoreError`."""
        if self.folder is not None:
            return remove_evaluation(self.folder)
        assert store.objects is not None
        for name in self.names:
            store.objects.remove(name)
        here = store.root / "evaluations" / self.place.rpartition("/")[2]
        if here.exists() and not is_in_use(here):
            remove_evaluation(here)
        return self.size


def _evaluations(store: Store) -> list[_Evaluations]:
    """The evaluations of a store; of one on shared storage, those that are on it."""
    return _evaluations_here(store) if store.objects is None else _evaluations_there(store.objects)


def _evaluations_here(store: Store) -> list[_Evaluations]:
    return [
        _Evaluations(
            str(each),
            about_evaluations(each),
            len(list(each.glob("*/*.safetensors"))),
            size_of(each),
            last_used(each),
            is_in_use(each),
            each,
        )
        for each in evaluation_folders(store.root)
    ]


def _evaluations_there(objects: Objects) -> list[_Evaluations]:
    return [
        _Evaluations(
            f"{objects.url}/evaluations/{plan}",
            about,
            sum(not each.endswith("/plan") for each in sizes),
            sum(sizes.values()),
            None,
            False,
            None,
            tuple(sizes),
        )
        for plan, about, sizes in evaluations_on(objects)
    ]


def list_store(location: Path | str | None, observer: Observer = NULL_OBSERVER) -> dict[str, Any]:
    """The finished artifacts, the unfinished work and the evaluations of a store (None: the default one), as JSON."""
    store, producers = _opened(location, observer), _producers()
    unfinished, evaluations = store.unfinished(), [_about(each) for each in _evaluations(store)]
    return {
        "store": str(store.location),
        "artifacts": [_row(artifact, producers) for artifact in store.held()],
        "unfinished": [*map(str, unfinished), *store.damaged_objects()],
        "unfinished_bytes": sum(size_of(path) for path in unfinished),
        "evaluations": evaluations,
        "evaluations_bytes": sum(each["bytes"] for each in evaluations),
    }


def _about(found: _Evaluations) -> dict[str, Any]:
    """The pieces of evaluations as JSON: of which model, how many, their size, and whether they are used."""
    used = None if found.used is None else datetime.fromtimestamp(found.used, UTC).isoformat(timespec="seconds")
    return {
        "folder": found.place,
        "weights": found.about.get("weights"),
        "norm": found.about.get("norm"),
        "seed": found.about.get("seed"),
        "threads": found.about.get("environment", {}).get("threads"),
        "pieces": found.pieces,
        "bytes": found.size,
        "used": used,
        "current": is_current_evaluation(found.about),
        "running": found.running,
    }


def _row(artifact: Held, producers: Mapping[str, Producer]) -> dict[str, Any]:
    """An artifact of the list as JSON: name, kind, size, when it was finished, whether it is current, and more."""
    made = artifact.facts["provenance"]
    return {
        "name": artifact.facts["name"],
        "kind": artifact.facts["kind"],
        "key": artifact.key,
        "bytes": artifact.size,
        "finished": made.get("finished"),
        "seconds": made.get("seconds"),
        "current": is_current(artifact, producers),
        "dataset": artifact.facts["config"].get("dataset"),
        "folder": artifact.place,
    }


def clean_store(
    location: Path | str | None, *, everything: bool, dry_run: bool, observer: Observer = NULL_OBSERVER
) -> dict[str, Any]:
    """Remove unfinished work, and stale artifacts and pieces of evaluations, or with `everything` all.

    With `dry_run` nothing is removed.

    Returns as JSON what was or would be removed, why some of it was kept, and the number of bytes.
    """
    removed: list[dict[str, Any]] = []
    kept: list[str] = []
    store, producers = _opened(location, observer), _producers()
    for artifact in store.held():
        if everything or not is_current(artifact, producers):
            what = {"name": artifact.facts["name"], "path": artifact.place}
            try:
                removed.append(what | {"bytes": artifact.size if dry_run else store.remove(artifact)})
            except StoreError as error:
                kept.append(str(error))
    for path in store.unfinished():
        what = {"name": "unfinished", "path": str(path)}
        try:
            removed.append(what | {"bytes": size_of(path) if dry_run else store.discard(path)})
        except StoreError as error:
            kept.append(str(error))
    for place in store.damaged_objects():
        removed.append({"name": "damaged", "path": place, "bytes": 0})
        if not dry_run:
            store.discard_object(place)
    for each in _evaluations(store):
        if each.running:
            kept.append(f"pieces of an evaluation in {each.place}: it is running")
        elif everything or not is_current_evaluation(each.about):
            what = {"name": "pieces of an evaluation", "path": each.place}
            removed.append(what | {"bytes": each.size if dry_run else each.remove(store)})
    return {"removed": removed, "kept": kept, "bytes": sum(each["bytes"] for each in removed), "dry_run": dry_run}
