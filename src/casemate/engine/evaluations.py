"""The folders of evaluations in a store, each with the pieces of evaluations that have model, seed and code in common.

    STORE/evaluations/PLAN/plan.json   what they have in common; its time is when the folder was last used
    STORE/evaluations/PLAN/*.lock      held by a process that uses the folder; released when that process dies

What the pieces are is described in `casemate.evaluation.pieces`.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from casemate.engine.code_version import code_version
from casemate.engine.objects import Objects
from casemate.engine.store import size_of
from casemate.errors import StoreError
from casemate.files import make_folder, read_json

PLAN = "plan.json"
PLAN_OBJECT = "plan"
"""Name of the object on shared storage that has the plan, below that of the folder."""
ATTACKS = "casemate.evaluation.cascade"
"""The module that runs the attacks; the hash of its code covers all that the result of a piece depends on."""
_MOST_BYTES = 2 << 30
"""Bytes that finished evaluations may keep in a store; beyond that those not used for longest are removed."""
_RECENT = 3600
"""Seconds for which the pieces of an evaluation stay in any case once it is finished: its report may read them. What a
process that was killed left half written goes after as long."""


def evaluation_folders(root: Path) -> list[Path]:
    """The folders of evaluations in the store `root`, those not used for longest first."""
    found = (root / "evaluations").glob("*/")
    return sorted((each for each in found if each.is_dir() and not each.name.startswith(".")), key=last_used)


@contextmanager
def using(root: Path, name: str, *, fresh: bool = False) -> Iterator[Path]:
    """Context that yields the folder `name` of evaluations in the store `root`; meanwhile nobody removes it.

    At the end folders not used for longest are removed until the others take `_MOST_BYTES` at most; those that are in
    use, or were a short time ago, stay, and so do those that cannot be removed. With `fresh` the folder is emptied
    first.

    Raises `StoreError` if it cannot be written, or with `fresh` if another process uses it.
    """
    folder = root / "evaluations" / name
    if fresh and folder.exists():
        if is_in_use(folder):
            raise StoreError(
                f"another process is computing pieces of this evaluation in {root}; wait for it, or use another store"
            )
        remove_evaluation(folder)
    lock = filelock.FileLock(make_folder(folder) / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise StoreError(f"cannot lock {lock.lock_file}: {error.strerror or error}; use another store") from error
    try:
        yield folder
    finally:
        with suppress(OSError):  # it failed before the plan was written, or the folder may not be written any more
            os.utime(folder / PLAN)
        with suppress(OSError, StoreError):  # a store that cannot be cleaned loses no result
            _trim(root)
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def _trim(root: Path) -> None:
    """Remove what killed processes left, and the folders not used for longest."""
    for file in [*root.glob("evaluations/*/*.lock"), *root.glob("evaluations/*/**/.*.tmp")]:
        if time.time() - file.stat().st_mtime > _RECENT and not (file.suffix == ".lock" and _is_locked(file)):
            file.unlink(missing_ok=True)
    folders = evaluation_folders(root)
    sizes = {each: size_of(each) for each in folders}
    total = sum(sizes.values())
    for each in folders:
        if total > _MOST_BYTES and time.time() - last_used(each) > _RECENT and not is_in_use(each):
            remove_evaluation(each)
            total -= sizes[each]


def is_in_use(folder: Path) -> bool:
    """Whether a running process uses the folder of evaluations."""
    return any(_is_locked(file) for file in folder.glob("*.lock"))


def _is_locked(file: Path) -> bool:
    lock = filelock.FileLock(file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:  # removed just now
        return False
    lock.release()
    return False


def remove_evaluation(folder: Path) -> int:
    """Remove a folder of evaluations, whole or not at all; return the bytes freed. Raises `StoreError`."""
    size = size_of(folder)
    hidden = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.removed")
    try:
        folder.replace(hidden)  # hidden first: a kill during the removal must not leave half a folder
        shutil.rmtree(hidden)
    except OSError as error:
        raise StoreError(f"cannot remove {folder}: {error.strerror or error}; check its permissions") from error
    return size


def is_current_evaluation(about: Mapping[str, Any]) -> bool:
    """Whether the installed code computed pieces that have `about` in common; the installed code uses no others."""
    return about.get("code") == code_version(ATTACKS)


def about_evaluations(folder: Path) -> Mapping[str, Any]:
    """What the pieces of a folder have in common, as its plan states it; empty if the plan cannot be read."""
    try:
        found = read_json(folder / PLAN, StoreError)["about"]
    except (StoreError, LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def evaluations_on(objects: Objects) -> Iterator[tuple[str, Mapping[str, Any], dict[str, int]]]:
    """The evaluations on shared storage: the name of each plan, what its pieces have in common, as in its plan (empty
    if there is none), and all its objects with their sizes in bytes.
    """
    plans: dict[str, dict[str, int]] = {}
    for name, size in objects.listing("evaluations").items():
        plans.setdefault(name.split("/")[1], {})[name] = size
    with objects.observer.work("Reading what the evaluations are", len(plans)) as advance:
        for plan, sizes in plans.items():
            name = f"evaluations/{plan}/{PLAN_OBJECT}"
            yield plan, (objects.about(name, sizes[name]) if name in sizes else None) or {}, sizes
            advance(1, "")


def last_used(folder: Path) -> float:
    """When the folder was last used, in seconds since the epoch; 0 for one whose plan was never written."""
    try:
        return (folder / PLAN).stat().st_mtime
    except FileNotFoundError:
        return 0.0
