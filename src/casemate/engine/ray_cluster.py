"""The engine of a Ray cluster: each job is a Ray task with declared processors and GPUs (extra `ray`).

A worker process of Ray opens a setup once and keeps it for later jobs of the same pool. If such a process or its whole
node dies, the jobs that it computed are lost and nothing else. Progress reaches this process through an actor, which
needs no processor.
"""

import logging
import os
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from casemate.engine.answers import answer, packed, sendable, unpacked
from casemate.engine.pool import Compute, Death, Finished, JobSetup
from casemate.engine.reports import Relay, Replay
from casemate.errors import CasemateWarning, MachineError, SettingError, missing_extra
from casemate.progress import Observer

_REPORT_EVERY = 0.5
"""The shortest time between two progress reports from a worker, in seconds."""
_LOOK_EVERY = 0.2
"""Seconds between two looks at the progress reports while no job ends."""
_WAITING_FOR_PROCESSORS = 60.0
"""Seconds after which a message says that no worker has started a job yet."""
_MOST_OBJECT_MEMORY = 2 << 30
"""Bytes of shared memory that a cluster started here reserves for setups, jobs and results."""
_SECONDS_TO_CONNECT = 5.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a job without GPUs leaves the list of GPUs as it is
}
"""What Ray's processes find in their environment, unless the user has set it."""


@final
@dataclass(frozen=True, kw_only=True)
class Ray:
    """The engine of a Ray cluster: one that is started on this machine, or one that is there already."""

    address: str | None = None
    """Of the cluster: "auto" for the one that this machine is a node of, or host:port of its head. None: the one in
    which a Ray Job runs ($RAY_ADDRESS), or else a cluster on this machine, which ends with the work."""
    workers: int | None = None
    """The most jobs at a time; None: as many as the cluster's processors and GPUs have room for."""
    cpus: float = 1.0
    """Processors that a job declares, which should be the number of threads that it works on."""
    gpus: float = 0.0
    """GPUs that a job declares; a fraction lets several jobs share one."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise SettingError(f"workers = {self.workers}; expected at least 1")
        if not self.cpus > 0:
            raise SettingError(f"cpus = {self.cpus:g}; expected more than 0 processors for each job")
        if not (self.gpus >= 0 and (self.gpus <= 1 or self.gpus == int(self.gpus))):
            raise SettingError(f"gpus = {self.gpus:g}; expected 0, a fraction of one GPU, or a whole number of them")
        if self._cluster is not None and self._cluster.startswith("ray://"):
            raise SettingError(
                f"{self._cluster} is an address of the Ray Client, which is not supported; run on a node of the "
                "cluster with its host:port or auto, or from outside as a job: ray job submit -- casemate ..."
            )

    @property
    def _cluster(self) -> str | None:
        """The address of the cluster to join; None if one is started here."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    @contextmanager
    def open(self, setup: JobSetup, observer: Observer) -> Iterator["RayWorkers"]:
        """The context of workers for jobs with this setup; a cluster that is started here ends with it.

        Raises:
            MissingExtraError: Ray is not installed.
            MachineError: no cluster at the address, or none of its nodes has the processors and GPUs of a job.
        """
        self.check()
        with _connected(self._cluster, observer) as ray:
            count = self.workers or _room(ray.cluster_resources(), self.cpus, self.gpus)
            lacks = _lacking(ray, self.cpus, self.gpus)
            if lacks and self._cluster is not None:
                observer.message(f"{lacks}; waiting for the cluster to get one")  # it may grow on demand
            elif lacks:
                raise MachineError(
                    f"{lacks}; give smaller cpus or gpus (on the command line --threads, --gpus-per-task)"
                )
            pool = RayWorkers(count, packed(setup), cpus=self.cpus, gpus=self.gpus, observer=observer)
            try:
                yield pool
            finally:
                pool.end()

    def works_here(self, jobs: int) -> bool:
        """False: even a single job is a task of the cluster, where better machines may be."""
        return False

    def check(self) -> None:
        """Raise `MissingExtraError` without Ray, or `MachineError` if nothing answers at the address."""
        if find_spec("ray") is None:
            raise missing_extra("the engine Ray", "ray")
        if self.address not in (None, "auto"):
            _expect_answer(self.address)


@contextmanager
def _connected(address: str | None, observer: Observer) -> Iterator[Any]:
    """Context that yields the module `ray`, connected to the cluster at `address`, or to one that is started here.

    If the caller is connected to a cluster, that one is used, and stays connected.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is not None and _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when it is loaded, and would try without
    with observer.work("Loading Ray", 0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own future versions
        import ray
        from ray.exceptions import RayError

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address}
    if address is None:
        from casemate.memory import processors  # which imports PyTorch: the help of commands does without

        options = {"address": "local", "num_cpus": processors(), "include_dashboard": False}
        options["object_store_memory"] = _object_memory()
    # threads that wait must not take the processor from the other workers, see `casemate.waiting_threads`
    environment = {"env_vars": {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}}
    with observer.work("Starting Ray" if address is None else f"Joining the Ray cluster at {address}", 0):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(**options, runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
        except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = "cannot start Ray" if address is None else f"cannot join a Ray cluster at {address}"
            raise MachineError(
                f"{where}: {str(error).splitlines()[0]}; start one with `ray start --head` and give its "
                "address as host:port (on the command line --ray-address), or none for a cluster on this machine"
            ) from error
    try:
        with _silent(ray):
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _silent(ray: Any) -> Iterator[None]:
    """Context in which Ray prints nothing about dead workers: stdout is for results, and deaths are reported here.

    No public name of Ray turns these messages off. If the private one is gone, they appear.
    """
    module, name = ray._private.worker, "print_to_stdstream"
    before = getattr(module, name, None)
    setattr(module, name, lambda *content, **options: None)
    try:
        yield
    finally:
        setattr(module, name, before)


def _has_token() -> bool:
    """Whether this user has the token with which clusters that `ray start` makes know their own."""
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(name in os.environ for name in names) or (Path.home() / ".ray" / "auth_token").is_file()


def _object_memory() -> int:
    """Bytes for Ray's shared memory: half of what is free, within bounds that Ray and this library set."""
    free = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else os.statvfs("/tmp")  # noqa: PTH112
    return max(100 << 20, min(_MOST_OBJECT_MEMORY, free.f_bavail * free.f_frsize // 2))


def _expect_answer(address: str) -> None:
    """Raise `MachineError` unless something answers at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise SettingError(
            f"ray-address {address!r}; expected auto, or host:port of the cluster's head, such as 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise MachineError(
            f"nothing answers at {address} ({error}); expected the head of a Ray cluster, which `ray start --head` "
            "starts and prints the address of"
        ) from error


def _room(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """The number of jobs at a time that a cluster's resources have room for, at least 1."""
    by_cpu = resources.get("CPU", 0) / cpus
    return max(1, int(min(by_cpu, resources.get("GPU", 0) / gpus) if gpus else by_cpu))


def _lacking(ray: Any, cpus: float, gpus: float) -> str:
    """Says that no node has what a job declares, for which Ray would wait without end; "" if one has it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return ""
    most = ", ".join(f"{max((node.get(name, 0) for node in nodes), default=0):g} {name}" for name in ("CPU", "GPU"))
    return (
        f"a job needs {cpus:g} CPU and {gpus:g} GPU on one node, but the most that a node of the cluster has is {most}"
    )


@final
@dataclass
class _Running:
    """A job that was given to the cluster."""

    name: str
    number: int
    ticket: str
    progress: Replay


@final
class RayWorkers:
    """At most `count` jobs at a time as tasks of the cluster that this process is connected to: a `Pool`."""

    def __init__(self, count: int, setup: bytes, *, cpus: float, gpus: float, observer: Observer) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.count = count
        self._ray, self._observer = ray, observer
        self._identity = uuid.uuid4().hex
        self._setup = ray.put((sys.path, setup))
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=-1)(_Reports)
        self._reports = actor.remote()
        self._task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_compute)
        self._running: dict[Any, _Running] = {}
        self._waits_since: float | None = time.monotonic()
        """Since when no worker has reported anything; None once one has, or users know."""

    @property
    def idle(self) -> list[int]:
        """The numbers of the places for jobs that are free."""
        taken = {each.number for each in self._running.values()}
        return [number for number in range(self.count) if number not in taken]

    def start(self, number: int, name: str, job: Any, observer: Observer) -> None:
        """Give a job to the cluster; its progress is reported to `observer`."""
        ticket = uuid.uuid4().hex
        ref = self._task.options(name=name).remote(self._identity, [self._setup], packed(job), ticket, self._reports)
        self._running[ref] = _Running(name, number, ticket, Replay(observer))

    def wait(self) -> Sequence[Finished]:
        """Wait for a job to end, or for a moment, and pass on progress; return the jobs that ended."""
        ready, others = self._ray.wait(list(self._running), num_returns=1, timeout=_LOOK_EVERY)
        if ready and others:  # those that ended at the same time
            ready += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        self._pass_on()
        return [self._ended(ref) for ref in ready]

    def _pass_on(self) -> None:
        """Pass on the progress reports that have arrived since the last call."""
        by_ticket = {each.ticket: each.progress for each in self._running.values()}
        try:
            taken = self._ray.get(self._reports.take.remote())
        except self._ray.exceptions.RayError:  # its process was killed, and is started again
            taken = []
        for ticket, content in taken:
            self._waits_since = None
            if ticket in by_ticket:
                by_ticket[ticket].replay(*content)
        if self._waits_since is not None and time.monotonic() - self._waits_since > _WAITING_FOR_PROCESSORS:
            self._observer.message("Waiting for the Ray cluster to have processors or GPUs free for the first job")
            self._waits_since = None

    def _ended(self, ref: Any) -> Finished:
        running = self._running.pop(ref)
        running.progress.close()
        errors = self._ray.exceptions
        try:
            kind, content = unpacked(self._ray.get(ref))
        except errors.OutOfMemoryError:
            return Finished(name=running.name, death=Death(how="out of memory"))
        except errors.WorkerCrashedError:
            return Finished(name=running.name, death=Death(how="it crashed or was killed"))
        except errors.RayTaskError as error:  # as when a worker cannot import what the job consists of
            raise MachineError(
                f"a Ray worker cannot compute: {str(error).splitlines()[-1]}; install the same packages on every node, "
                "and give your own code to all of them: ray job submit --working-dir . -- casemate ..."
            ) from error
        except errors.RayError as error:  # node gone, result lost with it, owner or raylet dead
            return Finished(name=running.name, death=Death(how=type(error).__name__, by_machine=True))
        if kind == "unusable":
            raise content
        return Finished(name=running.name, **{kind: content})

    def end(self) -> None:
        """Kill what still runs."""
        with suppress(Exception):  # the cluster may be gone
            for ref in self._running:
                self._ray.cancel(ref, force=True)
            self._ray.kill(self._reports)
        for each in self._running.values():
            each.progress.close()


class _Reports:
    """The actor that keeps workers' progress reports until the process that started them takes them."""

    def __init__(self) -> None:
        self._reports: list[tuple[str, tuple[Any, ...]]] = []

    def add(self, ticket: str, content: tuple[Any, ...]) -> None:
        self._reports.append((ticket, content))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        taken, self._reports = self._reports, []
        return taken


_opened: dict[str, tuple[ExitStack, Compute]] = {}
"""In a worker process of Ray: the setup that it has opened, by the identity of the pool; at most one."""


def _compute(identity: str, setup: list[Any], job: bytes, ticket: str, reports: Any) -> bytes:
    """The Ray task: open the setup if this process has not done so, and compute a job."""
    import ray
    from ray.exceptions import RayError

    if identity not in _opened:
        warnings.simplefilter("ignore", CasemateWarning)  # results state what they warn of
        for stack, _ in [_opened.pop(each) for each in list(_opened)]:
            stack.close()
        stack = ExitStack()
        try:
            folders, content = ray.get(setup[0])
            sys.path += [each for each in folders if each not in sys.path]  # the user's own code may be in one
            opened = unpacked(content).open()
            _opened[identity] = (stack, stack.enter_context(opened))
        except Exception as error:
            stack.close()
            return packed(("unusable", sendable(error)))
    sent: list[Any] = []

    def send(*content: Any) -> None:
        sent[:] = [reports.add.remote(ticket, content)]

    send("started")
    found = answer(_opened[identity][1], job, Relay(send, _REPORT_EVERY))
    with suppress(RayError):  # progress is worth no result
        ray.get(sent)  # the last report, and with it all before, so that none arrives after the result
    return found
