"""Random noise within the ball: the baseline that every gradient attack must beat; it uses no gradient.

Where noise fools and a gradient attack does not, the gradients are useless and the evaluation is not to be trusted
(Athalye et al. 2018, arXiv 1802.00420, section 3.1; Carlini et al. 2019, arXiv 1902.06705).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from casemate.attacks._worst_case import BestCandidates
from casemate.attacks.base import AbstractAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.logits import is_valid
from casemate.losses import margin
from casemate.models import Classifier
from casemate.norms import AnyNorm, Bounds, Eps, Norm
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.settings import at_least, one_of
from casemate.types import Images, Mask


@dataclass(frozen=True, kw_only=True)
class AbstractNoise(AbstractAttack):
    """Tries random points of the ball until one fools; if none does, keeps the one with the largest logit margin."""

    eps: Eps
    """Radius of the ball, in pixel units."""
    norm: AnyNorm = "linf"
    """Norm of the ball: Linf, L2 or L1."""
    num_samples: Annotated[int, at_least(1)] = 1000
    """Largest number of points tried per image, each one query (Carlini et al. 2019 recommend many, since noise is
    cheap)."""

    @abstractmethod
    def draw(self, clean: Images, bounds: Bounds, streams: Streams, number: int, *, mask: Mask | None = None) -> Images:
        """One random point for each image, within ball and bounds, that differs only where the mask is True.

        `number` is the number of the draw, and keys it.
        """

    @final
    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward pass for the clean image, and one for each draw."""
        del classes
        return Passes(forward=1 + self.num_samples)

    @final
    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Draw points for the examples not yet fooled; a point whose logits are not finite is not kept."""
        logits = model(clean)
        passes = Passes(forward=len(clean))
        best = BestCandidates(clean, criterion, logits)
        share = len(clean) / self.num_samples
        clean, criterion, streams = clean[best.left], criterion[best.left], streams[best.left]
        for number in range(self.num_samples if self.ball().eps else 0):
            if not len(best.left):
                break
            images = self.draw(clean, model.bounds, streams, number, mask=criterion.mask)
            logits = model(images)
            passes.forward += len(images)
            fooled, finite = criterion.is_adversarial(logits), is_valid(logits)
            loss = criterion.objective(margin, logits).masked_fill(~finite, -torch.inf)
            best.update(best.left, images, loss, fooled, finite)
            if fooled.any():
                clean, criterion, streams = clean[~fooled], criterion[~fooled], streams[~fooled]
            advance(share, "")
        return RunResult(best.images, best.finite, torch.ones_like(best.finite), passes)


@final
@dataclass(frozen=True, kw_only=True)
class UniformNoise(AbstractNoise):
    """Noise drawn uniformly from the ball, then clipped to the bounds."""

    stream: ClassVar[str] = "UniformNoise"

    def draw(self, clean: Images, bounds: Bounds, streams: Streams, number: int, *, mask: Mask | None = None) -> Images:
        """A point drawn uniformly from the ball round each image, clipped to the bounds."""
        return self.ball().sample(clean, bounds, streams, "noise", number, mask=mask)


@final
@dataclass(frozen=True, kw_only=True)
class CornerNoise(AbstractNoise):
    """Random corners of the Linf ball: every pixel changes by plus or minus eps, clipped to the bounds.

    The strongest noise in Linf: on a linear classifier the optimum is a corner. Other norms are refused: an L2 ball has
    no corners, and nearly all its volume lies close to its surface, where `UniformNoise` draws from already; a corner
    of an L1 ball changes one pixel by all of eps, which the bounds seldom allow.
    """

    stream: ClassVar[str] = "CornerNoise"

    norm: Annotated[Norm, one_of("linf", why="its ball has corners; for others use UniformNoise")] = "linf"
    """Norm of the ball: Linf only."""

    def draw(self, clean: Images, bounds: Bounds, streams: Streams, number: int, *, mask: Mask | None = None) -> Images:
        """A corner of the ball round each image, all corners being equally likely, clipped to the bounds."""
        up = streams.uniform(tuple(clean.shape[1:]), "corner", number) < 0.5
        corner = torch.where(up, clean + self.eps, clean - self.eps).clamp_(*bounds)
        return corner if mask is None else corner.where(mask, clean)
