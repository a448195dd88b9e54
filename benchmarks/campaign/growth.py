"""Memory over many evaluations in one process: in the first hundred, in the last hundred, and the slope."""

import resource
import time
from pathlib import Path

import numpy as np
from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.inside import start
from benchmarks.campaign.parts import Setting

_MOST = 10_000.0
"""Bytes per evaluation by which the memory may grow: ten megabytes in a thousand evaluations."""
_SECONDS = 2400.0
"""For all evaluations together."""
_LOOK = 0.5
"""Seconds between looks at how far they are."""
_FIRST = 100
"""Evaluations at the start in which caches of PyTorch and Python are filled; at most half of all."""
_ENOUGH = 300
"""Evaluations from which on the growth is judged."""


def run(setting: Setting) -> list[Counts]:
    """Evaluate many times in one process."""
    count = setting.size.evaluations
    counts = Counts("evaluations in one process", tried=count)
    room = setting.room()
    sizes = room.root / "sizes"
    with setting.observer.work("Evaluations", count) as advance:
        process, known = start(room, resident, str(sizes), count), 0
        limit = time.monotonic() + _SECONDS
        while process.poll() is None and time.monotonic() < limit:
            time.sleep(_LOOK)
            now = len(_read(sizes))
            advance(now - known, "")
            known = now
    ended = room.ended(process, 1)
    if ended.code != 0:
        counts.add(Trial(f"the process, which ended with {ended.code}: {ended.last_line}", hung=ended.code is None))
        counts.lost += ended.code is not None
        return [counts]
    counts.numbers = judged(_read(sizes))
    if count >= _ENOUGH and counts.numbers["growth, bytes per evaluation"] > _MOST:
        counts.lost += 1
        counts.examples.append(f"memory grows by {counts.numbers['growth, bytes per evaluation']:,.0f} bytes each")
    return [counts]


def judged(sizes: list[int]) -> dict[str, float]:
    """What the sizes of a process after each evaluation say, in MB, and the slope after the first ones in bytes."""
    few = min(_FIRST, len(sizes) // 2)
    later = np.array(sizes[few:], dtype=np.float64)
    slope = float(np.polyfit(np.arange(len(later)), later, 1)[0]) if len(later) > 1 else 0.0
    return {
        "first hundred, MB": float(np.mean(sizes[:few])) / 1e6,
        "last hundred, MB": float(np.mean(sizes[-few:])) / 1e6,
        "growth, bytes per evaluation": slope,
    }


def resident(result: str, count: int) -> int:
    """Evaluate a network `count` times; the resident memory after each is a line of `result`. Has its own process."""
    from benchmarks.campaign.nets import net
    from benchmarks.campaign.results import images

    from casemate import FGSM, evaluate

    model, few = net(), images(6)
    with Path(result).open("w", encoding="ascii", buffering=1) as file:
        for _ in range(count):
            evaluate(model, few, eps=0.1, attacks={"fgsm": FGSM(eps=0.1)})
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            file.write(f"{pages * resource.getpagesize()}\n")
    return 0


def _read(path: Path) -> list[int]:
    """The sizes so far."""
    return [int(line) for line in path.read_text(encoding="ascii").split("\n")[:-1]] if path.exists() else []
