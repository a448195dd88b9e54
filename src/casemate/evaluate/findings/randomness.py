"""Does the model answer at random, and does its robustness rest on that alone?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from casemate.attacks import PGD, frozen
from casemate.defenses import averaged, with_same_draws
from casemate.evaluate.clean import is_right
from casemate.evaluate.findings.check import Measured, NotRun, check
from casemate.evaluate.findings.evidence import STEPS, Evidence
from casemate.evaluate.findings.finding import Severity
from casemate.memory import batched
from casemate.models import Classifier

_REPEATS = 5
_SAME = 1e-4
"""Relative difference of logits up to which two answers count as the same: what kernels round."""
_NOT_RANDOM = "the model does not answer at random"


def answers_at_random(model: Classifier, images: torch.Tensor) -> bool:
    """Whether the same batch gets other logits when it is asked again, in evaluation mode."""

    def ask() -> torch.Tensor:
        return torch.cat(batched(len(images), len(images), lambda part: model(images[part])))

    with frozen(model), torch.no_grad():
        first = ask()
        scale = first.abs().amax(1, keepdim=True).clamp(min=1e-6)
        return any(bool(((ask() - first).abs() > _SAME * scale).any()) for _ in range(_REPEATS - 1))


@check("repeatable", "The same image gets the same answer")
def repeatable(e: Evidence) -> Measured:
    """A model that answers at random is judged by its mean over several draws."""
    value = float(e.randomised)
    return Measured(
        value,
        0.0,
        Severity.NOTE if e.randomised else None,
        "the model answers at random; it was attacked and judged by its mean logits over several draws, so that no "
        "success or failure hangs on luck",
    )


def _left(e: Evidence, model: Classifier) -> float:
    """Of the few, the share still right after PGD (the raw last iterate, so that no draw is picked for its luck)."""
    images, labels = e.unit
    attack = PGD(eps=e.eps, norm=e.norm, steps=STEPS, track="last")
    return attack(model, images, labels, seed=e.seed, batch_size=len(labels)).robust_accuracy


@check("same-draws", "Robustness does not rest on the attacker's not knowing the draws")
def same_draws(e: Evidence) -> Measured | NotRun:
    """With the random numbers held fixed the model is an ordinary one; if that one falls, the randomness was all."""
    if not e.randomised:
        return NotRun(_NOT_RANDOM)
    if not e.right.any():
        return NotRun("no image is classified correctly")
    images, labels = e.unit
    known = with_same_draws(e.asked, e.seed)
    if answers_at_random(known, images):
        return Measured(
            1.0,
            0.1,
            Severity.WEAKENS,
            "the model draws random numbers from a source of its own, which could not be held fixed. Give it "
            "PyTorch's, NumPy's or Python's global generator, or judge it without its randomness",
        )
    # of those that these very draws classify correctly
    fixed = _left(e, known) / max(is_right(e.logits_of(known, e.few), e.few.labels).double().mean().item(), 1e-9)
    whole = float(e.robust[np.flatnonzero(e.right)[: len(labels)]].mean())
    gap = whole - fixed
    return Measured(
        gap,
        0.1,
        Severity.VOIDS if gap > 0.1 else None,
        f"of the images classified correctly, PGD leaves {100 * fixed:.1f} % when the model's random numbers are "
        f"known, and all attacks leave {100 * whole:.1f} % when they are not: what looks like robustness is the "
        "luck of the draw. Judge the model without its randomness",
    )


@check("draws", "Averaging over more draws does not help the attack any more")
def draws(e: Evidence) -> Measured | NotRun:
    """If the accuracy still falls from 5 to 20 draws a gradient, more would lower it further."""
    if not e.randomised:
        return NotRun(_NOT_RANDOM)
    fewer, more = (_left(e, averaged(e.asked, number)) for number in (5, 20))
    return Measured(
        fewer - more,
        0.05,
        Severity.WEAKENS if fewer - more > 0.05 else None,
        f"PGD leaves {100 * fewer:.1f} % with 5 draws a gradient and {100 * more:.1f} % with 20; take more draws",
    )


@contextmanager
def _counting() -> Iterator[list[str]]:
    """Notes every call of autograd inside."""
    noted: list[str] = []
    grad, backward = torch.autograd.grad, torch.autograd.backward

    def noting(name: str, inner: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            noted.append(name)
            return inner(*arguments, **options)

        return call

    torch.autograd.grad, torch.autograd.backward = noting("grad", grad), noting("backward", backward)
    try:
        yield noted
    finally:
        torch.autograd.grad, torch.autograd.backward = grad, backward


@check("optimises-inside", "The model does not optimise while it answers")
def optimises_inside(e: Evidence) -> Measured:
    """A defence that runs gradient steps of its own at inference needs an attack made for it."""
    images, _ = e.unit
    with frozen(e.asked), torch.enable_grad(), _counting() as noted:
        e.asked(images[:2])
    return Measured(
        float(len(noted)),
        0.0,
        Severity.VOIDS if noted else None,
        f"the model calls autograd {len(noted)} times while it answers: it optimises at inference. Attack the whole "
        "of it, with an attack made for it",
    )
