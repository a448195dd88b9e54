"""Restarts of any attack with random draws: several runs with different draws, and the best result of them.

Attacks with a field `restarts` (PGD, APGD, FAB, Square) do this with fewer passes; this wrapper is for all others.
"""

import math
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor

from casemate.attacks._worst_case import run_on_survivors
from casemate.attacks.base import AbstractAttack, AbstractMinimumNormAttack, as_attack, innermost
from casemate.attacks.criterion import Criterion
from casemate.attacks.gradient import AbstractGradientAttack
from casemate.attacks.result import Passes, RunResult
from casemate.attacks.verify import Verified
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
    """Runs another attack several times: on the images not yet fooled, or, for a minimum-norm attack, on all.

    Per image the best result is kept. For an attack within a ball this is the first that fools, or else the one with
    the highest cross-entropy under the label (targeted: the lowest under the target); for a minimum-norm attack the
    nearest that fools. A result with numbers that are not finite is worse than any other. The first run draws the
    random numbers that the attack alone would draw.
    """

    attack: AbstractAttack
    """The attack to run. It must draw at random; otherwise all runs are the same."""
    restarts: Annotated[int, at_least(1)] = 5
    """Number of runs."""

    def __post_init__(self) -> None:
        expect(self)
        as_attack(self.attack)
        if isinstance(self.attack, Restarts):
            raise SettingError("Restarts of Restarts; expected one Restarts, with the number of all runs")
        if self.restarts > 1 and isinstance(self.attack, AbstractGradientAttack):
            loop = self.attack.loop()
            if not loop.is_random and loop.eot_samples == 1:
                raise SettingError(
                    f"{type(self.attack).__name__} without a random start would repeat the same run; expected PGD"
                )

    def max_passes(self, classes: int) -> Passes | None:
        """Per image at most: the passes of all runs, and a forward pass to verify each."""
        most = self.attack.max_passes(classes)
        return most and Passes(self.restarts * (most.forward + 1), self.restarts * most.backward)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Make all runs; the candidates of each are verified and then compared with the best ones so far."""
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
