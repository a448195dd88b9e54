"""The store of finished artifacts: each has a key, is written whole or not at all, and is never computed twice.

    STORE/artifacts/KEY/artifact.json   kind, settings, result and provenance; beside it the artifact's files
    STORE/working/KEY/                  unfinished work (a training's checkpoint) that a later run continues
    STORE/locks/KEY.lock                held by the process that computes the artifact; released when that process dies

By default the store lies in the user's cache directory, and so outlives any checkout.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

import filelock

from casemate.errors import StoreError
from casemate.files import cache_folder, make_folder, read_json, write_json, write_text, writing_folder

_FACTS = {"kind": str, "name": str, "config": dict, "code": str, "result": dict, "provenance": dict}
"""The entries that every artifact.json must have, and their types."""
_LOCK_TIMEOUT = 0.5
"""Seconds that `lock_for` waits for a lock: another process may hold it briefly, only to inspect the key's folder."""


@final
@dataclass(frozen=True)
class Artifact:
    """The stored result of one task: a folder of files, described by its artifact.json."""

    key: str
    folder: Path
    facts: dict[str, Any]
    """The content of artifact.json: key, kind, name, config, needs, code, result, provenance."""

    @property
    def result(self) -> dict[str, Any]:
        """What the function that computed the artifact returned, as JSON; arrays and models are in files instead."""
        return self.facts["result"]

    def path(self, name: str) -> Path:
        """The path of one of the artifact's files. Raises `StoreError` if the file is missing."""
        path = self.folder / name
        if not path.is_file():
            raise StoreError(
                f"{path} is missing from a finished artifact; delete the folder {self.folder} and run the command again"
            )
        return path

    def arrays(self, name: str) -> dict[str, Any]:
        """The NumPy arrays, by name, in the .safetensors file `name`. Raises `StoreError` if it is absent or broken."""
        from casemate.arrays import (
            UnsoundError,
            read_safetensors,
        )  # needs PyTorch, which the command line's help does not load

        path = self.path(name)
        try:
            return {key: tensor.numpy() for key, tensor in read_safetensors(path)[0].items()}
        except UnsoundError as error:
            raise StoreError(f"{path} is damaged: {error}; delete its folder and run the command again") from error

    @property
    def size(self) -> int:
        """Number of bytes of all its files together."""
        return size_of(self.folder)


def default_store() -> Path:
    """The folder of the store if none is given: $CASEMATE_STORE, or `store` in the user's cache directory."""
    from_environment = os.environ.get("CASEMATE_STORE")
    return Path(from_environment) if from_environment else cache_folder() / "store"


class Store:
    """A folder of finished artifacts, unfinished work and locks, each under a task's key.

    Creating the object creates the folder: `root`, or else `default_store()`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root: Path = make_folder(Path(root) if root is not None else default_store())
        self._artifacts = make_folder(self.root / "artifacts")
        self._working = make_folder(self.root / "working")
        self._locks = make_folder(self.root / "locks")

    def find(self, key: str) -> Artifact | None:
        """The finished artifact with this key, or None. Raises `StoreError` for a damaged artifact.json."""
        folder = self._artifacts / key
        if not (folder / "artifact.json").is_file():
            return None
        facts = facts_of(folder)
        if facts is None:
            raise StoreError(f"{folder} is damaged; run `casemate store clean`, which removes it, and try again")
        return Artifact(key, folder, facts)

    def artifacts(self) -> list[Artifact]:
        """All finished artifacts, oldest first, without those whose artifact.json is damaged."""
        found = []
        for folder in self._artifacts.iterdir():
            facts = None if folder.name.startswith(".") else facts_of(folder)
            if facts is not None:
                found.append(Artifact(folder.name, folder, facts))
        return sorted(found, key=lambda artifact: artifact.facts["provenance"].get("finished") or "")

    def _acquire(self, key: str, timeout: float) -> filelock.BaseFileLock | None:
        """Take and return the key's lock; None if another process still holds it after `timeout` seconds."""
        lock = filelock.FileLock(self._locks / f"{key}.lock")
        try:
            lock.acquire(timeout=timeout)
        except filelock.Timeout:
            return None
        except OSError as error:
            raise StoreError(
                f"cannot lock {lock.lock_file}: {error.strerror or error}; make {self.root} writable, or use another "
                "--store"
            ) from error
        return lock

    @contextmanager
    def lock_for(self, key: str) -> Iterator[Path]:
        """A context that holds the key's lock and yields the folder for its unfinished work, such as a checkpoint.

        That folder remains after a failure; `put` removes it. Raises `StoreError` if another process holds the lock.
        """
        holder = self._locks / f"{key}.pid"
        lock = self._acquire(key, _LOCK_TIMEOUT)
        if lock is None:
            pid = holder.read_text(errors="replace")[:20] if holder.is_file() else "unknown"
            raise StoreError(
                f"another process (pid {pid}) is computing this artifact in {self.root}; wait for it and run the same "
                "command again, or use another --store"
            )
        try:
            write_text(holder, str(os.getpid()))
            yield make_folder(self._working / key)
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def put(self, key: str, facts: dict[str, Any]) -> Iterator[Path]:
        """A context that yields a folder for the artifact's files; at its end the artifact is in the store as a whole.

        `facts`, the content of artifact.json, is written at the end, so the caller may add to it inside. Then the
        key's folder of unfinished work is removed. After an exception nothing is stored. The caller holds the lock.
        """
        for left in self._artifacts.glob(f".{key}.*"):  # by a run that was killed while it wrote this artifact
            shutil.rmtree(left, ignore_errors=True)
        with writing_folder(self._artifacts / key) as folder:
            yield folder
            write_json(folder / "artifact.json", facts)
        shutil.rmtree(self._working / key, ignore_errors=True)

    @contextmanager
    def _try_lock(self, key: str) -> Iterator[bool]:
        """A context that holds the key's lock and yields True, or yields False if another process holds it."""
        lock = self._acquire(key, 0.0)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    def unfinished(self) -> list[Path]:
        """Paths of unfinished work, interrupted writes and damaged artifacts that no process has locked."""
        leftovers = [*self._working.iterdir()]
        leftovers += [f for f in self._artifacts.iterdir() if f.name.startswith(".") or facts_of(f) is None]
        found = []
        for path in sorted(leftovers):
            with self._try_lock(_key_of(path)) as held:
                if held:
                    found.append(path)
        return found

    def remove(self, artifact: Artifact) -> int:
        """Remove a finished artifact, whole or not at all, and return the number of bytes freed.

        Raises `StoreError` if another process holds its lock, or if a file cannot be deleted.
        """
        return self._remove(artifact.folder, f"{artifact.facts['name']} ({artifact.key})")

    def discard(self, unfinished: Path) -> int:
        """Remove a path of `unfinished()`; return the bytes freed. Raises `StoreError` if a process locked it since."""
        return self._remove(unfinished, str(unfinished))

    def _remove(self, path: Path, what: str) -> int:
        with self._try_lock(_key_of(path)) as held:
            if not held:
                raise StoreError(f"{what} is in use by another process; try again later")
            size = size_of(path)
            try:
                if path.parent == self._artifacts and not path.name.startswith("."):
                    hidden = path.with_name(f".{path.name}.removed.tmp")
                    shutil.rmtree(hidden, ignore_errors=True)
                    path = path.replace(
                        hidden
                    )  # hidden first: a kill during the removal must not leave half an artifact
                path.unlink() if path.is_file() else shutil.rmtree(path)
            except OSError as error:
                raise StoreError(f"cannot remove {path}: {error.strerror or error}; check its permissions") from error
        return size


def _key_of(path: Path) -> str:
    """The key of a folder in the store: its name KEY, or .KEY.xxxx.tmp while it is written or removed."""
    return path.name.split(".")[1] if path.name.startswith(".") else path.name


def facts_of(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's artifact.json; None if it is missing, unreadable or incomplete."""
    try:
        facts = read_json(folder / "artifact.json", StoreError)
    except StoreError:
        return None
    if not isinstance(facts, dict) or not facts.keys() >= _FACTS.keys():
        return None
    made = facts["provenance"]
    sound = all(isinstance(facts[name], kind) for name, kind in _FACTS.items())
    return facts if sound and _is_time(made.get("finished")) and _is_seconds(made.get("seconds")) else None


def _is_time(value: Any) -> bool:
    """Whether `value` is a text that gives a time in ISO 8601, or None."""
    try:
        return value is None or bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def _is_seconds(value: Any) -> bool:
    """Whether `value` is a plausible number of seconds (0 to 1e12), or None."""
    return value is None or (type(value) in (int, float) and 0 <= value < 1e12)


def size_of(folder: Path) -> int:
    """Number of bytes of all files in `folder` and its subfolders together."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # removed just now, as by a process that still works in there
                total += (Path(place) / name).stat().st_size
    return total
