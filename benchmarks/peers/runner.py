"""Run one other library's FGSM and BIM on what `compare.py` hands over. Runs in the environment of the peers.

    python runner.py LIBRARY FOLDER MODEL

FOLDER holds `images.safetensors` (images, labels) and `plan.json` (eps, steps, batch_size); MODEL is a checkpoint of
casemate. Writes `LIBRARY.json` into FOLDER: versions, and the class of every adversarial image.
"""

import json
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from casemate.models import Classifier, load

Craft = Callable[[str, float, Tensor, Tensor], Tensor]
"""(attack, eps, images, labels) -> adversarial images."""


def torchattacks(model: Classifier, steps: int) -> Craft:
    """The library's own classes with its own defaults, the step as it counts it: in pixels."""
    import torchattacks as library  # pyright: ignore[reportMissingImports]

    def craft(attack: str, eps: float, images: Tensor, labels: Tensor) -> Tensor:
        if attack == "FGSM":
            return library.FGSM(model, eps=eps)(images, labels)
        return library.BIM(model, eps=eps, alpha=eps / 4, steps=steps)(images, labels)

    return craft


def foolbox(model: Classifier, steps: int) -> Craft:
    """The library's own classes, without random start; the step as it counts it: as a share of eps."""
    import foolbox as library  # pyright: ignore[reportMissingImports]

    wrapped = library.PyTorchModel(model, bounds=model.bounds, device=model.device)

    def craft(attack: str, eps: float, images: Tensor, labels: Tensor) -> Tensor:
        if attack == "FGSM":
            made = library.attacks.LinfFastGradientAttack(random_start=False)
        else:
            made = library.attacks.LinfBasicIterativeAttack(rel_stepsize=0.25, steps=steps, random_start=False)
        _, clipped, _ = made(wrapped, images, library.criteria.Misclassification(labels), epsilons=eps)
        return clipped

    return craft


LIBRARIES = {"torchattacks": (torchattacks, ("torchattacks",)), "foolbox": (foolbox, ("foolbox", "eagerpy"))}


def main(name: str, folder: Path, checkpoint: Path) -> None:
    """Attack, classify, write."""
    torch.set_num_threads(1)
    plan = json.loads((folder / "plan.json").read_text())
    inputs = safetensors.torch.load_file(folder / "images.safetensors")
    model, _ = load(checkpoint)
    make, distributions = LIBRARIES[name]
    craft = make(model, plan["steps"])
    predictions: dict[str, dict[str, list[int]]] = {}
    for attack in ("FGSM", "BIM"):
        predictions[attack] = {}
        for eps in plan["eps"]:
            classes: list[int] = []
            batches = zip(*(inputs[key].split(plan["batch_size"][name]) for key in ("images", "labels")), strict=True)
            for images, labels in batches:
                adversarial = craft(attack, eps, images, labels)
                with torch.no_grad():
                    classes += model(adversarial).argmax(1).tolist()
            predictions[attack][str(eps)] = classes
    result = {
        "versions": {
            "python": platform.python_version(),
            **{each: metadata.version(each) for each in (*distributions, "torch", "numpy")},
        },
        "predictions": predictions,
    }
    (folder / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
