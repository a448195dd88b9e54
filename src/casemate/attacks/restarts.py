"""Any attack several times over, from fresh random draws: what one run missed by bad luck another may find.

An attack with restarts of its own (PGD, APGD, FAB) does the same with fewer passes; this is for all the others.
"""

import math
from dataclasses import dataclass
from typing import Annotated, final

import torch

from casemate.attacks.base import AbstractAttack, AbstractMinimumNormAttack, innermost, verify
from casemate.attacks.criterion import Criterion
from casemate.attacks.gradient import AbstractGradientAttack
from casemate.attacks.result import Passes, RunResult
from casemate.errors import SettingError
from casemate.losses import stable_cross_entropy
from casemate.models import Classifier
from casemate.progress import Advance
from casemate.rng import Streams, derive
from casemate.settings import at_least, expect
from casemate.types import Images


@final
@dataclass(frozen=True, kw_only=True)
class Restarts(AbstractAttack):
    """Another attack run again on the images that are not fooled yet; of a minimum-norm attack on all of them.

    Kept is, per image: of an attack within a ball the first result that fools, or else the one with the highest
    cross-entropy (for a target: the lowest); of a minimum-norm attack the nearest one that fools. A result whose
    numbers are not finite loses to every other one. The first run draws what the attack alone would.
    """

    attack: AbstractAttack
    """What is run again. It has to draw at random: the others would repeat themselves."""
    restarts: Annotated[int, at_least(1)] = 5
    """Runs altogether."""

    def __post_init__(self) -> None:
        expect(self)
        if isinstance(self.attack, Restarts):
            raise SettingError("Restarts of Restarts; give the number of runs once")
        if self.restarts > 1 and isinstance(self.attack, AbstractGradientAttack):
            loop = self.attack.loop()
            if not loop.random_start and loop.eot_samples == 1:
                raise SettingError(
                    f"{type(self.attack).__name__} without a random start would repeat the same run; take PGD"
                )

    def max_passes(self, classes: int) -> Passes | None:
        """All runs, and a look after each."""
        most = self.attack.max_passes(classes)
        return most and Passes(self.restarts * (most.forward + 1), self.restarts * most.backward)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """All runs, each verified before it is compared with the best one so far."""
        nearest, ball = isinstance(innermost(self.attack), AbstractMinimumNormAttack), self.ball()
        merit = torch.full((len(clean),), -math.inf, dtype=torch.float64, device=clean.device)
        no = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        best = RunResult(clean.clone(), finite=no, has_gradient=no.clone(), passes=Passes())
        left = torch.arange(len(clean), device=clean.device)
        for number in range(self.restarts):
            if not len(left):
                break
            aim = criterion[left]
            seed = streams.seed if number == 0 else derive(streams.seed, "restart", number)
            run = self.attack.run(
                model,
                clean[left],
                aim,
                Streams(seed, streams.index[left]),
                lambda amount, note="": advance(amount / self.restarts, note),
            )
            found = verify(model, run.images, clean[left], ball, model.bounds, run.finite)
            best.has_gradient[left] |= run.has_gradient
            best.passes.add(run.passes)
            best.passes.add(found.passes)
            fooled = aim.is_adversarial(found.logits)
            if nearest:
                value = (-found.norm.double()).where(fooled, -torch.finfo(torch.float64).max)
                done = fooled & (found.norm == 0)
            else:
                value = aim.objective(stable_cross_entropy, found.logits).double()
                value = value.clamp(min=-torch.finfo(torch.float64).max).where(~fooled, math.inf)
                done = fooled
            better = found.finite & (value > merit[left])
            best.images[left[better]], best.finite[left[better]] = found.images[better], True
            merit[left[better]] = value[better]
            left = left[~done]
        return best
