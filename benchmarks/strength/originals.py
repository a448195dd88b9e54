"""Runs the original AutoAttack and adv-lib's minimum-norm attacks on the networks of this benchmark; see README.md.

`AUTOATTACK_SRC=... ADVLIB_SRC=... python benchmarks/strength/originals.py [NETWORK ...]` computes the cells that are
missing. `plan` lists the cells, `read` reads one.

Exit code 0: no cell is missing. 1: an original failed in some cells. 2: a network or the folder of an original is
missing, so that some cells could not be computed.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, final

import numpy as np
import torch
from networks import FOLDER, NETWORKS, Network, load, network_of, path_of, weights_of
from torch import Tensor, nn

from casemate import data
from casemate.attacks import frozen
from casemate.files import write_text
from casemate.provenance import processor

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "originals"
SEED = 0
BATCH = 500
"""Images that the original AutoAttack attacks at a time."""

Norm = Literal["linf", "l2", "l1", "l0"]
ORDERS: dict[Norm, float] = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}
AUTOATTACK_NAMES: dict[Norm, str] = {"linf": "Linf", "l2": "L2", "l1": "L1"}

EPS: dict[str, dict[Norm, tuple[float, ...]]] = {
    "aside-linf": {"linf": (0.08, 0.12, 0.16), "l2": (0.7, 1.2, 1.8), "l1": (2.5, 4.5, 8)},
    "aside-plain": {"linf": (0.015, 0.03, 0.045), "l2": (0.25, 0.5, 0.75), "l1": (2, 4, 6)},
    "aside-l2": {"linf": (0.05, 0.09, 0.15), "l2": (0.9, 1.6, 2.4), "l1": (6, 12, 20)},
    "aside-certified": {"linf": (0.075, 0.09, 0.115), "l2": (0.5, 0.75, 1), "l1": (1.5, 2.5, 4)},
    "aside-resnet": {"linf": (0.08, 0.12, 0.16), "l2": (0.7, 1.1, 1.6), "l1": (2.5, 4.5, 7.5)},
    "plain": {"linf": (0.03, 0.055, 0.08), "l2": (0.55, 0.9, 1.25), "l1": (4, 7, 10)},
    "linf": {"linf": (0.1, 0.15, 0.2), "l2": (1.1, 1.7, 2.3), "l1": (4, 7, 12)},
    "certified": {"linf": (0.1, 0.14, 0.18), "l2": (0.6, 1.1, 1.6), "l1": (1.5, 2.5, 5)},
    "l2": {"linf": (0.08, 0.12, 0.17), "l2": (1.1, 1.8, 2.7), "l1": (7, 12, 20)},
    "resnet": {"linf": (0.1, 0.14, 0.18), "l2": (0.9, 1.2, 1.8), "l1": (3, 5, 8)},
    "l1": {"linf": (0.045, 0.08, 0.12), "l2": (0.9, 1.4, 2.1), "l1": (10, 16, 24)},
}
"""By network and norm: the eps at which the original AutoAttack is run, ascending. They are near the quartiles of the
distances that short runs of adv-lib's attacks reach on the first 110 or 150 of the images, so that about 75, 50 and 25
% of the correctly classified images are left."""

ATTACKS: dict[Norm, dict[str, dict[str, Any]]] = {
    "linf": {"fmn": {"steps": 1000, "α_init": 10.0}, "pdpgd": {"num_steps": 500}},
    "l2": {
        "alma": {"num_steps": 1000, "α": 0.9, "init_lr_distance": 0.1},
        "pdgd": {"num_steps": 500},
        "ddn": {"steps": 1000, "init_norm": 1.0, "γ": 0.05, "levels": None},
        "fmn": {"steps": 1000, "α_init": 1.0},
    },
    "l1": {
        "pdpgd": {"num_steps": 500},
        "alma": {"num_steps": 1000, "α": 0.9, "init_lr_distance": 0.5},
        "fmn": {"steps": 1000, "α_init": 1.0},
    },
    "l0": {
        "fmn": {"steps": 1000, "α_init": 1.0},
        "pdpgd": {"num_steps": 500, "proximal_operator": 23},
        "sigma_zero": {"num_steps": 1000},
    },
}
"""adv-lib's attacks by norm, with the settings that AttackBench (Cinà et al. 2024, arXiv 2404.19460) runs them with;
what is not stated is the attack's default. DDN does not round to 8 bits here. sigma-zero has its defaults."""


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One file of results."""

    network: Network
    norm: Norm
    eps: float | None
    """The radius at which AutoAttack is run; None for the minimum-norm attacks."""

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return f"{self.network.name}-{self.norm}-{'minimum' if self.eps is None else f'{self.eps:g}'}"

    @property
    def path(self) -> Path:
        """Its file."""
        return RESULTS / f"{self.name}.json"

    @property
    def images(self) -> slice:
        """The test images attacked: others for the networks that are set aside."""
        return slice(0, 500) if self.network.reported else slice(5000, 5200)


def plan(names: Iterable[str] = ()) -> list[Cell]:
    """All cells of these networks, or of all, in the order in which they are computed."""
    cells = []
    for network in map(network_of, names) if names else NETWORKS:
        chosen = EPS[network.name]
        cells += [Cell(network=network, norm=norm, eps=eps) for norm in chosen for eps in chosen[norm]]
        cells += [Cell(network=network, norm=norm, eps=None) for norm in ATTACKS]
    return cells


def read(cell: Cell, weights: str | None = None) -> dict[str, Any] | None:
    """A cell's results; None if there are none, or of other weights than those with this SHA-256 (None: any)."""
    if not cell.path.is_file():
        return None
    found = json.loads(cell.path.read_text(encoding="utf-8"))
    return found if weights in (None, found["weights"]) else None


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write the results of a cell, whole or not at all, each entry on a line of its own."""
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in found.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def rounded(value: float) -> float:
    """The number to 5 significant digits."""
    return float(f"{value:.5g}")


def distances(moved: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """How far each image was moved, in float64, `(n,)`."""
    return torch.linalg.vector_norm((moved.double() - images.double()).flatten(1), ord=ORDERS[norm], dim=1)


def fooled(model: nn.Module, moved: Tensor, labels: Tensor) -> Tensor:
    """Which images are finite, within [0, 1] up to 1e-6, and misclassified in a pass of their own, `(n,)`."""
    flat = moved.double().flatten(1)
    inside = flat.isfinite().all(1) & (flat >= -1e-6).all(1) & (flat <= 1 + 1e-6).all(1)
    with torch.no_grad():
        return inside & (model(moved.clamp(0, 1)).argmax(1) != labels)


def minimum(library: ModuleType, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm) -> dict[str, Any]:
    """Each of adv-lib's attacks in this norm on the images: settings, seconds, and the distances it reached.

    A distance is None where the attack found nothing that `fooled` confirms. Images are clipped to [0, 1] before they
    are measured.
    """
    found = {}
    for name, settings in ATTACKS[norm].items():
        given = {"norm": ORDERS[norm]} if name in ("fmn", "pdpgd") else {"distance": norm} if name == "alma" else {}
        torch.manual_seed(SEED)
        start, cpu = time.perf_counter(), time.process_time()
        moved = getattr(library, name)(model, images, labels, **given, **settings).detach()
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - cpu
        far = distances(moved.clamp(0, 1), images, norm).tolist()
        right = fooled(model, moved, labels).tolist()
        found[name] = {
            "settings": settings,
            "seconds": round(seconds, 1),
            "processor_seconds": round(processor_seconds, 1),
            "distance": [rounded(each) if sure else None for each, sure in zip(far, right, strict=True)],
        }
    return {"attacks": found}


def autoattack(kind: Any, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float) -> dict[str, Any]:
    """The original AutoAttack on the images: what it leaves, its seconds, and what it printed.

    `robust` is as it says; `unconfirmed` are the places of images that it counts as fooled, whose perturbation is
    longer than eps by more than a hundred-thousandth, or which `fooled` does not confirm.
    """
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (the generator that it draws from)
    log = io.StringIO()
    start, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(log):
        attack = kind(model, norm=AUTOATTACK_NAMES[norm], eps=eps, version="standard", device="cpu", seed=SEED)
        moved, answers = attack.run_standard_evaluation(images, labels, bs=BATCH, return_labels=True)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - cpu
    robust = answers == labels
    near = distances(moved, images, norm) <= eps * (1 + 1e-5)
    return {
        "settings": {"version": "standard", "seed": SEED, "batch": BATCH},
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),
        "log": [line for line in log.getvalue().splitlines() if "robust accuracy after" in line],
        "unconfirmed": (~robust & ~(near & fooled(model, moved, labels))).nonzero().flatten().tolist(),
        "robust": robust.int().tolist(),
    }


def compute(cell: Cell, source: str, images: Tensor, labels: Tensor, folder: Path) -> dict[str, Any]:
    """The results of a cell. `robust` and `distance` are about the images classified correctly, in their order."""
    weights = weights_of(cell.network.name, folder)
    model = load(cell.network.name, folder).network  # plain PyTorch, without the checks of a `Classifier`
    images, labels = images[cell.images], labels[cell.images]
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    load_before = os.getloadavg()[0]
    run: Callable[..., dict[str, Any]]
    if cell.eps is None:
        run = partial(minimum, adv_lib(source))
    else:
        run = partial(autoattack, original_autoattack(source), eps=cell.eps)
    with frozen(model):
        found = run(model, images[right], labels[right], cell.norm)
    return {
        "network": cell.network.name,
        "weights": weights,
        "norm": cell.norm,
        "eps": cell.eps,
        "first": cell.images.start,
        "n": len(labels),
        "original": "adv-lib" if cell.eps is None else "auto-attack",
        "commit": commit_of(source),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": round(load_before, 1),
        "clean": right.int().tolist(),
        **found,
    }


def original_autoattack(source: str) -> Any:
    """The original's class."""
    if source not in sys.path:
        sys.path.insert(0, source)
    return importlib.import_module("autoattack").AutoAttack


def adv_lib(source: str) -> ModuleType:
    """adv-lib's attacks. What it imports for plots and for other attacks is replaced by empty modules if missing."""
    for name, members in (
        ("visdom", {}),
        ("tqdm", {}),
        ("torchvision", {"models": None}),
        ("distutils", {}),
        ("distutils.version", {"LooseVersion": _version}),
    ):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(members)
    if source not in sys.path:
        sys.path.insert(0, source)
    return importlib.import_module("adv_lib.attacks")


def _version(text: str) -> tuple[int, ...]:
    """A version as adv-lib compares it."""
    return tuple(int(part) for part in text.split("+")[0].split("."))


def commit_of(folder: str) -> str:
    """The commit of the original."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Compute what is missing; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help="the networks; default: all")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the networks' weights")
    parser.add_argument("--list", action="store_true", help="only print the cells, and which are missing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = data.load("fashion-mnist").test.tensors()
    failed = absent = 0
    for cell in plan(options.names):
        exists = path_of(cell.network.name, options.folder).is_file()
        if read(cell, weights_of(cell.network.name, options.folder) if exists else None) is not None:
            if options.list:
                print(f"{cell.name}: done")
            continue
        source = os.environ.get("ADVLIB_SRC" if cell.eps is None else "AUTOATTACK_SRC")
        if options.list or not exists or not source:
            absent += 1
            why = "no network" if not exists else "no source" if not source else "not computed"
            print(f"{cell.name}: MISSING, {why}", flush=True)
            continue
        try:
            found = compute(cell, source, images, labels, options.folder)
        except Exception:  # whatever an original raises is printed, and the next cell goes on
            traceback.print_exc()
            print(f"{cell.name}: FAILED", flush=True)
            failed += 1
            continue
        write(cell.path, found)
        print(f"{time.strftime('%H:%M:%S')} {cell.name}: {summary(found)}", flush=True)
    return 1 if failed else 2 if absent else 0


def summary(found: dict[str, Any]) -> str:
    """A cell's results in a few words."""
    if "robust" in found:
        left = f"{sum(found['robust'])} of {found['n']} left, {len(found['unconfirmed'])} unconfirmed"
        return f"{left}, {found['processor_seconds']:.0f} s ({found['seconds']:.0f} s by the clock)"
    parts = []
    for name, each in found["attacks"].items():
        far = [np.inf if value is None else value for value in each["distance"]]
        parts.append(f"{name} {np.median(far):.4g} in {each['processor_seconds']:.0f} s")
    return "median distance " + ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
