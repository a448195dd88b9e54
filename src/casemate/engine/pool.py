"""Workers that compute jobs side by side: what an engine offers, whether they are processes or tasks of a cluster.

An engine opens a `Pool` for one kind of job. What all its jobs have in common, such as a model, is a `JobSetup`, which
is sent to every worker once; what differs from job to job is sent with each. Both must be picklable, by cloudpickle.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from casemate.errors import MachineError
from casemate.progress import Observer

Compute = Callable[[Any, Observer], Any]
"""Computes one job, and reports its progress to the observer."""


@runtime_checkable
class JobSetup(Protocol):
    """What the jobs of a pool have in common."""

    def open(self) -> AbstractContextManager[Compute]:
        """The context in which a worker computes jobs, entered once in each; it may raise any `CasemateError`."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Death:
    """The end of a worker in the middle of a job."""

    how: str
    """Such as "signal 9"."""
    by_machine: bool = False
    """Whether its whole machine is gone, so that the job is not to blame."""


@final
@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a job ended: with a result, an error that it raised, or the death of its worker."""

    name: str
    """Of the job."""
    result: Any = None
    error: Exception | None = None
    death: Death | None = None


@runtime_checkable
class Pool(Protocol):
    """Workers that compute jobs side by side, with a number from 0 for each."""

    @property
    def count(self) -> int:
        """Number of workers."""
        ...

    @property
    def idle(self) -> list[int]:
        """The numbers of the workers that compute nothing."""
        ...

    def start(self, number: int, name: str, job: Any, observer: Observer) -> None:
        """Let an idle worker compute a job; its progress is reported to `observer`."""
        ...

    def wait(self) -> Sequence[Finished]:
        """Wait for news of the workers and pass on their progress; return the jobs that ended, which may be none.

        Raises what a worker raised while it opened the setup, or `MachineError` if workers cannot be started.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """Where jobs are computed; `Processes` and `Ray` are engines."""

    def open(self, setup: JobSetup, observer: Observer) -> AbstractContextManager[Pool]:
        """The context of workers for jobs with this setup, which are ended when it is left."""
        ...

    def works_here(self, jobs: int) -> bool:
        """Whether this process does as well as workers, if at most `jobs` can be computed at a time."""
        ...


_ATTEMPTS, _MACHINES = 2, 10
"""How often a job is tried before it fails: if its worker died each time, and if the whole machine was lost."""


@final
class Deaths:
    """Counts the deaths of workers by the job that they computed."""

    def __init__(self) -> None:
        self._by_job: dict[str, list[Death]] = {}

    def after(self, name: str, death: Death, observer: Observer) -> MachineError | None:
        """The error to report if a job's workers have died too often; None, after a message, if it is tried again."""
        deaths = self._by_job.setdefault(name, [])
        deaths.append(death)
        own = sum(not each.by_machine for each in deaths)
        if own < _ATTEMPTS and len(deaths) < _MACHINES:
            what = "The machine that" if death.by_machine else "The worker process that"
            observer.message(f"{what} computed {name} ended ({death.how}); computing it again")
            return None
        return MachineError(
            f"{len(deaths)} worker processes ended while they computed it (the last by {death.how}); if memory ran "
            "out, do the same again with fewer workers"
        )
