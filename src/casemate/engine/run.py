"""Runs the tasks of a plan, in this process or in several worker processes; each artifact is stored at once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import final

from casemate.engine.code_version import code_version
from casemate.engine.plan import Plan
from casemate.engine.produce import produce
from casemate.engine.store import Artifact, Store
from casemate.engine.task import Context, Producer, Task
from casemate.engine.workers import Finished, Workers
from casemate.errors import CasemateError, MachineError, StoreError, is_interruption
from casemate.progress import Advance, Observer, Tracked, part_of, side_by_side, track

_ATTEMPTS = 2
"""How often a task is tried before it fails because its worker process died each time."""

OnArtifact = Callable[[str, Artifact], None]
"""Called with a task's name and its artifact as soon as that is stored."""


def run_plan(
    plan: Plan,
    producers: Mapping[str, Producer],
    store: Store,
    context: Context,
    *,
    workers: int = 1,
    on_artifact: OnArtifact | None = None,
) -> dict[str, Artifact]:
    """Run the tasks whose artifacts are missing; return all artifacts by task name.

    With several `workers`, that many processes compute tasks side by side, each on `context.threads` threads; with one,
    this process computes them in order. A result depends on neither the number of workers nor the order. Each artifact
    is stored as soon as it is finished, and so survives a later failure.

    If a task fails with a `CasemateError`, all tasks that do not need it still run; then its error is raised, the first
    of several. A `StoreError`, and any other exception, is raised at once. A task whose worker process dies is tried
    once more; if that worker dies too, it fails with `MachineError`.
    """
    if not plan.missing:
        return dict(plan.artifacts)
    needed = {task.kind: producers[task.kind] for task in plan.missing}
    with context.observer.work("Study", plan.work_left) as advance:
        schedule = _Schedule(plan, context.observer, advance, on_artifact)
        lanes = side_by_side(context.observer, workers)
        if workers == 1:
            _run_here(schedule, needed, store, context, lanes[0])
        else:
            with Workers(workers, needed, store, context) as processes:
                _run_in(processes, schedule, lanes)
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
            schedule.finish(Finished(task, error=error))
        else:
            schedule.finish(Finished(task, artifact=artifact))


def _run_in(processes: Workers, schedule: "_Schedule", lanes: list[Observer]) -> None:
    while True:
        for number in processes.idle:
            task = schedule.take(lanes[number])
            if task is None:
                break
            processes.start(number, task, schedule.key(task), schedule.needs(task), schedule.running[task.name])
        if not schedule.running:
            return
        for found in processes.wait():
            schedule.finish(found)


@final
class _Schedule:
    """The state of a running plan: which tasks wait, run, have finished or failed, and the progress of the whole."""

    def __init__(self, plan: Plan, observer: Observer, advance: Advance, on_artifact: OnArtifact | None) -> None:
        self.artifacts = dict(plan.artifacts)
        self.running: dict[str, _TaskObserver] = {}
        self.failures: list[tuple[str, CasemateError]] = []
        self._keys, self._waiting, self._total = plan.keys, list(plan.missing), len(plan.missing)
        self._observer, self._advance, self._on_artifact = observer, advance, on_artifact
        self._deaths: dict[str, int] = {}

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

    def finish(self, found: Finished) -> None:
        """Record how a task ended: with its artifact, an error, or the death of its process.

        Raises the error if it ends the whole run.
        """
        task = found.task
        left = task.work - self.running.pop(task.name).passed_on
        if found.artifact is not None:
            self.artifacts[task.name] = found.artifact
            self._advance_whole(left)
            if self._on_artifact is not None:
                self._on_artifact(task.name, found.artifact)
            return
        error = self._after_death(found) if found.error is None else found.error
        if error is None:
            self._waiting.append(task)  # last, when fewer tasks may compete for memory
            self._advance_whole(left - task.work)
        elif isinstance(error, StoreError) or not isinstance(error, CasemateError):
            raise error
        else:
            self._observer.message(f"{task.name} failed, tasks that do not need it go on: {error}")
            self.failures.append((task.name, error))
            self._advance_whole(left)

    def _after_death(self, found: Finished) -> Exception | None:
        """The error to report if a task's process has died too often; None if it is to be computed again."""
        name = found.task.name
        self._deaths[name] = self._deaths.get(name, 0) + 1
        code = found.exit_code or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._deaths[name] < _ATTEMPTS:
            self._observer.message(f"The worker process that computed {name} ended ({how}); computing it again")
            return None
        return MachineError(
            f"{_ATTEMPTS} worker processes ended while they computed it (the last by {how}); if memory ran out, run "
            "the same command again with fewer --workers"
        )

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
        self._observer, self._advance, self._task = observer, advance, task
        self._depth = 0

    def message(self, message: str) -> None:
        self._observer.message(f"{self._task.name}: {message}")

    def track(self, entry: Tracked) -> None:
        track(part_of(self._observer, self._task.name), entry)

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        outermost, self._depth = self._depth == 0, self._depth + 1
        try:
            with self._observer.work(self._task.name if outermost else title, total) as advance:

                def advance_both(amount: float | int, note: str = "") -> None:
                    advance(amount, note)
                    if outermost and total > 0:
                        moved = min(self._task.work * amount / total, self._task.work - self.passed_on)
                        self.passed_on += moved
                        self._advance(moved, "")

                yield advance_both
        finally:
            self._depth -= 1
