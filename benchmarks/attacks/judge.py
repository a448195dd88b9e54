"""What two attacks did to the same images, and whether ours is clearly worse.

Both sides are classified and measured here, by the same code, whatever they say of themselves. All images are such as
the network gets right.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from casemate.models import Classifier
from casemate.norms import Norm, norm_of

POINTS = 2.0
"""Points of accuracy left, or of success, that ours may be behind."""

FARTHER = 1.05
"""How many times as far the median of our distances may be."""

CHANCE = 0.05
"""Where both draw at random, ours is behind only if luck alone would put it there less often than this."""


@dataclass(frozen=True)
class Outcome:
    """What became of the images, one entry each."""

    prediction: Tensor
    """The class of the adversarial image."""
    fooled: Tensor
    """Not the true class, and within bounds and ball."""
    distance: Tensor
    """From the clean image, float64."""
    outside: int
    """Images outside the bounds or, where there is one, the ball; they count as not fooled."""


@torch.no_grad()
def outcome(
    model: Classifier, adversarial: Tensor, clean: Tensor, labels: Tensor, norm: Norm, eps: float | None
) -> Outcome:
    """Classify and measure. `eps` None: there is no ball."""
    prediction = torch.cat([model(part).argmax(1) for part in adversarial.split(250)])
    distance = norm_of(adversarial.double() - clean.double(), norm)
    low, high = model.bounds
    flat = adversarial.flatten(1)
    inside = (flat.amin(1) >= low - 1e-5) & (flat.amax(1) <= high + 1e-5)
    if eps is not None:
        inside &= distance <= eps * (1 + 1e-4)  # other libraries clip in float32
    return Outcome(prediction, (prediction != labels) & inside, distance, int((~inside).sum()))


def luck(for_them: int, for_us: int) -> float:
    """How likely a fair coin favours them at least as often as this (the sign test, one-sided)."""
    tosses = for_them + for_us
    return sum(math.comb(tosses, heads) for heads in range(for_them, tosses + 1)) / 2**tosses


def judge_ball(ours: Outcome, theirs: Outcome, *, random: bool) -> dict[str, Any]:
    """Accuracy left in percent. Worse: more than `POINTS` more left, and not by luck."""
    count = len(ours.fooled)
    ours_left, theirs_left = (100 * (1 - each.fooled.double().mean().item()) for each in (ours, theirs))
    only_we = int((ours.fooled & ~theirs.fooled).sum())
    only_they = int((theirs.fooled & ~ours.fooled).sum())
    worse = ours_left - theirs_left > POINTS + 1e-9 and not (random and luck(only_they, only_we) >= CHANCE)
    return {
        "ours_left": ours_left,
        "theirs_left": theirs_left,
        "difference": ours_left - theirs_left,
        "alike": count - only_we - only_they,
        "same_class": int((ours.prediction == theirs.prediction).sum()),
        "only_ours_fools": only_we,
        "only_theirs_fools": only_they,
        "outside": {"ours": ours.outside, "theirs": theirs.outside},
        "worse": worse,
    }


def judge_nearest(ours: Outcome, theirs: Outcome, *, random: bool) -> dict[str, Any]:
    """Distances over the images that both fool.

    Worse: success more than `POINTS` lower, or a median more than `FARTHER` times theirs, and not by luck.
    """
    both = ours.fooled & theirs.fooled
    near, far = ours.distance[both], theirs.distance[both]
    success = [100 * each.fooled.double().mean().item() for each in (ours, theirs)]
    # within a thousandth is a tie
    nearer, farther = int((near < 0.999 * far).sum()), int((near > 1.001 * far).sum())
    ratio = (near.median() / far.median()).item() if both.any() else None
    missed = int((theirs.fooled & ~ours.fooled).sum()), int((ours.fooled & ~theirs.fooled).sum())
    fewer = success[1] - success[0] > POINTS + 1e-9 and not (random and luck(*missed) >= CHANCE)
    longer = ratio is not None and ratio > FARTHER and not (random and luck(farther, nearer) >= CHANCE)
    return {
        "ours_success": success[0],
        "theirs_success": success[1],
        "both": int(both.sum()),
        "ours_median": near.median().item() if both.any() else None,
        "theirs_median": far.median().item() if both.any() else None,
        "ours_mean": near.mean().item() if both.any() else None,
        "theirs_mean": far.mean().item() if both.any() else None,
        "median_ratio": ratio,
        "nearer_share": nearer / int(both.sum()) if both.any() else None,
        "farther_share": farther / int(both.sum()) if both.any() else None,
        "outside": {"ours": ours.outside, "theirs": theirs.outside},
        "worse": fewer or longer,
    }
