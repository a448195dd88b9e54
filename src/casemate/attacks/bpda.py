"""Backward pass differentiable approximation (Athalye, Carlini and Wagner 2018, arXiv 1802.00420, section 4.1).

A part of a model that has no useful derivative (quantisation, JPEG, a threshold) stops every gradient, and an attack
that follows gradients then looks weak, whatever the model. Here that part is computed as it is, but differentiated as
if it were another one that behaves alike.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from casemate.errors import ShapeError

Change = Callable[[Tensor], Tensor]


@final
class _Value(torch.autograd.Function):
    """The value of one tensor, exactly, with the derivative of another."""

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
    """A change to images that is `forward` going forward and `backward` going back.

    Put it in front of a model, `casemate.defenses.preprocessed(model, BPDA(jpeg))`, or inside its network instead of
    the part it stands for. What the network sees, and so what it answers, is exactly what `forward` returns. For a
    change that is random as well, attack the model with expectation over transformation too (`casemate.attacks.EOT`).

    Args:
        forward: the change itself. It is given a copy without a gradient, so it may leave PyTorch or write into it.
        backward: a differentiable change that behaves like it, whose derivative at the same images is taken; the
            identity if None, for which `forward` must nearly return the images themselves.
    """

    def __init__(self, forward: Change, backward: Change | None = None) -> None:
        super().__init__()
        self.exact = forward
        self.smooth = backward

    def forward(self, images: Tensor) -> Tensor:
        """Return the changed images. Raises `ShapeError` if the two changes return different shapes."""
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
        """The changes that are functions, for the network's text (modules show themselves)."""
        named = {"forward": self.exact, "backward": self.smooth}
        plain = {name: each for name, each in named.items() if not isinstance(each, nn.Module)}
        return ", ".join(f"{name}={getattr(each, '__name__', each or 'identity')}" for name, each in plain.items())
