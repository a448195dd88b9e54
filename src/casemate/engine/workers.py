"""Worker processes of this machine, each of which computes one job at a time on its own threads.

If a worker dies, only the job that it was computing is lost. Workers end with the process that started them, even if
that is killed. They ignore Ctrl-C, which a terminal sends to all its processes; the parent ends them.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, final

from casemate.engine.answers import answer, packed, sendable, unpacked
from casemate.engine.pool import Death, Finished, JobSetup
from casemate.engine.reports import Relay, Replay
from casemate.errors import CasemateWarning, MachineError
from casemate.progress import Observer

_SECONDS_TO_END = 5.0
"""Seconds that an interrupted worker has to remove unfinished files before it is killed."""
_STARTS = 3
"""How often a process is started at most until one is ready, if a signal ends each of them before."""
_REPORT_EVERY = 0.2
"""The shortest time between two progress reports from a worker, in seconds."""


@final
@dataclass(frozen=True, kw_only=True)
class Processes:
    """The engine of worker processes on this machine."""

    workers: int
    """Number of processes. Each works on as many threads as the setup of its jobs says."""

    def open(self, setup: JobSetup, observer: Observer) -> "Workers":
        """The context of the workers, which are ended when it is left. Raises `MachineError` if they cannot start."""
        del observer  # nothing to say of it
        return Workers(self.workers, setup)

    def works_here(self, jobs: int) -> bool:
        """Whether there is one worker, or work for one."""
        return min(self.workers, jobs) <= 1


@final
class Workers:
    """A context of `count` worker processes for jobs with one setup: a `Pool`.

    Raises `MachineError` if a process cannot be started.
    """

    def __init__(self, count: int, setup: JobSetup) -> None:
        start = packed(setup)
        self._workers: list[_Worker] = []
        try:
            with _interrupts_postponed():  # until every process that was started is known here, to be ended
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
    def count(self) -> int:
        """Number of workers."""
        return len(self._workers)

    @property
    def idle(self) -> list[int]:
        """The numbers, from 0, of the workers that compute nothing."""
        return [number for number, worker in enumerate(self._workers) if worker.name is None]

    def start(self, number: int, name: str, job: Any, observer: Observer) -> None:
        """Let an idle worker compute a job; its progress is reported to `observer`."""
        self._workers[number].start(name, packed(job), observer)

    def wait(self) -> list[Finished]:
        """Wait for news of the workers and pass on their progress; return the jobs that ended.

        Raises what a worker raised while it started, or `MachineError` if it died then.
        """
        busy = [worker for worker in self._workers if worker.name is not None]
        ready = wait([worker.pipe for worker in busy])
        reports = [worker.receive() for worker in busy if worker.pipe in ready]
        return [report for report in reports if report is not None]


@final
class _Worker:
    """The parent's side of one worker process; after the process died, the next job starts another one."""

    def __init__(self, start: bytes) -> None:
        self.name: str | None = None
        self._start = start
        self._progress: Replay | None = None
        self._job = b""
        self._starts = 0
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads may hang
        self._is_ready = False
        self._starts += 1
        pipe, child = context.Pipe()
        process = context.Process(target=_run, args=(child, self._start), daemon=True)
        with _interrupts_postponed():  # also in the new process, until it can ignore them itself
            try:
                process.start()
            except OSError as error:
                raise MachineError(f"cannot start a worker process: {error}; run again with fewer workers") from error
            self.pipe, self.process = pipe, process
        child.close()

    def start(self, name: str, job: bytes, observer: Observer) -> None:
        if not self.process.is_alive():
            self.pipe.close()
            self._begin()
        self.name, self._progress, self._job = name, Replay(observer), job
        self._send()

    def _send(self) -> None:
        with suppress(OSError):  # it died just now, which `receive` notices
            self.pipe.send_bytes(self._job)

    def receive(self) -> Finished | None:
        """The report on the worker's job; None if its message was something else."""
        name, progress = self.name, self._progress
        if name is None or progress is None:
            return None
        try:
            kind, *content = unpacked(self.pipe.recv_bytes())
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
                    "printed one; without an engine (on the command line with --workers 1) none is needed"
                ) from None
            code = self.process.exitcode or 0
            found = Finished(name=name, death=Death(how=f"signal {-code}" if code < 0 else f"exit code {code}"))
        else:
            if kind == "ready":
                self._is_ready, self._starts = True, 0
                return None
            if kind == "progress":
                progress.replay(*content)
                return None
            if kind == "unusable":
                raise content[0]
            found = Finished(name=name, **{kind: content[0]})
        self.name = None
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
def _interrupts_postponed() -> Iterator[None]:
    """A context that Ctrl-C reaches only when it is left, and the processes started in it never.

    In another thread than the main one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    resource_tracker.ensure_running()  # it would let the signal through again where it starts by itself
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))  # other threads may receive it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _run(pipe: Connection, start: bytes) -> None:
    """What a worker process runs: it computes the jobs that arrive through the pipe until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", CasemateWarning)  # results state what they warn of

    def send(*content: Any) -> None:
        pipe.send_bytes(packed(content))

    with ExitStack() as stack:
        try:
            compute = stack.enter_context(unpacked(start).open())
        except Exception as error:
            send("unusable", sendable(error))
            return
        send("ready")
        relay = Relay(partial(send, "progress"), _REPORT_EVERY)
        with suppress(EOFError):  # the pipe is closed
            while True:
                pipe.send_bytes(answer(compute, pipe.recv_bytes(), relay))


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
