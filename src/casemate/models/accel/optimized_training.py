"""Faster training steps: layers without weights are replaced while a network is trained, and put back afterwards.

A max-pooling with a ReLU becomes one layer (`relu_max_pool.py`), and dropout draws its numbers faster (`dropout.py`).
Weights, their names and their averages are not touched, so checkpoints are the same as without.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from casemate.models.accel.dropout import HashDropout
from casemate.models.accel.equivalence import TOLERANCE, logit_difference
from casemate.models.accel.optimize import WITHOUT_WEIGHTS, is_altered, optimize_for_training
from casemate.models.classifier import Classifier
from casemate.types import Images


@contextmanager
def optimized_training(model: Classifier, images: Images) -> Iterator[None]:
    """Replace layers without weights by faster ones inside the context, if that does not change the model's logits.

    Args:
        model: has its own layers again afterwards.
        images: a few, `(n, channels, height, width)`, on which the logits are compared.
    """
    own = dict(model.named_modules(remove_duplicate=False))
    replaced = {
        name: layer
        for name, layer in _optimized_layers(model, images)
        if type(layer) is not type(own[name]) and {type(layer), type(own[name])} <= set(WITHOUT_WEIGHTS)
    }
    for name, layer in replaced.items():
        model.set_submodule(name, layer.train(own[name].training))
    try:
        yield
    finally:
        for name in replaced:
            own[name].train(model.get_submodule(name).training)
            model.set_submodule(name, own[name])


def _optimized_layers(model: Classifier, images: Images) -> list[tuple[str, nn.Module]]:
    """Names and layers of an optimised copy; an empty list if it cannot be made or its logits differ.

    The list is also empty for a model with hooks, which would be called for the copies too.
    """
    if any(is_altered(module) for module in model.modules()):
        return []
    try:
        plain, made = copy.deepcopy(model).train(), copy.deepcopy(model).train()
        optimize_for_training(made)
        for module in (*plain.modules(), *made.modules()):
            if isinstance(module, nn.Dropout | HashDropout):
                module.eval()  # the two draw different numbers
        difference = max(logit_difference(plain, made, images), logit_difference(plain.eval(), made.eval(), images))
    except Exception:  # the user's own code may raise anything
        return []
    return list(made.named_modules(remove_duplicate=False)) if difference <= TOLERANCE else []
