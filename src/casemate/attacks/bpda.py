"""Backward pass differentiable approximation (Athalye, Carlini and Wagner 2018, arXiv 1802.00420, section 4.1).

A part of a model without a useful derivative (quantisation, JPEG, a threshold) makes all gradients zero, and a gradient
attack then fails whether or not the model is robust. BPDA computes that part as it is in the forward pass, and in the
backward pass replaces its derivative by that of a similar, differentiable function.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from casemate.errors import ShapeError

Change = Callable[[Tensor], Tensor]


@final
class _Value(torch.autograd.Function):
    """Returns the values of `exact` in the forward pass; in the backward pass the gradient goes to `smooth` alone."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, smooth: Tensor) -> Tensor:
        del ctx, smooth
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        del ctx
        return None, gradients[0]


@final
class BPDA(nn.Module):
    """A layer that computes `forward` in the forward pass and differentiates `backward` in the backward pass.

    Put it in front of a model, `casemate.defenses.preprocessed(model, BPDA(jpeg))`, or inside its network in place of
    the part without a derivative. Predictions are exactly those with `forward`. If `forward` is random as well, attack
    the model with expectation over transformation too (`casemate.attacks.EOT`).

    Args:
        forward: the function without a useful derivative. It gets a detached copy, so it may leave PyTorch or write
            into its input.
        backward: a similar differentiable function, whose derivative at the same images is used; the identity if None,
            which suits a `forward` that changes images only little.
    """

    def __init__(self, forward: Change, backward: Change | None = None) -> None:
        super().__init__()
        self.exact = forward
        self.smooth = backward

    def forward(self, images: Tensor) -> Tensor:
        """Return the constructor's function `forward` of the images; the gradient is that of its `backward`.

        `backward` is called only if a gradient is required. Raises `ShapeError` if it then returns another shape.
        """
        with torch.no_grad():
            exact = self.exact(images.detach().clone()).to(images)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return exact
        smooth = images if self.smooth is None else self.smooth(images)
        if smooth.shape != exact.shape:
            name = "the identity" if self.smooth is None else "backward"
            raise ShapeError(
                f"forward returns the shape {tuple(exact.shape)}, but {name} {tuple(smooth.shape)}; "
                "give a backward that returns the same shape"
            )
        return _Value.apply(exact, smooth)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        """The names of the two functions, for `repr`; PyTorch itself shows those that are modules."""
        named = {"forward": self.exact, "backward": self.smooth}
        plain = {name: each for name, each in named.items() if not isinstance(each, nn.Module)}
        return ", ".join(f"{name}={getattr(each, '__name__', each or 'identity')}" for name, each in plain.items())
