"""A small residual network, deeper than the study's two, as the paper's section 7 proposes."""

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
