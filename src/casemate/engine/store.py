"""The store of finished artifacts: each has a key, is written whole or not at all, and is never computed twice.

    STORE/artifacts/KEY/artifact.json   kind, settings, result and provenance; beside it the artifact's files
    STORE/working/KEY/                  unfinished work (a training's checkpoint) that a later run continues
    STORE/locks/KEY.lock                held by the process that computes the artifact; released when that process dies

By default the store lies in the user's cache directory, and so outlives any checkout.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

import filelock

from casemate.errors import StoreError
from casemate.files import cache_folder, make_folder, read_json, write_json, write_text, writing_folder

_FACTS = {"kind": str, "name": str, "config": dict, "code": str, "result": dict, "provenance": dict}
"""The entries of every artifact.json, and their types."""
_LOCK_TIMEOUT = 0.5
"""Seconds to wait for a lock, which another process may hold for a moment only to inspect a folder."""


@final
@dataclass(frozen=True)
class Artifact:
    """A finished artifact in the store."""

    key: str
    folder: Path
    facts: dict[str, Any]
    """kind, name, config, needs, code, result, provenance."""

    @property
    def result(self) -> dict[str, Any]:
        """The result that the artifact's producer returned."""
        return self.facts["result"]

    def path(self, name: str) -> Path:
        """The path of one of the artifact's files. Raises `StoreError` if the file is missing."""
        path = self.folder / name
        if not path.is_file():
            raise StoreError(
                f"{path} is missing from a finished artifact; run `casemate store clean --all` and try again"
            )
        return path

    def arrays(self, name: str) -> dict[str, Any]:
        """The NumPy arrays in a .safetensors file of the artifact. Raises `StoreError` if it is absent or damaged."""
        from casemate.arrays import (
            UnsoundError,
            read_safetensors,
        )  # needs PyTorch, which the command line's help does not load

        path = self.path(name)
        try:
            return {key: tensor.numpy() for key, tensor in read_safetensors(path)[0].items()}
        except UnsoundError as error:
            raise StoreError(f"{path} is damaged: {error}; run `casemate store clean --all` and try again") from error

    @property
    def size(self) -> int:
        """Number of bytes on disk."""
        return size_of(self.folder)


def default_store() -> Path:
    """$CASEMATE_STORE, or `store` in the user's cache directory."""
    from_environment = os.environ.get("CASEMATE_STORE")
    return Path(from_environment) if from_environment else cache_folder() / "store"


class Store:
    """A folder of finished artifacts. Creating the object creates the folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root: Path = make_folder(Path(root) if root is not None else default_store())
        self._artifacts = make_folder(self.root / "artifacts")
        self._working = make_folder(self.root / "working")
        self._locks = make_folder(self.root / "locks")

    def find(self, key: str) -> Artifact | None:
        """The finished artifact with this key, if there is one. Raises `StoreError` if it is damaged."""
        folder = self._artifacts / key
        if not (folder / "artifact.json").is_file():
            return None
        facts = _facts_of(folder)
        if facts is None:
            raise StoreError(f"{folder} is damaged; run `casemate store clean`, which removes it, and try again")
        return Artifact(key, folder, facts)

    def artifacts(self) -> list[Artifact]:
        """All finished artifacts, oldest first; damaged ones are left out."""
        found = []
        for folder in self._artifacts.iterdir():
            facts = None if folder.name.startswith(".") else _facts_of(folder)
            if facts is not None:
                found.append(Artifact(folder.name, folder, facts))
        return sorted(found, key=lambda artifact: artifact.facts["provenance"].get("finished") or "")

    def _acquire(self, key: str, timeout: float) -> filelock.BaseFileLock | None:
        """Take the key's lock; None if another process holds it for longer than `timeout` seconds."""
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
        """A context that holds the key's lock; it yields the key's working folder, which survives failures until `put`.

        Raises `StoreError` if another process holds the lock.
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
        """A context that yields a folder for the artifact's files; at its end the complete artifact is in the store.

        `facts`, the content of artifact.json, may be completed inside. The key's working folder is removed at the end.
        """
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
        """What no process is working on: working folders, remains of interrupted writes, damaged artifacts."""
        leftovers = [*self._working.iterdir()]
        leftovers += [f for f in self._artifacts.iterdir() if f.name.startswith(".") or _facts_of(f) is None]
        found = []
        for path in sorted(leftovers):
            with self._try_lock(_key_of(path)) as held:
                if held:
                    found.append(path)
        return found

    def remove(self, artifact: Artifact) -> int:
        """Remove a finished artifact, whole or not at all, and return the number of bytes freed.

        Raises `StoreError` if another process is computing it again at this moment.
        """
        return self._remove(artifact.folder, f"{artifact.facts['name']} ({artifact.key})")

    def discard(self, unfinished: Path) -> int:
        """Remove one of `unfinished()`; return the number of bytes freed. Raises `StoreError` if it is in use again."""
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


def _facts_of(folder: Path) -> dict[str, Any] | None:
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
    """Whether this is a time in ISO 8601, or None."""
    try:
        return value is None or bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def _is_seconds(value: Any) -> bool:
    """Whether this is a number of seconds, or None."""
    return value is None or (type(value) in (int, float) and 0 <= value < 1e12)


def size_of(folder: Path) -> int:
    """Number of bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
