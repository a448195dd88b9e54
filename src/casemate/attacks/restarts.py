"""Any attack several times over, from fresh random draws: what one run missed by bad luck another may find.

An attack with restarts of its own (PGD, APGD, FAB) does the same with fewer passes; this is for all the others.
"""

import math
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor

from casemate.attacks._worst_case import run_on_survivors
from casemate.attacks.base import AbstractAttack, AbstractMinimumNormAttack, Verified, innermost
from casemate.attacks.criterion import Criterion
from casemate.attacks.gradient import AbstractGradientAttack
from casemate.attacks.result import Passes, RunResult
from casemate.errors import SettingError
from casemate.losses import stable_cross_entropy
from casemate.models import Classifier
from casemate.progress import Advance
from casemate.rng import Streams, derive
from casemate.settings import at_least, expect
from casemate.types import Flags, Images


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
        nearest = isinstance(innermost(self.attack), AbstractMinimumNormAttack)
        best = torch.full((len(clean),), -math.inf, dtype=torch.float64, device=clean.device)
        lowest = torch.finfo(best.dtype).min  # of a finite candidate, so that it is better than none

        def keep(at: Tensor, part: Criterion, found: Verified) -> tuple[Flags, Flags]:
            fooled = part.is_adversarial(found.logits)
            if nearest:
                value, done = (-found.norm.double()).where(fooled, lowest), fooled & (found.norm == 0)
            else:
                value = part.objective(stable_cross_entropy, found.logits).double().clamp(min=lowest)
                value, done = value.where(~fooled, math.inf), fooled
            better = found.finite & (value > best[at])
            best[at[better]] = value[better]
            return better, done

        seeds = [streams.seed, *(derive(streams.seed, "restart", number) for number in range(1, self.restarts))]
        runs = [(self.attack, seed) for seed in seeds]
        return run_on_survivors(runs, self.ball(), model, clean, criterion, streams.index, keep, advance)
