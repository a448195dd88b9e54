"""Damaged files of every kind that casemate writes, and the commands that read them.

Each file is damaged in four ways: some bytes flipped, cut off at a random place, emptied, and replaced by the content
of another file. A command that reads it must refuse it with a message, or say that it is damaged and compute it again,
or find the same as from the sound file. Where the format has a checksum, other results are a loss; where it has none,
they are counted as accepted.
"""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.campaign.commands import DATA, MODEL
from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.inside import command
from benchmarks.campaign.outputs import contents
from benchmarks.campaign.parts import Setting
from benchmarks.campaign.rooms import ROOT, Ended, wait_until

_PATIENCE = 180.0
"""Seconds after which a command counts as hung."""
_MEMORY = 8_000_000_000
_NOTICED = ("damaged", "computed again", "made again", "contradict", "not complete", "cannot be read")
"""Words by which a command says that it noticed a damage."""
_FEW = ("--data", DATA, "--images", "20", "--threads", "1")


@final
@dataclass(frozen=True, kw_only=True)
class Reader:
    """A kind of file, and a command that reads it."""

    title: str
    files: str
    """The pattern of the files, in the folder where the command runs."""
    argv: tuple[str, ...]
    has_checksum: bool
    results: tuple[str, ...] = ()
    """Patterns of the files that the command writes."""
    needs: tuple[tuple[str, ...], ...]
    """The commands that write the files."""


_EVALUATE = ("evaluate", MODEL, *_FEW, "--budget", "quick", "--eps", "0.05", "0.1")
_AGAIN = (*_EVALUATE, "--store", "store", "--out", "again")
_SHARED = (*_EVALUATE, "--store", "file://{work}/shared", "--out", "again")
_ATTACK = ("attack", "fgsm", "model.safetensors", *_FEW, "--eps", "0.1", "--out", "attacked")
_VERIFY = ("verify", "out/record.json", MODEL, "--data", DATA)
_COMPARE = ("compare", "out", "out2", "--out", "compared")
_TRAIN = (
    *("train", "--data", DATA, "--architecture", "student-8x1", "--epochs", "30", "--batch-size", "64"),
    *("--threads", "1", "--out"),
)
_CONTINUE = (*_TRAIN, "going.safetensors")
_STUDY = (
    *("--scale", "smoke", "--dataset", "digits", "--only", "E2", "--precision", "float32", "--store", "studies"),
    *("--out", "study"),
)
_REPORT = ("report", *_STUDY)
_BENCHMARK = (
    *("benchmark", "undefended", "--dataset", "digits", "--images", "12", "--train-images", "200"),
    *("--budget", "quick", "--others", "0.05", "--threads", "1", "--out", "bench"),
)
_HARDEN = (
    *("harden", "model.safetensors", *_FEW, "--train-images", "100", "--epochs", "1", "--eps", "0.1"),
    *("--recipe", "fgsm-rs", "--budget", "quick", "--out", "hardened"),
)
_RESULTS = ("again/result.json", "again/record.json", "again/adversarial.safetensors")
_FIRST = (*_EVALUATE, "--store", "store", "--out", "out")
_SECOND = (*_EVALUATE, "--seed", "1", "--store", "store2", "--out", "out2")
_FIRST_SHARED = (*_EVALUATE, "--store", "file://{work}/shared", "--out", "first")
_WEIGHTS = (*_TRAIN, "model.safetensors")
_WHOLE_STUDY = ("study", *_STUDY, "--workers", "1", "--threads", "1")

READERS = (
    Reader(
        title="weights",
        needs=(_WEIGHTS,),
        files="model.safetensors",
        argv=_ATTACK,
        has_checksum=True,
        results=("attacked/*.json",),
    ),
    Reader(
        title="JSON beside weights",
        needs=(_WEIGHTS,),
        files="model.json",
        argv=_ATTACK,
        has_checksum=False,
        results=("attacked/*.json",),
    ),
    Reader(title="record", needs=(_FIRST,), files="out/record.json", argv=_VERIFY, has_checksum=False),
    Reader(
        title="record's images", needs=(_FIRST,), files="out/adversarial.safetensors", argv=_VERIFY, has_checksum=True
    ),
    Reader(
        title="evaluation (result.json)",
        needs=(_FIRST, _SECOND),
        files="out/result.json",
        argv=_COMPARE,
        has_checksum=False,
    ),
    Reader(
        title="table of examples",
        needs=(_FIRST, _SECOND),
        files="out/examples.parquet",
        argv=_COMPARE,
        has_checksum=False,
    ),
    Reader(
        title="pieces of an evaluation",
        needs=(_FIRST,),
        files="store/evaluations/*/*/*.safetensors",
        argv=_AGAIN,
        has_checksum=True,
        results=_RESULTS,
    ),
    Reader(
        title="plan of an evaluation",
        needs=(_FIRST,),
        files="store/evaluations/*/plan.json",
        argv=_AGAIN,
        has_checksum=False,
        results=_RESULTS,
    ),
    Reader(
        title="training checkpoint",
        needs=(_CONTINUE,),
        files="going.safetensors.training",
        argv=_CONTINUE,
        has_checksum=True,
        results=("going.safetensors", "going.history.csv"),
    ),
    Reader(
        title="artifact.json of a study",
        needs=(_WHOLE_STUDY,),
        files="studies/artifacts/*/artifact.json",
        argv=_REPORT,
        has_checksum=False,
        results=("study/summary.json", "study/figures/*.csv"),
    ),
    Reader(
        title="arrays and tables of a study",
        needs=(_WHOLE_STUDY,),
        files="studies/artifacts/*/*.[sp]a*",
        argv=_REPORT,
        has_checksum=False,
        results=("study/summary.json", "study/figures/*.csv"),
    ),
    Reader(
        title="summary.json of a study",
        needs=(_WHOLE_STUDY,),
        files="study/summary.json",
        argv=_REPORT,
        has_checksum=False,
        results=("study/summary.json",),
    ),
    Reader(
        title="files of a benchmark",
        needs=(_BENCHMARK,),
        files="bench/undefended/*.json",
        argv=_BENCHMARK,
        has_checksum=False,
        results=("bench/benchmark.json",),
    ),
    Reader(
        title="weights of a benchmark",
        needs=(_BENCHMARK,),
        files="bench/undefended/model.safetensors",
        argv=_BENCHMARK,
        has_checksum=True,
        results=("bench/benchmark.json",),
    ),
    Reader(
        title="objects on shared storage",
        needs=(_FIRST_SHARED,),
        files="shared/evaluations/*/*.safetensors",
        argv=_SHARED,
        has_checksum=True,
        results=_RESULTS,
    ),
    Reader(
        title="images (.npz)",
        needs=(_WEIGHTS,),
        files=DATA,
        argv=_ATTACK,
        has_checksum=True,
        results=("attacked/*.json",),
    ),
)


def run(setting: Setting) -> list[Counts]:
    """Damage files of every kind."""
    readers = READERS[: setting.size.loaders]
    with setting.observer.work("Damaged files", len(readers) * (1 + len(WAYS) * setting.size.damages)) as advance:
        made = made_for(setting, readers)
        rows = []
        for reader in readers:
            rows.append(damaged(setting, reader, made, lambda: advance(1, "")))
            advance(1, reader.title)
    return rows


def damaged(setting: Setting, reader: Reader, made: Path, advance: Callable[[], None]) -> Counts:
    """Damage the files of one kind, each time in a copy of everything, and run the command that reads them."""
    draw = setting.draw(f"damage to {reader.title}")
    checksum = "a checksum" if reader.has_checksum else "no checksum"
    counts = Counts(f"damaged: {reader.title}", means=checksum)
    expected = _read(setting, reader, made, None)
    if expected.code != 0:
        raise RuntimeError(f"{reader.title}: {reader.argv} fails without any damage: {expected.said}")
    for _ in range(setting.size.damages):
        for way, change in WAYS.items():
            counts.add(_trial(setting, reader, made, expected, way, lambda path, room: change(path, room, draw), draw))  # noqa: B023
            advance()
    return counts


@final
@dataclass(frozen=True)
class Found:
    """What a command that read a file found."""

    code: int | None
    said: str
    results: dict[str, Any]
    ended: Ended


def _trial(
    setting: Setting,
    reader: Reader,
    made: Path,
    expected: Found,
    way: str,
    change: Callable[[Path, Path], None],
    draw: random.Random,
) -> Trial:
    places: list[str] = []

    def harm(work: Path) -> None:
        path = draw.choice(sorted(work.glob(reader.files)))
        places.append(str(path.relative_to(work)))
        change(path, work)

    found = _read(setting, reader, made, harm)
    trial = Trial(f"{way}: {places[0]}")
    trial.traceback = found.ended.has_traceback
    trial.hung = found.code is None
    noticed = any(words in found.said for words in _NOTICED)
    if trial.hung or trial.traceback:
        return trial
    if found.code in (2, 3):
        trial.ended = "refused"
        if "error: " not in found.said and "falls short: " not in found.said:
            trial.lost.append("refused without a message")
    elif found.code != 0:
        trial.lost.append(f"it ended with {found.code}: {found.ended.last_line}")
    elif found.results == expected.results and (reader.results or found.said == expected.said):
        trial.ended = "noticed, computed again" if noticed else "same results"
    elif noticed:
        trial.ended = "noticed, said in the result"
    elif reader.has_checksum:
        trial.lost.append("other results, and no word of the damage")
    else:
        trial.ended = "accepted"
    return trial


def _read(setting: Setting, reader: Reader, made: Path, harm: Callable[[Path], None] | None) -> Found:
    """Run the reader's command in a copy of what was made, after some harm."""
    room = setting.room(made)
    if harm is not None:
        harm(room.work)
    argv = [each.format(work=made.parent / "place") for each in reader.argv]
    link = made.parent / "place"  # the same address of shared storage in every copy
    link.unlink(missing_ok=True)
    link.symlink_to(room.work)
    ended = command(room, *argv, seconds=_PATIENCE, memory=_MEMORY)
    results = contents(room.work, *reader.results) if ended.code == 0 else {}
    room.remove()
    return Found(ended.code, ended.said, results, ended)


def made_for(setting: Setting, readers: Sequence[Reader]) -> Path:
    """A folder with the files of some kinds, made by the commands that write them."""
    room = setting.room()
    link = room.root.parent / "place"
    link.symlink_to(room.work)
    for argv in dict.fromkeys(each for reader in readers for each in reader.needs):
        if argv == _CONTINUE:  # killed after its first epoch
            process = room.start(*argv)
            wait_until((room.work / "going.safetensors.training").exists, process, _PATIENCE)
            process.kill()
            room.ended(process, 60)
            continue
        ended = command(room, *(each.format(work=link) for each in argv), seconds=_PATIENCE * 3)
        if ended.code != 0:
            raise RuntimeError(f"{argv} fails without any damage: {ended.said}")
    made = room.root.parent / "made"
    room.work.rename(made)
    link.unlink()
    return made


def _flipped(path: Path, work: Path, draw: random.Random) -> None:
    del work
    raw = bytearray(path.read_bytes())
    for _ in range(draw.randrange(1, 5)):
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    path.write_bytes(raw)


def _cut(path: Path, work: Path, draw: random.Random) -> None:
    del work
    raw = path.read_bytes()
    path.write_bytes(raw[: draw.randrange(len(raw))])


def _emptied(path: Path, work: Path, draw: random.Random) -> None:
    del work, draw
    path.write_bytes(b"")


def _replaced(path: Path, work: Path, draw: random.Random) -> None:
    """By another file of the same ending where there is one, which is the hardest to notice."""
    others = [each for each in work.rglob(f"*{path.suffix}") if each.read_bytes() != path.read_bytes()]
    shutil.copyfile(draw.choice(sorted(others or [ROOT / "LICENSE"])), path)


WAYS: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "bytes flipped": _flipped,
    "cut off": _cut,
    "emptied": _emptied,
    "another file's content": _replaced,
}
"""The ways in which a file is damaged."""
