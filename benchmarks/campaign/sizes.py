"""How much the campaign tries: the whole, the quick form, and what a test of the campaign itself has time for."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True)
class Size:
    """How often each kind of fault is tried."""

    kills: tuple[int, int, int, int]
    """Kills of an evaluation, a training, a study, and a study with two workers."""
    full_disks: int
    """Disks of random sizes, for each of the commands."""
    damages: int
    """Damages of each kind to each file that a command reads."""
    clocks: tuple[int, int, int]
    """Wrong clocks with which an evaluation, a training and a study run, of those that there are."""
    pairs: tuple[int, int]
    """Pairs of equal evaluations, and of equal studies."""
    inputs: int
    """Damaged inputs of each loader."""
    loaders: int | None
    """Loaders that are tried; None for all."""
    visitors: int
    """Visitors of the playground at the same time."""
    evaluations: int
    """Evaluations in one process."""


FULL = Size(
    kills=(35, 35, 15, 15),
    full_disks=6,
    damages=2,
    clocks=(6, 6, 2),
    pairs=(6, 2),
    inputs=1000,
    loaders=None,
    visitors=50,
    evaluations=1000,
)
QUICK = Size(
    kills=(3, 3, 0, 3),
    full_disks=2,
    damages=1,
    clocks=(2, 2, 0),
    pairs=(1, 0),
    inputs=30,
    loaders=None,
    visitors=10,
    evaluations=300,
)
TINY = Size(
    kills=(1, 1, 0, 0),
    full_disks=1,
    damages=1,
    clocks=(1, 0, 0),
    pairs=(1, 0),
    inputs=20,
    loaders=3,
    visitors=3,
    evaluations=12,
)
