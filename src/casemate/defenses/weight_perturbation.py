"""Adversarial weight perturbation (Wu, Xia and Wang 2020, arXiv 2004.05884).

The loss is taken at weights that have been moved so as to increase it, each layer by at most `gamma` times its norm
(equations 8 to 10, one step), for the same adversarial images. It flattens the loss over the weights, and narrows the
gap between the robustness on training and on test images. Several processes each move the weights by the gradient of
their own part of the batch.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from casemate.types import Images, Labels, Logits

Network = Callable[[Images], Logits]
"""What maps images to logits: the model, or the model with other weights."""

_SMALL = 1e-20


def at_perturbed_weights(model: nn.Module, loss: Callable[[Network], Tensor], gamma: float) -> Tensor:
    """The value of `loss` at the adversarially perturbed weights, differentiable with respect to the weights.

    Args:
        model: keeps its weights; its batch normalisation sees the pass at the perturbed weights only.
        loss: a differentiable scalar, computed by calling the network that it gets.
        gamma: length of the perturbation of each layer, relative to the layer's norm; 0 for none. Biases, the weights
            of normalisation layers, and weights that are not trained are left as they are, the former two as in the
            paper's experiments; where nothing else is trained, the value is the plain loss.
    """
    moved = {name: each for name, each in model.named_parameters() if each.requires_grad and each.ndim > 1}
    if gamma == 0 or not moved:
        return loss(model)
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    with torch.enable_grad():
        leaves = {name: each.detach().requires_grad_(True) for name, each in moved.items()}
        value = loss(lambda images: functional_call(model, leaves | buffers, (images,)))
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    perturbed: dict[str, Tensor] = {**moved}
    for (name, weight), gradient in zip(moved.items(), gradients, strict=True):
        if gradient is not None and bool(gradient.isfinite().all()):
            step = gamma * weight.detach().norm() / (gradient.norm() + _SMALL)
            perturbed[name] = weight + step * gradient
    return loss(lambda images: functional_call(model, perturbed, (images,)))


def adversarial_cross_entropy(
    model: nn.Module, batches: Sequence[Images], labels: Labels, label_smoothing: float, gamma: float
) -> Tensor:
    """The mean cross-entropy of adversarial images, at weights perturbed by `gamma` (see `at_perturbed_weights`).

    `batches` are one or more sets of adversarial images of the same batch, each of which is a pass of its own.
    """

    def loss(network: Network) -> Tensor:
        losses = [F.cross_entropy(network(each), labels, label_smoothing=label_smoothing) for each in batches]
        return torch.stack(losses).mean()

    return at_perturbed_weights(model, loss, gamma)
