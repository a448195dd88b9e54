"""Does the model answer at random or remember, and does its robustness rest on that alone?"""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from torch import nn

from casemate.attacks import PGD, frozen
from casemate.evaluation.clean import is_right
from casemate.evaluation.findings.check import Measured, NotRun, check
from casemate.evaluation.findings.context import STEPS, CheckContext
from casemate.evaluation.findings.finding import Severity
from casemate.logits import difference, magnitude, top_gap
from casemate.memory import batched
from casemate.models import Classifier, mean_over_samples, with_fixed_seed, with_network
from casemate.rng import seeded
from casemate.types import Images, Logits

_REPEATS = 5
_SAME = 1e-4
"""Relative difference of logits up to which two answers count as the same: what kernels round."""
_LONE, _AGAIN = 16, 100
"""Images that are asked about again after the attacks, and how often: what is seldom takes many questions."""
_ROUNDED = 1e-3
"""Difference of the lead, as a share of the largest logit, that another order of sums may make."""
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
"""What random numbers are drawn from."""
_NOT_RANDOM = "the model does not answer at random"


def answers_at_random(model: Classifier, images: torch.Tensor) -> bool:
    """Whether the same batch gets other logits when it is asked again, in evaluation mode."""

    def ask() -> torch.Tensor:
        return torch.cat(batched(len(images), len(images), lambda part: model(images[part])))

    with frozen(model), torch.no_grad():
        first = ask()
        scale = magnitude(first).clamp(min=1e-6)
        return any(bool((difference(ask(), first) > _SAME * scale).any()) for _ in range(_REPEATS - 1))


@check("randomized", "The same image gets the same answer")
def randomized(e: CheckContext) -> Measured:
    """A model that answers at random is judged by its mean over several draws."""
    value = float(e.randomised)
    return Measured(
        value,
        0.0,
        Severity.NOTE if e.randomised else None,
        "the model answers at random; it was attacked and judged by its mean logits over several draws, so that no "
        "success or failure hangs on luck",
    )


@check("stateful-model", "The model answers as it did before the attacks")
def stateful_model(e: CheckContext) -> Measured:
    """A model that counts or remembers its questions, or seldom answers otherwise, is not one model but several."""
    if e.randomised:
        value = float(_counts(e.original_model, e.few_tensors[0][:_LONE]))
        words = "the model's answers change from one question to the next, but not by chance: it counts or remembers"
    else:
        before = e.clean.prediction, e.clean.gap
        few = e.few[:_LONE]
        first = e.logits_of(e.model, few)
        told = first.argmax(1).numpy(), top_gap(first).numpy()
        changed = [_differs(e.logits_of(e.model, few), *told) for _ in range(_AGAIN)]
        # in the same batches as before, and once more at the end: it may have changed meanwhile
        changed += [_differs(logits, *before) for logits in (e.logits, e.logits_of(e.model, e.images))]
        value = max(changed)
        words = (
            f"asked again after the attacks, the model says something else of up to {100 * value:.0f} % of the same "
            "images: it remembers what it was asked, or answers at random now and then"
        )
    return Measured(
        value, 0.0, Severity.VOIDS if value > 0 else None, f"{words}. Judge one state of it", flatters=False
    )


def _counts(model: Classifier, images: torch.Tensor) -> bool:
    """Whether copies of a model give the same answers one after the other, but not each time, whatever is drawn."""
    if any(isinstance(held, _GENERATORS) for module in model.modules() for held in vars(module).values()):
        return False
    found: list[torch.Tensor] = []
    for seed in range(2):
        with seeded(images.device, seed), frozen(copied := copy.deepcopy(model)), torch.no_grad():
            found.append(torch.stack([copied(images) for _ in range(_AGAIN)]))
    same = torch.isclose(found[0], found[1], rtol=_ROUNDED, equal_nan=True).all()
    return bool(same) and not bool(torch.isclose(found[0], found[0][:1], rtol=_ROUNDED, equal_nan=True).all())


def _differs(logits: torch.Tensor, prediction: np.ndarray, gap: np.ndarray) -> float:
    """Share of images whose class or lead is another one."""
    most = _ROUNDED * magnitude(logits).numpy()
    again = top_gap(logits).numpy()
    with np.errstate(invalid="ignore"):
        near = (np.abs(again - gap) <= most) | (again == gap) | (np.isnan(again) & np.isnan(gap))
    other = (logits.argmax(1).numpy() != prediction) & (gap > most)
    return float((~near | other).mean())


def _left(e: CheckContext, model: Classifier) -> float:
    """Of the few, the share still right after PGD (the raw last iterate, so that no draw is picked for its luck)."""
    images, labels = e.few_tensors
    attack = PGD(eps=e.eps, norm=e.norm, steps=STEPS, keep="last")
    return attack(model, images, labels, seed=e.seed, batch_size=len(labels)).robust_accuracy


@final
class _Afresh(nn.Module):
    """A model as it was before its first question, each time: a generator of its own draws the same again."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Logits:
        return copy.deepcopy(self.model)(images)


@check("fixed-randomness", "Robustness does not rest on the attacker's not knowing the draws")
def fixed_randomness(e: CheckContext) -> Measured | NotRun:
    """With the random numbers held fixed the model is an ordinary one; if that one falls, the randomness was all."""
    if not e.randomised:
        return NotRun(_NOT_RANDOM)
    if not e.right.any():
        return NotRun("no image is classified correctly")
    images, labels = e.few_tensors
    known = with_fixed_seed(e.original_model, e.seed)
    if answers_at_random(known, images):
        known = with_fixed_seed(with_network(e.original_model, _Afresh(e.original_model)), e.seed)
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


@check("eot-samples", "Averaging over more draws does not help the attack any more")
def eot_samples(e: CheckContext) -> Measured | NotRun:
    """If the accuracy still falls from 5 to 20 draws a gradient, more would lower it further."""
    if not e.randomised:
        return NotRun(_NOT_RANDOM)
    fewer, more = (_left(e, mean_over_samples(e.original_model, number)) for number in (5, 20))
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


@check("inference-time-optimization", "The model does not optimise while it answers")
def inference_time_optimization(e: CheckContext) -> Measured:
    """A defence that runs gradient steps of its own at inference needs an attack made for it."""
    images, _ = e.few_tensors
    with frozen(e.original_model), torch.enable_grad(), _counting() as noted:
        e.original_model(images[:2])
    return Measured(
        float(len(noted)),
        0.0,
        Severity.VOIDS if noted else None,
        f"the model calls autograd {len(noted)} times while it answers: it optimises at inference. Attack the whole "
        "of it, with an attack made for it",
    )
