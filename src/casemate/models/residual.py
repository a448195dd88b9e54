"""Small residual networks: one deeper than the study's two, as the paper's section 7 proposes, and a cheaper one."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from casemate.models.keras_init import batch_norm, he_normal, keras_defaults
from casemate.models.registry import register


class _Block(nn.Module):
    """Two convolutions with batch norm and a skip connection (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = batch_norm(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = batch_norm(outputs)
        self.past = (  # the skip connection; its name is in saved weights
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), batch_norm(outputs))
        )

    def forward(self, inputs: Tensor) -> Tensor:
        inside = F.relu(self.first_norm(self.first(inputs)))
        return F.relu(self.second_norm(self.second(inside)) + self.past(inputs))


@register("resnet-14")
def resnet_14(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network of 13 convolutions, in three stages of 16, 32 and 64 channels, dropout and a dense layer.

    It has 175k parameters.
    """
    stages = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    network = nn.Sequential(
        nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False),
        batch_norm(16),
        nn.ReLU(),
        *(_Block(inputs, outputs, stride) for inputs, outputs, stride in stages),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64, classes),
    )
    keras_defaults(network)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            he_normal(layer)
    return network


class _PreActivated(nn.Module):
    """Two convolutions, each after batch norm and ReLU, with a skip connection (He et al. 2016b, figure 4e)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.past = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        inside = F.relu(self.first_norm(inputs))
        past = inputs if self.past is None else self.past(inside)
        return self.second(F.relu(self.second_norm(self.first(inside)))) + past


@register("resnet-6")
def resnet_6(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network of five convolutions, in blocks of 32 and 64 channels, and a dense layer.

    It halves its images twice, rounding up, at the first convolution and at the second block. It has 108k parameters
    for images of 1 x 28 x 28 in 10 classes.
    """
    flat = 64 * math.prod(math.ceil(side / 4) for side in input_shape[1:])
    network = nn.Sequential(
        nn.Conv2d(input_shape[0], 32, 5, stride=2, padding=2, bias=False),
        _PreActivated(32, 32, 1),
        _PreActivated(32, 64, 2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, classes),
    )
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network
