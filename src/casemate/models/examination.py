"""The examination of a user's network before its first use: can it be judged, and how must it be called?

The network is called with one image, with two, with the first again, and for an input gradient. That shows whether its
outputs have the right shape, whether they are those of one fixed function of an image, whether they are probabilities,
and whether it can be differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, nn

from casemate.errors import CasemateError, NoGradientError
from casemate.logits import difference, is_valid, magnitude
from casemate.memory import is_out_of_memory
from casemate.models.output_errors import backward_error
from casemate.models.outputs import ends_in_sigmoid
from casemate.models.softmax import Ending, find_ending
from casemate.models.state import preserve_state, restored
from casemate.rng import all_seeded
from casemate.types import Images, Logits

_ROUNDING = 1e-3
"""Largest difference of two logits, relative to the largest logit, that counts as rounding."""

Call = Callable[[Images], Logits]


@final
@dataclass
class NetworkTraits:
    """How a network must be called, and what is wrong with it, as far as earlier calls have shown."""

    examined: bool = False
    needs_own_dtype: bool = False
    """The network accepts only images of its weights' type."""
    needs_pairs: bool = False
    """The network fails on a batch of one image; such an image is therefore passed twice, in a batch of two."""
    recurrent: bool | None = None
    """The network has a recurrent layer, which cuDNN differentiates in training mode only; None if not known yet."""
    needs_functionalization: bool = False
    """The network writes in place where autograd forbids it, and is differentiated by `torch.func.functionalize`."""
    gradient_error: str | None = None
    """The error message for a network whose backward pass fails."""
    is_black_box: bool = False
    """The network says of itself that it has no gradient."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one image of the first batch, where the classifier was not given any."""
    classes: tuple[str, ...] | None = None
    """Names of as many classes as the network returns logits, where the classifier was not given any."""
    one_logit: bool = False
    """The network returns one logit per image, for two classes."""
    ends_in_sigmoid: bool = False
    """That number is the result of a sigmoid which cannot be taken off: a probability, not a logit."""
    ending: Ending | None = None
    """The function at the end of the network whose input is taken as the logits."""
    inconsistencies: tuple[str, ...] = ()
    """Sentences on why the network's outputs are not those of one fixed function of an image."""


def examine_outputs(model: nn.Module, call: Call, pair: Images, traits: NetworkTraits) -> Tensor:
    """Call a network with one image, with a pair, and with the first again, and set `traits.inconsistencies`.

    The network and all random numbers are restored. Errors of `call`, which returns checked logits, are passed on.
    Returns the logits of the first image.
    """

    def first_logits(images: Images, seed: int = 0) -> Tensor:
        with preserve_state(model), all_seeded(images.device, seed):
            return call(images)[:1]

    with preserve_state(model), restored(model):  # around all three, so that state is kept from one to the next
        alone, together, again = (first_logits(batch) for batch in (pair[:1], pair, pair[:1]))
    if not is_valid(alone).all():
        return alone
    if _differ(again, alone):
        traits.inconsistencies = (
            "the network returns other logits when it is called again with the same image and the same random "
            "numbers: it keeps a state from call to call",
        )
    elif not traits.needs_pairs and _differ(together, alone) and not _differ(first_logits(pair[:1], seed=1), alone):
        traits.inconsistencies = (
            "the network returns other logits for an image when another one is in its batch, as batch normalisation "
            "does in training mode",
        )
    return alone


def examine_ending(
    model: nn.Module, call: Callable[[Images], Any], pair: Images, logits: Tensor, traits: NetworkTraits
) -> None:
    """Set `traits.ending` to the softmax or sigmoid that a network ends in; it and all random numbers are restored.

    Args:
        call: passes images through the network, and returns the part of its output that is taken for the logits.
        logits: those of the first image. Only if they may be probabilities is the network called.
    """
    if not ((logits >= 0) & (logits <= 1)).all():
        return
    with preserve_state(model), restored(model), all_seeded(pair.device, 0):
        try:
            traits.ending = find_ending(model, lambda: call(pair))
        except Exception:  # of memory, or of the user's own code where calls are recorded
            traits.ending = None


def examine_gradient(model: nn.Module, call: Call, pair: Images, traits: NetworkTraits) -> None:
    """Run a backward pass to the images, and set in `traits` whether it needs functionalisation, or why it fails."""
    if any(each.is_inference() for each in chain(model.parameters(), model.buffers())):
        return  # it has to be copied first
    errors: list[Exception] = []
    for functional in (False, True):
        traits.needs_functionalization = functional
        try:
            with preserve_state(model), restored(model), all_seeded(pair.device, 0), torch.enable_grad():
                leaf = pair.detach().requires_grad_(True)
                logits = call(leaf)
                traits.ends_in_sigmoid = traits.one_logit and ends_in_sigmoid(logits)
                if logits.requires_grad:
                    torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
            return
        except Exception as error:
            if is_out_of_memory(error):
                return
            errors.append(error)
    traits.needs_functionalization = False
    first = errors[0]
    traits.is_black_box = isinstance(first, NoGradientError)
    traits.gradient_error = str(first if isinstance(first, CasemateError) else backward_error(first))


def _differ(logits: Logits, others: Logits) -> bool:
    """Whether the logits of any image differ by more than rounding: by more than 1e-3 of its largest logit."""
    return not bool((difference(logits, others) <= _ROUNDING * magnitude(others).clamp(min=1e-6)).all())
