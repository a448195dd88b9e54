"""The store of finished artifacts: each has a key, is written whole or not at all, and is never computed twice.

    STORE/artifacts/KEY/artifact.json   kind, settings, result and provenance; beside it the artifact's files
    STORE/working/KEY/                  unfinished work (a training's checkpoint) that a later run continues
    STORE/locks/KEY.lock                held by the process that computes the artifact; released when that process dies

By default the store lies in the user's cache directory, and so outlives any checkout. A store on shared storage, named
by a URL, has the finished artifacts as objects (`objects.py`):

    URL/artifacts/KEY.safetensors       a finished artifact, with all its files

Copies of them, unfinished work and locks are in a folder of each machine, laid out as above, and with it:

    STORE/unsent/KEY                    the artifact is not known to be on shared storage, as after a kill or a failure

An artifact that was not sent is stored when a plan next contains it, unless another machine's is there by then.
"""

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, final

import filelock

from casemate.engine.bundle import files_in
from casemate.engine.objects import Objects, is_url
from casemate.errors import SettingError, StoreError
from casemate.files import cache_folder, make_folder, read_file, read_json, write_json, write_text, writing_folder
from casemate.progress import NULL_OBSERVER, Observer

_FACTS = {"kind": str, "name": str, "config": dict, "code": str, "result": dict, "provenance": dict}
"""The entries that every artifact.json must have, and their types."""
_PARTS = {"artifacts", "working", "locks", "unsent", "evaluations"}
"""The folders in a store."""
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

    def arrays(self, name: str, expected: Iterable[str] = ()) -> dict[str, Any]:
        """The NumPy arrays, by name, in the .safetensors file `name`, among them all that are `expected`.

        Raises `StoreError` if the file is absent or broken, or lacks one of them.
        """
        from casemate.arrays import (
            UnsoundError,
            read_safetensors,
        )  # needs PyTorch, which the command line's help does not load

        path = self.path(name)
        try:
            found = {key: tensor.numpy() for key, tensor in read_safetensors(path)[0].items()}
            if missing := [each for each in expected if each not in found]:
                raise UnsoundError(f"it has no array called {', '.join(missing)}")
            return found
        except UnsoundError as error:
            raise StoreError(f"{path} is damaged: {error}; delete its folder and run the command again") from error

    @property
    def size(self) -> int:
        """Number of bytes of all its files together."""
        return size_of(self.folder)


@final
@dataclass(frozen=True)
class Held:
    """A finished artifact as a store lists it: its files may be on another machine."""

    key: str
    facts: dict[str, Any]
    """As of an `Artifact`, but those on shared storage are without the result."""
    size: int
    """Number of bytes."""
    place: str
    """Its folder, or the URL of its object."""


def default_store() -> Path | str:
    """The store if none is given: $CASEMATE_STORE, a folder or URL, or `store` in the user's cache directory."""
    from_environment = os.environ.get("CASEMATE_STORE")
    if not from_environment:
        return cache_folder() / "store"
    return from_environment if is_url(from_environment) else Path(from_environment)


def _other_files(folder: Path) -> list[str]:
    """Names of a few files and folders in a folder that is not a store yet; none in one that does not exist."""
    try:
        names = sorted(each.name for each in folder.iterdir())
    except OSError:  # there is none, or it cannot be read: what needs it says so
        return []
    return [] if _PARTS.intersection(names) else names[:3]


def opened(location: Path | str | None, observer: Observer = NULL_OBSERVER) -> tuple[Path, Objects | None]:
    """The folder of the store at `location` (None: the default one) on this machine, and its objects if it is a URL.

    Raises `SettingError` for what is neither a path nor a text.
    """
    location = default_store() if location is None else location
    if not isinstance(location, str | os.PathLike):
        raise SettingError(f"store = {location!r}; expected a folder, or the URL of shared storage")
    if not is_url(location):
        if others := _other_files(Path(location)):
            observer.message(
                f"The folder of the store, {location}, also holds other files, such as {', '.join(others)}"
            )
        return Path(location), None
    objects = Objects(str(location), observer)
    return objects.root, objects


class Store:
    """Finished artifacts, unfinished work and locks, each under a task's key: in a folder, or on shared storage.

    Creating the object creates the folder.

    Args:
        root: the folder; or a URL of shared storage, such as s3://bucket/prefix; None for `default_store()`.
        observer: receives the progress of transfers from and to shared storage.
    """

    def __init__(self, root: Path | str | None = None, *, observer: Observer = NULL_OBSERVER) -> None:
        root, self.objects = opened(root, observer)
        self.root: Path = make_folder(root)
        self._observer = observer
        self._artifacts, self._working, self._locks = map(self._part, ("artifacts", "working", "locks"))
        self._unsent = self.root / "unsent"

    def _part(self, name: str) -> Path:
        """A folder of the store; one that is missing where nothing can be written counts as empty: lists only read."""
        folder = self.root / name
        return make_folder(folder) if folder.exists() or os.access(self.root, os.W_OK) else folder

    @property
    def location(self) -> Path | str:
        """The folder or the URL; `Store(location)` is this store, also in another process."""
        return self.root if self.objects is None else self.objects.url

    def find(self, key: str) -> Artifact | None:
        """The finished artifact with this key, or None; one that is only on shared storage is fetched.

        Raises `StoreError` for a damaged artifact.json, except of a copy, which is fetched again.
        """
        folder = self._artifacts / key
        if (folder / "artifact.json").is_file():
            facts = facts_of(folder)
            if facts is not None:
                found = Artifact(key, folder, facts)
                return found if self.objects is None or self._is_sent(key) else self._fetch(key, self.objects) or found
            if self.objects is None:
                raise StoreError(f"{folder} is damaged; run `casemate store clean`, which removes it, and try again")
        return None if self.objects is None else self._fetch(key, self.objects)

    def find_all(self, keys: Iterable[str]) -> dict[str, Artifact]:
        """The finished artifacts among those with these keys; shared storage is listed once."""
        if self.objects is None:
            return {key: artifact for key in keys if (artifact := self.find(key)) is not None}
        keys, listed = list(keys), self.objects.listing("artifacts")
        here = {key: Artifact(key, self._artifacts / key, facts) for key in keys if (facts := self._facts(key))}
        there = [key for key in keys if _name(key) in listed and not (key in here and self._is_sent(key))]
        found: dict[str, Artifact | None] = {}
        if there:
            with self._observer.work("Fetching artifacts", len(there)) as advance:
                for key in there:
                    found[key] = self._fetch(key, self.objects)
                    advance(1, f"from {self.objects.url}")
        both = ((key, found.get(key) or here.get(key)) for key in keys)
        return {key: each for key, each in both if each is not None}

    def _facts(self, key: str) -> dict[str, Any] | None:
        """The facts of the artifact on this machine; None if there is none, or a damaged one."""
        return facts_of(self._artifacts / key)

    def _is_sent(self, key: str) -> bool:
        """Whether the artifact on this machine is known to be the one on shared storage."""
        return not (self._unsent / key).exists()

    def share(self, keys: Iterable[str]) -> None:
        """Store on shared storage what of these keys only this machine has; nothing to do for a store in a folder.

        Raises `StoreError` if it cannot be written, also if there is nothing to be stored.
        """
        if self.objects is None:
            return
        self.objects.expect_writable()
        listed = self.objects.listing("artifacts")
        for key in keys:
            if (_name(key) not in listed or not self._is_sent(key)) and self._facts(key) is not None:
                self._share(key, self.objects)

    def agreed(self, name: str, choose: Callable[[], str]) -> str:
        """The text under `name` on shared storage, which all clients have from the first one that chose it.

        A store in a folder keeps none: it is what `choose` returns.
        """
        if self.objects is None:
            return choose()
        name = f"agreed/{hashlib.sha256(name.encode()).hexdigest()[:20]}"
        with self.objects.get(name) as found:
            if found is not None:
                return _chosen(found)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "text"
            file.write_text(choose())
            with self.objects.stored(name, {file.name: file}, {}) as theirs:
                return _chosen(theirs or file.parent)

    def _fetch(self, key: str, objects: Objects) -> Artifact | None:
        """The artifact of an object of shared storage, copied to this machine; None if there is none."""
        with objects.get(_name(key)) as found:
            if found is None:
                return None
            facts = facts_of(found)
            if facts is None or facts.get("key", key) != key:
                self._observer.message(f"{objects.place(_name(key))} is not this artifact; it counts as missing")
                return None
            return self._install(found, key)

    def _install(self, found: Path, key: str) -> Artifact:
        """Move a folder with an artifact's files into its place, instead of what is there; return the artifact."""
        place = self._artifacts / key
        before = place.with_name(f".{key}.{uuid.uuid4().hex[:8]}.tmp")
        with suppress(FileNotFoundError):
            place.replace(before)
        with suppress(OSError):  # another process of this machine was faster
            found.replace(place)
        shutil.rmtree(before, ignore_errors=True)
        (self._unsent / key).unlink(missing_ok=True)
        facts = facts_of(place)
        if facts is None:
            raise StoreError(f"cannot write {place}; check its permissions, or use another store")
        return Artifact(key, place, facts)

    def _share(self, key: str, objects: Objects) -> None:
        """Store a finished artifact on shared storage; if it has one with that key, this machine takes that one."""
        folder = self._artifacts / key
        about = {name: value for name, value in (self._facts(key) or {}).items() if name != "result"}
        try:
            objects.expect_writable()
            with objects.stored(_name(key), files_in(folder), about) as theirs:
                if theirs is not None and facts_of(theirs) is not None:
                    self._install(theirs, key)
            (self._unsent / key).unlink(missing_ok=True)
        except StoreError as error:
            raise StoreError(
                f"{error}. {about.get('name', key)} is kept in {folder}; the same command stores it"
            ) from error

    def artifacts(self) -> list[Artifact]:
        """All finished artifacts on this machine, oldest first, without those whose artifact.json is damaged."""
        found = []
        for folder in _entries(self._artifacts):
            facts = None if folder.name.startswith(".") else facts_of(folder)
            if facts is not None:
                found.append(Artifact(folder.name, folder, facts))
        return sorted(found, key=_when)

    def held(self) -> list[Held]:
        """All finished artifacts of the store, oldest first; of shared storage, those that are on it."""
        if self.objects is None:
            return [Held(each.key, each.facts, each.size, str(each.folder)) for each in self.artifacts()]
        return sorted(
            (
                Held(key, facts, size, self.objects.place(_name(key)))
                for key, size, facts in self._objects_with_facts(self.objects)
                if facts is not None
            ),
            key=_when,
        )

    def damaged_objects(self) -> list[str]:
        """The URLs of artifacts on shared storage that are damaged."""
        if self.objects is None:
            return []
        found = self._objects_with_facts(self.objects)
        return [self.objects.place(_name(key)) for key, _, facts in found if facts is None]

    def _objects_with_facts(self, objects: Objects) -> Iterator[tuple[str, int, dict[str, Any] | None]]:
        """Key, size and facts of every artifact on shared storage; None as facts of a damaged one."""
        listed = objects.listing("artifacts")
        with self._observer.work("Reading what the artifacts are", len(listed)) as advance:
            for name, size in listed.items():
                key = name.removeprefix("artifacts/")
                facts = facts_of(self._artifacts / key) or objects.about(name, size)
                yield key, size, facts if facts is not None and _is_sound(facts | {"result": {}}) else None
                advance(1, "")

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
                "store"
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
                "command again, or use another store"
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

        Shared storage receives it last. If another client was first, that one's artifact is the one in the store.
        """
        for left in self._artifacts.glob(f".{key}.*"):  # by a run that was killed while it wrote this artifact
            shutil.rmtree(left, ignore_errors=True)
        with writing_folder(self._artifacts / key) as folder:
            yield folder
            write_json(folder / "artifact.json", facts)
            if self.objects is not None:
                write_text(self._unsent / key, "")
        shutil.rmtree(self._working / key, ignore_errors=True)
        if self.objects is not None:
            self._share(key, self.objects)

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
        leftovers = _entries(self._working)
        leftovers += [f for f in _entries(self._artifacts) if f.name.startswith(".") or facts_of(f) is None]
        found = []
        for path in sorted(leftovers):
            with self._try_lock(_key_of(path)) as held:
                if held:
                    found.append(path)
        return found

    def remove(self, artifact: Artifact | Held) -> int:
        """Remove a finished artifact, whole or not at all, and return the number of bytes freed.

        On shared storage its object is removed, and this machine's copy. Raises `StoreError` if another process of this
        machine holds its lock, or if a file cannot be deleted.
        """
        folder = self._artifacts / artifact.key
        what = f"{artifact.facts['name']} ({artifact.key})"
        size = self._remove(folder, what) if folder.exists() else 0
        if self.objects is None:
            return size
        self.objects.remove(_name(artifact.key))
        return artifact.size

    def discard(self, unfinished: Path) -> int:
        """Remove a path of `unfinished()`; return the bytes freed. Raises `StoreError` if a process locked it since."""
        return self._remove(unfinished, str(unfinished))

    def discard_object(self, place: str) -> None:
        """Remove one of `damaged_objects()` from shared storage."""
        if self.objects is not None:
            self.objects.remove(place.removeprefix(f"{self.objects.url}/").removesuffix(".safetensors"))

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


def _name(key: str) -> str:
    """The name of an artifact's object on shared storage."""
    return f"artifacts/{key}"


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is none."""
    return [*folder.iterdir()] if folder.exists() else []


def _chosen(folder: Path) -> str:
    return read_file(folder / "text", StoreError, "what clients agreed on").decode()


def _when(artifact: Artifact | Held) -> str:
    return artifact.facts["provenance"].get("finished") or ""


def _key_of(path: Path) -> str:
    """The key of a folder in the store: its name KEY, or .KEY.xxxx.tmp while it is written or removed."""
    return path.name.split(".")[1] if path.name.startswith(".") else path.name


def facts_of(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's artifact.json; None if it is missing, unreadable or incomplete."""
    try:
        facts = read_json(folder / "artifact.json", StoreError)
    except StoreError:
        return None
    return facts if _is_sound(facts) else None


def _is_sound(facts: Any) -> bool:
    """Whether the content of an artifact.json has all entries, of the right types."""
    if not isinstance(facts, dict) or not facts.keys() >= _FACTS.keys():
        return False
    if not all(isinstance(facts[name], kind) for name, kind in _FACTS.items()):
        return False
    made = facts["provenance"]
    return _is_time(made.get("finished")) and _is_seconds(made.get("seconds"))


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
