"""How many images to pass through a network at a time: measured, since it depends on the machine.

On a CPU a layer's output should still be in the cache when the next layer reads it; a GPU should be busy. Both show in
the time per image of an input gradient.
"""

import time

import torch

from casemate.models.classifier import Classifier
from casemate.types import Images

DEFAULT_PASS_SIZE = 128
"""The pass size where measuring would take longer than it saves; on CPUs and for small networks its time per image is
within a few per cent of the fastest one's."""
_SIZES = {"cpu": (16, 32, 64, 128, 256), "cuda": (64, 256, 1024, 4096)}
_GAIN = 0.97
"""A larger size must take at most this fraction of the time per image of the best smaller one."""
MEASURING_PASSES = 3 * sum(_SIZES["cpu"])
"""Number of input gradients, of one image each, that `fastest_pass_size` computes on a CPU."""


def fastest_pass_size(model: Classifier, images: Images) -> int:
    """The number of images per pass, out of a few, at which an input gradient takes the least time per image.

    A larger size must be at least 3 % faster. The default is returned if the model fails at the smallest one.

    Args:
        model: frozen, on its device.
        images: at least one, repeated as needed.
    """
    best, least = DEFAULT_PASS_SIZE, float("inf")
    for size in _SIZES["cuda" if model.device.type == "cuda" else "cpu"]:
        try:
            seconds = seconds_per_pass(model, images, size) / size
        except Exception:  # out of memory, or a failing model, which the attack reports
            break
        if seconds <= _GAIN * least:
            best, least = size, seconds
        if seconds * size > 2:  # a slow network: larger sizes would take too long to try
            break
    return best


def seconds_per_pass(model: Classifier, images: Images, size: int | None = None) -> float:
    """Seconds that an input gradient of `size` images together takes (default: the pass size), the best of three runs.

    The images are repeated as needed.
    """
    size = model.pass_size or DEFAULT_PASS_SIZE if size is None else size
    batch = images[torch.arange(size) % len(images)].to(model.device)
    return min(_seconds(model, batch) for _ in range(3))


def run_input_gradient(model: Classifier, images: Images) -> None:
    """Run one forward and backward pass and discard the gradient, for its duration or the error it raises."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        total = model(leaf).sum()
        if total.requires_grad:
            torch.autograd.grad(total, leaf, allow_unused=True)


def _seconds(model: Classifier, images: Images) -> float:
    start = time.perf_counter()
    run_input_gradient(model, images)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start
