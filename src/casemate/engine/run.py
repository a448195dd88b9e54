"""Runs tasks in this process, one after the other; each artifact is stored as soon as it is finished."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, final

from casemate.engine.code_version import code_version
from casemate.engine.store import Artifact, Store
from casemate.engine.task import Context, Producer, ProducerFn, Task, keys, ordered
from casemate.progress import Advance, Observer
from casemate.provenance import environment, surroundings


@final
@dataclass(frozen=True)
class Plan:
    """Tasks in the order in which they run, the store key of each, and the artifacts that were stored already."""

    tasks: list[Task]
    """All tasks, in the order in which they run; those whose artifact is stored are skipped."""
    keys: dict[str, str]
    artifacts: dict[str, Artifact]
    """The artifacts that the store held when the plan was made, by task name."""

    @property
    def missing(self) -> list[Task]:
        """The tasks still to run: their artifacts were not in the store when the plan was made."""
        return [task for task in self.tasks if task.name not in self.artifacts]

    @property
    def work_left(self) -> float:
        """Estimated cost of the missing tasks (sum of `Task.work`), in forward and backward passes of one image."""
        return sum((task.work for task in self.missing), start=0.0)


def make_plan(
    tasks: Sequence[Task], wanted: Sequence[str], producers: Mapping[str, Producer], store: Store, device: str
) -> Plan:
    """The plan for the tasks named in `wanted` and all tasks that they need; nothing is computed.

    The tasks are ordered, and their keys, which depend also on the code of `producers` (by kind of task) and on
    `device`, are looked up in the store. Raises `StoreError` for a damaged artifact.
    """
    chosen = ordered(tasks, wanted)
    key_of = keys(chosen, producers, environment(device))
    found = {name: store.find(key) for name, key in key_of.items()}
    return Plan(chosen, key_of, {name: artifact for name, artifact in found.items() if artifact is not None})


def run_plan(
    plan: Plan, producers: Mapping[str, Producer], store: Store, context: Context, threads: int
) -> dict[str, Artifact]:
    """Run the tasks whose artifacts are missing, one after the other; return all artifacts by task name.

    Each artifact is stored as soon as it is finished, and so survives a later failure. `threads`, their
    number in use, is only recorded.
    """
    artifacts = dict(plan.artifacts)
    missing = plan.missing
    if not missing:
        return artifacts
    # all code is loaded before the first task: an edit made meanwhile must not run under the key of the older code
    functions = {kind: producers[kind].load() for kind in {task.kind for task in missing}}
    with context.observer.work("Study", plan.work_left) as advance:
        for number, task in enumerate(missing, start=1):
            note = f"{number} of {len(missing)}: {task.name}"
            advance(0, note)
            observer = _ArtifactObserver(context.observer, advance, task.work, note)
            within = replace(context, observer=observer)
            artifacts[task.name] = _produce(
                task, plan.keys[task.name], artifacts, producers, functions, store, within, threads
            )
            advance(task.work - observer.passed_on, note)
    return artifacts


class _ArtifactObserver:
    """The observer that one task's producer reports to: it also advances the progress of the whole plan.

    Work with a known total that is not nested in other work advances the plan by its completed share of the task's
    cost, until that cost is used up. Nested work is passed on to `observer`, but does not advance the plan.
    """

    def __init__(self, observer: Observer, advance: Advance, work: float | int, note: str) -> None:
        self.passed_on = 0.0
        self._observer, self._advance, self._work, self._note = observer, advance, work, note
        self._depth = 0

    def message(self, message: str) -> None:
        self._observer.message(message)

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        outermost, self._depth = self._depth == 0, self._depth + 1
        try:
            with self._observer.work(title, total) as advance:

                def advance_both(amount: float | int, note: str = "") -> None:
                    advance(amount, note)
                    if outermost and total > 0:
                        moved = min(self._work * amount / total, self._work - self.passed_on)
                        self.passed_on += moved
                        self._advance(moved, self._note)

                yield advance_both
        finally:
            self._depth -= 1


def is_current(artifact: Artifact, producers: Mapping[str, Producer]) -> bool:
    """Whether the installed code is the code that computed this artifact.

    If not, or if no producer computes its kind of task any more, it is stale: the installed code never uses it.
    """
    producer = producers.get(artifact.facts["kind"])
    return producer is not None and artifact.facts["code"] == code_version(producer.module)


def _produce(
    task: Task,
    key: str,
    artifacts: Mapping[str, Artifact],
    producers: Mapping[str, Producer],
    functions: Mapping[str, ProducerFn],
    store: Store,
    context: Context,
    threads: int,
) -> Artifact:
    with store.lock_for(key) as working:
        found = store.find(key)  # another process may have finished it after the plan was made
        if found is not None:
            return found
        start = time.perf_counter()
        facts: dict[str, Any] = {
            "key": key,
            "kind": task.kind,
            "name": task.name,
            "config": task.config,
            "needs": {role: artifacts[name].key for role, name in task.needs.items()},
            "code": code_version(producers[task.kind].module),
        }
        with store.put(key, facts) as folder:
            needed = {role: artifacts[name] for role, name in task.needs.items()}
            facts["result"] = functions[task.kind](task.config, needed, folder, working, context)
            facts["provenance"] = surroundings(context.device, threads) | {
                "seconds": time.perf_counter() - start,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
    artifact = store.find(key)
    if artifact is None:
        raise RuntimeError(f"{task.name} was written under {key} but is not there")
    return artifact
