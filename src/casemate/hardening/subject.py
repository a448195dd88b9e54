"""What hardening needs of a model: that a copy of it can be trained, with batch normalisation as training expects."""

import copy
from math import prod

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from casemate.data import LabelledImages
from casemate.errors import ModelError, SettingError
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.training.images import check_training_images
from casemate.units import find_eps_issue


def check_subject(model: Classifier, ball: Ball, parts: dict[str, LabelledImages]) -> None:
    """Raise, before anything is trained, if the model, the radius or the labels make the result useless.

    Args:
        model: the model to be hardened.
        ball: of the perturbations.
        parts: the images by what they are used for, for errors; those called "unlabelled" need no labels.

    Raises:
        ModelError: no weights to train, batch normalisation that is frozen, a network that fails.
        SettingError: a radius that is obviously in another unit than the pixels.
        ShapeError: images of another shape than the model takes or with pixels outside its bounds, a label that it has
            no class for.
    """
    remedies = {
        "training": "the control needs them. Give images without labels as `unlabelled`, or by --unlabelled",
        "validation": "they choose the epoch",
        "test": "the models are judged by them",
    }
    for part, images in parts.items():
        check_training_images(model, images, part, unlabelled=part == "unlabelled", remedy=remedies.get(part, ""))
    issue = find_eps_issue(ball, model.bounds, prod(model.input_shape))
    if issue is not None and issue.is_obvious:
        raise SettingError(issue.message)
    check_trainable(model)


def check_trainable(model: Classifier) -> None:
    """Raise `ModelError` unless the model has weights that training may change, and no frozen batch normalisation."""
    parameters = list(model.parameters())
    if not parameters:
        raise ModelError(
            "the network has no parameters, so there is nothing to train; expected a torch.nn.Module whose weights are "
            "torch.nn.Parameter (a function, or weights stored as plain tensors or buffers, cannot be hardened)"
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise ModelError(
            f"none of the network's {len(parameters)} parameters requires a gradient, so there is nothing to train; "
            "unfreeze those that may change: network.requires_grad_(True)"
        )
    trained = trainable_copy(model).train()
    for name, module in trained.named_modules():
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats and _is_frozen(module):
            raise ModelError(
                f"the batch normalisation {name.removeprefix('network.')} is frozen (its weights require no gradient), "
                "but training would change its running averages all the same; unfreeze it "
                "(layer.requires_grad_(True)), or keep it in evaluation mode in the network's own train()"
            )


def trainable_copy(model: Classifier) -> Classifier:
    """A deep copy of the model, to be trained in its place. Raises `ModelError` for a model that cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"the network cannot be copied ({type(error).__name__}: {error}); a copy is trained, so that yours stays "
            "as it is: keep what cannot be copied (locks, open files, generators) outside of the network"
        ) from error


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)
