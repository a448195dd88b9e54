"""What `casemate store` does: list finished artifacts and unfinished work, and remove what is no longer of use."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from casemate.engine import Artifact, Producer, Store, is_current
from casemate.engine.evaluations import (
    about_evaluations,
    evaluation_folders,
    has_current_code,
    is_in_use,
    last_used,
    remove_evaluation,
)
from casemate.engine.store import size_of
from casemate.errors import StoreError
from casemate.extensions import PRODUCERS, extensions, load_extension


def _producers() -> dict[str, Producer]:
    """The producers of all installed packages, by the kind of task that each computes.

    Raises `CasemateError` if one cannot be imported: its artifacts would all look stale.
    """
    return {kind: each for point in extensions(PRODUCERS) for kind, each in load_extension(point).items()}


def list_store(folder: Path | None) -> dict[str, Any]:
    """The finished artifacts, the unfinished work and the evaluations of a store (None: the default one), as JSON."""
    store, producers = Store(folder), _producers()
    unfinished, evaluations = store.unfinished(), [_evaluations(each) for each in evaluation_folders(store.root)]
    return {
        "store": str(store.root),
        "artifacts": [_row(artifact, producers) for artifact in store.artifacts()],
        "unfinished": [str(path) for path in unfinished],
        "unfinished_bytes": sum(size_of(path) for path in unfinished),
        "evaluations": evaluations,
        "evaluations_bytes": sum(each["bytes"] for each in evaluations),
    }


def _evaluations(folder: Path) -> dict[str, Any]:
    """A folder with pieces of evaluations as JSON: of which model, how many, their size, and whether they are used."""
    about = about_evaluations(folder)
    return {
        "folder": str(folder),
        "weights": about.get("weights"),
        "norm": about.get("norm"),
        "seed": about.get("seed"),
        "threads": about.get("environment", {}).get("threads"),
        "pieces": len(list(folder.glob("*.safetensors"))),
        "bytes": size_of(folder),
        "used": datetime.fromtimestamp(last_used(folder), UTC).isoformat(timespec="seconds"),
        "current": has_current_code(folder),
        "running": is_in_use(folder),
    }


def _row(artifact: Artifact, producers: Mapping[str, Producer]) -> dict[str, Any]:
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
        "folder": str(artifact.folder),
    }


def clean_store(folder: Path | None, *, everything: bool, dry_run: bool) -> dict[str, Any]:
    """Remove unfinished work, and stale artifacts and pieces of evaluations, or with `everything` all.

    With `dry_run` nothing is removed.

    Returns as JSON what was or would be removed, why some of it was kept, and the number of bytes.
    """
    removed: list[dict[str, Any]] = []
    kept: list[str] = []
    store, producers = Store(folder), _producers()
    for artifact in store.artifacts():
        if everything or not is_current(artifact, producers):
            what = {"name": artifact.facts["name"], "path": str(artifact.folder)}
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
    for path in evaluation_folders(store.root):
        if is_in_use(path):
            kept.append(f"pieces of an evaluation in {path}: it is running")
        elif everything or not has_current_code(path):
            what = {"name": "pieces of an evaluation", "path": str(path)}
            removed.append(what | {"bytes": size_of(path) if dry_run else remove_evaluation(path)})
    return {"removed": removed, "kept": kept, "bytes": sum(each["bytes"] for each in removed), "dry_run": dry_run}
