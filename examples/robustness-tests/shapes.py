"""The project's network and images: bars in four directions on small grey pictures."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = ("horizontal", "vertical", "rising", "falling")
SIDE = 12
WEIGHTS = Path(__file__).parent / "weights.safetensors"
RELEASED = Path(__file__).parent / "released.safetensors"
"""The weights that are in use, which a new version must not fall behind."""


class ShapeNet(nn.Module):
    """Two convolutions and a dense layer: grey pictures of 12 x 12 pixels in [0, 1] to four logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 9, len(CLASSES)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.layers(images)


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures `(count, 1, 12, 12)` with a noisy bar at a random place, and the directions of the bars `(count,)`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    middle = (SIDE - 1) / 2
    across = torch.stack(
        [rows - middle, columns - middle, (rows + columns - 2 * middle) / 2**0.5, (rows - columns) / 2**0.5]
    )[labels]
    shift = 6 * torch.rand(count, 1, 1, generator=generator) - 3
    bars = (1.2 - (across - shift).abs()).clamp(0, 1)
    noise = 0.1 * torch.randn(count, SIDE, SIDE, generator=generator)
    return (0.3 + 0.4 * bars + noise).clamp(0, 1)[:, None], labels


def trained(weights: Path = WEIGHTS) -> ShapeNet:
    """The network with the weights that train.py wrote."""
    network = ShapeNet()
    network.load_state_dict(load_file(weights))
    return network.eval()


def held_out() -> DataLoader:
    """The pictures that no training has seen."""
    return DataLoader(TensorDataset(*pictures(200, seed=1)), batch_size=100)
