"""Plans: the tasks of a run in order, their keys, and which of their artifacts are already finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from casemate.engine.code_version import code_version
from casemate.engine.pieces import Pieces
from casemate.engine.store import Artifact, Held, Store
from casemate.engine.task import Producer, Task, keys, ordered
from casemate.provenance import environment


@final
@dataclass(frozen=True)
class Plan:
    """Tasks in the order in which they run, the store key of each, and the artifacts that were already finished."""

    tasks: list[Task]
    """All tasks, in the order in which they run; those whose artifact is finished are skipped."""
    keys: dict[str, str]
    artifacts: dict[str, Artifact]
    """The artifacts that were finished when the plan was made, by task name."""

    @property
    def missing(self) -> list[Task]:
        """The tasks still to run: their artifacts were not finished when the plan was made."""
        return [task for task in self.tasks if task.name not in self.artifacts]

    @property
    def work_left(self) -> float:
        """Estimated cost of the missing tasks (sum of `Task.work`), in forward and backward passes of one image."""
        return sum((task.work for task in self.missing), start=0.0)


def make_plan(
    tasks: Sequence[Task],
    wanted: Sequence[str],
    producers: Mapping[str, Producer],
    store: Store,
    device: str,
    pieces: Pieces | None = None,
    *,
    to_run: bool = True,
) -> Plan:
    """The plan for the tasks named in `wanted` and all tasks that they need; nothing is computed.

    The tasks are ordered, and their keys, which depend also on the code of `producers` (by kind of task) and on
    `device`, are looked up in the store. A task whose artifact is not there counts as finished if `pieces` has it,
    unless a missing task needs it, since pieces lack large files, and is `to_run`. Raises `StoreError` for a damaged
    artifact, and if what is `to_run` could not be stored on shared storage.
    """
    chosen = ordered(tasks, wanted)
    key_of = keys(chosen, producers, environment(device))
    finished = store.find_all(key_of.values())
    stored = {name: finished.get(key) for name, key in key_of.items()}
    found: dict[str, Artifact] = {}
    needed: set[str] = set()  # by tasks still to run, which may read any file of their inputs
    for task in reversed(chosen):
        artifact = stored[task.name]
        if artifact is None and pieces is not None and not (to_run and task.name in needed):
            artifact = pieces.find(task.name)
        if artifact is None:
            needed.update(task.needs.values())
        else:
            found[task.name] = artifact
    plan = Plan(chosen, key_of, {task.name: found[task.name] for task in chosen if task.name in found})
    if to_run:
        store.share(key_of.values())  # also fails now, and not after hours of computing, if it cannot be written
    return plan


def is_current(artifact: Artifact | Held, producers: Mapping[str, Producer]) -> bool:
    """Whether the installed code is the code that computed this artifact.

    If not, or if no producer computes its kind of task any more, it is stale: the installed code never uses it.
    """
    producer = producers.get(artifact.facts["kind"])
    return producer is not None and artifact.facts["code"] == code_version(producer.module)
