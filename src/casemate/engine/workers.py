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

from casemate.engine.code_version import code_version
from casemate.engine.produce import produce
from casemate.engine.store import Artifact, Store
from casemate.engine.task import Context, Producer, ProducerFn, Task
from casemate.errors import CasemateWarning, MachineError, StoreError
from casemate.progress import NULL_OBSERVER, Advance, Observer, Tracked, track
from casemate.provenance import commit

_SECONDS_TO_END = 5.0
"""Seconds that an interrupted worker has to remove unfinished files before it is killed."""
_STARTS = 3
"""How often a process is started at most until one is ready, if a signal ends each of them before."""
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
    """A context of `count` worker processes, which are ended when it is left.

    Each computes tasks of `producers` (by kind of task) into `store`, on `context.threads` threads, on the device and
    with the data folder that `context` names. Raises `MachineError` if a process cannot be started.
    """

    def __init__(self, count: int, producers: Mapping[str, Producer], store: Store, context: Context) -> None:
        codes = {kind: code_version(producer.module) for kind, producer in producers.items()}
        start = (dict(producers), codes, store.root, replace(context, observer=NULL_OBSERVER))
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(_Worker(start))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """End all workers: those that do not clean up and leave in time are killed."""
        limit = time.monotonic() + _SECONDS_TO_END
        try:
            for worker in self._workers:
                worker.process.terminate()
            for worker in self._workers:
                worker.process.join(max(0.0, limit - time.monotonic()))
        finally:  # also after another Ctrl-C
            for worker in self._workers:
                worker.kill()

    @property
    def idle(self) -> list[int]:
        """The numbers, from 0, of the workers that compute nothing."""
        return [number for number, worker in enumerate(self._workers) if worker.task is None]

    def start(self, number: int, task: Task, key: str, needs: Mapping[str, Artifact], observer: Observer) -> None:
        """Let an idle worker compute `task`; its progress is reported to `observer`. Arguments as for `produce`."""
        self._workers[number].start(task, key, needs, observer)

    def wait(self) -> list[Finished]:
        """Wait for news of the workers and pass on their progress; return the reports on the tasks that ended.

        Raises what a worker raised while it started, or `MachineError` if it died then.
        """
        busy = [worker for worker in self._workers if worker.task is not None]
        ready = wait([worker.pipe for worker in busy])
        reports = [worker.receive() for worker in busy if worker.pipe in ready]
        return [report for report in reports if report is not None]


@final
class _Worker:
    """The parent's side of one worker process; after the process died, the next task starts another one."""

    def __init__(self, start: tuple[Any, ...]) -> None:
        self.task: Task | None = None
        self._start = start
        self._progress: _Replay | None = None
        self._sent: tuple[Any, ...] = ()
        self._starts = 0
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads may hang
        self._is_ready = False
        self._starts += 1
        pipe, child = context.Pipe()
        process = context.Process(target=_run, args=(child, *self._start), daemon=True)
        try:
            with _interrupts_ignored():  # until the new process, which inherits that, can ignore them itself
                process.start()
        except OSError as error:
            raise MachineError(f"cannot start a worker process: {error}; run again with fewer --workers") from error
        child.close()
        self.pipe, self.process = pipe, process

    def start(self, task: Task, key: str, needs: Mapping[str, Artifact], observer: Observer) -> None:
        if not self.process.is_alive():
            self.pipe.close()
            self._begin()
        self.task, self._progress = task, _Replay(observer)
        self._sent = (task, key, dict(needs))
        self._send()

    def _send(self) -> None:
        with suppress(OSError):  # it died just now, which `receive` notices
            self.pipe.send(self._sent)

    def receive(self) -> Finished | None:
        """The report on the worker's task; None if its message was something else."""
        task, progress = self.task, self._progress
        if task is None or progress is None:
            return None
        try:
            kind, *content = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            if not self._is_ready:
                if (self.process.exitcode or 0) < 0 and self._starts < _STARTS:  # killed, and not by its own error
                    self.pipe.close()
                    self._begin()
                    self._send()
                    return None
                raise MachineError(
                    f"worker processes do not start (exit code {self.process.exitcode}); their error is above, if they "
                    "printed one; --workers 1 needs none"
                ) from None
            found = Finished(task, exit_code=self.process.exitcode)
        else:
            if kind == "ready":
                self._is_ready, self._starts = True, 0
                return None
            if kind == "progress":
                progress.replay(*content)
                return None
            if kind == "unusable":
                raise content[0]
            found = Finished(task, **{kind: content[0]})
        self.task = None
        progress.close()
        return found

    def kill(self) -> None:
        """Kill the process if it still runs, and close what belongs to it."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        if self._progress is not None:
            self._progress.close()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A context in which Ctrl-C is ignored; in another thread than the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(
    pipe: Connection, producers: Mapping[str, Producer], codes: Mapping[str, str], root: Path, context: Context
) -> None:
    """What a worker process runs: it computes the tasks that arrive through the pipe until the pipe is closed.

    `codes` are the versions of the producers' code that the keys of the tasks stand for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", CasemateWarning)  # results state what they warn of
    try:
        functions = _loaded(producers, codes, context)
    except Exception as error:
        pipe.send(("unusable", _picklable(error)))
        return
    pipe.send(("ready",))
    store = Store(root)
    context = replace(context, observer=_Relay(pipe))
    while True:
        try:
            task, key, needs = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("artifact", produce(task, key, needs, functions[task.kind], codes[task.kind], store, context))
        except Exception as error:  # passed on to the parent, which decides
            error.add_note("".join(traceback.format_exception(error)))
            answer = ("error", _picklable(error))
        pipe.send(answer)


def _loaded(producers: Mapping[str, Producer], codes: Mapping[str, str], context: Context) -> dict[str, ProducerFn]:
    """The functions of all producers, by kind of task, loaded before the first task.

    Raises `StoreError` if the code is no longer that of the keys: somebody has edited it since the run began.
    """
    import torch

    torch.set_num_threads(context.threads)
    functions = {kind: producer.load() for kind, producer in producers.items()}
    commit()  # remembered now, since the checkout may change while tasks run
    if any(code_version(producer.module) != codes[kind] for kind, producer in producers.items()):
        raise StoreError("the code was edited while the study ran; run the same command again")
    return functions


def _leave(number: int, frame: object) -> None:
    """Leave by an exception, so that every open context cleans up; or at once, if that exception is dropped."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    at_once = threading.Timer(_SECONDS_TO_END, os._exit, (1,))
    at_once.daemon = True
    at_once.start()
    sys.exit(128 + number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # at once: locks are released, and nobody is there to report to


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

    def track(self, entry: Tracked) -> None:
        self._send("track", entry)

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

        finished = False
        try:
            yield advance
            finished = True
        finally:
            if amounts:
                self._send("advance", amounts, latest)
            self._send("end", finished)


@final
class _Replay:
    """Repeats what a worker's `_Relay` sent, to an observer in this process."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._open: list[tuple[ExitStack, Advance]] = []

    def replay(self, name: str, *content: Any) -> None:
        if name == "message":
            self._observer.message(*content)
        elif name == "track":
            track(self._observer, *content)
        elif name == "work":
            stack = ExitStack()
            self._open.append((stack, stack.enter_context(self._observer.work(*content))))
        elif name == "advance" and self._open:
            self._open[-1][1](*content)
        elif name == "end" and self._open:
            self._end(*content)

    def close(self) -> None:
        """End the work that was left open, as unfinished."""
        while self._open:
            self._end(finished=False)

    def _end(self, finished: bool) -> None:
        stack, _ = self._open.pop()
        if finished:
            stack.close()
            return
        with suppress(_UnfinishedError):  # the observer's context sees an exception, as in the worker
            stack.push(_raise_unfinished)
            stack.close()


class _UnfinishedError(Exception):
    """Raised into the context of work that did not finish."""


def _raise_unfinished(*exception: object) -> None:
    raise _UnfinishedError
