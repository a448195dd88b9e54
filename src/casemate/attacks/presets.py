"""The named attacks of the study's family, each a preset of the gradient loop."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from casemate.attacks.gradient import GradientAttack, Loop, Track
from casemate.errors import SettingError
from casemate.losses import LossName
from casemate.norms import Ball, Norm, parse_eps


@final
@dataclass(frozen=True, kw_only=True)
class FGSM(GradientAttack):
    """Fast gradient sign method: one step to the edge of the ball (Goodfellow et al. 2015; the study's eq. 1)."""

    stream: ClassVar[str] = "FGSM"

    eps: float
    """Radius of the ball, in pixel units."""
    norm: Norm = "linf"
    """Linf (the sign, as published), L2 or L1."""
    loss: LossName = "ce"
    """What is ascended."""
    track: Track = "worst"
    """`worst` leaves an image that is misclassified already as it is; `last` steps anyway, as other tools do."""

    def loop(self) -> Loop:
        """One step of length eps."""
        ball = Ball(eps=parse_eps(self.eps), norm=self.norm)
        return Loop(ball=ball, steps=1, step=ball.eps, loss=self.loss, track=self.track)


@final
@dataclass(frozen=True, kw_only=True)
class BIM(GradientAttack):
    """Basic iterative method (Kurakin et al. 2017; the study's eq. 2), with both of the study's clippings."""

    stream: ClassVar[str] = "BIM"

    eps: float
    """Radius of the ball, in pixel units; with clip `range` it only sets the default step."""
    steps: int = 10
    """Iterations."""
    step: float | None = None
    """Length of each; a quarter of eps if None."""
    clip: Literal["ball", "range"] = "ball"
    """`ball`: stay within eps of the image. `range`: only within the bounds, so that the radius is steps * step."""
    norm: Norm = "linf"
    """Linf (as published), L2 or L1."""
    loss: LossName = "ce"
    """What is ascended."""
    track: Track = "worst"
    """Keep the first iterate that fools, or the raw last one."""

    def loop(self) -> Loop:
        """The loop; with clip `range` its ball is the one that the steps can reach: min(1, steps * step) for Linf."""
        if self.clip not in ("ball", "range"):
            raise SettingError(f"clip {self.clip!r}; expected ball or range")
        eps = parse_eps(self.eps)
        step = eps / 4 if self.step is None else parse_eps(self.step)
        reach = self.steps * step
        radius = eps if self.clip == "ball" else (min(1.0, reach) if self.norm == "linf" else reach)
        ball = Ball(eps=radius, norm=self.norm)
        return Loop(ball=ball, steps=self.steps, step=step, loss=self.loss, track=self.track)


@final
@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Projected gradient ascent from random starts (Madry et al. 2018)."""

    stream: ClassVar[str] = "PGD"

    eps: float
    """Radius of the ball, in pixel units."""
    steps: int = 40
    """Gradient steps of each run."""
    step: float | None = None
    """Length of each; 2.5 * eps / steps if None."""
    restarts: int = 1
    """Runs from fresh random starts."""
    random_start: bool = True
    """Start from a point drawn from the ball."""
    norm: Norm = "linf"
    """Linf, L2 or L1."""
    loss: LossName = "ce"
    """What is ascended."""
    track: Track = "worst"
    """Keep the first iterate that fools, or the raw last one."""

    def loop(self) -> Loop:
        """The loop from random starts."""
        ball = Ball(eps=parse_eps(self.eps), norm=self.norm)
        step = 2.5 * ball.eps / max(self.steps, 1) if self.step is None else parse_eps(self.step)
        return Loop(
            ball=ball,
            steps=self.steps,
            step=step,
            loss=self.loss,
            random_start=self.random_start,
            restarts=self.restarts,
            track=self.track,
        )


@final
@dataclass(frozen=True, kw_only=True)
class MIFGSM(GradientAttack):
    """Momentum iterative FGSM (Dong et al. 2018): gradients, each over its L1 norm, are accumulated."""

    stream: ClassVar[str] = "MIFGSM"

    eps: float
    """Radius of the ball, in pixel units."""
    steps: int = 10
    """Iterations."""
    step: float | None = None
    """Length of each; eps / steps if None, as published."""
    decay: float = 1.0
    """Decay of the accumulated gradient."""
    norm: Norm = "linf"
    """Linf, L2 or L1."""
    loss: LossName = "ce"
    """What is ascended."""
    track: Track = "worst"
    """Keep the first iterate that fools, or the raw last one."""

    def loop(self) -> Loop:
        """The loop with momentum."""
        ball = Ball(eps=parse_eps(self.eps), norm=self.norm)
        step = ball.eps / max(self.steps, 1) if self.step is None else parse_eps(self.step)
        return Loop(ball=ball, steps=self.steps, step=step, loss=self.loss, decay=self.decay, track=self.track)


ATTACKS: dict[str, type[GradientAttack]] = {"fgsm": FGSM, "bim": BIM, "pgd": PGD, "mifgsm": MIFGSM}
"""The attacks by the names the command line uses."""
