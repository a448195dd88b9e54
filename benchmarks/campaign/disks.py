"""Disks that are full and folders that can only be read: one error that says what to do, and the same run afterwards.

A full disk is a file system in memory of a random size, which is made larger before the command runs again. Where this
user may not mount one, the largest file that the command may write is limited instead. A folder that can only be read
is mounted so; where that is impossible, its permissions are taken away.
"""

import random
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.campaign.commands import EVALUATE, TRAIN, Command
from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.inside import command as run_command
from benchmarks.campaign.outputs import broken, contents
from benchmarks.campaign.parts import Setting
from benchmarks.campaign.rooms import CASEMATE, Ended, Room

from casemate.progress import Advance

_SMALLEST, _LARGEST = 20, 300
"""Kilobytes of a full disk: some commands write more than the largest, some less than the smallest."""
_ENOUGH = "64m"
_MINUTES = 600.0


def run(setting: Setting) -> list[Counts]:
    """Run commands on full disks, and with folders that can only be read."""
    mounts = may_mount(setting.root)
    with setting.observer.work("Disks", 2 * setting.size.full_disks + len(_READERS)) as advance:
        rows = [filled(setting, each, advance) for each in (EVALUATE, TRAIN)]
        counts = Counts("folder that can only be read", means="a read-only mount" if mounts else "permissions")
        for name, argv, folder, code in _READERS:
            counts.add(_read_only(setting, name, argv, folder, code, mounts=mounts))
            advance(1, name)
    return [*rows, counts]


def filled(setting: Setting, command: Command, advance: Advance) -> Counts:
    """Run a command on full disks."""
    mounts, draw = may_mount(setting.root), setting.draw(f"full disks of {command.name}")
    counts = Counts(f"full disk: {command.name}", means="a small tmpfs" if mounts else "RLIMIT_FSIZE")
    for _ in range(setting.size.full_disks):
        counts.add(_full(setting, command, draw, mounts=mounts))
        advance(1, command.name)
    return counts


def may_mount(folder: Path) -> bool:
    """Whether this user may mount a file system."""
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)
    return done.returncode == 0


def _full(setting: Setting, command: Command, draw: random.Random, *, mounts: bool) -> Trial:
    """Run a command on a full disk, and again once there is room."""
    size = draw.randrange(_SMALLEST, _LARGEST)
    room, trial = setting.room(), Trial(f"{command.name}, a disk of {size} kB")
    with _disk(room, size) if mounts else _limited(room, size) as program:
        _check(trial, room, room.run(*command.argv, program=program, seconds=_MINUTES))
        if mounts:
            subprocess.run(["mount", "-o", f"remount,size={_ENOUGH}", str(room.work)], check=True)
        ended = setting.run(command, room, seconds=_MINUTES)
        trial.hung |= ended.code is None
        trial.lost += setting.harm(command, room, ended)
        trial.strays += room.strays(*command.writes)
    room.remove()
    return trial


@contextmanager
def _disk(room: Room, size: int) -> Iterator[Sequence[str]]:
    """A small disk in the place of the folder in which commands run, with their inputs and `size` kilobytes of room."""
    kept = {path.name: path.read_bytes() for path in room.work.iterdir() if path.is_file()}
    used = sum((len(raw) + 4095) // 4096 * 4 for raw in kept.values())
    options = f"size={used + size}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(room.work)], check=True)
    try:
        for name, raw in kept.items():
            (room.work / name).write_bytes(raw)
        yield CASEMATE
    finally:
        subprocess.run(["umount", "--lazy", str(room.work)], check=True)


@contextmanager
def _limited(room: Room, size: int) -> Iterator[Sequence[str]]:
    """A shell that limits the files that a command writes to `size` kilobytes."""
    del room
    yield ("bash", "-c", f'ulimit -f {size}; exec "$@"', "bash", *CASEMATE)


def _check(trial: Trial, room: Room, ended: Ended) -> None:
    """Whether a command that could not write ended with one error, and left no half file."""
    trial.hung = ended.code is None
    trial.traceback = ended.has_traceback
    trial.lost += broken(room.work)
    if ended.code == 0:
        trial.ended = "had room enough"
    elif ended.code == 2 and "error: " in ended.said:
        trial.ended = "refused"
    elif ended.code != -signal.SIGXFSZ:
        trial.lost.append(f"it ended with {ended.code}: {ended.last_line[:300]}")


_STORE_LIST = ("store", "list", "--store", "store")
_READERS = (
    ("evaluation, empty store", (*EVALUATE.argv, "--out", "again"), "empty", 2),
    ("evaluation, finished store", (*EVALUATE.argv, "--out", "again"), "store", None),
    ("evaluation, folder of results", EVALUATE.argv, "out", 2),
    ("training, folder of the model", TRAIN.argv, ".", 2),
    ("list of the store", _STORE_LIST, "store", 0),
)
"""What is run with which folder read-only, and the exit status that it must have; None: 0 or 2."""


def _read_only(
    setting: Setting, name: str, argv: tuple[str, ...], folder: str, code: int | None, *, mounts: bool
) -> Trial:
    """Run a command with a folder that can only be read, and again once it can be written."""
    room, trial = setting.room(), Trial(f"{name}, {folder} can only be read")
    if folder == "empty":
        (room.work / "store").mkdir()
        folder = "store"
    elif folder != ".":
        setting.run(EVALUATE, room, seconds=_MINUTES)
    before = contents(room.work, "store/**/*", "out/*")
    with _locked(room.work / folder, mounts=mounts):
        ended = run_command(room, *argv, seconds=_MINUTES)
    trial.hung = ended.code is None
    trial.traceback = ended.has_traceback
    trial.lost += broken(room.work)
    trial.ended = "refused" if ended.code == 2 else "went on"
    if ended.code not in ((0, 2) if code is None else (code,)) or (ended.code == 2 and "error: " not in ended.said):
        trial.lost.append(f"it ended with {ended.code}: {ended.last_line[:300]}")
    now = contents(room.work, "store/**/*", "out/*")
    trial.lost += [f"{each} changed" for each in before if now.get(each) != before[each]]
    ended = run_command(room, *argv, seconds=_MINUTES)
    if ended.code != 0:
        trial.lost.append(f"run again, it ended with {ended.code}: {ended.last_line[:300]}")
    room.remove()
    return trial


@contextmanager
def _locked(folder: Path, *, mounts: bool) -> Iterator[None]:
    """A folder that can only be read."""
    if not mounts:
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(mode)
        return
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
