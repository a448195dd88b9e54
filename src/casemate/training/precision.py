"""Which precision makes training steps fast on this machine: bfloat16 where its matrix products are much faster."""

import time

import torch

from casemate.timing import TrainPrecision

_SIDE = 768
"""Rows and columns of the matrices multiplied: large enough that the product dominates, small enough for 10 ms."""
_REPEATS = 7
_MIN_SPEEDUP = 1.4
"""Speed of bfloat16 products relative to float32 from which on it is used. Processors lie far to either side: those
measured so far multiply 0.5 times (Intel without AMX) and 2.2 times (AMD Zen 4) as fast in bfloat16."""


def faster_precision(device: str) -> TrainPrecision:
    """The precision in which training steps are faster on `device`: "bfloat16" or "float32"; measured in 0.2 seconds.

    On a CPU it is bfloat16 if that multiplies matrices at least 1.4 times as fast; on a GPU always float32.
    """
    if device != "cpu":
        return "float32"
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(_REPEATS):  # in turn, so that other work on the machine slows both
        for kind in best:
            matrix = torch.ones(_SIDE, _SIDE, dtype=kind)
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            best[kind] = min(best[kind], time.perf_counter() - start)
    return "bfloat16" if best[torch.float32] >= _MIN_SPEEDUP * best[torch.bfloat16] else "float32"
