"""Do our FGSM and BIM leave the same accuracy as those of torchattacks and foolbox? See README.md.

Exit code 0: they agree within 0.2 points at every eps. 1: some do not. 2: the comparison did not take place.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from casemate.attacks import BIM, FGSM
from casemate.data import load as load_data
from casemate.errors import CasemateError
from casemate.files import write_json
from casemate.models import Classifier
from casemate.models import load as load_model
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
WANTED = {"torchattacks": "3.5.1", "foolbox": "3.3.4"}
EPS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2)
STEPS = 10
BATCH = 250
THEIR_BATCH = {"torchattacks": 1, "foolbox": BATCH}
"""torchattacks ascends the *mean* loss of a batch, so its gradients carry a factor of 1 / batch, which pushes the
smallest of a confident network below what float32 holds: its result depends on the batch. One image at a time the mean
is the loss itself. Foolbox and casemate ascend the sum."""
ALLOWED = 0.2
"""Points of accuracy."""


class NotComparedError(Exception):
    """A comparison that could not take place."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack at one eps; accuracies in percent, differences in points (ours minus theirs)."""

    attack: str
    eps: float
    ours: float
    theirs: dict[str, float]
    difference: dict[str, float]
    other_class: dict[str, int]
    """Images that end in another class than ours."""


def our_predictions(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> dict[str, dict[str, np.ndarray]]:
    """The class of every adversarial image, by attack and eps."""
    found: dict[str, dict[str, np.ndarray]] = {"FGSM": {}, "BIM": {}}
    for eps in EPS:
        for attack in (
            FGSM(eps=eps, loss="torch-ce", keep="last"),
            BIM(eps=eps, steps=STEPS, step_size=eps / 4, clip="ball", loss="torch-ce", keep="last"),
        ):
            result = attack(model, images, labels, batch_size=BATCH)
            found[type(attack).__name__][str(eps)] = result.prediction.numpy()
    return found


def their_result(library: str, python: Path, folder: Path, checkpoint: Path) -> dict[str, Any]:
    """What `runner.py` finds with `library`. Raises `NotComparedError` unless it is there and of the wanted version."""
    if not python.is_file():
        raise NotComparedError(f"{python} is missing, so {library} was not run; make .venv-peers/.ready sets it up")
    command = [str(python), str(HERE / "runner.py"), library, str(folder), str(checkpoint.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotComparedError(f"{library} did not run:\n{done.stderr.strip()}")
    result = json.loads((folder / f"{library}.json").read_text())
    seen = result["versions"][library]
    if seen != WANTED[library]:
        raise NotComparedError(f"{library} is {seen}; this comparison is with {WANTED[library]}")
    return result


def compare(labels: np.ndarray, ours: dict[str, dict[str, np.ndarray]], theirs: dict[str, Any]) -> list[Row]:
    """One row for each attack and eps."""

    def percent(classes: np.ndarray) -> float:
        return float(100 * (classes == labels).mean())

    rows = []
    for attack, by_eps in ours.items():
        for eps, own in by_eps.items():
            others = {name: np.array(result["predictions"][attack][eps]) for name, result in theirs.items()}
            rows.append(
                Row(
                    attack=attack,
                    eps=float(eps),
                    ours=round(percent(own), 4),
                    theirs={name: round(percent(classes), 4) for name, classes in others.items()},
                    difference={name: round(percent(own) - percent(classes), 4) for name, classes in others.items()},
                    other_class={name: int((own != classes).sum()) for name, classes in others.items()},
                )
            )
    return rows


def show(rows: list[Row], count: int) -> None:
    """Print the table."""
    names = list(WANTED)
    print(f"Accuracy in % on {count} images; in brackets: ours minus theirs in points, images in another class")
    print(f"{'attack':8}{'eps':>6}{'ours':>8}" + "".join(f"{name:>26}" for name in names))
    for row in rows:
        cells = [
            f"{row.theirs[name]:10.1f} ({row.difference[name]:+5.1f}, {row.other_class[name]:4})" for name in names
        ]
        print(f"{row.attack:8}{row.eps:6g}{row.ours:8.1f}" + "".join(f"{cell:>26}" for cell in cells))


def run(arguments: argparse.Namespace) -> int:
    """Compare and write; return the exit code."""
    torch.set_num_threads(1)
    model, description = load_model(arguments.model)
    if description.dataset != "fashion-mnist":
        raise NotComparedError(f"{arguments.model} was trained on {description.dataset}; expected fashion-mnist")
    images, labels = load_data("fashion-mnist", arguments.data_dir).test[: arguments.n].tensors()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        safetensors.torch.save_file({"images": images.contiguous(), "labels": labels}, folder / "images.safetensors")
        (folder / "plan.json").write_text(json.dumps({"eps": EPS, "steps": STEPS, "batch_size": THEIR_BATCH}))
        theirs = {name: their_result(name, arguments.python, folder, arguments.model) for name in WANTED}
    rows = compare(labels.numpy(), our_predictions(model, images, labels), theirs)
    show(rows, len(labels))
    largest = max(abs(difference) for row in rows for difference in row.difference.values())
    agreed = largest <= ALLOWED + 1e-9
    write_json(
        arguments.out,
        {
            "command": f"python benchmarks/peers/compare.py --model {arguments.model.name} --n {len(labels)}",
            "data": {"name": "fashion-mnist", "part": "test", "images": f"the first {len(labels)}"},
            "n": len(labels),
            "seed": description.seed,
            "model": {"architecture": description.architecture, "recipe": description.recipe},
            "settings": {
                "loss": "torch-ce",
                "track": "last",
                "bim_steps": STEPS,
                "bim_step": "eps / 4",
                "batch": {"casemate": BATCH, **THEIR_BATCH},
            },
            "surroundings": surroundings("cpu", 1),
            "peers": {name: result["versions"] for name, result in theirs.items()},
            "rows": [asdict(row) for row in rows],
            "allowed_points": ALLOWED,
            "largest_difference": largest,
            "agreed": agreed,
        },
    )
    print(f"largest difference {largest:.2f} points, {ALLOWED} allowed: {'agreed' if agreed else 'NOT AGREED'}")
    return 0 if agreed else 1


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a checkpoint that casemate saved (.safetensors)")
    parser.add_argument("--n", type=int, default=1000, help="images from the start of the test part")
    parser.add_argument("--out", type=Path, default=HERE / "result.json", help="where the result is written")
    parser.add_argument("--data-dir", type=Path, help="folder of the Fashion-MNIST files")
    parser.add_argument(
        "--python", type=Path, default=HERE.parents[1] / ".venv-peers/bin/python", help="interpreter of the peers"
    )
    arguments = parser.parse_args()
    if arguments.model is None:
        parser.error("this script trains nothing: name a checkpoint with --model")
    if arguments.n < 1:
        parser.error(f"--n {arguments.n}: at least 1")
    try:
        return run(arguments)
    except (CasemateError, NotComparedError) as error:
        print(f"NOT COMPARED: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
