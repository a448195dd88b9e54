"""The store of finished pieces: each under a key, written whole or not at all, never computed twice.

    STORE/pieces/KEY/piece.json   what it is, its result, how it came about; beside it the piece's files
    STORE/working/KEY/            unfinished work (a training's checkpoint) that a later run goes on from
    STORE/locks/KEY.lock          held by the process that is producing the piece; freed by the system if it dies

The store lies in the user's cache directory unless told otherwise, so it outlives any checkout.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from casemate.errors import StoreError
from casemate.files import cache_folder, make_folder, read_json, write_json, writing_folder


@dataclass(frozen=True)
class Piece:
    """A finished piece in the store."""

    key: str
    folder: Path
    facts: dict[str, Any]
    """kind, name, config, needs, code, result, provenance."""

    @property
    def result(self) -> dict[str, Any]:
        """What the piece's producer returned."""
        return self.facts["result"]

    def path(self, name: str) -> Path:
        """A file of the piece. Raises `StoreError` if it is not there."""
        path = self.folder / name
        if not path.is_file():
            raise StoreError(f"{path} is missing from a finished piece; run `casemate store clean --all` and try again")
        return path

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


def default_store() -> Path:
    """$CASEMATE_STORE, or `store` in the user's cache directory."""
    from_environment = os.environ.get("CASEMATE_STORE")
    return Path(from_environment) if from_environment else cache_folder() / "store"


class Store:
    """A folder of finished pieces. Creating the object creates the folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = make_folder(Path(root) if root is not None else default_store())
        self._pieces = make_folder(self.root / "pieces")
        self._working = make_folder(self.root / "working")
        self._locks = make_folder(self.root / "locks")

    def find(self, key: str) -> Piece | None:
        """The finished piece under `key`, if there is one."""
        folder = self._pieces / key
        if not (folder / "piece.json").is_file():
            return None
        return Piece(key, folder, read_json(folder / "piece.json", StoreError))

    def pieces(self) -> list[Piece]:
        """All finished pieces, in the order they were made."""
        found = [self.find(folder.name) for folder in self._pieces.iterdir() if not folder.name.startswith(".")]
        return sorted((p for p in found if p is not None), key=lambda p: p.facts["provenance"].get("finished", ""))

    @contextmanager
    def producing(self, key: str) -> Iterator[Path]:
        """Hold the key's lock and yield its working folder, which survives a failure and is removed by `put`.

        Raises `StoreError` if another process holds the lock.
        """
        lock = filelock.FileLock(self._locks / f"{key}.lock")
        holder = self._locks / f"{key}.pid"
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            pid = holder.read_text() if holder.is_file() else "unknown"
            raise StoreError(
                f"another process (pid {pid}) is computing this piece in {self.root}; wait for it and run the same "
                "command again, or use another --store"
            ) from None
        try:
            holder.write_text(str(os.getpid()))
            yield make_folder(self._working / key)
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def put(self, key: str, facts: dict[str, Any]) -> Iterator[Path]:
        """Yield a folder to fill with the piece's files; after the block the piece is in the store, whole.

        `facts` may be completed inside the block. The key's working folder is removed afterwards.
        """
        with writing_folder(self._pieces / key) as folder:
            yield folder
            write_json(folder / "piece.json", facts)
        shutil.rmtree(self._working / key, ignore_errors=True)

    def _locked(self, key: str) -> bool:
        lock = filelock.FileLock(self._locks / f"{key}.lock")
        try:
            with lock.acquire(timeout=0):
                return False
        except filelock.Timeout:
            return True

    def unfinished(self) -> list[Path]:
        """What no process is working on: working folders and leftovers of writes that were cut off."""
        working = [folder for folder in self._working.iterdir() if not self._locked(folder.name)]
        cut_off = [
            p for p in self._pieces.iterdir() if p.name.startswith(".") and not self._locked(p.name.split(".")[1])
        ]
        return working + cut_off

    def remove(self, piece: Piece) -> None:
        """Remove a finished piece. Raises `StoreError` if it is being produced anew at this moment."""
        if self._locked(piece.key):
            raise StoreError(f"{piece.facts['name']} ({piece.key}) is in use by another process; try again later")
        shutil.rmtree(piece.folder)
