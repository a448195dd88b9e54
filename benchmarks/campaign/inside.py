"""Functions and commands in processes that need not import PyTorch again: forked from one that has, and limited."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, final

from benchmarks.campaign.rooms import Ended, Room

_MODULES = (
    "casemate.cli.attack.run",
    "casemate.cli.benchmark.run",
    "casemate.cli.compare.run",
    "casemate.cli.evaluate.run",
    "casemate.cli.harden.run",
    "casemate.cli.train.run",
    "casemate.cli.verify.run",
    "casemate_study.cli.report",
    "casemate_study.run",
)
"""What is imported once."""


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_MODULES))
    return context


@final
class Forked:
    """A process that was forked from one that has imported everything; it has the methods of `Popen` that are used."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        process.start()
        assert process.pid is not None
        self.pid: int = process.pid

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status. Raises `TimeoutExpired`."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def start(
    room: Room, function: Callable[..., Any], *given: Any, name: str = "said", memory: int | None = None
) -> Forked:
    """Call a function in a process of its own, whose exit status is what it returns; it prints to a file of the room.

    `memory` limits what it may allocate beyond what is there when it starts, in bytes.
    """
    said = room.root / name
    said.write_bytes(b"")
    return Forked(_context().Process(target=_enter, args=(str(said), memory, function, given)))


def start_command(room: Room, *argv: str, name: str = "said", memory: int | None = None) -> Forked:
    """Start a command in a room, as `Room.start` does, without the time that its imports take."""
    return start(room, _command, room.environment(), str(room.work), argv, name=name, memory=memory)


def command(room: Room, *argv: str, seconds: float, memory: int | None = None) -> Ended:
    """Run a command in a room to its end, without the time that its imports take."""
    return room.ended(start_command(room, *argv, memory=memory), seconds)


def inside(room: Room, function: Callable[..., Any], *given: Any, seconds: float, memory: int | None = None) -> Ended:
    """Call a function in a process of its own, as `start` does, and wait for its end."""
    return room.ended(start(room, function, *given, memory=memory), seconds)


def _enter(said: str, memory: int | None, function: Callable[..., Any], given: tuple[Any, ...]) -> None:
    """Print to a file, limit the memory, call the function, and end at once with what it returns."""
    os.setsid()
    handle = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = 1
    try:
        if memory is not None:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limit = pages * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        code = function(*given) or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _command(environment: dict[str, str], work: str, argv: tuple[str, ...]) -> int:
    """The command line of casemate, as a program of its own would run it."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(work)
    sys.path.insert(0, work)

    import torch

    from casemate.cli.main import main

    torch.set_num_threads(1)
    return main(argv)


def write_result(path: str, content: Any) -> None:
    """Leave what a function found for the process that called it."""
    Path(path).write_text(json.dumps(content), encoding="utf-8")
