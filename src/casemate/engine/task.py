"""A task describes a computation as data; its key is a hash of everything that its result depends on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from casemate.engine.code_version import code_version
from casemate.engine.store import Artifact
from casemate.progress import Observer


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """A computation described as data (its kind, settings and inputs); its result is stored as one artifact."""

    name: str
    """Unique within a plan, such as "E2/fgsm/ce"."""
    kind: str
    """Which computation it is, such as "train" or "curve": the key of its `Producer`."""
    config: dict[str, Any]
    """All settings of the computation, as JSON."""
    needs: dict[str, str] = field(default_factory=dict)
    """Its inputs: by role, such as "model", the name of the task whose artifact is used."""
    work: float | int = 1.0
    """Rough cost, in training steps on one image; for the estimate of the time left."""


@final
@dataclass(frozen=True)
class Context:
    """Device, progress observer and data folder of a task that runs; of these only the device may change the result."""

    device: str
    observer: Observer
    data_dir: Path | None = None
    threads: int = 1
    """Number of CPU threads per process: worker processes set it, and results record it."""


@runtime_checkable
class ProducerFn(Protocol):
    """A function that computes any task of one kind, such as a training or a curve."""

    def __call__(
        self, config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
    ) -> dict[str, Any]:
        """Compute one task: write the artifact's files into `folder`, and return its result as JSON.

        Args:
            config: the task's settings.
            needs: the artifacts that are its inputs, by role.
            folder: becomes the artifact's folder when the function returns.
            working: a folder for what a later run needs to continue after a failure, such as a checkpoint.
            context: the device, the observer, and where to search for data.
        """
        ...


@final
@dataclass(frozen=True)
class Producer:
    """How tasks of one kind are computed: the function, imported only on demand, and the module that contains it."""

    module: str
    """The module whose code, with everything it imports, determines the result; its hash is part of the key."""
    function: str
    """The name of the function in that module; or `package.module:function` for one in another module."""

    def load(self) -> ProducerFn:
        """Import and return that function. Called just before tasks run, so that making a plan needs no PyTorch."""
        module, _, name = self.function.rpartition(":")
        return getattr(import_module(module or self.module), name)


def keys(tasks: Sequence[Task], producers: Mapping[str, Producer], environment: Mapping[str, str]) -> dict[str, str]:
    """The store key of every task, by task name: a hash (20 hex digits) of all that its result depends on.

    That is its kind, settings, code and `environment`, and the keys of the tasks it needs, which must come before it in
    `tasks`, as `ordered` returns them.
    """
    found: dict[str, str] = {}
    for task in tasks:
        content = {
            "kind": task.kind,
            "config": task.config,
            "code": code_version(producers[task.kind].module),
            "environment": dict(environment),
            "needs": {role: found[name] for role, name in task.needs.items()},
        }
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        found[task.name] = hashlib.sha256(text.encode()).hexdigest()[:20]
    return found


def ordered(tasks: Sequence[Task], wanted: Sequence[str]) -> list[Task]:
    """The tasks named in `wanted` and all tasks that they need, directly or not; each comes after those it needs.

    Otherwise the order is that of `wanted`. Raises `ValueError` if tasks need each other in a circle.
    """
    by_name = {task.name: task for task in tasks}
    done: dict[str, Task] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"tasks need each other in a circle: {' -> '.join((*path, name))}")
        if name not in done:
            for need in by_name[name].needs.values():
                visit(need, (*path, name))
            done[name] = by_name[name]

    for name in wanted:
        visit(name, ())
    return list(done.values())
