"""Is the model randomised, or does it keep state, and does its robustness depend on that alone?"""

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, final

import numpy as np
import torch
from torch import nn

from casemate.attacks import PGD, frozen
from casemate.evaluation.findings.check import Measured, NotRun, check
from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.findings.finding import Severity
from casemate.evaluation.findings.outputs import has_changed
from casemate.evaluation.intervals import percent
from casemate.logits import is_right, top_gap
from casemate.models import Classifier, is_randomised, mean_over_samples, with_fixed_seed, with_network
from casemate.rng import seeded
from casemate.types import Images, Logits

_MAX_REPEATED, _REPETITIONS = 2, 100
"""Number of images that are classified again after the attacks, and number of times: rare changes need many passes, not
many images. A change in one pass of 100 is found with probability 0.63, one in one image of 100 with 0.87, and with
0.98 together with 200 images of the evaluation, which are classified once more too."""
_ROUNDED = 1e-3
"""Difference of the logit gap, as a share of the largest logit, up to which it is attributed to rounding."""
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
"""Types of random number generators; a model that holds one of its own is not suspected of counting its passes."""
_FEWER, _MORE = 5, 20
"""Numbers of draws per gradient whose accuracies the check eot-samples compares."""
_FALL, _SCREENED = 0.05, 32
"""Fall of the accuracy with more draws above which the check eot-samples is raised, and number of images on which it
must be as large for the whole sample to be attacked. A fall by 10 points, on images of which 14 % change, is so large
with probability 0.80; one by 20 points, of which 24 % change, with 0.98."""


@check(
    "randomized",
    "The same image gets the same logits every time",
    note=0,
    unit="",
    why="One success or failure against a randomised model may be luck, and one gradient points to one draw only "
    "(Athalye et al. 2018, arXiv 1802.00420, section 4.2).",
    advice="Nothing needs to be done: the model was attacked and judged by its mean logits over several draws.",
    reads="inputs",
)
def randomized(context: CheckContext) -> Measured:
    """1 if the logits of the same images differ from pass to pass, else 0."""
    return Measured(float(context.randomised), "the logits of the same image differ from pass to pass")


@check(
    "stateful-model",
    "The model gives the logits that it gave before the attacks",
    voids=0,
    why="A model that counts or stores its inputs, or whose output changes only now and then (too rarely to count as "
    "randomised), is several models in turn, and an attack on one of them says nothing about the others.",
    advice="Look in the model's code for what changes from call to call, such as a counter, stored inputs or averages "
    "that are updated, and keep it fixed.",
)
def stateful_model(context: CheckContext) -> Measured:
    """Largest share of the images whose prediction or logit gap changes when the model runs on them again.

    All images are classified again after the attacks, and a few of them a hundred times. For a randomised model: 1 if
    the logits of two copies change from pass to pass in the same way, whatever is drawn, else 0.
    """
    if context.randomised:
        value = float(_counts_passes(context.original_model, context.sample_tensors[0][:_MAX_REPEATED]))
        words = "the model's logits change from pass to pass, but not at random: it counts or stores its inputs"
    else:
        few = context.sample[:_MAX_REPEATED]
        first = context.logits_of(context.model, few)
        reference = first.argmax(1).numpy(), top_gap(first).numpy()
        repeated = (context.logits_of(context.model, few) for _ in range(_REPETITIONS))
        changed = [float(has_changed(logits, *reference).mean()) for logits in repeated]
        # `context.outputs` was computed before the attacks too, but after `context.clean`
        value = max(*changed, context.outputs.changed, _share_changed(context))
        words = (
            f"after the attacks the model's logits for up to {percent(value, 0)} of the same images are different: it "
            "stores its inputs, or is random now and then"
        )
    return Measured(value, words, flatters=False)


def _counts_passes(model: Classifier, images: torch.Tensor) -> bool:
    """Whether the logits change from pass to pass, but in the same way in two copies with different random seeds.

    False for a model that holds a random number generator of its own, which these seeds do not set.
    """
    if any(isinstance(held, _GENERATORS) for module in model.modules() for held in vars(module).values()):
        return False
    found: list[torch.Tensor] = []
    for seed in range(2):
        with seeded(images.device, seed), frozen(copied := copy.deepcopy(model)), torch.no_grad():
            found.append(torch.stack([copied(images) for _ in range(_REPETITIONS)]))
    same = torch.isclose(found[0], found[1], rtol=_ROUNDED, equal_nan=True).all()
    return bool(same) and not bool(torch.isclose(found[0], found[0][:1], rtol=_ROUNDED, equal_nan=True).all())


def _share_changed(context: CheckContext) -> float:
    """Share of all images whose predicted class or logit gap is now another one than in `context.clean`."""
    changed = 0

    def compare(at: slice, logits: Logits) -> None:
        nonlocal changed
        changed += int(has_changed(logits, context.clean.prediction[at], context.clean.gap[at]).sum())

    context.pass_over(compare)
    return changed / len(context.images)


def _accuracy_under_pgd(context: CheckContext, model: Classifier) -> float:
    """Share of the context's sample that `model` classifies correctly at PGD's last iterate.

    An earlier iterate that fools does not count, since it may do so by the luck of a draw.
    """
    images, labels = context.sample_tensors
    return _pgd(context)(model, images, labels, seed=context.seed, batch_size=len(labels)).robust_accuracy


def _pgd(context: CheckContext) -> PGD:
    """PGD that returns the last iterates."""
    return PGD(eps=context.eps, norm=context.norm, steps=context.steps, keep="last")


@final
class _StatelessCopy(nn.Module):
    """Runs a new copy of a model at every pass, so that a generator inside it draws the same numbers each time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Logits:
        return copy.deepcopy(self.model)(images)


@check(
    "fixed-randomness",
    "Robustness does not depend on keeping the random draws secret",
    voids=0.1,
    unit="points",
    models="randomised",
    condition=f"only {Severity.WEAKENS} if the random numbers come from a source that cannot be fixed",
    why="With its random numbers fixed a randomised model is an ordinary one. If that one falls, the robustness is "
    "the luck of the draw, and an attacker who learns or guesses the draws meets none of it (Gao et al. 2022, "
    "arXiv 2206.09491).",
    advice="Evaluate the model without its randomness.",
    only_flattery=True,
)
def fixed_randomness(context: CheckContext) -> Measured | NotRun:
    """Robust accuracy under all attacks minus accuracy under PGD with the random numbers fixed; 1 if they cannot be.

    Both are shares of the images classified correctly without an attack.
    """
    if not context.right.any():
        return NotRun("no image is classified correctly")
    images, labels = context.sample_tensors
    fixed = with_fixed_seed(context.original_model, context.seed)
    if is_randomised(fixed, images):
        stateless = with_network(context.original_model, _StatelessCopy(context.original_model))
        fixed = with_fixed_seed(stateless, context.seed)
    if is_randomised(fixed, images):
        return Measured(
            1.0,
            "the model draws random numbers from a source of its own, which could not be fixed",
            advice="Let it draw from the global generator of PyTorch, NumPy or Python, or evaluate it without its "
            "randomness",
            at_most=Severity.WEAKENS,
        )
    # of the images that the model classifies correctly with these very draws
    clean = is_right(context.logits_of(fixed, context.sample), context.sample.labels).double().mean().item()
    left = _accuracy_under_pgd(context, fixed) / max(clean, 1e-9)
    whole = float(context.robust[np.flatnonzero(context.right)[: len(labels)]].mean())
    return Measured(
        whole - left,
        f"of the images classified correctly, {percent(left)} withstand PGD when the model's random numbers are "
        f"known, and {percent(whole)} withstand all attacks when they are not: what looks like robustness is the "
        "luck of the draw",
    )


@check(
    "eot-samples",
    "More draws per gradient do not help the attack",
    weakens=_FALL,
    unit="points",
    models="randomised",
    condition=f"with {_MORE} draws per gradient instead of {_FEWER}",
    why="Gradients of a randomised model must be averaged over enough draws (expectation over transformation: "
    "Athalye et al. 2018, arXiv 1707.07397). If the accuracy still falls with more draws, still more would lower "
    "it further.",
    advice="Attack with more draws per gradient (`EOT`).",
    only_flattery=True,
)
def eot_samples(context: CheckContext) -> Measured:
    """Accuracy under PGD with gradients averaged over 5 draws minus that with 20 draws.

    Where it is not above the threshold on the first few images of the sample, the others are not attacked.
    """
    screened = slice(_SCREENED)
    fewer, more = (_right_with_draws(context, number, screened) for number in (_FEWER, _MORE))
    if fewer.mean() - more.mean() > _FALL and len(context.sample) > _SCREENED:
        rest = slice(_SCREENED, None)
        fewer, more = (
            np.concatenate([right, _right_with_draws(context, number, rest)])
            for right, number in ((fewer, _FEWER), (more, _MORE))
        )
    fewer, more = float(fewer.mean()), float(more.mean())
    return Measured(
        fewer - more,
        f"PGD leaves an accuracy of {percent(fewer)} with {_FEWER} draws per gradient and {percent(more)} with {_MORE}",
    )


def _right_with_draws(context: CheckContext, draws: int, part: slice) -> np.ndarray:
    """Whether each image of a part of the sample withstands PGD, at its last iterate, by the mean over `draws` passes.

    As many as those of the attacked model: the results that other checks use too.
    """
    if draws == context.draws:
        return context.right_after_pgd[part]
    images, labels = (each[part] for each in context.sample_tensors)
    model = mean_over_samples(context.original_model, draws)
    return (~_pgd(context)(model, images, labels, seed=context.seed, batch_size=len(labels)).success).cpu().numpy()


@contextmanager
def _recorded_autograd_calls() -> Iterator[list[str]]:
    """Context that yields a list, to which every call of autograd inside it adds "grad" or "backward".

    The calls are seen by the profiler of Python, whatever name the caller knows the functions by.
    """
    calls: list[str] = []
    names = {torch.autograd.grad.__code__: "grad", torch.autograd.backward.__code__: "backward"}

    def record(frame: FrameType, event: str, argument: Any) -> None:
        del argument
        if event == "call" and frame.f_code in names:
            calls.append(names[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(record)
    try:
        yield calls
    finally:
        if before is None or callable(before):
            sys.setprofile(before)
        else:  # a profiler in C, such as cProfile, which is its own context
            sys.setprofile(None)
            before.enable()


@check(
    "inference-time-optimization",
    "The model does not optimise at inference",
    voids=0,
    unit="",
    why="A defence that optimises, purifies or searches at inference with gradients of its own needs an attack "
    "made for it; when attacked in that way, such defences did no better than the models beneath them (Croce et "
    "al. 2022, arXiv 2202.13711).",
    advice="Attack the whole defence, with an attack made for it.",
    reads="inputs",
)
def inference_time_optimization(context: CheckContext) -> Measured:
    """Number of calls of autograd by the model in one pass of two images."""
    images, _ = context.sample_tensors
    with frozen(context.original_model), torch.enable_grad(), _recorded_autograd_calls() as calls:
        context.original_model(images[:2])
    return Measured(
        float(len(calls)), f"the model calls autograd {len(calls)} times in one pass: it optimises at inference"
    )
