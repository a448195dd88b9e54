"""docs/reliability.json, the counts of the parts that were run last, and docs/reliability.md, which is made of it."""

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks.campaign.counts import Counts, counts_of
from benchmarks.campaign.sizes import QUICK, Size

from casemate.files import write_json, write_text
from casemate.provenance import commit, processor
from casemate.timing import duration

PARTS = ("kills", "disks", "damages", "clocks", "pairs", "inputs", "visitors", "growth")
"""The parts, each a module with a function `run`, in the order in which they run."""
_HEAD = ("tried", "lost or wrong", "hung", "traceback", "file elsewhere")
_INTRODUCTION = """\
# What was tried to break it

The fault campaign runs casemate while something goes wrong: processes are killed, disks are full, files are damaged,
clocks are wrong, two processes want the same store, loaders get rubbish, and many visitors come at once. It counts what
was lost. The program is [`benchmarks/campaign`](../benchmarks/campaign/README.md), which writes this page; the raw
counts are in [reliability.json](reliability.json).

```
make campaign            # all of it, about an hour on two cores
make campaign QUICK=1    # a few of each kind, in minutes
```

What the columns count:

- *lost or wrong*: the command, run again, ended with other results than a run that nothing disturbed; or finished work
  was computed again; or a file under a final name was not whole; or a damage to a file was not noticed, where the
  format has a checksum; or an error had no message.
- *hung*: it did not end within six times its usual time and a minute, or an input took longer than its limit.
- *traceback*: the user saw Python's own account of an error.
- *file elsewhere*: something was written outside the folders that the command was given.

A run is killed up to three times before it is left to end; a kill *while a file was written* waited for the next
temporary file. Damages to inputs count as *read* where the file is still valid, as *refused* where one error of
casemate came of it, and as *noticed* where the loader finds nothing, so that it is computed again.

Evaluations, trainings and studies with one worker are forked from a process that has imported PyTorch, so that kills
fall on their work and not on imports. Studies with two workers, and runs with a wrong clock, are programs of their own.
"""
_FOUND = """\
## What it found

Earlier runs found these faults, which are corrected, each with a test:

- `casemate store list` failed on a store that holds evaluations alone and can only be read.
- The playground answered with an error if the page sent its controls between a change of the norm and that of the
  slider: there is now a slider for each norm.
- A traceback in place of an error: for a record whose labels are unsigned 64-bit integers, for a `result.json` whose
  eps is no number, for a Parquet table with a column of bytes, and in `casemate report` for an artifact whose images
  are another artifact's.
"""
_NOT_COVERED = """\
## What is not covered

- A power failure: files are flushed to disk before they are renamed, but a kill does not test that, since the system
  keeps what a killed process wrote.
- Disks that return other bytes than were written, and memory that does.
- Network file systems and shared storage (`s3://`): [storage.md](storage.md) says what was tried there.
- GPUs, Ray clusters and torchrun, and other systems than Linux.
- Models in ONNX, of timm, Hugging Face and Keras where their extras are not installed: only the loaders that the table
  names were tried. `tests/test_damaged_models.py` tries the others.
- Damaged files whose checksum was made right again, but for models and archives: an attacker could do so, chance
  cannot.
- What libraries print by themselves: polars writes a line about a panic to the terminal before casemate's error about
  a damaged Parquet file.
- The monotonic clock, which no user can set, and the times of files, which the system writes: only the clock that
  Python reads is changed.
- Formats without a checksum (`result.json`, `summary.json`, the JSON beside a model, an artifact of the study on this
  machine's disk): a change that keeps such a file well-formed may be read as it stands. The table counts these by
  themselves, as *accepted*.
"""


def keep(path: Path, name: str, rows: Sequence[Counts], *, size: Size, seed: int, seconds: float) -> None:
    """Write the rows of a part to the file of counts, in place of earlier ones of that part."""
    found = read(path)
    found[name] = {
        "command": f"python -m benchmarks.campaign {name}{' --quick' if size == QUICK else ''} --seed {seed}",
        "size": asdict(size),
        "n": sum(row.tried for row in rows),
        "seed": seed,
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "seconds": round(seconds),
        "date": time.strftime("%Y-%m-%d"),
        "rows": [row.as_json() for row in rows],
    }
    write_json(path, found)


def read(path: Path) -> dict[str, Any]:
    """The counts of all parts that were ever run; empty if none was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(source: Path, path: Path) -> None:
    """Write the page of the counts in a file."""
    counts = read(source)
    found = {name: counts[name] for name in PARTS if name in counts}
    rows = {name: [counts_of(each) for each in part["rows"]] for name, part in found.items()}
    tried, harm = (sum(getattr(row, what) for part in rows.values() for row in part) for what in ("tried", "harm"))
    lines = [_INTRODUCTION, "## The counts", "", f"{tried:,} trials, of which {harm or 'none'} did harm.", ""]
    lines += [
        f"| what was tried | {' | '.join(_HEAD)} | how the trials ended, and what was measured |",
        "| --- |" + " ---: |" * len(_HEAD) + " --- |",
    ]
    lines += [_line(row) for part in rows.values() for row in part]
    lines += ["", *_examples(rows), _FOUND, _NOT_COVERED, "## How it was run", ""]
    lines += ["| part | trials | command | commit | time |", "| --- | ---: | --- | --- | ---: |"]
    lines += [
        f"| {name} | {part['n']:,} | `{part['command']}` | {part['commit']} | {duration(part['seconds'])} |"
        for name, part in found.items()
    ]
    lines += ["", *sorted({_machine(part) for part in found.values()})]
    write_text(path, "\n".join(lines) + "\n")


def _line(row: Counts) -> str:
    numbers = (row.tried, row.lost, row.hung, row.tracebacks, row.strays)
    ended = ", ".join(f"{name} {count:,}" for name, count in row.ended.most_common())
    ended = "; ".join(filter(None, (ended, ", ".join(_measured(*each) for each in row.numbers.items()))))
    title = f"{row.title} ({row.means})" if row.means else row.title
    return f"| {title} | {' | '.join(f'{each:,}' for each in numbers)} | {ended} |"


def _measured(name: str, value: float) -> str:
    """A number that was measured besides; its name ends with its unit."""
    words, _, unit = name.rpartition(", ")
    return f"{words} {value:,.0f} {unit}" if abs(value) >= 100 else f"{words} {value:.2g} {unit}"


def _examples(rows: dict[str, list[Counts]]) -> list[str]:
    lines = [f"- {each}" for part in rows.values() for row in part for each in row.examples]
    return ["## What went wrong", "", *lines, ""] if lines else []


def _machine(part: dict[str, Any]) -> str:
    return (
        f"{part['processor']}, {part['cores']} cores, {part['system']}, Python {part['python']}, PyTorch "
        f"{part['torch']}, {part['date']}; every command on one thread."
    )
