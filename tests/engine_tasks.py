"""A producer of small artifacts, which worker processes can import, and what processes leave running or locked."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from casemate.engine import Context
from casemate.errors import StoreError, TrainingError


def produce(
    config: dict[str, Any], needs: Mapping[str, Any], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Add the configured value to those of the needs.

    The configuration may also say how the task `fails`, for how many `seconds` it works, in which file it leaves the
    process's number, and how often it `dies` before it succeeds.
    """
    with context.observer.work("producing", 2) as advance:
        advance(1, "half")
        if "process" in config:
            Path(config["process"]).write_text(str(os.getpid()))
        time.sleep(config.get("seconds", 0))
        deaths = working / "deaths"
        died = len(deaths.read_text()) if deaths.exists() else 0
        if died < config.get("dies", 0):
            deaths.write_text("x" * (died + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if "fails" in config:
            raise {"store": StoreError, "training": TrainingError, "bug": ZeroDivisionError}[config["fails"]](
                "this one fails"
            )
        (folder / "out.txt").write_text(str(config["value"]))
        advance(1, "whole")
    return {"value": config["value"] + sum(artifact.result["value"] for artifact in needs.values())}


def locked(root: Path) -> list[str]:
    """The locks of a store that some process holds."""
    found = []
    for file in (root / "locks").glob("*.lock"):
        lock = filelock.FileLock(file)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            found.append(file.name)
        else:
            lock.release()
    return found


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended (Linux only)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
