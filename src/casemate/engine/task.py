"""A task describes a computation as data; its key is a hash of everything that its result depends on."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from casemate.engine.code_version import code_version
from casemate.engine.store import Artifact
from casemate.progress import Observer


@final
@dataclass(frozen=True, kw_only=True)
class Task:
    """A description of one artifact to compute."""

    name: str
    """Unique within a plan, such as "E2/fgsm/ce"."""
    kind: str
    """The kind of producer that computes it."""
    config: dict[str, Any]
    """All settings of the producer, as JSON."""
    needs: dict[str, str] = field(default_factory=dict)
    """Names of the tasks whose artifacts the producer uses, by role."""
    work: float | int = 1.0
    """Rough cost, in forward and backward passes of one image; for the estimate of the time left."""


@final
@dataclass(frozen=True)
class Context:
    """The circumstances in which a producer runs; only the device may change the result."""

    device: str
    observer: Observer
    data_dir: Path | None = None


@runtime_checkable
class ProducerFn(Protocol):
    """The function of a producer."""

    def __call__(
        self, config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
    ) -> dict[str, Any]:
        """Write files into `folder` and return the result as JSON; keep in `working` what a resumed run needs."""
        ...


@final
@dataclass(frozen=True)
class Producer:
    """Computes all tasks of one kind."""

    module: str
    """The module whose code, with everything it imports, determines the result; its hash is part of the key."""
    load: Callable[[], ProducerFn]
    """Imports and returns the function; a plan does not call it, and so needs no PyTorch."""


def keys(tasks: Sequence[Task], producers: Mapping[str, Producer], environment: Mapping[str, str]) -> dict[str, str]:
    """The key of every task: a hash of kind, configuration, code, environment, and the keys of what it needs.

    `tasks` must come after what they need, as `ordered` leaves them.
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
    """The wanted tasks and all that they need, directly or not: each after what it needs, else in the given order."""
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
