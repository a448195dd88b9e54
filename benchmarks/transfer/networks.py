"""Three small networks of different kinds for 28 x 28 images of ten classes; each trains in a minute on one core."""

from torch import Tensor, nn


class _Block(nn.Module):
    """Two convolutions with batch norm, and a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """The maps plus what the convolutions make of them."""
        return (maps + self.inside(maps)).relu()


def plain() -> nn.Module:
    """Large convolutions with max-pooling, and a dense layer."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 49, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def strided() -> nn.Module:
    """Small convolutions with strides and batch norm, and a mean over positions."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 12), (12, 24), (24, 48)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48 * 4, 10))


def residual() -> nn.Module:
    """Residual blocks, and a mean over positions."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        _Block(12),
        nn.Conv2d(12, 24, 3, 2, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        _Block(24),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 4, 10),
    )


NETWORKS = {"plain": plain, "strided": strided, "residual": residual}
