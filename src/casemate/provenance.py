"""Provenance of artifacts: versions, hardware, commit. Recorded with every artifact."""

import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from casemate._version import __version__

_LIBRARIES = ("torch", "numpy", "scipy", "safetensors", "numba", "polars")
"""Libraries whose versions are recorded with every artifact; the last two may not be installed."""


def environment(device: str) -> dict[str, str]:
    """PyTorch's release and the kind of device (cpu, cuda), which are parts of the key of every artifact."""
    return {"torch": metadata.version("torch").split("+")[0], "device": device.split(":")[0]}


@cache
def commit() -> str | None:
    """The Git commit that casemate runs from, with "-dirty" if there are changes; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


@cache
def processor() -> str:
    """The processor's name, such as "AMD EPYC"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def instruction_set() -> str:
    """The instructions of the processor that PyTorch computes with, such as "AVX2" or "AVX512".

    Processors of one name can differ in them, and then round differently.
    """
    import torch  # here, since the import takes seconds

    return torch.backends.cpu.get_cpu_capability()


@cache
def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def surroundings(device: str, threads: int) -> dict[str, Any]:
    """Versions, commit, hardware, and the given device and number of threads, as a dictionary for JSON."""
    return {
        "casemate": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "libraries": dict(_versions()),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "instruction_set": instruction_set(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
        **(_gpu() if device.startswith("cuda") else {}),
    }


def _gpu() -> dict[str, Any]:
    """The GPU's name, and whether convolutions and matrix products may use TensorFloat-32 (10-bit mantissas)."""
    import torch  # here, since the import takes seconds and only GPUs need it

    from casemate.float32_precision import uses_tf32

    return {"gpu": torch.cuda.get_device_name(), "tf32": uses_tf32()}


def machine_in_words(made: Mapping[str, Any]) -> str:
    """Processor, its instructions if known, cores, threads and device, from what `surroundings` returned."""
    threads = f"{made['threads']} {'thread' if made['threads'] == 1 else 'threads'}"
    processors = made["processor"], made.get("instruction_set"), f"{made['cores']} cores"
    return ", ".join(filter(None, (*processors, threads, made["device"])))
