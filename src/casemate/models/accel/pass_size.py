"""How many images should pass through a network at a time: measured, since it hangs on the machine.

On a CPU what counts is that a layer's output still lies in the cache when the next layer reads it; on a GPU that
there is enough to do. Both show in the time that an input gradient takes per image.
"""

import time

import torch

from casemate.models.classifier import Classifier
from casemate.types import Images

DEFAULT_PASS_SIZE = 128
"""Where measuring would take longer than it saves: within some per cent of the fastest for small networks on CPUs."""
_SIZES = {"cpu": (16, 32, 64, 128, 256), "cuda": (64, 256, 1024, 4096)}
_GAIN = 0.97
"""A larger size must take at most this share of the time per image of the best smaller one."""
MEASURED_WITH = 3 * sum(_SIZES["cpu"])
"""Input gradients that measuring takes on a CPU."""


def fastest_pass_size(model: Classifier, images: Images) -> int:
    """The smallest of a few sizes at which an input gradient is about as fast as it gets.

    Args:
        model: frozen, on its device.
        images: at least one, repeated as needed.
    """
    best, least = DEFAULT_PASS_SIZE, float("inf")
    for size in _SIZES["cuda" if model.device.type == "cuda" else "cpu"]:
        try:
            seconds = seconds_per_pass(model, images, size) / size
        except Exception:  # no memory, or a model that fails: the attack deals with the one and tells of the other
            break
        if seconds <= _GAIN * least:
            best, least = size, seconds
        if seconds * size > 2:  # a slow network: that it is slow in large batches too need not be shown
            break
    return best


def seconds_per_pass(model: Classifier, images: Images, size: int | None = None) -> float:
    """What an input gradient of `size` images takes, those given repeated as needed: the least of three times."""
    size = model.pass_size or DEFAULT_PASS_SIZE if size is None else size
    batch = images[torch.arange(size) % len(images)].to(model.device)
    return min(_seconds(model, batch) for _ in range(3))


def ask_for_gradient(model: Classifier, images: Images) -> None:
    """Pass images forward and back once, for the time it takes or the error it raises."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        total = model(leaf).sum()
        if total.requires_grad:
            torch.autograd.grad(total, leaf, allow_unused=True)


def _seconds(model: Classifier, images: Images) -> float:
    start = time.perf_counter()
    ask_for_gradient(model, images)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start
