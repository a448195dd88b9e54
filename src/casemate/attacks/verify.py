"""Candidates for adversarial images, verified by code that did not make them.

They are projected once more, checked against ball, bounds and mask in float64, rounded to a grid of levels if there is
one, and classified again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from casemate.attacks.criterion import Criterion
from casemate.attacks.levels import Grid, restore
from casemate.attacks.result import Passes
from casemate.float32_precision import full_precision
from casemate.logits import is_valid
from casemate.models import Classifier
from casemate.norms import Ball, Bounds, norm_of
from casemate.rows import Rows
from casemate.types import Flags, Images, Logits, Mask, PerExample


@final
@dataclass(frozen=True)
class Verified(Rows):
    """Candidate images after verification, one entry per image."""

    images: Images
    """The candidates, projected onto ball and bounds; the clean image where not `finite`."""
    logits: Logits
    """The model's logits of `images`."""
    norm: PerExample
    """Norm of the perturbation, in the norm of the ball; computed in float64."""
    finite: Flags
    """The attack reported finite numbers for the candidate, and its pixels and logits are finite."""
    passes: Passes
    has_gradient: Flags
    """The attack's gradient was not exactly zero at some step; True if unknown."""
    possible: Flags
    """An image on the grid lies in the ball; where not, `images` has the clean one. True without a grid."""
    claimed: Flags
    """The copy under attack (not the model itself) is fooled by this image or an earlier iterate; False if unknown."""


@full_precision()  # whatever the attack uses
@torch.no_grad()
def verify_candidates(
    classify: Callable[[Images], Logits],
    candidates: Images,
    clean: Images,
    ball: Ball,
    bounds: Bounds,
    finite: Flags | None = None,
    *,
    mask: Mask | None = None,
    grid: Grid | None = None,
) -> Verified:
    """Project candidate images into ball and bounds, and classify them again.

    Args:
        classify: returns the logits of images.
        finite: mask of the candidates to accept, all if None; the others, and those whose pixels or logits are not
            finite, are replaced by the clean images.
        mask: where it is False, candidates get the values of the clean images; None: nowhere.
        grid: the projected images are rounded to it within the ball; None: they are not.

    Raises:
        RuntimeError: a projected image lies outside the ball or differs outside the mask, which is a bug in casemate.
    """
    sound = candidates.flatten(1).isfinite().all(1)
    finite = sound if finite is None else sound & finite
    accepted = torch.where(finite.view(-1, 1, 1, 1), candidates, clean)
    images = ball.project(accepted if mask is None else accepted.where(mask, clean), clean, bounds)
    possible = torch.ones_like(finite)
    if grid is not None:
        images, possible = grid.round_into(images, clean, ball, mask)
    logits = classify(images)
    passes = Passes(forward=len(clean))
    finite &= is_valid(logits)
    if not finite.all():
        images = torch.where(finite.view(-1, 1, 1, 1), images, clean)
        logits[~finite] = classify(clean[~finite])
        passes.forward += int((~finite).sum())
    norms = norm_of(images.double() - clean.double(), ball.norm)
    low, high = bounds
    if len(norms) and not (norms.max() <= ball.reach(bounds) and images.min() >= low and images.max() <= high):
        raise RuntimeError(f"a projected image lies outside the ball: {norms.max().item()} > {ball.eps}")
    if mask is not None and not torch.equal(images, images.where(mask, clean)):
        raise RuntimeError("a projected image differs from the clean one outside the mask")
    known = torch.ones_like(finite)
    return Verified(
        images, logits, norms.float(), finite, passes, has_gradient=known, possible=possible, claimed=~known
    )


def restore_undone(
    found: Verified,
    candidates: Images,
    model: Classifier,
    classify: Callable[[Images], Logits],
    clean: Images,
    ball: Ball,
    criterion: Criterion,
    grid: Grid,
) -> Verified:
    """What verification found, with other images on the grid where rounding alone undid the attack; see `restore`."""
    failed = ~criterion.is_adversarial(found.logits) & found.possible & found.finite
    at = failed.nonzero().squeeze(1)
    if not len(at):
        return found
    part, origin = criterion[at], clean[at]
    before = ball.project(part.restricted(candidates[at], origin), origin, grid.bounds)
    with torch.no_grad(), full_precision():
        undone = part.is_adversarial(classify(before))
    passes = Passes(forward=len(at))
    if undone.any():
        at, before, origin, part = at[undone], before[undone], origin[undone], part[undone]
        with full_precision():
            rounded, there = found.images[at], found.logits[at]
            images, logits, made = restore(model, classify, grid, before, rounded, there, origin, ball, part)
        passes.add(made)
        norms = norm_of(images.double() - origin.double(), ball.norm)
        if norms.max() > ball.reach(grid.bounds):
            raise RuntimeError(f"a rounded image lies outside the ball: {norms.max().item()} > {ball.eps}")
        found.images[at], found.logits[at], found.norm[at] = images, logits, norms.float()
    passes.add(found.passes)
    return replace(found, passes=passes)


def run_in_turn(
    models: Sequence[Classifier], criterion: Criterion, run: Callable[[Classifier, Tensor | slice], Verified]
) -> Verified:
    """Run an attack on the first model, and again on each next one where low precision may be why it failed.

    Those are the failed examples where the copy was fooled but the original is not, where logits or gradients were not
    finite, or where the gradient was zero. Returned is each example's result on the last model that it was attacked on.

    Args:
        models: those of `Frozen.precision_stages`: copies in lower precision first.
        run: attacks one of the models on the examples at some positions, and verifies the candidates.
    """
    found = run(models[0], slice(None))
    for model in models[1:]:
        failed = ~criterion.is_adversarial(found.logits)
        again = (failed & (found.claimed | ~found.finite | ~found.has_gradient)).nonzero().squeeze(1)
        if len(again):
            some = run(model, again)
            found.passes.add(some.passes)
            found = found.put(again, some)
    return found
