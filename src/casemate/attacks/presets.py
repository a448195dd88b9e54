"""FGSM, BIM, PGD and MI-FGSM: each chooses the settings of the gradient ascent in `casemate.attacks.gradient`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from casemate.attacks.gradient import AbstractGradientAttack, AnyKeep, Loop
from casemate.losses import AnyLoss
from casemate.norms import AnyNorm, Ball, Eps
from casemate.settings import at_least, not_negative, one_of


@final
@dataclass(frozen=True, kw_only=True)
class FGSM(AbstractGradientAttack):
    """Fast gradient sign method: one step to the edge of the ball (Goodfellow et al. 2015; the study's eq. 1).

    By default images that are misclassified already are not changed (see `keep`).
    """

    stream: ClassVar[str] = "FGSM"

    eps: Eps
    """Radius of the ball, in pixel units."""
    norm: AnyNorm = "linf"
    """Norm of the ball and of the step: Linf (the sign, as published), L2 or L1."""
    loss: AnyLoss = "ce"
    """Loss to maximise, or a function (see `OwnLoss`)."""
    keep: AnyKeep = "first_success"
    """`first_success` does not change images that are misclassified already; `last` does, as other tools do."""

    def loop(self) -> Loop:
        """The settings of the gradient ascent: one step of length eps."""
        ball = Ball(eps=self.eps, norm=self.norm)
        return Loop(ball=ball, steps=1, step_size=ball.eps, loss=self.loss, keep=self.keep)


@final
@dataclass(frozen=True, kw_only=True)
class BIM(AbstractGradientAttack):
    """Basic iterative method (Kurakin et al. 2017; the study's eq. 2), clipped to the ball or to the bounds only."""

    stream: ClassVar[str] = "BIM"

    eps: Eps
    """Radius of the ball, in pixel units; with clip `range` it only determines the default step size."""
    steps: Annotated[int, at_least(1)] = 10
    """Number of gradient steps."""
    step_size: Eps | None = None
    """Length of each step; a quarter of eps if None."""
    clip: Annotated[Literal["ball", "range"], one_of("ball", "range")] = "ball"
    """`ball`: stay within eps of the image. `range`: only within the bounds; the radius is then steps * step_size."""
    norm: AnyNorm = "linf"
    """Norm of the ball and of the steps: Linf (as published), L2 or L1."""
    loss: AnyLoss = "ce"
    """Loss to maximise, or a function (see `OwnLoss`)."""
    keep: AnyKeep = "first_success"
    """`first_success`: stop at an image's first iterate that fools. `last`: make all steps, return the last iterate."""

    def loop(self) -> Loop:
        """The settings of the gradient ascent, from the clean image.

        With clip `range` the radius is what the steps can reach: min(1, steps * step_size) for Linf, else the product.
        """
        step = self.eps / 4 if self.step_size is None else self.step_size
        reach = self.steps * step
        radius = self.eps if self.clip == "ball" else (min(1.0, reach) if self.norm == "linf" else reach)
        ball = Ball(eps=radius, norm=self.norm)
        return Loop(ball=ball, steps=self.steps, step_size=step, loss=self.loss, keep=self.keep)


@final
@dataclass(frozen=True, kw_only=True)
class PGD(AbstractGradientAttack):
    """Projected gradient ascent from random starts (Madry et al. 2018)."""

    stream: ClassVar[str] = "PGD"

    eps: Eps
    """Radius of the ball, in pixel units."""
    steps: Annotated[int, at_least(1)] = 40
    """Gradient steps of each run."""
    step_size: Eps | None = None
    """Length of each step; 2.5 * eps / steps if None."""
    restarts: Annotated[int, at_least(1)] = 1
    """Number of runs from different random starts; later ones are only for images not yet fooled."""
    random_start: bool = True
    """Start from a random point of the ball instead of the clean image."""
    norm: AnyNorm = "linf"
    """Norm of the ball and of the steps: Linf, L2 or L1."""
    loss: AnyLoss = "ce"
    """Loss to maximise, or a function (see `OwnLoss`)."""
    keep: AnyKeep = "first_success"
    """`first_success`: stop at an image's first iterate that fools. `last`: make all steps, return the last iterate."""

    def loop(self) -> Loop:
        """The settings of the gradient ascent, from random starts unless `random_start` is False."""
        ball = Ball(eps=self.eps, norm=self.norm)
        step = 2.5 * ball.eps / max(self.steps, 1) if self.step_size is None else self.step_size
        return Loop(
            ball=ball,
            steps=self.steps,
            step_size=step,
            loss=self.loss,
            random_start=self.random_start,
            restarts=self.restarts,
            keep=self.keep,
        )


@final
@dataclass(frozen=True, kw_only=True)
class MIFGSM(AbstractGradientAttack):
    """Momentum iterative FGSM (Dong et al. 2018): steps along accumulated gradients, each divided by its L1 norm."""

    stream: ClassVar[str] = "MIFGSM"

    eps: Eps
    """Radius of the ball, in pixel units."""
    steps: Annotated[int, at_least(1)] = 10
    """Number of gradient steps."""
    step_size: Eps | None = None
    """Length of each step; eps / steps if None, as published."""
    decay: Annotated[float, not_negative()] = 1.0
    """Factor on the accumulated gradient at every step, before the new gradient is added (the paper's mu)."""
    norm: AnyNorm = "linf"
    """Norm of the ball and of the steps: Linf, L2 or L1."""
    loss: AnyLoss = "ce"
    """Loss to maximise, or a function (see `OwnLoss`)."""
    keep: AnyKeep = "first_success"
    """`first_success`: stop at an image's first iterate that fools. `last`: make all steps, return the last iterate."""

    def loop(self) -> Loop:
        """The settings of the gradient ascent, with momentum."""
        ball = Ball(eps=self.eps, norm=self.norm)
        step = ball.eps / max(self.steps, 1) if self.step_size is None else self.step_size
        return Loop(ball=ball, steps=self.steps, step_size=step, loss=self.loss, decay=self.decay, keep=self.keep)


PRESETS: dict[str, type[AbstractGradientAttack]] = {"fgsm": FGSM, "bim": BIM, "pgd": PGD, "mifgsm": MIFGSM}
"""The gradient attacks' classes by name, as the specifications of experiments write them."""
