"""What workers need to compute tasks: the functions of their producers, the store and the context."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, final

from casemate.engine.code_version import code_version
from casemate.engine.pool import Compute
from casemate.engine.produce import produce
from casemate.engine.store import Artifact, Store
from casemate.engine.task import Context, Producer, Task
from casemate.errors import StoreError
from casemate.progress import Observer
from casemate.provenance import commit


class TaskJob(NamedTuple):
    """One task as a job: all else a worker finds in the store."""

    task: Task
    key: str
    needs: dict[str, str]
    """The keys of the artifacts that it needs, by role."""


@final
@dataclass(frozen=True)
class TaskSetup:
    """The `JobSetup` of workers that compute tasks: a job is a `TaskJob`, its result the key of the stored artifact."""

    producers: Mapping[str, Producer]
    codes: Mapping[str, str]
    """The versions of the producers' code that the keys of the tasks stand for, by kind of task."""
    store: Path | str
    """The folder or URL of the store."""
    context: Context
    """Device, data folder and threads; workers have observers of their own."""

    @contextmanager
    def open(self) -> Iterator[Compute]:
        """Load all producers before the first task: later edits of the code must not run under its keys.

        Raises `StoreError` if the code is no longer that of the keys, since somebody has edited it, or another version
        is installed on this machine.
        """
        import torch

        torch.set_num_threads(self.context.threads)
        functions = {kind: producer.load() for kind, producer in self.producers.items()}
        commit()  # remembered now, since the checkout may change while tasks run
        if any(code_version(producer.module) != self.codes[kind] for kind, producer in self.producers.items()):
            raise StoreError(
                "the code was edited while the study ran, or another version is installed where it runs; install the "
                "same version everywhere and run the same command again"
            )

        def compute(job: TaskJob, observer: Observer) -> str:
            store = Store(self.store, observer=observer)
            needs = {role: stored(store, key) for role, key in job.needs.items()}
            function, code = functions[job.task.kind], self.codes[job.task.kind]
            context = replace(self.context, observer=observer)
            return produce(job.task, job.key, needs, function, code, store, context).key

        yield compute


def stored(store: Store, key: str) -> Artifact:
    """The artifact with this key, which another process has computed. Raises `StoreError` if it is not there."""
    found = store.find(key)
    if found is None:
        raise StoreError(
            f"the artifact {key} was computed, but is not in {store.location}: workers on other machines need a "
            "store that all of them share"
        )
    return found
