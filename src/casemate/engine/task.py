"""A task is what to compute, as data; its key is a hash of all that its result depends on."""

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
    """One artifact to be computed."""

    name: str
    """Unique within a plan, such as "E2/fgsm/ce"."""
    kind: str
    """Which producer computes it."""
    config: dict[str, Any]
    """Everything the producer reads, as JSON."""
    needs: dict[str, str] = field(default_factory=dict)
    """Names of the tasks whose artifacts the producer takes, by role."""
    work: float | int = 1.0
    """Rough cost, in passes of one image forward and backward; for telling the time left."""


@final
@dataclass(frozen=True)
class Context:
    """What a producer is given besides its configuration; none of it may change the result, but for the device."""

    device: str
    observer: Observer
    data_dir: Path | None = None


@runtime_checkable
class ProducerFn(Protocol):
    """The function of a producer."""

    def __call__(
        self, config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
    ) -> dict[str, Any]:
        """Compute: write files into `folder`, keep what a resume needs in `working`, return the result as JSON."""
        ...


@final
@dataclass(frozen=True)
class Producer:
    """Computes all tasks of one kind."""

    module: str
    """The module whose code, with all it imports, makes the result; part of the key."""
    load: Callable[[], ProducerFn]
    """Returns the function; a plan can be made without calling it, and so without PyTorch."""


def keys(tasks: Sequence[Task], producers: Mapping[str, Producer], environment: Mapping[str, str]) -> dict[str, str]:
    """The key of every task: kind, configuration, code version, environment, and the keys of what it needs.

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
    """The wanted tasks and all they need, each after what it needs, otherwise in the order given."""
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
