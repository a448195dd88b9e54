"""What a part of the campaign gets: its size, its seed, a folder, the commands' inputs, and an observer."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.campaign.commands import Command, write_inputs
from benchmarks.campaign.counts import Counts
from benchmarks.campaign.inside import start_command
from benchmarks.campaign.outputs import broken, differences
from benchmarks.campaign.rooms import Ended, Process, Room
from benchmarks.campaign.sizes import Size

from casemate.progress import Observer

_PATIENCE = 6.0
"""A command hangs if it takes this many times as long as without a fault, and a minute."""


@final
@dataclass(frozen=True)
class Undisturbed:
    """A run of a command that nothing disturbed."""

    outputs: dict[str, Any]
    seconds: float


@final
class Setting:
    """Where a part of the campaign runs, and with what.

    A test of the campaign breaks the commands by a `shim`, see `Room`; the run that nothing disturbs has none.
    """

    def __init__(self, root: Path, size: Size, seed: int, observer: Observer, shim: Path | None = None) -> None:
        self.root, self.size, self.seed, self.observer = root, size, seed, observer
        self._shim = shim
        shutil.rmtree(root, ignore_errors=True)
        self.inputs = write_inputs(root / "inputs")
        self._undisturbed: dict[tuple[str, ...], Undisturbed] = {}
        self._rooms = 0

    def draw(self, name: str) -> random.Random:
        """Random draws for a purpose, the same in every campaign with this seed."""
        return random.Random(f"{self.seed} {name}")

    def room(self, inputs: Path | None = None) -> Room:
        """A new room with the inputs of the commands, or with those of another folder."""
        self._rooms += 1
        return Room(self.root / f"room{self._rooms}", inputs or self.inputs, self._shim)

    def undisturbed(self, command: Command) -> Undisturbed:
        """What a command finds if nothing disturbs it, and how long it takes; computed once, after caches are full."""
        if command.argv not in self._undisturbed:
            for attempt in range(2 if not self._undisturbed else 1):
                room, start = Room(self.root / f"whole{attempt}", self.inputs), time.monotonic()
                ended = room.ended(self.start(command, room), 900)
                if ended.code != 0:
                    raise RuntimeError(f"{command.name} fails without any fault, attempt {attempt}: {ended.said}")
                found = Undisturbed(command.outputs(room.work), time.monotonic() - start)
                room.remove()
                self._undisturbed[command.argv] = found
        return self._undisturbed[command.argv]

    def start(self, command: Command, room: Room, *more: str, name: str = "said") -> Process:
        """Start a command in a room, with more options; forked where that changes nothing."""
        argv = (*command.argv, *more)
        if command.forks and room.shim is None:
            return start_command(room, *argv, name=name)
        return room.start(*argv, name=name)

    def run(self, command: Command, room: Room, *more: str, seconds: float) -> Ended:
        """Run a command in a room to its end, with more options."""
        return room.ended(self.start(command, room, *more), seconds)

    def patience(self, command: Command) -> float:
        """Seconds after which a command counts as hung."""
        return _PATIENCE * self.undisturbed(command).seconds + 60

    def harm(self, command: Command, room: Room, ended: Ended) -> list[str]:
        """What is wrong with a run that should have ended well, in words."""
        if ended.code != 0:
            return [f"it ended with {ended.code}: {ended.last_line[:300]}"]
        return broken(room.work) + differences(command.outputs(room.work), self.undisturbed(command).outputs)


Part = Callable[[Setting], list[Counts]]
"""A part of the campaign: returns the rows of its table."""
