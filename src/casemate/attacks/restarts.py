"""Any attack several times over, from fresh random draws: what one run missed by bad luck another may find.

An attack with restarts of its own (PGD, APGD, FAB) does the same with fewer passes; this is for all the others.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

from casemate.attacks.base import Attack, Criterion, MinimumNormAttack, Passes, innermost, verify
from casemate.attacks.gradient import GradientAttack
from casemate.errors import SettingError
from casemate.losses import stable_cross_entropy
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.progress import Advance
from casemate.rng import Streams, derive
from casemate.types import Flags, Images


@final
@dataclass(frozen=True, kw_only=True)
class Restarts(Attack):
    """Another attack run again on the images that are not fooled yet; of a minimum-norm attack on all of them.

    Kept is, per image: of an attack within a ball the first result that fools, or else the one with the highest
    cross-entropy (for a target: the lowest); of a minimum-norm attack the nearest one that fools. A result whose
    numbers are not finite loses to every other one. The first run draws what the attack alone would.
    """

    attack: Attack
    """What is run again. It has to draw at random: the others would repeat themselves."""
    restarts: int = 5
    """Runs altogether."""

    def __post_init__(self) -> None:
        if self.restarts < 1:
            raise SettingError(f"restarts = {self.restarts}; expected at least 1")
        if isinstance(self.attack, Restarts):
            raise SettingError("Restarts of Restarts; give the number of runs once")
        if self.restarts > 1 and isinstance(self.attack, GradientAttack):
            loop = self.attack.loop()
            if not loop.random_start and loop.draws == 1:
                raise SettingError(
                    f"{type(self.attack).__name__} without a random start would repeat the same run; take PGD"
                )

    def ball(self) -> Ball:
        """The ball of the attack."""
        return self.attack.ball()

    def most_passes(self, classes: int) -> Passes:
        """All runs, and a look after each."""
        most = self.attack.most_passes(classes)
        return Passes(self.restarts * (most.forward + 1), self.restarts * most.backward)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """All runs, each verified before it is compared with the best one so far."""
        nearest, ball = isinstance(innermost(self.attack), MinimumNormAttack), self.ball()
        best = torch.full_like(clean, torch.nan)
        merit = torch.full((len(clean),), -math.inf, dtype=torch.float64, device=clean.device)
        steered = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        left, passes = torch.arange(len(clean), device=clean.device), Passes()
        for number in range(self.restarts):
            if not len(left):
                break
            aim = criterion.take(left)
            seed = streams.seed if number == 0 else derive(streams.seed, "restart", number)
            candidates, moved, cost = self.attack.run(
                model,
                clean[left],
                aim,
                Streams(seed, streams.index[left]),
                lambda amount, note="": advance(amount / self.restarts, note),
            )
            steered[left] |= moved
            passes.add(cost)
            found = verify(model, candidates, clean[left], ball, model.bounds)
            passes.add(found.passes)
            fooled = aim.met(found.logits)
            if nearest:
                value = (-found.norm.double()).where(fooled, -torch.finfo(torch.float64).max)
                done = fooled & (found.norm == 0)
            else:
                value = aim.rising(stable_cross_entropy, found.logits).double()
                value = value.clamp(min=-torch.finfo(torch.float64).max).where(~fooled, math.inf)
                done = fooled
            better = found.finite & (value > merit[left])
            best[left[better]] = found.images[better]
            merit[left[better]] = value[better]
            left = left[~done]
        return best, steered, passes
