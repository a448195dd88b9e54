"""Runs Neural Structured Learning in its own environment: `nsl_side.py`, which see for the files."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from originals import NotHereError
from torch import Tensor, nn

from casemate.defenses import AdversarialRegularization, GraphRegularization

HERE = Path(__file__).resolve().parent
PYTHON = HERE.parents[1] / ".venv-nsl" / "bin" / "python"
Arrays = dict[str, np.ndarray]


def run_nsl(do: str, arrays: Mapping[str, Any], **what: Any) -> tuple[Arrays, dict[str, Any]]:
    """What `nsl_side.py` finds: arrays and numbers. Raises `NotHereError` without its environment."""
    if not PYTHON.exists():
        raise NotHereError(f"no {PYTHON}; README.md says how to build it")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "given.npz", **arrays)
        (folder / "given.json").write_text(json.dumps({"do": do, **what}))
        line = [str(PYTHON), str(HERE / "nsl_side.py"), str(folder)]
        done = subprocess.run(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode != 0:
            raise NotHereError(f"Neural Structured Learning failed: {done.stderr[-2000:]}")
        with np.load(folder / "found.npz") as file:
            return dict(file), json.loads((folder / "found.json").read_text())


def weights_of(network: nn.Module) -> Arrays:
    """The weights by name."""
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def nsl_settings(objective: AdversarialRegularization | GraphRegularization) -> dict[str, Any]:
    """NSL's settings of the same training."""
    if isinstance(objective, GraphRegularization):
        return {
            "kind": "graph",
            "multiplier": objective.multiplier,
            "max_neighbors": objective.max_neighbors,
            "distance_type": objective.distance,
        }
    return {
        "kind": "adversarial",
        "multiplier": objective.multiplier,
        "adv_step_size": objective.step_size,
        "adv_grad_norm": {"linf": "infinity", "l2": "l2", "l1": "l1"}[objective.norm],
        "clip_value_min": objective.clip_min,
        "clip_value_max": objective.clip_max,
        "pgd_iterations": objective.iterations,
        "pgd_epsilon": objective.pgd_eps,
    }


def given_arrays(
    network: nn.Module, images: Tensor, labels: Tensor, graph: tuple[Tensor, Tensor, Tensor] | None = None
) -> Arrays:
    """The arrays of a step or a training; `graph`: the images that may be neighbours, positions and weights."""
    found = {**weights_of(network), "images": images.numpy(), "labels": labels.numpy()}
    if graph is not None:
        pool, neighbours, weights = graph
        found |= {"pool": pool.numpy(), "neighbours": neighbours.numpy(), "neighbour_weights": weights.numpy()}
    return found
