"""Worker processes, each of which computes one task at a time on its own threads.

If a worker dies, only the task that it was computing is lost. Workers end with the process that started them, even if
that is killed. They ignore Ctrl-C, which a terminal sends to all its processes; the parent ends them.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, final

from casemate.engine.produce import produce
from casemate.engine.store import Artifact, Store
from casemate.engine.task import Context, Producer, Task
from casemate.errors import CasemateWarning
from casemate.progress import NULL_OBSERVER, Advance, Observer

_SECONDS_TO_END = 5.0
"""Seconds that an interrupted worker has to remove unfinished files before it is killed."""
_REPORT_EVERY = 0.2
"""The shortest time between two progress reports from a worker, in seconds."""


@final
@dataclass(frozen=True)
class Finished:
    """A worker's report on one task: its artifact, or the error that the task raised, or neither if the worker died."""

    task: Task
    artifact: Artifact | None = None
    error: Exception | None = None
    exit_code: int | None = None
    """The exit code of a worker that died; negative: the signal that killed it."""


@final
class Workers:
    """A context manager that starts `count` worker processes, and ends them on exit.

    Each computes tasks with `producers` (by kind of task) into `store`, with the device, data folder and threads of
    `context`.
    """

    def __init__(self, count: int, producers: Mapping[str, Producer], store: Store, context: Context) -> None:
        start = (dict(producers), store.root, replace(context, observer=NULL_OBSERVER))
        self._workers = [_Worker(start) for _ in range(count)]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.interrupt()
        limit = time.monotonic() + _SECONDS_TO_END
        for worker in self._workers:
            worker.end(max(0.0, limit - time.monotonic()))

    @property
    def idle(self) -> list[int]:
        """The numbers, from 0, of the workers without a task."""
        return [number for number, worker in enumerate(self._workers) if worker.task is None]

    def start(self, number: int, task: Task, key: str, needs: Mapping[str, Artifact], observer: Observer) -> None:
        """Start `task` on an idle worker, which reports its progress to `observer`. Arguments as for `produce`."""
        self._workers[number].start(task, key, needs, observer)

    def wait(self) -> list[Finished]:
        """Wait until a worker sends something and pass on its progress; return the reports on the tasks that ended."""
        busy = [worker for worker in self._workers if worker.task is not None]
        ready = wait([worker.pipe for worker in busy])
        reports = [worker.receive() for worker in busy if worker.pipe in ready]
        return [report for report in reports if report is not None]


@final
class _Worker:
    """The parent's side of one worker process; if the process has died, the next task starts a new one."""

    def __init__(self, start: tuple[Any, ...]) -> None:
        self.task: Task | None = None
        self._start = start
        self._progress: _Replay | None = None
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads may hang
        self.pipe, child = context.Pipe()
        self._process = context.Process(target=_run, args=(child, *self._start), daemon=True)
        self._process.start()
        child.close()

    def start(self, task: Task, key: str, needs: Mapping[str, Artifact], observer: Observer) -> None:
        if not self._process.is_alive():
            self._begin()
        self.task, self._progress = task, _Replay(observer)
        with suppress(BrokenPipeError):  # it has just died, and `receive` reports it
            self.pipe.send((task, key, dict(needs)))

    def receive(self) -> Finished | None:
        task, progress = self.task, self._progress
        assert task is not None and progress is not None  # noqa: PT018 (only busy workers are waited for)
        try:
            kind, *content = self.pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            found = Finished(task, exit_code=self._process.exitcode)
            self.pipe.close()
        else:
            if kind == "progress":
                progress.replay(*content)
                return None
            found = Finished(task, **{kind: content[0]})
        self.task = None
        progress.close()
        return found

    def interrupt(self) -> None:
        self._process.terminate()

    def end(self, seconds: float) -> None:
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.pipe.close()
        if self._progress is not None:
            self._progress.close()


def _run(pipe: Connection, producers: Mapping[str, Producer], root: Path, context: Context) -> None:
    """The main function of a worker process: compute the tasks that arrive through the pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", CasemateWarning)  # results state what they warn of
    import torch

    torch.set_num_threads(context.threads)
    for producer in producers.values():  # before the first task: later edits must not run under its code's key
        producer.load()
    store = Store(root)
    context = replace(context, observer=_Relay(pipe))
    while True:
        try:
            task, key, needs = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("artifact", produce(task, key, needs, producers[task.kind], store, context))
        except Exception as error:  # passed on to the parent, which decides
            error.add_note("".join(traceback.format_exception(error)))
            answer = ("error", _picklable(error))
        pipe.send(answer)


def _leave(number: int, frame: object) -> None:
    """Exit by an exception, so that every open context manager cleans up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # at once: this releases the locks, and there is no parent to report to


def _picklable(error: Exception) -> Exception:
    """The error; if it cannot be pickled, a `RuntimeError` with its type and message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class defined elsewhere may raise anything
        made = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            made.add_note(note)
        return made
    return error


@final
class _Relay:
    """The observer in a worker: it sends all reports to the parent, progress at most every `_REPORT_EVERY` seconds."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def _send(self, name: str, *content: Any) -> None:
        self._pipe.send(("progress", name, *content))

    def message(self, message: str) -> None:
        self._send("message", message)

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        self._send("work", title, total)
        sent, amounts, latest = time.monotonic(), 0.0, ""

        def advance(amount: float | int, note: str = "") -> None:
            nonlocal sent, amounts, latest
            amounts, latest = amounts + amount, note or latest
            if time.monotonic() - sent >= _REPORT_EVERY:
                self._send("advance", amounts, latest)
                sent, amounts = time.monotonic(), 0.0

        try:
            yield advance
        finally:
            if amounts:
                self._send("advance", amounts, latest)
            self._send("end")


@final
class _Replay:
    """Passes the reports that a worker's `_Relay` sent to an observer in this process."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._open: list[tuple[ExitStack, Advance]] = []

    def replay(self, name: str, *content: Any) -> None:
        if name == "message":
            self._observer.message(*content)
        elif name == "work":
            stack = ExitStack()
            self._open.append((stack, stack.enter_context(self._observer.work(*content))))
        elif name == "advance" and self._open:
            self._open[-1][1](*content)
        elif name == "end" and self._open:
            self._open.pop()[0].close()

    def close(self) -> None:
        """End the work that a dead worker left open."""
        while self._open:
            self._open.pop()[0].close()
