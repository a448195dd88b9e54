"""Train by casemate and by public implementations at the same settings, and measure both; see README.md.

`DEFENSES_SRC=... python benchmarks/defenses/run.py [--recipe NAME ...]` computes the cells that are missing, each with
one seed of one side, and writes the page.

Exit code 0: no cell is missing. 2: a comparison did not take place: the environment of the peers, a clone or the images
are missing, or a training failed.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from page import HERE, PAGE, page, path_of, read
from plan import PAIRS, SEEDS, TEACHER_SEED, Pair, images, network, pair_of
from torch import nn

from casemate.attacks import PGD
from casemate.certification import Smoothing, certify, certify_smoothed
from casemate.defenses import make_objective
from casemate.defenses.certified import initialize_for_bounds
from casemate.errors import CasemateError
from casemate.files import write_text
from casemate.provenance import commit, processor
from casemate.training import TrainConfig, fit

WORK = Path("runs") / "defenses"
SMOOTHED = 100
"""Test images whose smoothed prediction is certified."""
CROWN = 100
"""Test images that are certified by linear bounds."""
RADII = (0.0, 0.25, 0.5)
"""Radii in L2; 500 draws certify 0.55 at most with sigma 0.25."""


class NotComparedError(Exception):
    """A comparison that could not take place."""


def loaded(path: Path) -> nn.Module:
    """The network with the weights of a file."""
    model = network()
    model.load_state_dict(safetensors.torch.load_file(path))
    return model


def start_of(pair: Pair, seed: int) -> nn.Module:
    """The untrained network of a seed; drawn for bounds where these are trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        if pair.measure == "certify":
            initialize_for_bounds(model)
    return model


def save(model: nn.Module, path: Path) -> None:
    """Write its weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


def teacher_of(recipe: str) -> Path:
    """The file of a teacher's weights; it is trained where it is missing."""
    path = WORK / f"teacher-{recipe}.safetensors"
    if not path.exists():
        pair = next(each for each in PAIRS if each.teacher == recipe)
        settings = {
            key: pair.settings[key] for key in ("eps", "steps", "step_size", "temperature") if key in pair.settings
        }
        model, given = start_of(pair, TEACHER_SEED), images(pair)
        objective = make_objective({"name": recipe, "settings": settings})
        config = TrainConfig(epochs=8, batch_size=60, learning_rate=2e-3, seed=TEACHER_SEED)
        fit(model, given.train, given.validation, config, objective=objective)
        save(model, path)
    return path


def measured(pair: Pair, model: nn.Module) -> dict[str, Any]:
    """Shares of the test images: classified correctly, left by PGD, certified."""
    x, y = images(pair).test
    model.eval()
    with torch.no_grad():
        found: dict[str, Any] = {"clean": (model(x).argmax(1) == y).double().mean().item()}
    left = torch.ones(len(y), dtype=torch.bool)
    for norm, eps in pair.balls:
        result = PGD(eps=eps, norm=norm, steps=20)(model, x, y)
        robust = model(result.adversarial).argmax(1) == y
        left &= robust
        found[f"pgd {norm} {eps:g}"] = robust.double().mean().item()
    if len(pair.balls) > 1:
        found["pgd, all"] = left.double().mean().item()
    if pair.measure == "certify":
        found["certified, interval"] = (
            certify(model, x, y, eps=pair.radius, method="interval").certified.double().mean().item()
        )
        crown = certify(model, x[:CROWN], y[:CROWN], eps=pair.radius, method="crown")
        found[f"certified, crown, first {CROWN}"] = crown.certified.double().mean().item()
    if pair.measure == "smooth":
        smoothing = Smoothing(sigma=pair.settings["sigma"], n0=100, n=500)
        certificate = certify_smoothed(model, x[:SMOOTHED], y[:SMOOTHED], smoothing)
        for radius in RADII:
            found[f"certified, L2 {radius:g}"] = certificate.certified_accuracy(radius)
    return found


def ours(pair: Pair, seed: int, folder: Path) -> None:
    """Train by casemate: the files of `theirs.py`."""
    given, settings, teacher = images(pair), dict(pair.settings), None
    if pair.teacher is not None:
        teacher = loaded(folder / "teacher.safetensors")
    objective = make_objective({"name": pair.recipe, "settings": settings}, teacher)
    model = loaded(folder / "start.safetensors")
    config = TrainConfig(
        epochs=pair.epochs, batch_size=pair.batch_size, learning_rate=pair.learning_rate, optimizer="adam", seed=seed
    )
    few = given.train[: 2 * pair.batch_size]
    fit(network(), few, given.validation, replace(config, epochs=1), objective=objective)  # loads all that loads late
    start, cpu = time.perf_counter(), time.process_time()
    fit(model, given.train, given.validation, config, objective=objective)
    told = {
        "seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - start,
        "versions": {"torch": torch.__version__},
    }
    save(model, folder / "ours.safetensors")
    (folder / "ours.json").write_text(json.dumps(told))


class Theirs:
    """The process that trains a pair's other side, started when it is first needed."""

    def __init__(self, pair: Pair, python: Path) -> None:
        self.pair, self.python = pair, python
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, seed: int, folder: Path) -> None:
        """Train. Raises `NotComparedError` if that fails."""
        if self.process is None:
            line = [str(self.python), str(HERE / "theirs.py"), self.pair.name]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(seed, folder.resolve(), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise NotComparedError(f"{self.pair.peer} could not be run") from None
        if self.process.stdout.readline() != "done\n":
            raise NotComparedError(f"{self.pair.peer} could not be run")

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.communicate()
            self.process = None


def compute(pair: Pair, seed: int, side: str, theirs: Theirs) -> None:
    """Train and measure one cell, and write its file."""
    folder = WORK / f"{pair.name}-{seed}"
    save(start_of(pair, seed), folder / "start.safetensors")
    if pair.teacher is not None:
        (folder / "teacher.safetensors").write_bytes(teacher_of(pair.teacher).read_bytes())
    load = os.getloadavg()[0]
    if side == "ours":
        ours(pair, seed, folder)
    else:
        theirs(seed, folder)
    row = {
        "pair": pair.name,
        "side": side,
        "seed": seed,
        "spec": json.loads(json.dumps(pair.spec)),
        "commit": commit(),
        "processor": processor(),
        "load": round(load, 1),
        **json.loads((folder / f"{side}.json").read_text()),
        "measured": measured(pair, loaded(folder / f"{side}.safetensors")),
    }
    write_text(path_of(pair, side, seed), json.dumps(row, indent=1) + "\n")


def run(pairs: Iterable[Pair], seeds: Iterable[int], python: Path) -> int:
    """Compute what is missing, both sides in turn, and write the page."""
    status = 0
    for pair in pairs:
        theirs = Theirs(pair, python)
        try:
            for seed in seeds:
                for side in ("ours", "theirs") if seed % 2 == 0 else ("theirs", "ours"):
                    if read(pair, side, seed) is None:
                        name = "casemate" if side == "ours" else pair.peer
                        print(f"{pair.name}, seed {seed}: {name}", flush=True)
                        compute(pair, seed, side, theirs)
        except (NotComparedError, CasemateError) as error:
            print(f"NOT COMPARED: {pair.name}: {error}", file=sys.stderr)
            status = 2
        finally:
            theirs.close()
    write_text(PAGE, page())
    return status


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", metavar="NAME", choices=[p.name for p in PAIRS], help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--python", type=Path, default=HERE.parents[1] / ".venv-peers/bin/python", help="interpreter of the peers"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.python.exists():
        print(f"NOT COMPARED: no {options.python}; build it with make .venv-peers/.ready", file=sys.stderr)
        return 2
    pairs = PAIRS if options.recipe is None else [pair_of(name) for name in options.recipe]
    return run(pairs, options.seeds, options.python)


if __name__ == "__main__":
    sys.exit(main())
