"""Run one other library's attacks on what `compare.py` hands over. Runs in the environment of the peers.

    python runner.py LIBRARY FOLDER MODEL

FOLDER holds `images.safetensors` (images, labels) and `plan.json`: a list of cases (key, name, norm, eps, images,
settings); MODEL is a checkpoint of casemate. Writes `LIBRARY.safetensors`, the adversarial images of each case by its
key, and `LIBRARY.json`: versions, and per case the seconds and forward passes, or why it did not run.
"""

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from casemate.models import Classifier, load

Craft = Callable[[dict[str, Any], Tensor, Tensor], Tensor]
"""(case, images, labels) -> adversarial images."""

ENDLESS = 1e6
"""An eps that a minimum-norm attack never reaches, where a library wants one."""


def torchattacks(model: Classifier) -> Craft:
    """The classes of torchattacks; steps as it counts them: in pixels."""
    import torchattacks as library  # pyright: ignore[reportMissingImports]

    def craft(case: dict[str, Any], images: Tensor, labels: Tensor) -> Tensor:
        settings, eps = case["settings"], case["eps"]
        norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[case["norm"]]
        match case["name"]:
            case "PGD":
                kind = library.PGD if norm == "Linf" else library.PGDL2
                attack = kind(model, eps=eps, alpha=settings["step"] * eps, steps=settings["steps"])
            case "MI-FGSM":
                alpha = settings["step"] * eps
                attack = library.MIFGSM(model, eps=eps, alpha=alpha, steps=settings["steps"], decay=settings["decay"])
            case "APGD-CE" | "APGD-DLR":
                attack = library.APGD(model, norm=norm, eps=eps, steps=settings["steps"], loss=settings["loss"])
            case "APGD-T":
                classes = settings["targets"] + 1
                attack = library.APGDT(model, norm=norm, eps=eps, steps=settings["steps"], n_classes=classes)
            case "FAB":
                attack = library.FAB(model, norm=norm, eps=ENDLESS, steps=settings["steps"])
            case "FAB-T":
                classes = settings["targets"] + 1
                attack = library.FAB(
                    model, norm=norm, eps=eps, steps=settings["steps"], multi_targeted=True, n_classes=classes
                )
            case "Square":
                attack = library.Square(
                    model,
                    norm=norm,
                    eps=eps,
                    n_queries=settings["n_queries"],
                    p_init=settings["p_init"],
                    resc_schedule=False,
                )
            case "DeepFool":
                attack = library.DeepFool(model, steps=settings["steps"], overshoot=settings["overshoot"])
            case "EAD":
                attack = library.EADL1(
                    model,
                    lr=settings["learning_rate"],
                    binary_search_steps=settings["binary_search_steps"],
                    max_iterations=settings["steps"],
                    initial_const=settings["initial_const"],
                    beta=settings["beta"],
                    abort_early=False,
                )
            case name:
                raise NotImplementedError(f"torchattacks has no {name}")
        return attack(images, labels)

    return craft


def autoattack(model: Classifier) -> Craft:
    """The original AutoAttack's classes, from the clone in AUTOATTACK_SRC."""
    sys.path.insert(0, os.environ["AUTOATTACK_SRC"])
    from autoattack.autopgd_base import (  # pyright: ignore[reportMissingImports]
        APGDAttack,
        APGDAttack_targeted,
    )
    from autoattack.fab_pt import FABAttack_PT  # pyright: ignore[reportMissingImports]
    from autoattack.square import SquareAttack  # pyright: ignore[reportMissingImports]

    def craft(case: dict[str, Any], images: Tensor, labels: Tensor) -> Tensor:
        settings = case["settings"]
        same = {"norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[case["norm"]], "eps": case["eps"], "device": "cpu"}
        match case["name"]:
            case "APGD-CE" | "APGD-DLR":
                attack = APGDAttack(model, n_iter=settings["steps"], loss=settings["loss"], **same)
            case "APGD-T":
                attack = APGDAttack_targeted(
                    model, n_iter=settings["steps"], n_target_classes=settings["targets"], **same
                )
            case "FAB":
                attack = FABAttack_PT(model, n_iter=settings["steps"], **(same | {"eps": ENDLESS}))
            case "FAB-T":
                attack = FABAttack_PT(
                    model, n_iter=settings["steps"], targeted=True, n_target_classes=settings["targets"], **same
                )
            case "Square":
                attack = SquareAttack(
                    model, n_queries=settings["n_queries"], p_init=settings["p_init"], resc_schedule=False, **same
                )
            case name:
                raise NotImplementedError(f"AutoAttack has no {name}")
        return attack.perturb(images, labels)

    return craft


def foolbox(model: Classifier) -> Craft:
    """Foolbox's own classes; steps as it counts them: as a share of eps."""
    import foolbox as library  # pyright: ignore[reportMissingImports]

    attacks, wrapped = library.attacks, library.PyTorchModel(model, bounds=model.bounds, device=model.device)

    def made(case: dict[str, Any]) -> Any:
        settings, norm = case["settings"], case["norm"]
        match case["name"]:
            case "PGD":
                kind = attacks.LinfPGD if norm == "linf" else attacks.L2PGD
                return kind(rel_stepsize=settings["step"], steps=settings["steps"], random_start=True)
            case "MI-FGSM":
                return attacks.LinfMomentumIterativeFastGradientMethod(
                    momentum=settings["decay"], rel_stepsize=settings["step"], steps=settings["steps"]
                )
            case "Carlini & Wagner" | "L-BFGS":
                return attacks.L2CarliniWagnerAttack(
                    binary_search_steps=settings["binary_search_steps"],
                    steps=settings["steps"],
                    stepsize=settings["learning_rate"],
                    initial_const=settings["initial_const"],
                )
            case "DeepFool":
                kind = attacks.LinfDeepFoolAttack if norm == "linf" else attacks.L2DeepFoolAttack
                return kind(**settings)
            case "EAD":
                return attacks.EADAttack(
                    binary_search_steps=settings["binary_search_steps"],
                    steps=settings["steps"],
                    initial_stepsize=settings["learning_rate"],
                    initial_const=settings["initial_const"],
                    regularization=settings["beta"],
                    decision_rule="L1",
                    abort_early=False,
                )
            case "Spatial":
                return attacks.SpatialAttack(
                    max_translation=settings["max_shift"],
                    max_rotation=settings["max_rotation"],
                    num_translations=settings["shifts"],
                    num_rotations=settings["rotations"],
                )
            case "Uniform noise":
                kinds = {
                    "linf": attacks.LinfRepeatedAdditiveUniformNoiseAttack,
                    "l2": attacks.L2RepeatedAdditiveGaussianNoiseAttack,
                }
                return kinds[norm](repeats=settings["num_samples"])
            case name:
                raise NotImplementedError(f"Foolbox has no {name}")

    def hopskipjump(case: dict[str, Any], images: Tensor, labels: Tensor) -> Tensor:
        """One image at a time, from its own starts.

        In a batch it divides every image's direction by the length of the whole batch's (see the README), and gives up
        all images where one has no start; here that image stays clean.
        """
        settings, found = case["settings"], images.clone()
        start = attacks.LinearSearchBlendedUniformNoiseAttack(steps=50, directions=settings["starts"])
        attack = attacks.HopSkipJumpAttack(
            steps=settings["steps"],
            initial_gradient_eval_steps=settings["evaluations"],
            constraint=case["norm"],
        )
        for place in range(len(images)):
            one = slice(place, place + 1)
            begun = start.run(wrapped, images[one], library.criteria.Misclassification(labels[one]))
            if model(begun).argmax(1) != labels[one]:
                criterion = library.criteria.Misclassification(labels[one])
                found[one] = attack.run(wrapped, images[one], criterion, starting_points=begun)
        return found

    def craft(case: dict[str, Any], images: Tensor, labels: Tensor) -> Tensor:
        if case["name"] == "HopSkipJump":
            return hopskipjump(case, images, labels)
        criterion = library.criteria.Misclassification(labels)
        if case["name"] == "Spatial":
            return made(case)(wrapped, images, criterion)[0]
        bounded = case["kind"] == "ball"
        return made(case)(wrapped, images, criterion, epsilons=case["eps"] if bounded else None)[1]

    return craft


class Single(torch.nn.Module):
    """A network that takes float64 as well: ART's HopSkipJump hands it over."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the images, rounded to float32."""
        return self.model(images.float())


def art(model: Classifier) -> Craft:
    """ART's own classes, on its wrapper of a PyTorch model."""
    from art.attacks import evasion  # pyright: ignore[reportMissingImports]
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    wrapped = PyTorchClassifier(
        Single(model),
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=model.input_shape,
        nb_classes=len(model.classes),
        clip_values=model.bounds,
        device_type="cpu",
    )

    def made(case: dict[str, Any], count: int) -> Any:
        settings, eps = case["settings"], case["eps"]
        norm = {"linf": np.inf, "l2": 2, "l1": 1}[case["norm"]]
        quiet = {"verbose": False}
        many = {"batch_size": count, "verbose": False}
        match case["name"]:
            case "PGD":
                return evasion.ProjectedGradientDescent(
                    wrapped,
                    norm=norm,
                    eps=eps,
                    eps_step=settings["step"] * eps,
                    max_iter=settings["steps"],
                    num_random_init=1,
                    **many,
                )
            case "MI-FGSM":
                return evasion.MomentumIterativeMethod(
                    wrapped,
                    norm=norm,
                    eps=eps,
                    eps_step=settings["step"] * eps,
                    decay=settings["decay"],
                    max_iter=settings["steps"],
                    **many,
                )
            case "Carlini & Wagner" if case["norm"] == "l2":
                return evasion.CarliniL2Method(
                    wrapped,
                    learning_rate=settings["learning_rate"],
                    binary_search_steps=settings["binary_search_steps"],
                    max_iter=settings["steps"],
                    initial_const=settings["initial_const"],
                    **many,
                )
            case "Carlini & Wagner":
                return evasion.CarliniLInfMethod(
                    wrapped, learning_rate=settings["learning_rate"], max_iter=settings["steps"], **many
                )
            case "DeepFool":
                return evasion.DeepFool(
                    wrapped,
                    max_iter=settings["steps"],
                    epsilon=settings["overshoot"],
                    nb_grads=settings["candidates"],
                    **many,
                )
            case "EAD":
                return evasion.ElasticNet(
                    wrapped,
                    learning_rate=settings["learning_rate"],
                    binary_search_steps=settings["binary_search_steps"],
                    max_iter=settings["steps"],
                    beta=settings["beta"],
                    initial_const=settings["initial_const"],
                    decision_rule="L1",
                    **many,
                )
            case "HopSkipJump":
                return evasion.HopSkipJump(
                    wrapped,
                    norm=norm,
                    max_iter=settings["steps"],
                    init_eval=settings["evaluations"],
                    init_size=settings["starts"],
                    **quiet,
                )
            case "Spatial":
                return evasion.SpatialTransformation(
                    wrapped,
                    max_translation=100 * settings["max_shift"] / model.input_shape[-1],
                    num_translations=settings["shifts"],
                    max_rotation=settings["max_rotation"],
                    num_rotations=settings["rotations"],
                    **quiet,
                )
            case name:
                raise NotImplementedError(f"ART has no {name}")

    def craft(case: dict[str, Any], images: Tensor, labels: Tensor) -> Tensor:
        # one placement serves a whole batch there, so each image is a batch of its own
        size = 1 if case["name"] == "Spatial" else len(images)
        parts = []
        for some, classes in zip(images.split(size), labels.split(size), strict=True):
            attack = made(case, len(some))
            parts.append(torch.from_numpy(attack.generate(x=some.numpy(), y=classes.numpy())))
        return torch.cat(parts)

    return craft


LIBRARIES: dict[str, tuple[Callable[[Classifier], Craft], tuple[str, ...]]] = {
    "torchattacks": (torchattacks, ("torchattacks",)),
    "foolbox": (foolbox, ("foolbox", "eagerpy")),
    "art": (art, ("adversarial-robustness-toolbox",)),
    "autoattack": (autoattack, ()),
}


def main(name: str, folder: Path, checkpoint: Path) -> None:
    """Attack and write."""
    torch.set_num_threads(1)
    plan = json.loads((folder / "plan.json").read_text())
    inputs = safetensors.torch.load_file(folder / "images.safetensors")
    model, _ = load(checkpoint)
    model.eval()
    make, distributions = LIBRARIES[name]
    craft = make(model)
    forward = 0

    def count(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal forward
        del module
        forward += len(arguments[0])

    model.register_forward_pre_hook(count)
    adversarial: dict[str, Tensor] = {}
    told: dict[str, dict[str, Any]] = {}
    for case in plan:
        images, labels = (inputs[key][: case["images"]].clone() for key in ("images", "labels"))
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (the generator that ART and Foolbox draw from)
        print(f"{name}: {case['key']}", file=sys.stderr, flush=True)
        forward, start = 0, time.perf_counter()
        try:
            adversarial[case["key"]] = craft(case, images, labels).detach().float().contiguous()
        except Exception as error:  # whatever a library raises is reported, and the next case goes on
            traceback.print_exc()
            told[case["key"]] = {"error": f"{type(error).__name__}: {error}"}
            continue
        told[case["key"]] = {"seconds": time.perf_counter() - start, "forward": forward, "load": os.getloadavg()[0]}
    safetensors.torch.save_file(adversarial, folder / f"{name}.safetensors")
    versions = {each: metadata.version(each) for each in (*distributions, "torch", "numpy")}
    result = {"versions": {"python": platform.python_version(), **versions}, "cases": told}
    (folder / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
