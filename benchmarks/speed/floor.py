"""The limit of the machine: how fast it multiplies matrices, and what that makes of a network's arithmetic."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from casemate.models import Classifier


def gemm_rate(threads: int, size: int = 1536, seconds: float = 1.5, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations per second of a matrix product, of float32 or `dtype`: the best of several."""
    torch.set_num_threads(threads)
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def macs(model: Classifier) -> int:
    """Multiplications with addition of one image's pass forward, in convolutions and dense layers."""
    total, image = 0, torch.zeros(1, *model.input_shape)
    with torch.no_grad():
        model.eval()(image)  # the first pass is more than one, since it examines the model

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return total


def share_of_floor(row: dict[str, Any], forward: int, rate: float) -> float:
    """Seconds that the arithmetic of the passes counted would take alone, over those measured.

    A pass back costs as many operations as one forward (the weights need no gradient).
    """
    passes = row["passes"]
    return 2 * forward * (passes["forward"] + passes["backward"]) / rate / row["seconds"]
