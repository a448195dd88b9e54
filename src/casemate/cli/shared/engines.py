"""The options that choose where work is computed side by side: worker processes here, or a Ray cluster."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from casemate.cli.shared.options import at_least_one
from casemate.engine import Engine, Processes, Ray
from casemate.errors import SettingError

_WORKERS = "(default: with processes, one per core for a study and 1 for an evaluation; with ray, all that has room)"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where pieces of the work are computed side by side."""

    engine: Literal["processes", "ray"] = "processes"
    """Worker processes on this machine, or tasks of a Ray cluster (extra ray). Neither changes a result."""
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint=_WORKERS)] = None
    """The most pieces at a time, each on --threads threads (default then: 1). Up to 500 small images are a
    single piece."""
    ray_address: Annotated[str | None, arg(metavar="ADDR", help_behavior_hint="(default: start one here)")] = None
    """The Ray cluster: auto for the one that this machine belongs to, or host:port of its head. In a Ray Job it is that
    of the job."""
    gpus_per_task: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: 1 on a GPU, else 0)")] = None
    """GPUs that every Ray task declares; a fraction lets several tasks share one."""

    def check(self) -> None:
        """Raise `CasemateError` for options that do not fit each other, and if there is no such cluster."""
        at_least_one("workers", self.workers)
        if self.engine != "ray":
            for name, value in (("ray-address", self.ray_address), ("gpus-per-task", self.gpus_per_task)):
                if value is not None:
                    raise SettingError(f"--{name} {value} is about a Ray cluster; give --engine ray too")
        else:
            self._ray(cpus=1.0, gpus=0.0).check()

    def default_threads(self, workers: int) -> int | None:
        """The number of threads if --threads is not given: one if pieces run side by side, else PyTorch's choice."""
        return 1 if self.engine == "ray" or (self.workers or workers) > 1 else None

    def make(self, device: str, threads: int, workers: int) -> Engine:
        """The engine; `workers` is the number of processes if the options give none."""
        if self.engine == "processes":
            return Processes(workers=self.workers or workers)
        return self._ray(cpus=float(threads), gpus=0.0 if device == "cpu" else 1.0)

    def _ray(self, *, cpus: float, gpus: float) -> Ray:
        own = gpus if self.gpus_per_task is None else self.gpus_per_task
        return Ray(address=self.ray_address, workers=self.workers, cpus=cpus, gpus=own)
