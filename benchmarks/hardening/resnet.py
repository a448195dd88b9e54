"""A residual network in plain PyTorch, as a user has it: `ResNet`, with its weights in a file beside it.

`train` is an ordinary training, with nothing against attacks.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        found = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(found + self.shortcut(x))


class ResNet(nn.Module):
    """Six blocks in three stages, for colour images and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        widths = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
        self.blocks = nn.Sequential(*(Block(*each) for each in widths))
        self.classify = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of colour images, normalised as the training images are."""
        return self.classify(self.blocks(self.stem((x - 0.35) / 0.25)).mean((2, 3)))


def train(images: Tensor, labels: Tensor, weights: Path, epochs: int = 12) -> None:
    """Train a network on images `(n, 3, 32, 32)` within [0, 1], and write its weights."""
    torch.manual_seed(0)
    network = ResNet()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(128)[: steps // epochs]:
            x = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, images[batch].flip(3), images[batch])
            optimizer.zero_grad()
            F.cross_entropy(network(x), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    save_file(network.state_dict(), weights)
