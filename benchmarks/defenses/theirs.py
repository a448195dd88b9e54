"""Train networks by another implementation. Runs in the environment of the peers.

    python theirs.py PAIR

Reads lines `SEED FOLDER` and answers each with the line `done`. FOLDER holds `start.safetensors` (initial weights), and
`teacher.safetensors` where the pair has a teacher; it gets `theirs.safetensors` (weights) and `theirs.json` (seconds of
training, versions and commits). A first training on a few images, which does not count, loads all that is loaded late.
"""

import contextlib
import io
import json
import os
import random
import runpy
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, final
from unittest.mock import MagicMock

import numpy as np
import originals
import safetensors.torch
import torch
import torch.nn.functional as F
from nsl import given_arrays, nsl_settings, run_nsl
from originals import NotHereError, module
from plan import ADAM_EPS, Pair, images, network, pair_of
from torch import Tensor, nn

from casemate.data import LabelledImages
from casemate.defenses import AdversarialRegularization, GraphRegularization, make_objective


@final
@dataclass(frozen=True)
class Training:
    """What an implementation gets."""

    pair: Pair
    network: nn.Module
    """Trained in place."""
    images: Tensor
    """Within [0, 1], `(n, 1, 28, 28)`."""
    labels: Tensor
    teacher: nn.Module | None
    seed: int
    started: list[float] = field(default_factory=list)
    """The clock and the processor's, when the training began: after its modules were imported."""

    elapsed: dict[str, float] = field(default_factory=dict)
    """Seconds, where another process trains and measures them."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of its libraries."""

    def begin(self) -> None:
        """Start the clocks."""
        self.started[:] = [time.perf_counter(), time.process_time()]

    def seconds(self) -> dict[str, float]:
        """Of the processor, and by the clock, since the training began."""
        wall, cpu = self.started or (0.0, 0.0)
        return self.elapsed or {"seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}

    def optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """casemate's: Adam."""
        return torch.optim.Adam((model or self.network).parameters(), lr=self.pair.learning_rate, eps=ADAM_EPS)

    def batches(self, size: int | None = None) -> Iterator[tuple[Tensor, Tensor, float]]:
        """All batches of the training, shuffled in every epoch: images, labels, share of the training done before."""
        size = size or self.pair.batch_size
        per_epoch = -(-len(self.images) // size)
        for epoch in range(self.pair.epochs):
            for step, batch in enumerate(torch.randperm(len(self.images)).split(size)):
                yield self.images[batch], self.labels[batch], (epoch + step / per_epoch) / self.pair.epochs

    def minimise(self, loss: Callable[[Tensor, Tensor, float, torch.optim.Optimizer], Tensor]) -> None:
        """The plain loop, for implementations that are a loss without one."""
        optimizer = self.optimizer()
        self.network.train()
        self.begin()
        for x, y, done in self.batches():
            value = loss(x, y, done, optimizer)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


Peer = Callable[[Training], None]


# The libraries --------------------------------------------------------------------------------------------------------
class _Whole(nn.Module):
    """A network in one piece: ART takes an `nn.Sequential` apart into its layers, on which its TRADES fails."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.model(x)


def _art(training: Training, model: nn.Module | None = None, loss: Any = None) -> Any:
    """ART's wrapper of the network, with its optimiser."""
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    model = model or _Whole(training.network)
    return PyTorchClassifier(
        model,
        loss=loss or nn.CrossEntropyLoss(),
        optimizer=training.optimizer(model),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def _art_pgd(training: Training, wrapped: Any) -> Any:
    from art.attacks.evasion import ProjectedGradientDescent  # pyright: ignore[reportMissingImports]

    settings = training.pair.settings
    return ProjectedGradientDescent(
        wrapped,
        eps=settings["eps"],
        eps_step=settings["step_size"],
        max_iter=settings["steps"],
        num_random_init=1,
        batch_size=training.pair.batch_size,
        verbose=False,
    )


def _art_arguments(training: Training) -> dict[str, Any]:
    return {
        "x": training.images.numpy(),
        "y": F.one_hot(training.labels, 10).numpy().astype(np.float32),
        "batch_size": training.pair.batch_size,
        "nb_epochs": training.pair.epochs,
    }


def art_plain(training: Training) -> None:
    """ART: `PyTorchClassifier.fit`."""
    wrapped = _art(training)
    training.begin()
    wrapped.fit(**_art_arguments(training))


def art_madry(training: Training) -> None:
    """ART: adversarial training with PGD."""
    from art.defences.trainer import AdversarialTrainerMadryPGD  # pyright: ignore[reportMissingImports]

    settings = training.pair.settings
    trainer = AdversarialTrainerMadryPGD(
        _art(training), eps=settings["eps"], eps_step=settings["step_size"], max_iter=settings["steps"]
    )
    training.begin()
    trainer.fit(**_art_arguments(training))


def art_trades(training: Training) -> None:
    """ART: TRADES."""
    from art.defences.trainer import AdversarialTrainerTRADESPyTorch  # pyright: ignore[reportMissingImports]

    wrapped = _art(training)
    trainer = AdversarialTrainerTRADESPyTorch(wrapped, _art_pgd(training, wrapped), training.pair.settings["beta"])
    training.begin()
    trainer.fit(**_art_arguments(training))


def art_awp(training: Training) -> None:
    """ART: adversarial training with perturbed weights."""
    from art.defences.trainer import AdversarialTrainerAWPPyTorch  # pyright: ignore[reportMissingImports]
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    wrapped, copy = _art(training), _Whole(network())
    proxy = PyTorchClassifier(
        copy,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(copy.parameters(), lr=0.01),
        input_shape=(1, 28, 28),
        nb_classes=10,
        device_type="cpu",
    )
    gamma = training.pair.settings["weight_perturbation"]
    trainer = AdversarialTrainerAWPPyTorch(
        wrapped, proxy, _art_pgd(training, wrapped), mode="PGD", gamma=gamma, beta=0.0, warmup=0
    )
    training.begin()
    trainer.fit(**_art_arguments(training))


class _Reshaping(nn.Module):
    """The network with a reshape instead of its `nn.Flatten`, which ART's intervals refuse."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = [each for each in model.children() if not isinstance(each, nn.Flatten)]
        for number, each in enumerate(self.layers):
            self.add_module(str(number), each)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        for each in self.layers:
            x = each(x.flatten(1) if isinstance(each, nn.Linear) else x)
        return x


class _ByEpoch:
    """A schedule of ART: one value for each epoch, that of casemate's ramp in the middle of the epoch."""

    def __init__(self, epochs: int, value: Callable[[float], float]) -> None:
        self.values = iter([value(ramp((epoch + 0.5) / epochs)) for epoch in range(epochs)])

    def step(self) -> float:
        """The value of the next epoch."""
        return next(self.values)


def art_ibp(training: Training) -> None:
    """ART: interval bound propagation."""
    from art.defences.trainer import (  # pyright: ignore[reportMissingImports]
        AdversarialTrainerCertifiedIBPPyTorch,
    )
    from art.estimators.certification.interval import (  # pyright: ignore[reportMissingImports]
        PyTorchIBPClassifier,
    )

    settings, model, epochs = training.pair.settings, _Reshaping(training.network), training.pair.epochs
    wrapped = PyTorchIBPClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        optimizer=training.optimizer(model),
        input_shape=(1, 28, 28),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    trainer = AdversarialTrainerCertifiedIBPPyTorch(
        wrapped,
        bound=settings["eps"],
        certification_schedule=_ByEpoch(epochs, lambda share: share * settings["eps"]),
        loss_weighting_schedule=_ByEpoch(epochs, lambda share: share * (1 - settings["kappa_end"])),
    )
    training.begin()
    trainer.fit(**_art_arguments(training), limits=[0.0, 1.0], verbose=False)
    with torch.no_grad():  # its convolutions are copies
        for mine, found in zip(model.layers, wrapped.model.ops, strict=True):
            if isinstance(mine, nn.Conv2d) and mine.bias is not None:
                mine.weight.copy_(found.conv.weight.reshape(mine.weight.shape))
                mine.bias.copy_(found.bias_to_grad)
            elif isinstance(mine, nn.Linear):
                mine.weight.copy_(found.weight)
                mine.bias.copy_(found.bias)


class _Probabilities(nn.Module):
    """The softmax at a temperature of a network's logits: ART's distillation wants probabilities."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities, `(n, classes)`."""
        return F.softmax(self.model(x) / self.temperature, dim=1)


def art_distillation(training: Training) -> None:
    """ART: defensive distillation."""
    from art.defences.transformer.evasion import DefensiveDistillation  # pyright: ignore[reportMissingImports]

    def loss(found: Tensor, target: Tensor) -> Tensor:
        return -(target * found.clamp(min=1e-12).log()).sum(1).mean()

    assert training.teacher is not None
    temperature = training.pair.settings["temperature"]
    teacher = _art(training, _Probabilities(training.teacher, temperature), loss)
    student = _art(training, _Probabilities(training.network, temperature), loss)
    made = DefensiveDistillation(teacher, batch_size=training.pair.batch_size, nb_epochs=training.pair.epochs)
    training.begin()
    made(training.images.numpy(), student)


# The originals --------------------------------------------------------------------------------------------------------
def _steps(pair: Pair) -> dict[str, Any]:
    settings = pair.settings
    return {"step_size": settings["step_size"], "epsilon": settings["eps"], "perturb_steps": settings["steps"]}


def trades(training: Training) -> None:
    """Zhang et al.: `trades_loss`."""
    function, options = module("TRADES", "trades").trades_loss, _steps(training.pair)
    beta, model = training.pair.settings["beta"], training.network
    training.minimise(lambda x, y, _, optimizer: function(model, x, y, optimizer, beta=beta, **options))


def mart(training: Training) -> None:
    """Wang et al.: `mart_loss`."""
    function, options = module("MART", "mart").mart_loss, _steps(training.pair)
    beta, model = training.pair.settings["beta"], training.network
    training.minimise(lambda x, y, _, optimizer: function(model, x, y, optimizer, beta=beta, **options))


def pgd(model: nn.Module, x: Tensor, y: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """PGD on the cross-entropy in Linf from a uniform start, with the model in evaluation mode."""
    eps = settings["eps"]
    model.eval()
    moved = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(settings["steps"]):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), y), moved)
        moved = moved.detach() + settings["step_size"] * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    model.train()
    return moved.detach()


def awp(training: Training) -> None:
    """Wu et al.: `AdvWeightPerturb` around adversarial training."""
    made = module("AWP", "utils_awp", folder="AT_AWP").AdvWeightPerturb
    proxy, settings, model = network(), training.pair.settings, training.network
    adversary = made(model, proxy, torch.optim.SGD(proxy.parameters(), lr=0.01), settings["weight_perturbation"])
    optimizer = training.optimizer()
    training.begin()
    for x, y, _ in training.batches():
        moved = pgd(model, x, y, settings)
        change = adversary.calc_awp(inputs_adv=moved, targets=y)
        adversary.perturb(change)
        optimizer.zero_grad()
        F.cross_entropy(model(moved), y).backward()
        optimizer.step()
        adversary.restore(change)


def trades_awp(training: Training) -> None:
    """Wu et al.: `TradesAWP` around TRADES."""
    made = module("AWP", "utils_awp", folder="trades_AWP").TradesAWP
    search: Any = module("TRADES", "trades")
    proxy, settings, model = network(), training.pair.settings, training.network
    adversary = made(model, proxy, torch.optim.SGD(proxy.parameters(), lr=0.01), settings["weight_perturbation"])
    optimizer, beta = training.optimizer(), settings["beta"]
    found: list[Tensor] = []
    search.Variable = lambda value, **_: found.append(value) or value.detach()
    training.begin()
    for x, y, _ in training.batches():
        search.trades_loss(model, x, y, optimizer, beta=beta, **_steps(training.pair))
        moved = found.pop().detach()
        change = adversary.calc_awp(inputs_adv=moved, inputs_clean=x, targets=y, beta=beta)
        adversary.perturb(change)
        optimizer.zero_grad()
        clean = model(x)
        apart = F.kl_div(F.log_softmax(model(moved), dim=1), F.softmax(clean, dim=1), reduction="batchmean")
        (F.cross_entropy(clean, y) + beta * apart).backward()
        optimizer.step()
        adversary.restore(change)


def fast_adversarial(training: Training) -> None:
    """Wong et al.: their script for MNIST, whole."""
    originals.on_cpu()
    pair, settings, data = training.pair, training.pair.settings, training
    stub = MagicMock(name="torchvision")
    stub.datasets.MNIST = lambda *_, **__: torch.utils.data.TensorDataset(data.images, data.labels)
    net = types.ModuleType("mnist_net")
    net.mnist_net = lambda: data.network  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules.update({"torchvision": stub, "mnist_net": net})
    arguments = {
        "batch-size": pair.batch_size,
        "epochs": pair.epochs,
        "epsilon": settings["eps"],
        "alpha": settings["step"] * settings["eps"],
        "lr-max": pair.learning_rate,
        "lr-type": "flat",
        "fname": os.devnull,
        "seed": training.seed,
    }
    line = [f"--{name}={value}" for name, value in arguments.items()]
    script = originals.clone("fast_adversarial") / "MNIST" / "train_mnist.py"
    training.begin()
    with originals.command_line("train_mnist.py", line):
        runpy.run_path(str(script), run_name="__main__")


def n_fgsm(training: Training) -> None:
    """De Jorge et al.: `attack_nfgsm`, whose loss is the cross-entropy of what it returns."""
    made = module("N-FGSM", "utils.attack_utils").AttackUtils
    attack = made(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.ones(1, 1, 1))
    settings, model = training.pair.settings, training.network
    eps = 255 * settings["eps"]

    def loss(x: Tensor, y: Tensor, done: float, optimizer: Any) -> Tensor:
        del done, optimizer
        delta = attack.attack_nfgsm(model, x, y, epsilon=eps, alpha=eps, unif=settings["noise"], clip=0)
        return F.cross_entropy(model(x + delta.detach()), y)

    training.minimise(loss)


def robust_union(training: Training) -> None:
    """Maini et al.: `pgd_worst_dir`, the worst of three norms, with our number of steps instead of its 50 and 100."""
    functions = module("robust_union", "mnist_funcs", folder="MNIST")
    settings, model = training.pair.settings, training.network
    for name in ("pgd_l1_topk", "pgd_l2", "pgd_linf"):
        whole = getattr(functions, name)
        setattr(functions, name, _with_steps(whole, settings["steps"]))
    length = 2.5 / settings["steps"]
    options = {
        f"{kind}_{long}": factor * settings[f"eps_{short}"]
        for long, short in (("l_inf", "linf"), ("l_2", "l2"), ("l_1", "l1"))
        for kind, factor in (("epsilon", 1.0), ("alpha", length))
    }

    def loss(x: Tensor, y: Tensor, done: float, optimizer: Any) -> Tensor:
        del done, optimizer
        delta = functions.pgd_worst_dir(model, x, y, device="cpu", **options)
        return F.cross_entropy(model(x + delta), y)

    training.minimise(loss)


def _with_steps(function: Callable[..., Tensor], steps: int) -> Callable[..., Tensor]:
    """The same attack with another number of steps; where its L1 projection divides 0 by 0, the image stays clean."""
    return lambda *given, **options: function(*given, **options | {"num_iter": steps}).nan_to_num(0.0)


def rslad(training: Training) -> None:
    """Zi et al.: `rslad_inner_loss`; the two divergences and their weights are as in their scripts."""
    function = module("RSLAD", "rslad_loss").rslad_inner_loss
    model, teacher, options = training.network, training.teacher, _steps(training.pair)
    assert teacher is not None
    clean = training.pair.settings["clean"]

    def loss(x: Tensor, y: Tensor, done: float, optimizer: Any) -> Tensor:
        del done
        with torch.no_grad():
            target = teacher(x)
        moved = function(model, target, x, y, optimizer, **options)
        apart = [
            F.kl_div(F.log_softmax(found, dim=1), F.softmax(target, dim=1), reduction="batchmean")
            for found in (moved, model(x))
        ]
        return (1 - clean) * apart[0] + clean * apart[1]

    training.minimise(loss)


@final
class Schedule:
    """What the certified trainings ask their schedule of radii for."""

    def __init__(self, full: float) -> None:
        self.full = self.now = full

    def get_eps(self) -> float:
        """The radius now."""
        return self.now

    def get_max_eps(self) -> float:
        """The radius at the end."""
        return self.full


def certified_parts(name: str, model: nn.Module, full: float) -> tuple[Any, Any, Any, Schedule]:
    """`certified.py` and `regularization.py` of a repository, the bounded network, and a schedule of radii."""
    certified = module(name, "certified")
    regularization = importlib_module("regularization")
    from auto_LiRPA import BoundedModule  # pyright: ignore[reportMissingImports]

    like = torch.zeros(2, 1, 28, 28, dtype=next(model.parameters()).dtype)
    bounded = BoundedModule(model, like, bound_opts={"relu": "adaptive", "exp": "clamp_constant"}, device="cpu")
    names = bounded._modules
    for known, wanted in (("/input-1", "/input.1"), ("/input.1", "/input-1")):
        if known in names and wanted not in names:
            names[wanted] = names[known]  # the name of the input depends on PyTorch's version
            break
    return certified, regularization, bounded, Schedule(full)


def importlib_module(name: str) -> types.ModuleType:
    """A further module of the clone that was imported last."""
    return __import__(name)


ARGUMENTS = types.SimpleNamespace(
    num_class=10,
    ls=0.0,
    bound_type="IBP",
    device="cpu",
    tol=0.5,
    reg_obj=["relu", "tightness"],
    reg_lambda=0.5,
    no_reg_dec=False,
    min_eps_reg=1e-6,
    xiao_reg=False,
    vol_reg=False,
    debug=False,
    sabr_coeff=0.4,
)
"""Their command line's values, as far as their functions read them."""
LIMITS = {"data_max": torch.ones(1, 1, 1, 1), "data_min": torch.zeros(1, 1, 1, 1), "std": torch.ones(1)}


def ramp(done: float) -> float:
    """Share of the growth of the radius, as casemate's defaults have it: linear over the first half."""
    return min(1.0, done / 0.5)


def fast_certified(training: Training) -> None:
    """Shi et al.: bounds, loss and regularisers; schedule and weight of the clean loss are casemate's."""
    training.minimise(fast_certified_loss(training.pair, training.network))


def fast_certified_loss(
    pair: Pair, model: nn.Module, *, tight_at_zero: bool = True
) -> Callable[[Tensor, Tensor, float, Any], Tensor]:
    """Their loss of images and labels, where a share of the training is done.

    Without `tight_at_zero` their regulariser for tight bounds is left out while the radius is 0, as in casemate.
    """
    full = pair.settings["eps"]
    certified, regularization, bounded, schedule = certified_parts("Fast-Certified-Robust-Training", model, full)
    arguments = types.SimpleNamespace(**vars(ARGUMENTS))
    arguments.bound_type = {"ibp": "IBP", "crown-ibp": "CROWN-IBP"}[pair.recipe]
    meter = MagicMock()

    def loss(x: Tensor, y: Tensor, done: float, optimizer: Any) -> Tensor:
        del optimizer
        share = ramp(done)
        schedule.now, reg, robust = share * full, share < 1, share > 0
        arguments.reg_obj = ["relu", "tightness"] if robust or tight_at_zero else ["relu"]
        options = {"eps": schedule.now, "eps_scheduler": schedule, "train": True, "meter": meter, **LIMITS}
        clean, worst, _, _ = certified.cert(arguments, bounded, model, 1, done, x, y, robust=robust, reg=reg, **options)
        value = (1 - share) * clean + share * worst if robust else clean
        if reg:
            value = value + regularization.compute_reg(arguments, bounded, meter, schedule.now, schedule)
        return value

    return loss


def expressive(training: Training) -> None:
    """De Palma et al.: attack, bounds, SABR's box and regularisers; losses and schedule as in `fast_certified`."""
    settings, model = training.pair.settings, training.network
    full = settings["eps"]
    certified, regularization, bounded, schedule = certified_parts("expressive-losses", model, full)
    attack, utils = importlib_module("attack"), importlib_module("utils")
    meter, arguments = MagicMock(), ARGUMENTS
    step = settings["step_size"] / full  # theirs is relative to the radius

    def loss(x: Tensor, y: Tensor, done: float, optimizer: Any) -> Tensor:
        del optimizer
        share = ramp(done)
        eps, reg, robust = share * full, share < 1, share > 0
        schedule.now = eps
        given = (LIMITS["data_min"], LIMITS["data_max"], LIMITS["std"], robust, reg)
        box, low, high = utils.compute_perturbation(arguments, eps, x, *given)
        model.eval()
        bounded.eval()
        moved = attack.pgd_attack(
            bounded, low, high, lambda z: F.cross_entropy(z, y, reduction="none"), settings["steps"], step
        )
        model.train()
        bounded.train()
        value = F.cross_entropy(bounded(x), y)
        if training.pair.recipe == "sabr":
            box, centre = utils.compute_sabr_perturbation(arguments, eps, x, moved, *given)
            worst, _, _ = certified.ub_robust_loss(arguments, bounded, box, centre, y, meter=meter)
            value = torch.lerp(value, worst, share) if robust else value
        else:
            adversarial = F.cross_entropy(bounded(moved), y)
            worst, _, _ = certified.ub_robust_loss(arguments, bounded, box, x, y, meter=meter)
            value = torch.lerp(adversarial, worst, settings["alpha"]) if robust else value
        if reg:
            value = value + regularization.compute_reg(arguments, bounded, meter, eps, schedule)
        return value

    training.minimise(loss)


def _loader(training: Training, size: int) -> Callable[[int], list[Any]]:
    """The batches of an epoch, as a list of (images, labels)."""
    return lambda epoch: [
        (training.images[batch], training.labels[batch]) for batch in torch.randperm(len(training.images)).split(size)
    ]


def _no_accuracy(*_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """In place of the accuracy that the scripts print, whose code does not run on today's PyTorch."""
    return torch.zeros(()), torch.zeros(())


def smoothing(training: Training) -> None:
    """Cohen et al.: their script's `train`."""
    stubs = {"datasets": MagicMock(DATASETS=["-"]), "architectures": MagicMock(ARCHITECTURES=["-"])}
    script: Any = module("smoothing", "train", folder="code", stubs=stubs, arguments=["-", "-", "-"])
    script.accuracy = _no_accuracy
    batches, optimizer = _loader(training, training.pair.batch_size), training.optimizer()
    training.begin()
    for epoch in range(training.pair.epochs):
        script.train(
            batches(epoch), training.network, nn.CrossEntropyLoss(), optimizer, epoch, training.pair.settings["sigma"]
        )


def smoothing_adversarial(training: Training) -> None:
    """Salman et al.: their script's `train`, which makes as many batches of each as there are draws."""
    settings = training.pair.settings
    stubs = {"datasets": MagicMock(DATASETS=["-"]), "architectures": MagicMock(ARCHITECTURES=["-"])}
    line = ["-", "-", "-", "--adv-training", "--train-multi-noise", f"--num-noise-vec={settings['draws']}"]
    script: Any = module("smoothing-adversarial", "train_pgd", folder="code", stubs=stubs, arguments=line)
    script.accuracy = _no_accuracy
    attack = script.PGD_L2(steps=settings["steps"], max_norm=settings["eps"], device=torch.device("cpu"))
    batches = _loader(training, settings["draws"] * training.pair.batch_size)
    optimizer = training.optimizer()
    training.begin()
    for epoch in range(training.pair.epochs):
        marked = [(batch, script.LABELLED) for batch in batches(epoch)]
        script.train(marked, training.network, nn.CrossEntropyLoss(), optimizer, epoch, settings["sigma"], attack)


def consistency(training: Training) -> None:
    """Jeong and Shin: `consistency_loss`."""
    function = module("smoothing-consistency", "consistency", folder="code").consistency_loss
    settings, model = training.pair.settings, training.network

    def loss(x: Tensor, y: Tensor, done: float, optimizer: Any) -> Tensor:
        del done, optimizer
        draws = settings["draws"]
        logits = model(torch.cat([x + settings["sigma"] * torch.randn_like(x) for _ in range(draws)]))
        regular = function(torch.chunk(logits, draws), settings["weight"], settings["entropy"])
        return F.cross_entropy(logits, y.repeat(draws)) + regular

    training.minimise(loss)


def vat(training: Training) -> None:
    """`VATLoss` of VAT-pytorch."""
    settings, model = training.pair.settings, training.network
    function = module("VAT-pytorch", "vat").VATLoss(xi=settings["xi"], eps=settings["eps"], ip=1)

    def loss(x: Tensor, y: Tensor, done: float, optimizer: Any) -> Tensor:
        del done, optimizer
        smooth, known = function(model, x), y >= 0
        entropy = F.cross_entropy(model(x[known]), y[known]) if known.any() else 0.0
        return entropy + settings["alpha"] * smooth

    training.minimise(loss)


def neural_structured_learning(training: Training) -> None:
    """Keras's `fit` of NSL's wrapper, in the environment of TensorFlow. The graph is casemate's: see `steps.py`."""
    pair = training.pair
    objective, graph = make_objective({"name": pair.recipe, "settings": dict(pair.settings)}), None
    assert isinstance(objective, AdversarialRegularization | GraphRegularization), pair.recipe
    if isinstance(objective, GraphRegularization):
        prepared = objective.prepared_for(images(pair).train[: len(training.images)])
        graph = training.images, prepared.neighbours, prepared.weights
    arrays, found = run_nsl(
        "train",
        given_arrays(training.network, training.images, training.labels, graph),
        settings=nsl_settings(objective),
        seed=training.seed,
        epochs=pair.epochs,
        batch_size=pair.batch_size,
        learning_rate=pair.learning_rate,
        adam_eps=ADAM_EPS,
    )
    training.versions.update(found.pop("versions"))
    training.elapsed.update(found)
    training.network.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})


PEERS: Mapping[str, tuple[Peer, tuple[str, ...]]] = {
    "ART PyTorchClassifier": (art_plain, ()),
    "ART AdversarialTrainerMadryPGD": (art_madry, ()),
    "ART AdversarialTrainerTRADESPyTorch": (art_trades, ()),
    "ART AdversarialTrainerAWPPyTorch": (art_awp, ()),
    "ART DefensiveDistillation": (art_distillation, ()),
    "ART AdversarialTrainerCertifiedIBPPyTorch": (art_ibp, ()),
    "TRADES": (trades, ("TRADES",)),
    "MART": (mart, ("MART",)),
    "AWP": (awp, ("AWP",)),
    "TRADES-AWP": (trades_awp, ("AWP", "TRADES")),
    "fast_adversarial": (fast_adversarial, ("fast_adversarial",)),
    "N-FGSM": (n_fgsm, ("N-FGSM",)),
    "robust_union": (robust_union, ("robust_union",)),
    "RSLAD": (rslad, ("RSLAD",)),
    "Fast-Certified-Robust-Training": (fast_certified, ("Fast-Certified-Robust-Training", "auto_LiRPA")),
    "expressive-losses": (expressive, ("expressive-losses", "auto_LiRPA")),
    "smoothing": (smoothing, ("smoothing",)),
    "smoothing-adversarial": (smoothing_adversarial, ("smoothing-adversarial",)),
    "smoothing-consistency": (consistency, ("smoothing-consistency",)),
    "VAT-pytorch": (vat, ("VAT-pytorch",)),
    "NSL AdversarialRegularization": (neural_structured_learning, ()),
    "NSL GraphRegularization": (neural_structured_learning, ()),
}
"""By name: the training, and the clones that it needs."""


def tensors(part: LabelledImages) -> tuple[Tensor, Tensor]:
    """Images within [0, 1] and labels."""
    return part.pixels.float() / 255, part.labels


def main(name: str) -> int:
    """Train and write, until there are no more lines."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pair = pair_of(name)
    x, y = tensors(images(pair).train)
    train, clones = PEERS[pair.peer]
    try:
        commits = {each: originals.commit(each) for each in clones}
    except NotHereError as error:
        print(error, file=sys.stderr)
        return 2
    libraries, answer = ("torch",) if clones else ("torch", "adversarial-robustness-toolbox"), sys.stdout
    for count, line in enumerate(sys.stdin):
        seed, folder = int(line.split()[0]), Path(line.split(maxsplit=1)[1].rstrip("\n"))
        model, teacher = network(), None
        start = safetensors.torch.load_file(folder / "start.safetensors")
        if pair.teacher is not None:
            teacher = network()
            teacher.load_state_dict(safetensors.torch.load_file(folder / "teacher.safetensors"))
            teacher.eval()
        with contextlib.redirect_stdout(io.StringIO()):
            if count == 0:
                few = 2 * pair.batch_size
                train(Training(replace(pair, epochs=1), network(), x[:few], y[:few], teacher, seed))
            model.load_state_dict(start)
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 (the generator that ART draws from)
            random.seed(seed)
            training = Training(pair, model, x, y, teacher, seed)
            train(training)
            told = {
                **training.seconds(),
                "commits": commits,
                "versions": training.versions or {each: metadata.version(each) for each in libraries},
            }
        weights = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "theirs.safetensors")
        (folder / "theirs.json").write_text(json.dumps(told))
        print("done", file=answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
