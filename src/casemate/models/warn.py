"""Warnings for who calls an attack directly: of numbers that look like robustness, and say nothing about it.

An evaluation has findings in their place, and warns of nothing.
"""

import sys
import warnings
from math import prod
from pathlib import Path

from casemate.errors import CasemateWarning
from casemate.models.classifier import Classifier
from casemate.norms import Ball
from casemate.units import doubt_of

_HERE = str(Path(__file__).parent.parent)


def warn(sentence: str) -> None:
    """Warn of what the user's own line of code asked for."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, CasemateWarning, stacklevel=level + 1)


def warn_of_eps(ball: Ball, model: Classifier) -> None:
    """Warn of a radius that is plainly not in the unit of the pixels."""
    doubt = doubt_of(ball, model.bounds, prod(model.input_shape))
    if doubt is not None and doubt.plain:
        warn(doubt.sentence)


def warn_of_network(model: Classifier) -> None:
    """Warn of a network whose answers are not those of one fixed function of an image."""
    for sentence in model.doubts:
        warn(f"{sentence}, so that what an attack finds with it need not hold at its next call")


def warn_of_outcome(name: str, count: int, *, no_gradient: int = 0, not_finite: int = 0, not_found: int = 0) -> None:
    """Warn of images that count as withstanding an attack that did not take place on them.

    Args:
        name: of the attack.
        count: images attacked.
        no_gradient: of how many the gradient was exactly zero at every step, and none fooled.
        not_finite: of how many logits or gradient were not finite, and none fooled.
        not_found: on how many an attack without a limit on the distance found nothing that fools.
    """
    if no_gradient:
        warn(
            f"{name} had no gradient to follow on {no_gradient} of {count} images (it is exactly zero at every step), "
            "which count as withstanding it: that is no robustness. Try an attack that needs no gradient (Square), "
            "another loss, or BPDA in the place of what has no derivative (rounding, no_grad, detach)"
        )
    if not_finite:
        warn(
            f"on {not_finite} of {count} images {name} met logits or gradients that are not finite, and these count as "
            "withstanding it. Look for overflows and divisions by zero in the network"
        )
    if not_found:
        warn(
            f"{name} found nothing that fools on {not_found} of {count} images, at whatever distance, although every "
            "image can be turned into any other: its budget is too small, or its gradient misleads. Raise its steps "
            "(and where it searches for a constant, binary_search_steps or initial_const)"
        )
