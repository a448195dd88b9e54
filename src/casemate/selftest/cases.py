"""The models of the self-test: misleading ones, each with an attack that it misleads, and honest ones to compare."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from casemate.attacks import FGSM, PGD, AbstractGradientAttack
from casemate.data import LabelledImages
from casemate.defenses import with_noise
from casemate.models import Classifier
from casemate.selftest.evasive import anti_adversarial, by_batch, by_frozen_weights, by_whole_levels, remembering
from casemate.selftest.networks import EPS, FAR
from casemate.selftest.odd import halves, of_strips, preferring, separating_halves, strips, with_bfloat16
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


def _as_given(images: LabelledImages, classes: int) -> LabelledImages:
    del classes
    return images


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
    others: tuple[str, ...] = ()
    """Names of further networks of which the model consists."""
    change: Callable[..., Classifier] = _unchanged
    """Makes the model to be evaluated from the trained network (and `others`), such as one with rounded pixels."""
    images: Callable[[LabelledImages, int], LabelledImages] = _as_given
    """Makes the images and labels of the evaluation from the test images and the number of their classes, such as with
    wrong labels."""
    randomised: bool = False
    """Whether the model's logits are random at inference."""
    eps: float = EPS
    """Radius of the evaluation, in the Linf norm."""
    claim: AbstractGradientAttack | None = None
    """An attack that the model misleads, which leaves far too high an accuracy; None if there is no such attack."""
    passes: int = 1
    """Number of passes through a network in one of the model, for the estimate of the time."""

    def networks(self) -> tuple[str, ...]:
        """Names of all networks of which the model consists."""
        return (self.network, *self.others)


_PGD = PGD(eps=EPS, steps=20, loss="torch-ce", keep="last")

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
    Case(name="labels-shifted", about="labels that count from one", images=shifted),
    Case(
        name="remembering",
        about="answers for an image near one seen before as for that one",
        network="over-fitted",
        change=remembering,
        claim=_PGD,
    ),
    Case(
        name="whole-levels",
        about="another network where pixels are no whole grey levels, as under attack",
        network="over-fitted",
        others=("adversarial",),
        change=by_whole_levels,
        claim=_PGD,
        passes=2,
    ),
    Case(
        name="large-batches",
        about="another network for large batches, as under attack",
        network="over-fitted",
        others=("adversarial",),
        change=by_batch,
        claim=_PGD,
    ),
    Case(
        name="frozen-weights",
        about="another network while weights are frozen, as under attack",
        network="over-fitted",
        others=("adversarial",),
        change=by_frozen_weights,
        claim=_PGD,
    ),
    Case(
        name="anti-adversary",
        about="steps along the gradient at inference make it surer of itself",
        network="over-fitted",
        change=anti_adversarial,
        claim=_PGD,
        passes=8,
    ),
    Case(name="undefended", about="ordinary training", honest=True),
    Case(name="early-stopped", about="early stopping", honest=True, network="early-stopped"),
    Case(name="weight-decayed", about="weight decay", honest=True, network="weight-decayed"),
    Case(name="pgd-trained", about="adversarial training with PGD", honest=True, network="adversarial"),
    Case(
        name="one-logit",
        about="two classes and one logit, in a dictionary",
        honest=True,
        network="adversarial",
        change=separating_halves,
        images=halves,
    ),
    Case(
        name="bfloat16",
        about="computed in bfloat16 by autocast",
        honest=True,
        network="adversarial",
        change=with_bfloat16,
    ),
    Case(
        name="strips",
        about="images one pixel high, with pixels between -1 and 1",
        honest=True,
        network="adversarial",
        change=of_strips,
        images=strips,
        eps=2 * EPS,
    ),
    Case(
        name="preferring",
        about="prefers some classes, others are hardly ever predicted",
        honest=True,
        network="adversarial",
        change=preferring,
    ),
    Case(
        name="transformer",
        about="a transformer, computed otherwise without gradients",
        honest=True,
        network="transformer",
    ),
)
