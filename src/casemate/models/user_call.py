"""Warnings of misleading numbers for a user who calls an attack, a curve or a training directly.

An evaluation reports findings instead: within it, nothing warns.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import final

from torch import nn

from casemate.errors import CasemateWarning
from casemate.models.classifier import Classifier
from casemate.models.state import preserve_state
from casemate.norms import Ball
from casemate.units import find_eps_issue

_INTERNAL = (str(Path(__file__).parent.parent), contextlib.__file__)


@final
@dataclass(frozen=True)
class UserCall:
    """A call of a library function, through which it warns if the user, not another library function, called it."""

    by_user: bool
    """Whether the user made the call; only then are warnings given."""

    def warn(self, sentence: str) -> None:
        """Give a `CasemateWarning` that shows the user's line of code; do nothing in a call by the library itself."""
        if not self.by_user:
            return
        frame, level = sys._getframe(1), 2
        while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(_INTERNAL):
            frame, level = frame.f_back, level + 1
        warnings.warn(sentence, CasemateWarning, stacklevel=level + 1)

    def warn_of_failures(
        self,
        attack: str,
        count: int,
        *,
        no_gradient: int = 0,
        not_finite: int = 0,
        not_found: int = 0,
        off_grid: int = 0,
    ) -> None:
        """Warn of images that count as robust only because the attack failed on them.

        Args:
            attack: its name.
            count: images attacked.
            no_gradient: images that were not fooled, and whose gradient was exactly zero at every step.
            not_finite: images that were not fooled, and had logits or gradients that were not finite.
            off_grid: images around which no image on the grid of levels lies in the ball.
            not_found: images without an adversarial example from an attack that has no limit on the distance.
        """
        if no_gradient:
            self.warn(
                f"{attack} had no gradient to follow on {no_gradient} of {count} images (it is exactly zero at every "
                "step), which count as withstanding it: that is no robustness. Try an attack that needs no gradient "
                "(Square), another loss, or BPDA for the part that has no derivative (rounding, no_grad, detach)"
            )
        if not_finite:
            self.warn(
                f"on {not_finite} of {count} images {attack} met logits or gradients that are not finite, and these "
                "count as withstanding it. Look for overflows and divisions by zero in the network"
            )
        if off_grid:
            self.warn(
                f"{off_grid} of {count} images have no image on the grid of levels in the ball of {attack}, and are "
                "returned as they are, which counts as withstanding it. Give clean images on the grid (bytes, or bytes "
                "divided by 255), or a larger eps"
            )
        if not_found:
            self.warn(
                f"{attack} found nothing that fools on {not_found} of {count} images, at whatever distance, although "
                "every image can be turned into any other: its budget is too small, or its gradient misleads. Raise "
                "its steps (and where it searches for a constant, binary_search_steps or initial_const)"
            )


@contextmanager
def user_call(
    model: Classifier, ball: Ball | None = None, *, seed: int | None = None, teachers: Sequence[nn.Module] | None = None
) -> Iterator[UserCall]:
    """`preserve_state` for a function that users call, with warnings about its radius and its model.

    It warns of an `eps` that is obviously in another unit than the pixels, and of a model whose outputs are not those
    of one fixed function of an image. Nothing is warned of in a call by the library itself.

    Args:
        model: restored at the end, unless it is trained.
        ball: the ball that is searched, for the warning about `eps`; None for no such warning.
        seed: of the random numbers that the model draws.
        teachers: for a training of `model`: other models, which are restored at the end.
    """
    preserved, trained = ((model,), None) if teachers is None else (teachers, model)
    with preserve_state(*preserved, seed=seed, trained=trained) as by_user:
        call, known = UserCall(by_user), model.inconsistencies
        issue = None if ball is None else find_eps_issue(ball, model.bounds, prod(model.input_shape))
        if issue is not None and issue.is_obvious:
            call.warn(issue.message)
        _warn_of_inconsistencies(call, known)
        yield call
        _warn_of_inconsistencies(call, model.inconsistencies[len(known) :])


def _warn_of_inconsistencies(call: UserCall, sentences: Sequence[str]) -> None:
    for sentence in sentences:
        call.warn(f"{sentence}, so that adversarial examples found with it need not fool it at its next call")
