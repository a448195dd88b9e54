"""`kill -9` at random moments of a run: the same command, run again, ends as if nothing had been.

A run is killed up to three times, each time at a moment drawn uniformly from the time that the run has left; every
fourth kill waits from there until a file is being written. Then it runs to its end, and its results are compared with
those of a run that nothing disturbed. What was finished at a kill must not be computed again.
"""

import os
import random
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.campaign.commands import EVALUATE, STUDY, STUDY_2, TRAIN, Command
from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.outputs import broken
from benchmarks.campaign.parts import Setting
from benchmarks.campaign.rooms import children, wait_until

from casemate.progress import Advance

_PER_RUN = 3
"""Kills of one run before it is left to end."""
_AIMED = 4
"""One of as many kills waits for a write."""
_WAIT_FOR_WRITE = 20.0
"""Seconds, at most, that such a kill waits."""


def run(setting: Setting) -> list[Counts]:
    """Kill each of the commands as often as the size says."""
    commands = [EVALUATE, TRAIN, STUDY, STUDY_2]
    rows = []
    with setting.observer.work("Kills", sum(setting.size.kills)) as advance:
        for command, kills in zip(commands, setting.size.kills, strict=True):
            if kills:
                rows.append(killed(setting, command, kills, advance))
    return rows


def killed(setting: Setting, command: Command, kills: int, advance: Advance) -> Counts:
    """Kill runs of one command, `kills` times in all."""
    draw = setting.draw(f"kills of {command.name}")
    counts = Counts(f"kill -9: {command.name}")
    while counts.tried < kills:
        for trial in _run(setting, command, draw, min(_PER_RUN, kills - counts.tried), counts.tried):
            counts.add(trial)
            advance(1, command.name)
    return counts


def _run(setting: Setting, command: Command, draw: random.Random, kills: int, number: int) -> list[Trial]:
    """The trials of one run, which is killed up to `kills` times and then ends."""
    room, whole = setting.room(), setting.undisturbed(command).seconds
    trials: list[Trial] = []
    finished: dict[str, Any] = {}
    done = 0.0
    while len(trials) < kills:
        process, moment = setting.start(command, room), draw.uniform(0, max(whole - done, whole / 4))
        worker = command is STUDY_2 and draw.random() < 0.5
        aimed = (number + len(trials)) % _AIMED == 0
        _sleep(process, moment)
        if aimed:
            wait_until(lambda: _writes(room.work), process, _WAIT_FOR_WRITE)
        if process.poll() is not None:
            break  # it ended before: what it did is checked below
        trial = Trial(f"{command.name}, after {moment:.2f} s", ended="while a file was written" if aimed else "")
        if worker and (victim := _worker(process.pid, draw)):
            trial.what, trial.ended = f"{trial.what}, a worker", "a worker"
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            trials.append(trial)
            break  # the driver goes on by itself
        process.kill()
        ended = room.ended(process, 60)
        trial.hung = ended.code is None
        trial.traceback = ended.has_traceback
        trial.lost += broken(room.work)
        trial.lost += _recomputed(finished, command.finished(room.work))
        finished |= command.finished(room.work)
        trials.append(trial)
        done += moment / 2  # about a half of the time of a killed run is progress, the rest its start
    else:
        process = setting.start(command, room)
    if not trials:  # every draw was later than the run's end
        room.ended(process, setting.patience(command))
        room.remove()
        return []
    last, ended = trials[-1], room.ended(process, setting.patience(command))
    last.hung |= ended.code is None
    last.traceback |= ended.has_traceback
    last.lost += setting.harm(command, room, ended)
    last.lost += _recomputed(finished, command.done(room.work))
    last.strays += room.strays(*command.writes)
    room.remove()
    return trials


def _sleep(process: Any, seconds: float) -> None:
    """Sleep, or until the process ends."""
    limit = time.monotonic() + seconds
    while process.poll() is None and (left := limit - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))


def _writes(work: Path) -> bool:
    """Whether a file is being written in a folder, under its temporary name."""
    for place, folders, files in os.walk(work):
        if any(name.startswith(".") and name.endswith(".tmp") for name in (*files, *folders)):
            return True
        if Path(place).name.startswith("."):
            return True
    return False


def _worker(driver: int, draw: random.Random) -> int | None:
    """One of the processes that the driver of a study has started, if there is any."""
    found = children(driver)
    return draw.choice(found) if found else None


def _recomputed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was finished and is not any more, or was computed again, in words."""
    return [f"{name} was finished and was computed again" for name, mark in before.items() if now.get(name) != mark]
