"""The divergence between two predictions, and the images in a ball that make it large.

Shared by objectives that compare the network's prediction on an adversarial image with another one: TRADES with its own
on the clean image, robust distillation with a teacher's, virtual adversarial training with that before a small step.
"""

import torch
import torch.nn.functional as F

from casemate.attacks import PGD, frozen
from casemate.attacks.differentiate import gradient_of
from casemate.models import Classifier, check_batch
from casemate.norms import Ball
from casemate.rng import Streams
from casemate.types import Images, Logits, PerExample


def divergence(target: Logits, logits: Logits) -> PerExample:
    """The Kullback-Leibler divergence of the softmax of `logits` from that of `target`, `(n,)`, in nats."""
    log = F.log_softmax(target, dim=1)
    probabilities = log.exp()
    # a class of probability zero contributes nothing; masked before the product, since otherwise its gradient would be
    # 0 * NaN
    gap = (log - F.log_softmax(logits, dim=1)).where(probabilities > 0, 0.0)
    return (probabilities * gap).sum(1)


def most_divergent(model: Classifier, clean: Images, target: Logits, pgd: PGD, start: Ball | None = None) -> Images:
    """Images in the ball of PGD round the clean ones, whose predictions it has moved away from `target`.

    The last iterates of projected gradient ascent on the divergence in place of PGD's loss, with the model in
    evaluation mode. They start from a random point of the ball `start` (PGD's own if None), for otherwise the gradient
    at the clean image may be exactly zero; PyTorch's global generator gives the seed. An image whose gradient is not
    finite stays as it is.
    """
    check_batch(model, clean)
    loop = pgd.loop()
    clean = clean.detach()
    streams = Streams(int(torch.randint(1 << 62, ())), torch.arange(len(clean), device=clean.device))
    moved = (start or loop.ball).sample(clean, model.bounds, streams, "start")
    with frozen(model), torch.enable_grad():
        for _ in range(loop.steps):
            moved.requires_grad_(True)
            gradient = gradient_of(divergence(target, model(moved)).sum(), moved)
            usable = gradient.flatten(1).isfinite().all(1).view(-1, 1, 1, 1)
            stepped = loop.ball.ascend(gradient.where(usable, 0.0), moved.detach(), clean, model.bounds, loop.step_size)
            moved = stepped.where(usable, moved.detach())
    return moved.detach()
