"""Gradients of a loss with respect to images."""

from collections.abc import Callable

import torch
from torch import Tensor

from casemate.attacks.criterion import Criterion
from casemate.losses import Loss, LossName, as_loss
from casemate.memory import is_out_of_memory
from casemate.models import Classifier, backward_error
from casemate.types import Images, Logits, Mask, PerExample


def input_gradient(
    model: Classifier, images: Images, criterion: Criterion, loss: LossName | Loss, eot_samples: int = 1
) -> tuple[Logits, Images]:
    """The logits, and the gradient of the criterion's objective with `loss` with respect to the images.

    The objective is summed over the batch, so an example's gradient does not depend on the batch size. With several
    `eot_samples` both are means over as many passes (Athalye et al. 2018, section 4.2). A model that cannot be
    differentiated has a gradient of zero, and so have the values that the criterion's mask holds fixed.
    """
    function = as_loss(loss)
    logits, _, gradient = value_and_grad(
        model,
        images,
        lambda part, logits: criterion[part].objective(function, logits),
        eot_samples=eot_samples,
        mask=criterion.mask,
    )
    return logits, gradient


def value_and_grad(
    model: Classifier,
    images: Images,
    loss: Callable[[slice, Logits], PerExample],
    *,
    eot_samples: int = 1,
    differentiate: bool = True,
    mask: Mask | None = None,
) -> tuple[Logits, PerExample, Images]:
    """Logits, a loss of them, `(n,)`, and its gradient with respect to the images (zero unless `differentiate`).

    Args:
        loss: called for the images that pass through the network together, with their range in the batch and their
            logits; returns one value per image.
        eot_samples: passes over which all three are averaged.
        mask: the gradient is zero where it is False.
    """

    def differentiated(part: slice) -> tuple[Tensor, ...]:
        some = images[part].detach().requires_grad_(differentiate)
        found: list[tuple[Tensor, ...]] = []
        for _ in range(eot_samples):
            with torch.set_grad_enabled(differentiate):
                logits = model(some)
                value = loss(part, logits)
                gradient = gradient_of(value.sum(), some) if differentiate else torch.zeros_like(some)
            found.append((logits.detach(), value.detach(), gradient))
        return found[0] if eot_samples == 1 else tuple(torch.stack(each).mean(0) for each in zip(*found, strict=True))

    logits, value, gradient = model.in_parts(len(images), differentiated)
    return logits, value, gradient if mask is None else gradient.where(mask, 0.0)


def gradient_of(total: Tensor, images: Images, *, retain: bool = False) -> Images:
    """The derivative of the scalar `total` with respect to images; zero if it does not depend on them differentiably.

    With `retain` the graph is kept, for the derivative of another scalar from the same forward pass. Raises
    `ModelError` for a model whose backward pass fails.
    """
    if not total.requires_grad:
        return torch.zeros_like(images)
    try:
        (gradient,) = torch.autograd.grad(total, images, retain_graph=retain, allow_unused=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise backward_error(error) from error
    return torch.zeros_like(images) if gradient is None else gradient
