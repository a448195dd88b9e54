"""A copy of a classifier in bfloat16, which some processors multiply several times as fast as float32."""

import copy

import torch
from torch import nn

from casemate.models.classifier import Classifier
from casemate.types import Images, Logits


def in_bfloat16(model: Classifier) -> Classifier:
    """A copy that computes in bfloat16, and takes and returns what the model does."""
    made = copy.deepcopy(model, {id(model.observer): model.observer})  # who is told of things stays the same
    made.network = _Coarse(made.network)
    return made


class _Coarse(nn.Module):
    """A network in bfloat16; its images and logits are not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, images: Images) -> Logits:
        return self.network(images.to(torch.bfloat16)).to(images.dtype)
