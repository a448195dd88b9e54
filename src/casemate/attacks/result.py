"""What attacks return: the candidates of an algorithm on one batch, and the verified result for all images."""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, final

import torch
from torch import Tensor

from casemate.intervals import Estimate, share
from casemate.norms import format_eps
from casemate.notebook import html_table
from casemate.rows import Rows
from casemate.types import Classes, Flags, Images, Labels, PerExample


class Status(IntEnum):
    """How an attack on one example ended."""

    SUCCESS = 0
    """Misclassified (targeted: classified as the target) after the attack, possibly already before it."""
    FAILED = 1
    """Still classified correctly after the attack (targeted: not as the target)."""
    NON_FINITE = 2
    """Failed, and logits or gradients of the model were not finite; the clean image is returned."""
    ZERO_GRADIENT = 3
    """Failed, and the gradient was exactly zero at every step, so the attack never had a direction; also where the mask
    lets no value change."""
    OFF_GRID = 4
    """No image on the grid of `levels` lies in the ball, or has the values that the mask fixes; the clean image is
    returned, and is no success even if it is misclassified."""


def status_of(success: Flags, finite: Flags, has_gradient: Flags) -> Tensor:
    """The `Status` code of each example, uint8 `(n,)`: SUCCESS, else NON_FINITE, else ZERO_GRADIENT, else FAILED."""
    status = torch.full_like(success, Status.FAILED, dtype=torch.uint8)
    status[~has_gradient] = Status.ZERO_GRADIENT
    status[~finite] = Status.NON_FINITE
    status[success] = Status.SUCCESS
    return status


@final
@dataclass
class Passes:
    """Numbers of forward and backward passes, a batch of n images counting n: the cost of an attack on any machine."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward and backward passes together."""
        return self.forward + self.backward

    def add(self, other: "Passes") -> None:
        """Add the passes of `other` in place."""
        self.forward += other.forward
        self.backward += other.backward


@final
@dataclass(frozen=True)
class RunResult(Rows):
    """The result of an attack's algorithm on one batch, one entry per image, before verification."""

    images: Images
    """Candidates for adversarial images."""
    finite: Flags
    """The model's logits and gradients were finite; verification replaces other candidates by the clean image."""
    has_gradient: Flags
    """The gradient was not zero at some step; True for an attack without gradients."""
    passes: Passes


@final
@dataclass(frozen=True, kw_only=True)
class AttackResult(Rows):
    """The verified result of an attack, one entry per image; `result[mask]` is the result for some of the images."""

    adversarial: Images
    """The attacked images, within the ball and the bounds, `(n, channels, height, width)`; not all of them fool."""
    prediction: Labels
    """The class that the model predicts for each of them, that of the largest logit, from the verification after the
    attack; of a network of several labels it says nothing."""
    success: Flags
    """The adversarial image is misclassified, or for a targeted attack classified as the target; or a criterion of
    one's own says that it fools."""
    status: Tensor
    """How the attack on each image ended: `Status` codes, uint8 `(n,)`."""
    loss: PerExample
    """Cross-entropy of the adversarial image under its true label; under a criterion of one's own its margin."""
    norm: PerExample
    """Norm of the perturbation, in the attack's norm; computed in float64."""
    passes: Passes
    """Passes made for all images of the call together, also in `result[mask]`."""
    attack: dict[str, Any]
    """The attack's class name and hyper-parameters (`AbstractAttack.record`); under "criterion" one's own."""
    clean: Images
    """The images that were attacked, as they were given."""
    labels: Classes
    """Their true classes, `(n,)`; under a criterion of one's own its `classes`, `(n,)` or `(n, classes)`."""
    free_share: PerExample | None = None
    """Share of the values of each image that the mask lets the attack change; None without a mask."""

    def __len__(self) -> int:
        return len(self.success)

    @property
    def distance(self) -> PerExample:
        """Norm of the perturbation where it fooled, infinite elsewhere: the result of a minimum-norm attack."""
        return self.norm.where(self.success, math.inf)

    @property
    def robust_accuracy(self) -> float:
        """Share of the images on which the attack failed (untargeted: that are still classified correctly)."""
        return int((~self.success).sum()) / len(self.success) if len(self.success) else math.nan

    @property
    def robust(self) -> Estimate:
        """`robust_accuracy` with its 95 % interval. Raises `ShapeError` for a result of no images."""
        return share((~self.success).cpu().numpy())

    @property
    def eps(self) -> float | None:
        """The radius of the attack, or of the one that it wraps; None for an attack without one."""
        return self._setting("eps")

    @property
    def ball_norm(self) -> str | None:
        """The norm of that radius by its name; None for an attack without the setting."""
        return self._setting("norm")

    def _setting(self, name: str) -> Any:
        """A setting of the attack, or else of the attack that it wraps, at any depth; None if none has it."""
        settings: Any = self.attack
        while isinstance(settings, dict):
            if name in settings:
                return settings[name]
            settings = next((each for each in settings.values() if isinstance(each, dict) and "name" in each), None)
        return None

    def _facts(self) -> list[tuple[str, str]]:
        """What was attacked, how, and what it left, as pairs of texts (name, value)."""
        radius = "" if self.eps is None else f", eps {format_eps(self.eps)}"
        norm = "" if self.ball_norm is None else f" ({self.ball_norm})"
        facts = [
            ("attack", f"{self.attack['name']}{radius}{norm}"),
            ("robust accuracy", f"{self.robust:n}" if len(self.success) else "no images"),
            ("passes", f"{self.passes.forward:,} forward, {self.passes.backward:,} backward"),
        ]
        if self.free_share is not None and len(self.success):
            facts.append(("free values", f"{100 * self.free_share.mean().item():.1f} %"))
        for status, words in (
            (Status.ZERO_GRADIENT, "zero gradient"),
            (Status.NON_FINITE, "not finite"),
            (Status.OFF_GRID, "no image on the grid"),
        ):
            if count := int((self.status == status).sum()):
                facts.append((words, f"{count:,} images"))
        return facts

    def __repr__(self) -> str:
        (_, attack), *rest = self._facts()
        return f"AttackResult({attack}; {'; '.join(f'{name} {value}' for name, value in rest)})"

    def _repr_html_(self) -> str:
        return html_table("Result of an attack", self._facts())
