"""The models of the self-test: misleading ones, each with an attack that it misleads, and honest ones to compare."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from casemate.attacks import FGSM, PGD, AbstractGradientAttack
from casemate.data import LabelledImages
from casemate.defenses import with_noise
from casemate.models import Classifier
from casemate.selftest.networks import EPS, FAR
from casemate.selftest.parts import (
    counting,
    in_training_mode,
    misleading,
    normalised_twice,
    on_stairs,
    quantised,
    with_probabilities,
)


def _unchanged(model: Classifier) -> Classifier:
    return model


def shifted(images: LabelledImages, classes: int) -> LabelledImages:
    """The images with every label raised by one (the last class becomes 0), as if labels counted from 1."""
    return LabelledImages(pixels=images.pixels, labels=(images.labels + 1) % classes)


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """One model of the self-test, for which it is known whether its evaluation is to be trusted."""

    name: str
    about: str
    """What misleads attacks or the evaluation, or how an honest model was trained."""
    honest: bool = False
    """True: an ordinary model, whose number the verdict must trust. False: a misleading one."""
    network: str = "undefended"
    """Name of the trained network in `networks.TRAIN_SPECS`."""
    change: Callable[[Classifier], Classifier] = _unchanged
    """Makes the model to be evaluated from the trained network, such as one with rounded pixels."""
    shifted: bool = False
    """Whether the model is evaluated with wrong labels, all raised by one (see the function `shifted`)."""
    randomised: bool = False
    """Whether the model's logits are random at inference."""
    eps: float = EPS
    """Radius of the evaluation, in the Linf norm."""
    claim: AbstractGradientAttack | None = None
    """An attack that the model misleads, which leaves far too high an accuracy; None if there is no such attack."""


CASES: tuple[Case, ...] = (
    Case(
        name="single-step",
        about="trained on single steps of FGSM, which it recognises",
        network="single-step",
        eps=FAR,
        claim=FGSM(eps=FAR, loss="torch-ce", keep="last"),
    ),
    Case(
        name="distilled",
        about="defensive distillation at T = 100: probabilities saturate",
        network="distilled",
        claim=PGD(eps=EPS, steps=20, loss="torch-ce", keep="last"),
    ),
    Case(
        name="saturated",
        about="over-fitted until probabilities saturate, attacked with a loss of probabilities",
        network="over-fitted",
        claim=FGSM(eps=EPS, loss="prob-ce", keep="last"),
    ),
    Case(
        name="quantised",
        about="pixels rounded to three bits, which leaves no gradient",
        change=quantised,
        claim=PGD(eps=EPS, steps=20, random_start=False, loss="torch-ce", keep="last"),
    ),
    Case(
        name="stairs",
        about="pixels rounded by a smooth function whose gradient is almost zero",
        change=on_stairs,
        claim=PGD(eps=EPS, steps=20, random_start=False, loss="torch-ce", keep="last"),
    ),
    Case(
        name="misleading",
        about="a gradient that points the wrong way",
        change=misleading,
        claim=PGD(eps=EPS, steps=20, loss="torch-ce", keep="last"),
    ),
    Case(
        name="k-winners",
        about="k-winners-take-all activations, whose gradients jump",
        network="k-winners",
        claim=FGSM(eps=EPS, loss="torch-ce", keep="last"),
    ),
    Case(
        name="resize-and-pad",
        about="images resized and padded at random at inference",
        network="resized",
        randomised=True,
    ),
    Case(
        name="noise-layer",
        about="noise layers left on at inference",
        network="noisy",
        change=with_noise,
        randomised=True,
    ),
    Case(
        name="stochastic-affine",
        about="random affine transforms of the images at inference",
        network="moved",
        randomised=True,
    ),
    Case(
        name="probabilities",
        about="a softmax at the end of the network",
        network="distilled",
        change=with_probabilities,
        claim=PGD(eps=EPS, steps=20, loss="torch-ce", keep="last"),
    ),
    Case(name="counting", about="every ninth pass gives other predictions", change=counting),
    Case(name="training-mode", about="left in training mode, with its dropout on", change=in_training_mode),
    Case(
        name="normalised-twice",
        about="images normalised before a network that normalises",
        network="normalised",
        change=normalised_twice,
    ),
    Case(name="labels-shifted", about="labels that count from one", shifted=True),
    Case(name="undefended", about="ordinary training", honest=True),
    Case(name="early-stopped", about="early stopping", honest=True, network="early-stopped"),
    Case(name="weight-decayed", about="weight decay", honest=True, network="weight-decayed"),
    Case(name="pgd-trained", about="adversarial training with PGD", honest=True, network="adversarial"),
)
