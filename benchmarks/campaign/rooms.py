"""Folders in which commands run, so that every file they write is seen, and how they are started and ended there."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
CASEMATE = (sys.executable, "-m", "casemate")
_TO_END = 20.0
"""Seconds that children have to end after their parent."""


class Process(Protocol):
    """What is used of a process that was started: the methods that `Popen` has."""

    pid: int

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status. Raises `TimeoutExpired`."""
        ...

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""
        ...

    def kill(self) -> None:
        """Kill it."""
        ...


@final
@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """The exit status, negative for a signal; None if it did not end in time."""
    said: str
    """All that it printed, on stdout and stderr."""

    @property
    def has_traceback(self) -> bool:
        """Whether it showed where in the code it failed."""
        return "Traceback (most recent call last)" in self.said

    @property
    def last_line(self) -> str:
        """The last line that it printed."""
        return (self.said.strip().splitlines() or [""])[-1]


@final
class Room:
    """A folder of its own for the commands of one trial.

    Its folder `work` is where they run, `home` their user's home and `tmp` the folder of temporary files. Caches that
    cost time to fill, of compiled functions and of fonts, are shared by all rooms below the same parent. `shim` is a
    folder with a sitecustomize.py, which Python runs first in every command.
    """

    def __init__(self, root: Path, inputs: Path | None = None, shim: Path | None = None) -> None:
        self.root, self.shim = root, shim
        self.work, self.home, self.tmp = (root / name for name in ("work", "home", "tmp"))
        if inputs is None:
            self.work.mkdir(parents=True)
        else:
            shutil.copytree(inputs, self.work)
        for each in (self.home, self.tmp):
            each.mkdir()
        self._inputs = {path.name for path in self.work.iterdir()}

    def environment(self, shim: Path | None = None) -> dict[str, str]:
        """The environment of commands, with another shim for one of them."""
        shim = shim or self.shim
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CASEMATE_")}
        paths = [*([str(shim)] if shim else []), str(ROOT / "src")]
        return kept | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "CASEMATE_DATA": "",  # only the images that come with the package
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "CASEMATE_CACHE": str(self.root.parent / "cache"),
            "MPLCONFIGDIR": str(self.root.parent / "fonts"),
        }

    def start(
        self, *argv: str, program: Sequence[str] = CASEMATE, shim: Path | None = None, name: str = "said"
    ) -> subprocess.Popen[bytes]:
        """Start a command here, in a group of processes of its own; what it prints goes to the file `name`."""
        with (self.root / name).open("wb") as out:
            return subprocess.Popen(
                [*program, *argv],
                cwd=self.work,
                env=self.environment(shim),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self, process: Process, seconds: float, name: str = "said") -> Ended:
        """Wait for a command and its children; after `seconds` they are killed, and the exit status is None."""
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        if not self.end_group(process, 0 if code is None else _TO_END):
            code = None
        return Ended(code, (self.root / name).read_text(errors="replace"))

    def run(self, *argv: str, seconds: float, program: Sequence[str] = CASEMATE, shim: Path | None = None) -> Ended:
        """Run a command here to its end."""
        return self.ended(self.start(*argv, program=program, shim=shim), seconds)

    def end_group(self, process: Process, seconds: float) -> bool:
        """Whether all processes of a command's group end by themselves in `seconds`; those that do not are killed."""
        limit = time.monotonic() + seconds
        while (alive := _has_members(process.pid)) and time.monotonic() < limit:
            process.poll()
            time.sleep(0.02)
        if alive:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return not alive

    def strays(self, *allowed: str) -> list[str]:
        """What lies here that is neither an input nor below one of the allowed names in `work`."""
        found = [
            path.name for path in self.work.iterdir() if path.name not in self._inputs and not _fits(path.name, allowed)
        ]
        found += [f"home/{path.relative_to(self.home)}" for path in self.home.rglob("*") if path.is_file()]
        found += [f"tmp/{path.relative_to(self.tmp)}" for path in self.tmp.rglob("*") if path.is_file()]
        return sorted(found)

    def remove(self) -> None:
        """Remove everything that lies here."""
        shutil.rmtree(self.root, ignore_errors=True)


def _fits(name: str, allowed: Sequence[str]) -> bool:
    """Whether a name is allowed, or that of a temporary file beside an allowed one, which a kill may leave."""
    return name in allowed or any(name.startswith(f".{each}.") for each in allowed)


def _has_members(group: int) -> bool:
    """Whether a process of the group is alive: not ended and waiting for its parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                return True
    return False


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are still there."""
    found: list[int] = []
    for place in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, place.read_text().split())
    return found


def wait_until(condition: Callable[[], bool], process: Process, seconds: float) -> bool:
    """Wait for a condition while a command runs; whether it came true in time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False
