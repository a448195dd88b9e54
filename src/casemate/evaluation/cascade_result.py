"""The result of running a list of attacks in order: per image which one fooled it first, and what each attack cost."""

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from torch import Tensor

from casemate.attacks import Passes, Status
from casemate.evaluation.adversarial import AdversarialImages
from casemate.evaluation.pieces import Piece
from casemate.norms import Norm

ROBUST = -1
"""In `Cascade.first_success`: no attack fooled the image."""
MISCLASSIFIED = -2
"""In `Cascade.first_success`: the image is misclassified without an attack."""


@final
@dataclass(kw_only=True)
class Attempt:
    """One attack at one eps of a `Cascade`: how many images it was run on, how many it fooled, and its cost."""

    attack: str
    """Name of the attack in `Cascade.attacks`."""
    eps: float
    tried: int = 0
    """Number of images that the attack was run on: those correctly classified that no attempt before had fooled."""
    fooled: int = 0
    """Number of images fooled within eps."""
    seconds: float = 0.0
    """How long it took; pieces that were in the store already count with the seconds they took then."""
    passes: Passes = field(default_factory=Passes)
    """Forward and backward passes over all images; zero if a minimum-norm attack's earlier result was used again."""
    status: dict[str, int] = field(default_factory=lambda: {each.name.lower(): 0 for each in Status})
    """Number of the images tried that ended with each `Status`, by its name in lower case."""
    unlimited: bool = False
    """Whether it is a minimum-norm attack on the model (not on a substitute), which searches at any distance."""

    @property
    def not_found(self) -> int:
        """Number of images for which a minimum-norm attack found no adversarial image at all; 0 for other attacks."""
        return self.status[Status.FAILED.name.lower()] if self.unlimited else 0

    def add(self, piece: Piece) -> None:
        """Add the result of the attack on the images of one shard."""
        self.tried += piece.tried
        self.fooled += len(piece.places)
        self.seconds += piece.seconds
        self.passes.add(piece.passes)
        for name, count in piece.status.items():
            self.status[name] += count


@final
@dataclass(kw_only=True)
class Cascade:
    """The result of `run_cascade`: the worst case over a list of attacks, per image and eps."""

    norm: Norm
    values: tuple[float, ...]
    """The values of eps, ascending."""
    attacks: dict[str, dict[str, Any]]
    """The settings of each attack by its name, in the order in which the attacks were run."""
    robust: np.ndarray
    """Whether each image is classified correctly under all attacks at this and every smaller eps, `(n, values)`."""
    first_success: np.ndarray
    """Position in `attacks` of the first attack that fooled each image, `ROBUST` or `MISCLASSIFIED`, int64 `(n,)`."""
    examples: AdversarialImages
    """The first adversarial image found for each image, at the smallest eps that gave one, or else the clean image."""
    distance: np.ndarray
    """Norm of the perturbation in `adversarial`, `(n,)`: 0 if the clean image is misclassified, infinite if no attack
    succeeded."""
    attempts: list[Attempt] = field(default_factory=list)
    """One for each attack and eps, in the order in which they were run; left out where no image was left to attack."""
    resumed_seconds: float = 0.0
    """Seconds of the attempts that pieces of an earlier evaluation, which were in the store, took then."""

    @property
    def adversarial(self) -> Tensor:
        """All images of `examples`, `(n, channels, height, width)`, on the CPU; they are put together at every use."""
        return self.examples.whole()

    @property
    def passes(self) -> Passes:
        """Forward and backward passes of all attempts together."""
        total = Passes()
        for attempt in self.attempts:
            total.add(attempt.passes)
        return total

    def attempt(self, eps: float, name: str) -> Attempt | None:
        """The attempt of the attack `name` at `eps`; None if no image was left for it."""
        return next((each for each in self.attempts if each.attack == name and each.eps == eps), None)
