"""EAD, the elastic-net attack: sparse perturbations, of small L1 norm (Chen et al. 2018, arXiv 1709.04114).

Carlini and Wagner's objective with the distance beta * |delta|_1 + |delta|_2^2, minimised by fast iterative
shrinkage-thresholding (FISTA), which leaves many pixels exactly at their clean value; see `_minimum_norm` for the
search around it.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks._minimum_norm import CHECKS, MinimumNormSearch, column
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.models import Classifier
from casemate.norms import Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, not_negative, one_of, positive
from casemate.types import Images, PerExample


@final
@dataclass
class _Round(Rows):
    """The state of the examples that the current round still optimises; perturbations are shares of the range."""

    at: Int64[Tensor, " n"]
    """Positions of the examples in the batch."""
    clean: Images
    constant: PerExample
    delta: Images
    """The perturbation of the iterate."""
    ahead: Images
    """The perturbation at which the next gradient is taken (Nesterov's extrapolation)."""


@final
@dataclass(frozen=True, kw_only=True)
class EAD(AbstractMinimumNormAttack):
    """The elastic-net attack (the paper's algorithm 1): sparse perturbations, by FISTA.

    As published, every step shrinks by beta itself, not by beta times the step size: as steps become shorter, L1 weighs
    more against L2 and the loss. On a linear classifier perturbations of 0.2 in L1 are 2 % longer than the shortest,
    and perturbations of 1.3, for which L2 matters more, 10 %, or 1 % with beta = 0.05.

    Only the points at which a gradient is taken are classified. The published code also classifies the iterates between
    them, which takes a second forward pass, for distances that are 0.3 % shorter (on a linear classifier).

    Images that are misclassified already, or have a gradient of zero, are returned unchanged.
    """

    stream: ClassVar[str] = "EAD"

    norm: Annotated[Norm, one_of("l1", why="for l2 and linf take CarliniWagner")] = "l1"
    """Norm of the perturbation that is minimised: L1 only."""
    rule: Annotated[Literal["l1", "en"], one_of("l1", "en")] = "l1"
    """Distance by which the nearest image is chosen: `l1`, or `en`, the elastic net beta * |delta|_1 + |delta|_2^2."""
    beta: Annotated[float, not_negative()] = 1e-2
    """Weight of L1, and by how much each step shrinks the change of every pixel, as a share of the range of the pixels
    (the published code: 1e-3)."""
    steps: Annotated[int, at_least(1)] = 300
    """Steps of a round, each one gradient (the published code: 10,000; on a small network, 300 instead of 100 shorten
    distances by 1 %)."""
    binary_search_steps: Annotated[int, at_least(1)] = 9
    """Number of rounds of the search, with another weight c of the loss in each."""
    confidence: Annotated[float, not_negative()] = 0.0
    """Smallest logit margin by which an adversarial image must be misclassified (kappa)."""
    learning_rate: Annotated[float, positive()] = 0.01
    """Step size of the first step; it falls to zero with the square root of the number of steps left."""
    initial_const: Annotated[float, positive()] = 1e-3
    """The first c, the weight of the hinge loss."""

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward and backward pass for the clean image, and for every step of every round."""
        del classes
        return Passes(1 + self.binary_search_steps * self.steps, 1 + self.binary_search_steps * self.steps)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Run all rounds; the candidates are the nearest images that fooled in any of them."""
        del streams
        search = MinimumNormSearch(model, clean, criterion, size=self._size, confidence=self.confidence)
        return search.run_rounds(
            self.binary_search_steps, self.initial_const, lambda at, const: self._round(search, at, const, advance)
        )

    def _size(self, delta: Images) -> PerExample:
        length = norm_of(delta, "l1")
        return length if self.rule == "l1" else self.beta * length + delta.square().flatten(1).sum(1)

    def _round(self, search: MinimumNormSearch, at: Tensor, constant: PerExample, advance: Advance) -> None:
        """Run one round, FISTA from the clean images, for the examples at positions `at`; `constant` holds their c."""
        width, (low, high) = search.width, search.model.bounds
        clean = search.clean[at]
        on = _Round(at, clean, constant, delta=torch.zeros_like(clean), ahead=torch.zeros_like(clean))
        every = max(1, self.steps // CHECKS)
        for step in range(self.steps):
            _, gradient = search.value_and_grad(on.at, (on.clean + width * on.ahead).clamp(low, high))
            rate = self.learning_rate * (1 - step / self.steps) ** 0.5
            wanted = on.ahead - rate * (2 * on.ahead + width * column(on.constant) * gradient)
            shrunk = wanted.sign() * (wanted.abs() - self.beta).clamp(min=0)
            before = on.delta
            on.delta = shrunk.maximum((low - on.clean) / width).minimum((high - on.clean) / width)
            on.ahead = on.delta + step / (step + 3) * (on.delta - before)
            if (step + 1) % every == 0:
                advance(len(on.at) * every / (self.steps * self.binary_search_steps), "")
                going = ~search.broken[on.at]
                if not going.all():
                    on = on[going]
                    if not len(on.at):
                        break
