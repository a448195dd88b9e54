"""Computes the artifact of one task while holding its lock, and stores it with its provenance."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from casemate.engine.store import Artifact, Store
from casemate.engine.task import Context, ProducerFn, Task
from casemate.provenance import surroundings


def produce(
    task: Task,
    key: str,
    needs: Mapping[str, Artifact],
    function: ProducerFn,
    code: str,
    store: Store,
    context: Context,
) -> Artifact:
    """Compute the artifact of `task` and put it into the store under `key`; return the stored one if there is one.

    `needs` are the task's inputs, by role. Raises `StoreError` if another process is computing it, and whatever the
    producer raises.
    """
    with store.lock_for(key) as working:
        found = store.find(key)  # another process may have finished it after the plan was made
        if found is not None:
            return found
        start = time.perf_counter()
        facts: dict[str, Any] = {
            "key": key,
            "kind": task.kind,
            "name": task.name,
            "config": task.config,
            "needs": {role: artifact.key for role, artifact in needs.items()},
            "code": code,
        }
        with store.put(key, facts) as folder:
            facts["result"] = function(task.config, needs, folder, working, context)
            facts["provenance"] = surroundings(context.device, context.threads) | {
                "seconds": time.perf_counter() - start,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
    artifact = store.find(key)
    if artifact is None:
        raise RuntimeError(f"{task.name} was written under {key} but is not there")
    return artifact
