"""The exact robust accuracy of a small network, beside what attacks leave of it; see README.md.

`AUTOATTACK_SRC=... python benchmarks/strength/exact.py` trains the network, decides every image by mixed-integer
linear programming (`milp.py`), attacks the same images by the original AutoAttack and by `casemate.evaluate`, and
writes `exact.json`. It can be stopped and started again: what is in the file of the same weights and settings stays.

Exit code 0: no attack fools an image that is proved robust. 1: one does. 2: AUTOATTACK_SRC is missing.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from milp import TOLERANCE, Layer, verify
from networks import FOLDER, Network, Recipe, load, path_of, train, weights_of
from originals import autoattack, commit_of, original_autoattack
from torch import Tensor, nn

import casemate
from casemate import Classifier, LabelledImages, data
from casemate.attacks import AbstractAttack, frozen, with_eps
from casemate.files import write_text
from casemate.provenance import surroundings

RESULT = Path(__file__).resolve().parent / "exact.json"
COMMAND = "AUTOATTACK_SRC=... python benchmarks/strength/exact.py"
SEED = 0
EPS = 0.1
"""About half of the images withstand PGD there, of 400 others (the test images from 5000 on)."""
POOL = 2
"""Side of the squares of pixels whose means the network sees."""


def averaged(channels: int, size: int, classes: int, *, widths: tuple[int, ...], hidden: int) -> nn.Module:
    """Means over squares of pixels, and dense layers."""
    inputs = channels * (size // POOL) ** 2
    layers: list[nn.Module] = [nn.AvgPool2d(POOL), nn.Flatten()]
    for width in (*widths, hidden):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


NETWORK = Network(
    name="exact",
    title="dense, trained against Linf 0.06",
    build=averaged,
    widths=(32,),
    hidden=32,
    recipe=Recipe(kind="adversarial", eps=0.06, steps=7, epochs=20, train_images=20_000, seed=7),
)
"""Not one of `networks.NETWORKS`: the other benchmarks do not attack it."""


def dense_layers(network: nn.Module) -> list[Layer]:
    """The network's dense layers in float64, without the means in front of them."""
    return [
        Layer(weight=each.weight.detach().double().numpy(), bias=each.bias.detach().double().numpy())
        for each in network.modules()
        if isinstance(each, nn.Linear)
    ]


def decide(network: nn.Module, image: Tensor, label: int, eps: float, time_limit: float) -> dict[str, Any]:
    """Whether any image within eps, in Linf and within [0, 1], is misclassified: outcome and seconds of the processor.

    The means over squares of pixels fill a box, so that the program is about means. A counterexample is made of pixels
    with the means that were found; it counts only where the network misclassifies it in float64 and, rounded to
    float32, in float32.
    """
    start = time.process_time()
    pixels = image[0].double().numpy()
    low, high = np.maximum(pixels - eps, 0), np.minimum(pixels + eps, 1)
    least, greatest = means(low), means(high)
    answer = verify(dense_layers(network), least, greatest, label, time_limit)
    outcome = answer.outcome
    if answer.point is not None:
        share = (answer.point - least) / np.maximum(greatest - least, 1e-300)
        side = len(pixels) // POOL
        moved = low + np.kron(share.reshape(side, side), np.ones((POOL, POOL))) * (high - low)
        if not misclassified(network, torch.from_numpy(moved)[None], image, label, eps):
            outcome = "undecided"
    return {"outcome": outcome, "processor_seconds": round(time.process_time() - start, 2)}


def means(pixels: np.ndarray) -> np.ndarray:
    """Means over squares of pixels, in the order of `nn.Flatten`, `(squares,)`."""
    side = len(pixels) // POOL
    return pixels.reshape(side, POOL, side, POOL).mean((1, 3)).ravel()


def misclassified(network: nn.Module, moved: Tensor, image: Tensor, label: int, eps: float) -> bool:
    """Whether an image in float64 lies within eps and [0, 1], and is misclassified in float64 and in float32."""
    rounded = moved.float().clamp(0, 1)
    near = (rounded.double() - image.double()).abs().max() <= eps * (1 + 1e-5)
    with torch.no_grad():
        answers = deepcopy(network).double()(moved[None]).argmax(), network(rounded[None]).argmax()
    return bool(near) and all(answer != label for answer in answers)


def state_of(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The results so far: those in the file if they are of the same network and settings, or else none."""
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(found.get(key) == value for key, value in about.items()):
            return found
    return about | {"images": []}


def write(path: Path, state: dict[str, Any]) -> None:
    """Write the results, whole or not at all: an entry on a line of its own, and an image too."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in state.items() if key != "images"]
    images = ",\n".join(f"  {json.dumps(each)}" for each in state["images"])
    write_text(path, "{\n" + ",\n".join([*lines, f' "images": [\n{images}\n ]']) + "\n}\n")


def original(model: Classifier, images: Tensor, labels: Tensor, eps: float) -> dict[str, Any]:
    """What the original AutoAttack leaves; the environment variable AUTOATTACK_SRC names its folder."""
    source = os.environ["AUTOATTACK_SRC"]
    with frozen(model.network):
        found = autoattack(original_autoattack(source), model.network, images, labels, "linf", eps)
    return {"commit": commit_of(source), **found}


def evaluation(model: Classifier, images: Tensor, labels: Tensor, eps: float) -> dict[str, Any]:
    """What `casemate.evaluate` leaves with the standard budget."""
    start, cpu = time.perf_counter(), time.process_time()
    part = LabelledImages(pixels=images, labels=labels)
    found = casemate.evaluate(model, part, eps=eps, norm="linf", budget="standard", seed=SEED)
    return {
        "settings": {"budget": "standard", "seed": SEED},
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - cpu, 1),
        "findings": [each.check for each in found.findings],
        "robust": found.cascade.robust[:, 0].astype(int).tolist(),
    }


def single(attack: AbstractAttack, model: Classifier, images: Tensor, labels: Tensor, eps: float) -> dict[str, Any]:
    """What an attack leaves, with its own settings but for eps."""
    chosen = with_eps(attack, eps)
    return {"settings": chosen.record(), "robust": (~chosen(model, images, labels, seed=SEED).success).int().tolist()}


ATTACKS: dict[str, Callable[[Classifier, Tensor, Tensor, float], dict[str, Any]]] = {
    "autoattack": original,
    "casemate": evaluation,
    "pgd": partial(single, casemate.PGD(eps=EPS, steps=10)),
    "fgsm": partial(single, casemate.FGSM(eps=EPS)),
}
"""By the name of their entry in the result; `robust` is 1 for each correctly classified image that one leaves."""


def summary(state: dict[str, Any]) -> dict[str, Any]:
    """How many images are what, and which of those proved robust an attack fools: none, if all is well."""
    outcomes = [each["outcome"] for each in state["images"]]
    found: dict[str, Any] = {
        "correct": len(outcomes),
        **{kind: outcomes.count(kind) for kind in ("robust", "fooled", "undecided")},
    }
    for name in ATTACKS:
        left = state[name]["robust"]
        found[f"{name}_leaves"] = sum(left)
        found[f"{name}_misses"] = [place for place, kind in enumerate(outcomes) if kind == "fooled" and left[place]]
        found[f"{name}_contradicts"] = [
            place for place, kind in enumerate(outcomes) if kind == "robust" and not left[place]
        ]
    return found


def main() -> int:
    """Decide what is not decided yet, and attack; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the network's weights")
    parser.add_argument("--n", type=int, default=100, help="images from the start of the test part")
    parser.add_argument("--eps", type=float, default=EPS, help="radius in Linf")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds by the clock for an image")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if not os.environ.get("AUTOATTACK_SRC"):
        print("AUTOATTACK_SRC is not set; clone github.com/fra31/auto-attack and name its folder")
        return 2
    torch.set_num_threads(1)
    dataset = data.load("fashion-mnist")
    if not path_of(NETWORK.name, options.folder).exists():
        train(NETWORK, dataset, options.folder)
    model = load(NETWORK.name, options.folder)
    images, labels = dataset.test.tensors()
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    about = {
        "command": COMMAND,
        "network": NETWORK.architecture,
        "recipe": asdict(NETWORK.recipe),
        "weights": weights_of(NETWORK.name, options.folder),
        "test_accuracy": right.double().mean().item(),
        "norm": "linf",
        "eps": options.eps,
        "first": 0,
        "seed": SEED,
        "tolerance": TOLERANCE,
        "time_limit": options.time_limit,
    }
    places = right[: options.n].nonzero().flatten().tolist()
    state = state_of(options.out, about) | {"n": options.n}
    del state["images"][len(places) :]
    for place in places[len(state["images"]) :]:
        found = decide(model.network, images[place], int(labels[place]), options.eps, options.time_limit)
        state["images"].append({"image": place, **found})
        write(options.out, state)
        print(
            f"{time.strftime('%H:%M:%S')} image {place}: {found['outcome']} in {found['processor_seconds']} s",
            flush=True,
        )
    for name, run in ATTACKS.items():
        if len(state.get(name, {}).get("robust", ())) != len(places):
            state[name] = run(model, images[places], labels[places], options.eps)
            write(options.out, state)
    state |= {"summary": summary(state), "surroundings": surroundings("cpu", 1)}
    write(options.out, state)
    print(json.dumps(state["summary"], indent=1))
    return 1 if any(state["summary"][f"{name}_contradicts"] for name in ATTACKS) else 0


if __name__ == "__main__":
    sys.exit(main())
