"""How robust a network is during its training: which images it still classifies correctly under a short PGD.

A weaker attack than an evaluation's, which decides between epochs only: it is never reported as robust accuracy.
"""

from collections.abc import Sequence

import torch

from casemate.attacks import PGD, Misclassification, frozen
from casemate.attacks.gradient import gradient_ascent
from casemate.logits import is_right
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.rng import Streams, derive
from casemate.types import Flags, Images, Labels

_STEPS = 10


def withstand(
    model: Classifier, images: Images, labels: Labels, balls: Sequence[Ball], *, seed: int, first: int = 0
) -> Flags:
    """Whether each image is classified correctly, itself and at every point that PGD visits in any of the balls.

    PGD makes 10 steps from one random start, with the model in evaluation mode.

    Args:
        seed: of the random starts.
        first: position of the first image in its data set, a key of its random start.
    """
    with frozen(model):
        with torch.no_grad():
            stands = is_right(model(images), labels)
        for number, ball in enumerate(balls):
            left = stands.nonzero().squeeze(1)
            if len(left) == 0:
                break
            loop = PGD(eps=ball.eps, norm=ball.norm, steps=_STEPS).loop()
            streams = Streams(derive(seed, "withstand", number), first + left)
            found = gradient_ascent(model, images[left].detach(), Misclassification(labels[left]), loop, streams)
            with torch.no_grad():
                fooled = found.fooled | ~is_right(model(found.images), labels[left])
            stands[left[fooled]] = False
    return stands
