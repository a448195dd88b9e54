"""EAD, the elastic-net attack: moves that are short in L1, hence of few pixels (Chen et al. 2018, arXiv 1709.04114).

Carlini and Wagner's objective with beta * |delta|_1 + |delta|_2^2 as the distance, minimised by fast iterative
shrinkage-thresholding (FISTA), which sets pixels to exactly their clean value; see `nearest` for the search around it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from torch import Tensor

from casemate.attacks.base import Criterion, MinimumNormAttack, Passes
from casemate.attacks.nearest import CHECKS, Constants, Nearest, check_settings, column
from casemate.errors import SettingError
from casemate.models import Classifier
from casemate.norms import Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Flags, Images, PerExample

Rule = Literal["l1", "en"]


@final
@dataclass(frozen=True, kw_only=True)
class EAD(MinimumNormAttack):
    """The elastic-net attack, untargeted and targeted (the paper's algorithm 1).

    As published, every step shrinks by beta itself, not by beta times the step length: as the steps become shorter, L1
    gains on L2 and on the loss. On a linear classifier moves of 0.2 in L1 come out 2 % longer than the shortest, and
    moves of 1.3, to which L2 matters more, 10 %, or 1 % with beta = 0.05.

    Only the points at which a gradient is taken are looked at. The published code also looks at the iterates between
    them, which takes a second forward pass, for distances that are 0.3 % shorter (on a linear classifier).

    Examples whose image fools from the start take no part; one whose clean image has no gradient stays as it is.
    """

    stream: ClassVar[str] = "EAD"

    norm: Norm = "l1"
    """L1."""
    rule: Rule = "l1"
    """Which of the images that fool is the nearest: by L1, or by the elastic net beta * |delta|_1 + |delta|_2^2."""
    beta: float = 1e-2
    """Weight of L1, and by how much a step draws every pixel back to its clean value, as a share of the range of the
    pixels (the published code: 1e-3)."""
    steps: int = 300
    """Passes of a round, the first of them at the clean image (the published code: 10,000; on a small network 300 gain
    1 % on 100)."""
    binary_steps: int = 9
    """Rounds: values of c that are tried."""
    confidence: float = 0.0
    """By how much the logits of what fools must lead (kappa)."""
    learning_rate: float = 0.01
    """Length of the first step; it falls to zero with the square root of the steps that are left."""
    initial_const: float = 1e-3
    """The first c."""

    def __post_init__(self) -> None:
        self.ball()
        if self.norm != "l1":
            raise SettingError(f"norm = {self.norm}; expected l1 (for l2 and linf take CarliniWagner)")
        if self.rule not in get_args(Rule):
            raise SettingError(f"rule {self.rule!r}; expected one of {', '.join(get_args(Rule))}")
        check_settings(
            self,
            counts=("steps", "binary_steps"),
            positive=("learning_rate", "initial_const"),
            not_negative=("beta", "confidence"),
        )

    def most_passes(self, classes: int) -> Passes:
        """Every step of every round, and a look at the clean image."""
        del classes
        return Passes(1 + self.binary_steps * self.steps, 1 + self.binary_steps * self.steps)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """All rounds of all examples."""
        del streams
        nearest = Nearest(model, clean, criterion, size=self._size, confidence=self.confidence)
        constants = Constants(clean, self.initial_const)
        for _ in range(self.binary_steps):
            at = nearest.open()
            if not len(at):
                break
            self._round(nearest, at, constants.value[at], advance)
            constants.narrow(at, nearest.reached[at])
        return nearest.result()

    def _size(self, delta: Images) -> PerExample:
        length = norm_of(delta, "l1")
        return length if self.rule == "l1" else self.beta * length + delta.square().flatten(1).sum(1)

    def _round(self, nearest: Nearest, at: Tensor, constant: PerExample, advance: Advance) -> None:
        """FISTA from the clean images, for the examples `at`."""
        width, (low, high) = nearest.width, nearest.model.bounds
        clean = nearest.clean[at]
        delta = ahead = torch.zeros_like(clean)
        every = max(1, self.steps // CHECKS)
        for step in range(self.steps):
            _, gradient = nearest.look(at, (clean + width * ahead).clamp(low, high))
            rate = self.learning_rate * (1 - step / self.steps) ** 0.5
            wanted = ahead - rate * (2 * ahead + width * column(constant) * gradient)
            shrunk = wanted.sign() * (wanted.abs() - self.beta).clamp(min=0)
            before, delta = delta, shrunk.maximum((low - clean) / width).minimum((high - clean) / width)
            ahead = delta + step / (step + 3) * (delta - before)
            if (step + 1) % every == 0:
                advance(len(at) * every / (self.steps * self.binary_steps), "")
                going = ~nearest.broken[at]
                if not going.all():
                    at, clean, constant = at[going], clean[going], constant[going]
                    delta, ahead = delta[going], ahead[going]
                    if not len(at):
                        break
