"""A network that says which third of an image is brightest, without any training. Copied to where commands run."""

import torch
from torch import nn

from casemate import Classifier


def net() -> Classifier:
    """Takes images of 8 x 8 pixels."""
    layer = nn.Linear(64, 3)
    columns = torch.arange(64) % 8
    with torch.no_grad():
        layer.bias.zero_()
        for place in range(3):
            layer.weight[place] = 20 / 16 * ((columns // 2) == place)
    return Classifier(nn.Sequential(nn.Flatten(), layer), input_shape=(1, 8, 8), classes=("a", "b", "c")).eval()
