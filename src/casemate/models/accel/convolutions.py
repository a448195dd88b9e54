"""What the layers share that stand in the place of a convolution: its border, and its weights for who looks at them."""

from torch import Tensor, nn

Border = tuple[int, int, int, int]
"""Zeros to the left, to the right, above and below; fewer than none leave something out."""


def pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """Height and width, of which PyTorch takes one where they are equal."""
    return (size, size) if isinstance(size, int) else size


def border_of(layer: nn.Conv2d) -> Border:
    """What a convolution puts round its maps."""
    if not isinstance(layer.padding, str):
        top, left = layer.padding
        return left, left, top, top
    down, across = (step * (side - 1) for step, side in zip(layer.dilation, layer.kernel_size, strict=True))
    if layer.padding == "valid":
        down = across = 0
    return across // 2, across - across // 2, down // 2, down - down // 2


class StandIn(nn.Module):
    """A layer in the place of a convolution, which it keeps."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> Tensor:
        """Of the convolution, for models that look at it."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The same."""
        return self.layer.bias
