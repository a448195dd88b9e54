"""What is compared: pairs of a recipe and a public implementation of it, with one set of settings for both sides.

Read by both sides, so it needs nothing but PyTorch and casemate.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from casemate.data import Dataset, LabelledImages
from casemate.data import load as load_data
from casemate.norms import Norm

SEEDS = (0, 1, 2)
TRAIN, TEST = 3000, 1000
"""Images: the first of Fashion-MNIST's training images and of its test images."""
VALIDATION = 20
"""Training images from TRAIN on that casemate's loop validates with; the other side does not validate."""
EPS = 0.1
STEPS, STEP_SIZE = 3, 0.05
SIGMA = 0.25
LABELLED = 300
"""Images that keep their label where most are unlabelled."""
TEACHER_SEED = 100
ADAM_EPS = 1e-7
"""Adam's epsilon, as casemate's loop has it."""

Measure = Literal["attack", "certify", "smooth"]


@final
@dataclass(frozen=True, kw_only=True)
class Pair:
    """One recipe beside one implementation."""

    name: str
    recipe: str
    """The recipe's name in casemate."""
    peer: str
    """What it is compared with: a name in `theirs.PEERS`."""
    settings: Mapping[str, Any]
    """casemate's objective; the other side translates them."""
    epochs: int = 4
    batch_size: int = 60
    learning_rate: float = 2e-3
    measure: Measure = "attack"
    balls: tuple[tuple[Norm, float], ...] = (("linf", EPS),)
    """Balls in which the trained networks are attacked: norm and radius."""
    radius: float = EPS
    """Radius of the certificates: Linf, or L2 where the network is smoothed."""
    teacher: str | None = None
    """The recipe of the teacher that both sides get; None for none."""
    partly_labelled: bool = False
    differs: str = ""
    """What could not be made equal."""

    @property
    def spec(self) -> dict[str, Any]:
        """All of it that decides the results, for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "differs"}


_PGD = {"eps": EPS, "steps": STEPS, "step_size": STEP_SIZE}
_CERTIFIED: dict[str, Any] = {"measure": "certify", "epochs": 4}
_SMOOTHED: dict[str, Any] = {"measure": "smooth", "balls": (), "radius": 0.25}
_START = "starts from normal noise of 0.001, casemate from a uniform one of at most 0.001"
_FIRST = "in the first step, at radius 0, its regularisers see a radius of 1e-6, casemate's see none"

PAIRS = (
    Pair(
        name="cross-entropy",
        recipe="cross-entropy",
        peer="ART PyTorchClassifier",
        settings={},
        balls=(("linf", 0.02),),
    ),
    Pair(
        name="adversarial-regularization",
        recipe="adversarial-regularization",
        peer="NSL AdversarialRegularization",
        settings={"multiplier": 0.5, "step_size": 0.1, "norm": "linf", "clip_min": 0.0, "clip_max": 1.0},
        balls=(("linf", 0.05),),
        differs="it is Keras: other kernels, and Adam written otherwise",
    ),
    Pair(
        name="graph-regularization",
        recipe="graph-regularization",
        peer="NSL GraphRegularization",
        settings={"multiplier": 0.1},
        balls=(("linf", 0.02),),
        differs="it is Keras; the neighbours are those that casemate finds",
    ),
    Pair(
        name="adversarial-training",
        recipe="adversarial-training",
        peer="ART AdversarialTrainerMadryPGD",
        settings=_PGD,
    ),
    Pair(
        name="adversarial-training-awp",
        recipe="adversarial-training",
        peer="AWP",
        settings={**_PGD, "weight_perturbation": 0.005},
        differs="its images are those of PGD written in the benchmark; the perturbation of the weights is its own",
    ),
    Pair(
        name="adversarial-training-awp-art",
        recipe="adversarial-training",
        peer="ART AdversarialTrainerAWPPyTorch",
        settings={**_PGD, "weight_perturbation": 0.005},
        differs="it perturbs biases too",
    ),
    Pair(name="trades", recipe="trades", peer="TRADES", settings={**_PGD, "beta": 6.0}, differs=_START),
    Pair(
        name="trades-art",
        recipe="trades",
        peer="ART AdversarialTrainerTRADESPyTorch",
        settings={**_PGD, "beta": 6.0},
        differs="its images raise the cross-entropy of the label, the paper's and casemate's the divergence",
    ),
    Pair(
        name="trades-awp",
        recipe="trades",
        peer="TRADES-AWP",
        settings={**_PGD, "beta": 6.0, "weight_perturbation": 0.005},
        differs="the images are those of TRADES' own function without its loss",
    ),
    Pair(
        name="mart",
        recipe="mart",
        peer="MART",
        settings={**_PGD, "beta": 5.0},
        differs="starts from normal noise of 0.001, casemate from the whole ball; adds 1e-4 within a logarithm",
    ),
    Pair(
        name="fgsm-rs",
        recipe="fgsm-rs",
        peer="fast_adversarial",
        settings={"eps": EPS, "step": 1.25},
        differs="its gradient is taken outside [0, 1] too; Adam's epsilon is 1e-8",
    ),
    Pair(name="n-fgsm", recipe="n-fgsm", peer="N-FGSM", settings={"eps": EPS, "noise": 2.0}),
    Pair(
        name="several-norms",
        recipe="several-norms",
        peer="robust_union",
        settings={"eps_linf": EPS, "eps_l2": 1.5, "eps_l1": 12.0, "steps": STEPS},
        balls=(("linf", EPS), ("l2", 1.5), ("l1", 12.0)),
        differs="its PGD starts at the image in Linf and L1 and leaves fooled images alone; its L1 step is another",
    ),
    Pair(
        name="robust-distillation",
        recipe="robust-distillation",
        peer="RSLAD",
        settings={**_PGD, "clean": 1 / 6},
        teacher="adversarial-training",
        differs=_START.replace("at most 0.001", "the whole ball") + "; the sum of the two losses is the benchmark's",
    ),
    Pair(
        name="distillation",
        recipe="distillation",
        peer="ART DefensiveDistillation",
        settings={"temperature": 20.0},
        teacher="at-temperature",
        balls=(("linf", 0.02),),
        differs="it predicts with the teacher once, before the training",
    ),
    Pair(
        name="ibp",
        recipe="ibp",
        peer="Fast-Certified-Robust-Training",
        settings={"eps": EPS},
        differs=_FIRST,
        **_CERTIFIED,
    ),
    Pair(
        name="ibp-art",
        recipe="ibp",
        peer="ART AdversarialTrainerCertifiedIBPPyTorch",
        settings={"eps": EPS, "kappa_end": 0.5, "regularization": 0.0},
        epochs=12,
        measure="certify",
        differs="its radius changes by the epoch; its worst logits are bounds of each logit, casemate's those of "
        "differences; its bounds and its clean loss see different batches",
    ),
    Pair(
        name="crown-ibp",
        recipe="crown-ibp",
        peer="Fast-Certified-Robust-Training",
        settings={"eps": EPS},
        differs=_FIRST,
        **_CERTIFIED,
    ),
    Pair(
        name="sabr",
        recipe="sabr",
        peer="expressive-losses",
        settings={"eps": EPS, "tau": 0.4, "steps": STEPS, "step_size": STEP_SIZE},
        differs="its PGD returns the best iterate, casemate's the last; " + _FIRST,
        **_CERTIFIED,
    ),
    Pair(
        name="mtl-ibp",
        recipe="mtl-ibp",
        peer="expressive-losses",
        settings={"eps": EPS, "alpha": 0.5, "steps": STEPS, "step_size": STEP_SIZE},
        differs="its PGD returns the best iterate, casemate's the last; " + _FIRST,
        **_CERTIFIED,
    ),
    Pair(name="gaussian-noise", recipe="gaussian-noise", peer="smoothing", settings={"sigma": SIGMA}, **_SMOOTHED),
    Pair(
        name="smooth-adv",
        recipe="smooth-adv",
        peer="smoothing-adversarial",
        settings={"sigma": SIGMA, "eps": 0.5, "steps": 3, "draws": 2},
        **_SMOOTHED,
    ),
    Pair(
        name="consistency",
        recipe="consistency",
        peer="smoothing-consistency",
        settings={"sigma": SIGMA, "draws": 2, "weight": 5.0, "entropy": 0.5},
        **_SMOOTHED,
    ),
    Pair(
        name="virtual-adversarial",
        recipe="virtual-adversarial",
        peer="VAT-pytorch",
        settings={"eps": 2.0, "xi": 0.1, "alpha": 1.0},
        partly_labelled=True,
        balls=(("l2", 0.5),),
        differs="its first direction is uniform in a cube, casemate's on the sphere; the other loss is the benchmark's",
    ),
)


def pair_of(name: str) -> Pair:
    """The pair called `name`. Raises `KeyError` if there is none."""
    return {pair.name: pair for pair in PAIRS}[name]


def network() -> nn.Sequential:
    """The network of all trainings: two convolutions of stride 2 and two dense layers, 53,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@final
@dataclass(frozen=True)
class Images:
    """The images of a pair; training labels are -1 where the pair leaves them out."""

    train: LabelledImages
    validation: LabelledImages
    test: tuple[Tensor, Tensor] = field(repr=False)


@cache
def _dataset() -> Dataset:
    return load_data("fashion-mnist")


def images(pair: Pair) -> Images:
    """The first images of Fashion-MNIST."""
    dataset = _dataset()
    train, validation = dataset.train[:TRAIN], dataset.train[TRAIN : TRAIN + VALIDATION]
    if pair.partly_labelled:
        labels = train.labels.where(torch.arange(TRAIN) < LABELLED, -1)
        train = LabelledImages(pixels=train.pixels, labels=labels)
    return Images(train, validation, dataset.test[:TEST].tensors())
