"""Memory over many evaluations in one process: in the first tenth of them, in the last tenth, and the slope."""

import json
import resource
from pathlib import Path

import numpy as np
from benchmarks.campaign.counts import Counts, Trial
from benchmarks.campaign.inside import inside, write_result
from benchmarks.campaign.parts import Setting

_MOST = 10_000.0
"""Bytes per evaluation by which the memory may grow: ten megabytes in a thousand evaluations."""
_SECONDS = 2400.0
_TENTH = 10
"""The first part of the evaluations is one tenth of them: caches of PyTorch and Python are filled in it."""


def run(setting: Setting) -> list[Counts]:
    """Evaluate many times in one process."""
    count = setting.size.evaluations
    counts = Counts("evaluations in one process", tried=count)
    room = setting.room()
    result = room.root / "result.json"
    with setting.observer.work("Evaluations", 0):
        ended = inside(room, resident, str(result), count, seconds=_SECONDS)
    if ended.code != 0:
        counts.add(Trial("the process", lost=[f"it ended with {ended.code}: {ended.last_line}"]))
        return [counts]
    counts.numbers = judged(json.loads(result.read_text()))
    if count >= 10 * _TENTH and counts.numbers["growth, bytes per evaluation"] > _MOST:
        counts.lost += 1
        counts.examples.append(f"memory grows by {counts.numbers['growth, bytes per evaluation']:,.0f} bytes each")
    return [counts]


def judged(sizes: list[int]) -> dict[str, float]:
    """What the sizes of a process after each evaluation say, in MB, and the slope after the first tenth in bytes."""
    few = max(1, len(sizes) // _TENTH)
    later = np.array(sizes[few:], dtype=np.float64)
    slope = float(np.polyfit(np.arange(len(later)), later, 1)[0]) if len(later) > 1 else 0.0
    return {
        "first tenth, MB": float(np.mean(sizes[:few])) / 1e6,
        "last tenth, MB": float(np.mean(sizes[-few:])) / 1e6,
        "growth, bytes per evaluation": slope,
    }


def resident(result: str, count: int) -> int:
    """Evaluate a network `count` times; the resident memory after each goes to `result`. Runs in its own process."""
    from benchmarks.campaign.results import images, network

    from casemate import FGSM, evaluate

    sizes: list[int] = []
    model, few = network(), images(6)
    for _ in range(count):
        evaluate(model, few, eps=0.1, attacks={"fgsm": FGSM(eps=0.1)})
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        sizes.append(pages * resource.getpagesize())
    write_result(result, sizes)
    return 0
