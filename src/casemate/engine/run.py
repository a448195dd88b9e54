"""Runs the tasks of a plan, in this process or by the workers of an engine; each artifact is stored at once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import final

from casemate.engine.code_version import code_version
from casemate.engine.plan import Plan
from casemate.engine.pool import Death, Deaths, Engine, Pool
from casemate.engine.produce import produce
from casemate.engine.store import Artifact, Store
from casemate.engine.task import Context, Producer, Task
from casemate.engine.task_setup import TaskJob, TaskSetup, stored
from casemate.engine.workers import Processes
from casemate.errors import CasemateError, StoreError, is_interruption
from casemate.progress import NULL_OBSERVER, Advance, Observer, Tracked, part_of, side_by_side, track

OnArtifact = Callable[[str, Artifact], None]
"""Called with a task's name and its artifact as soon as that is stored."""


def run_plan(
    plan: Plan,
    producers: Mapping[str, Producer],
    store: Store,
    context: Context,
    *,
    engine: Engine | None = None,
    on_artifact: OnArtifact | None = None,
) -> dict[str, Artifact]:
    """Run the tasks whose artifacts are missing; return all artifacts by task name.

    The workers of `engine` compute tasks side by side, each on `context.threads` threads; without one, or if it has one
    worker on this machine, this process computes them in order. A result depends on neither the number of workers nor
    the order. Each artifact is stored as soon as it is finished, and so survives a later failure.

    If a task fails with a `CasemateError`, all tasks that do not need it still run; then its error is raised, the first
    of several. A `StoreError`, and any other exception, is raised at once. A task whose worker process dies is tried
    once more; if that worker dies too, it fails with `MachineError`. If the whole machine is lost, it is tried more
    often.
    """
    if not plan.missing:
        return dict(plan.artifacts)
    needed = {task.kind: producers[task.kind] for task in plan.missing}
    with context.observer.work("Study", plan.work_left) as advance:
        schedule = _Schedule(plan, context.observer, advance, on_artifact)
        engine = engine or Processes(workers=1)
        if engine.works_here(len(plan.missing)):
            _run_here(schedule, needed, store, context, side_by_side(context.observer, 1)[0])
        else:
            codes = {kind: code_version(producer.module) for kind, producer in needed.items()}
            setup = TaskSetup(needed, codes, store.location, replace(context, observer=NULL_OBSERVER))
            with engine.open(setup, context.observer) as pool:
                _run_in(pool, schedule, store, side_by_side(context.observer, pool.count))
        if schedule.failures:
            name, error = schedule.failures[0]
            more = f" (and {len(schedule.failures) - 1} more, named above)" if len(schedule.failures) > 1 else ""
            raise type(error)(f"{name} failed{more}: {error}") from error
    return schedule.artifacts


def _run_here(
    schedule: "_Schedule", producers: Mapping[str, Producer], store: Store, context: Context, observer: Observer
) -> None:
    for producer in producers.values():  # before the first task: later edits must not run under its code's key
        producer.load()
    codes = {kind: code_version(producer.module) for kind, producer in producers.items()}
    while (task := schedule.take(observer)) is not None:
        function, code = producers[task.kind].load(), codes[task.kind]
        within = replace(context, observer=schedule.running[task.name])
        try:
            artifact = produce(task, schedule.key(task), schedule.needs(task), function, code, store, within)
        except CasemateError as error:
            if is_interruption(error):
                raise
            schedule.fail(task.name, error)
        else:
            schedule.finish(task.name, artifact)


def _run_in(pool: Pool, schedule: "_Schedule", store: Store, lanes: list[Observer]) -> None:
    while True:
        for number in pool.idle:
            task = schedule.take(lanes[number])
            if task is None:
                break
            needs = {role: artifact.key for role, artifact in schedule.needs(task).items()}
            pool.start(number, task.name, TaskJob(task, schedule.key(task), needs), schedule.running[task.name])
        if not schedule.running:
            return
        for found in pool.wait():
            if found.death is not None:
                schedule.retry(found.name, found.death)
            elif found.error is not None:
                schedule.fail(found.name, found.error)
            else:
                schedule.finish(found.name, stored(store, found.result))


@final
class _Schedule:
    """The state of a running plan: which tasks wait, run, have finished or failed, and the progress of the whole."""

    def __init__(self, plan: Plan, observer: Observer, advance: Advance, on_artifact: OnArtifact | None) -> None:
        self.artifacts = dict(plan.artifacts)
        self.running: dict[str, _TaskObserver] = {}
        self.failures: list[tuple[str, CasemateError]] = []
        self._keys, self._waiting, self._total = plan.keys, list(plan.missing), len(plan.missing)
        self._observer, self._advance, self._on_artifact = observer, advance, on_artifact
        self._deaths = Deaths()

    def take(self, observer: Observer) -> Task | None:
        """The first waiting task whose needs are all finished; None if there is none.

        It then counts as running; `running` has the observer to pass to it, which reports to `observer`, and advances
        the progress of the whole.
        """
        for task in self._waiting:
            if all(name in self.artifacts for name in task.needs.values()):
                self._waiting.remove(task)
                self.running[task.name] = _TaskObserver(observer, self._advance_whole, task)
                self._advance_whole(0)
                return task
        return None

    def key(self, task: Task) -> str:
        """The key under which the task's artifact is stored."""
        return self._keys[task.name]

    def needs(self, task: Task) -> dict[str, Artifact]:
        """The artifacts that the task needs, by role."""
        return {role: self.artifacts[name] for role, name in task.needs.items()}

    def finish(self, name: str, artifact: Artifact) -> None:
        """Record that a task has ended with its artifact."""
        running = self.running.pop(name)
        self.artifacts[name] = artifact
        self._advance_whole(running.left)
        if self._on_artifact is not None:
            self._on_artifact(name, artifact)

    def fail(self, name: str, error: Exception) -> None:
        """Record that a task has ended with an error; raises it if it ends the whole run."""
        running = self.running.pop(name)
        if isinstance(error, StoreError) or not isinstance(error, CasemateError):
            raise error
        self._observer.message(f"{name} failed, tasks that do not need it go on: {error}")
        self.failures.append((name, error))
        self._advance_whole(running.left)

    def retry(self, name: str, death: Death) -> None:
        """Record that a task's worker has died: the task waits once more, or has failed if that happened too often."""
        error = self._deaths.after(name, death, self._observer)
        if error is not None:
            self.fail(name, error)
            return
        running = self.running.pop(name)
        self._waiting.append(running.task)  # last, when fewer tasks may compete for memory
        self._advance_whole(-running.passed_on)

    def _advance_whole(self, amount: float, note: str = "") -> None:
        del note
        done = self._total - len(self._waiting) - len(self.running)
        failed = f", {len(self.failures)} failed" if self.failures else ""
        self._advance(amount, f"{done - len(self.failures)} of {self._total} finished{failed}")


@final
class _TaskObserver:
    """The observer that one task's producer reports to: it also advances the progress of the whole plan.

    Work that is not nested in other work is shown under the task's name. If its total is known, it advances the plan by
    its completed share of the task's cost, until that cost is used up.
    """

    def __init__(self, observer: Observer, advance: Advance, task: Task) -> None:
        self.passed_on = 0.0
        self.task = task
        self._observer, self._advance = observer, advance
        self._depth = 0

    @property
    def left(self) -> float:
        """The part of the task's cost that it has not passed on as progress."""
        return self.task.work - self.passed_on

    def message(self, message: str) -> None:
        self._observer.message(f"{self.task.name}: {message}")

    def track(self, entry: Tracked) -> None:
        track(part_of(self._observer, self.task.name), entry)

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        outermost, self._depth = self._depth == 0, self._depth + 1
        try:
            with self._observer.work(self.task.name if outermost else title, total) as advance:

                def advance_both(amount: float | int, note: str = "") -> None:
                    advance(amount, note)
                    if outermost and total > 0:
                        moved = min(self.task.work * amount / total, self.task.work - self.passed_on)
                        self.passed_on += moved
                        self._advance(moved, "")

                yield advance_both
        finally:
            self._depth -= 1
