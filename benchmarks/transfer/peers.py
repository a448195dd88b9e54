"""Do SI-NI-FGSM, TI-FGSM, VMI-FGSM and VNI-FGSM of torchattacks 3.5.1 make the same images as the parts of casemate?

`PYTHONPATH=src .venv-peers/bin/python benchmarks/transfer/peers.py` attacks a small random network in float64 with
both, and prints the largest difference of a pixel. Where torchattacks draws at random, casemate's draws are replaced by
the same ones. Exit code 1 if any difference is above 1e-6.
"""

import functools
from collections.abc import Callable

import torch
import torchattacks  # type: ignore[import-not-found]
from torch import Tensor, nn

from casemate.attacks import (
    MIFGSM,
    Nesterov,
    ScaledCopies,
    Transferable,
    TranslationKernel,
    VarianceTuning,
)
from casemate.attacks.parts import Part
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.rng import Streams

EPS, STEPS, SHAPE = 8 / 255, 10, (3, 12, 12)
_COMMON = {"eps": EPS, "alpha": EPS / STEPS, "steps": STEPS, "decay": 1.0}


def main() -> int:
    """Compare, print, and return the exit code."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(200, 4)).double()
    for parameter in network.parameters():
        parameter.data.mul_(4)
    model = Classifier(network, input_shape=SHAPE, classes=4).eval()
    images = torch.rand(20, *SHAPE, dtype=torch.float64)
    labels = model(images).argmax(1)
    smoothed = torchattacks.TIFGSM(network, **_COMMON, diversity_prob=0)
    smoothed.stacked_kernel = smoothed.stacked_kernel.double()
    kernel = TranslationKernel(size=15, sigma=7 / 3)
    pairs: dict[str, tuple[Callable[..., Tensor], tuple[Part, ...]]] = {
        "SI-NI-FGSM": (torchattacks.SINIFGSM(network, **_COMMON), (ScaledCopies(), Nesterov())),
        "TI-FGSM, diversity_prob=0": (smoothed, (kernel,)),
        "VMI-FGSM, same draws": (torchattacks.VMIFGSM(network, **_COMMON), (VarianceTuning(samples=5),)),
        "VNI-FGSM, same draws": (torchattacks.VNIFGSM(network, **_COMMON), (VarianceTuning(samples=5), Nesterov())),
    }
    worst = 0.0
    for name, (theirs, parts) in pairs.items():
        draws = torch.Generator().manual_seed(7)
        VarianceTuning.neighbour = functools.partialmethod(_as_torchattacks, draws)  # type: ignore[method-assign]
        inner = MIFGSM(eps=EPS, steps=STEPS, loss="torch-ce", keep="last")
        ours = Transferable(attack=inner, parts=parts)(model, images, labels).adversarial
        torch.manual_seed(7)
        difference = float((theirs(images, labels) - ours).abs().max())
        moved = float((ours - images).abs().max())
        worst = max(worst, difference)
        print(f"{name}: {difference:.2g} apart at most (perturbations of up to {moved:.4f})")
    return int(worst > 1e-6)


def _as_torchattacks(
    self: VarianceTuning, draws: torch.Generator, images: Tensor, ball: Ball, streams: Streams, *purpose: int | str
) -> Tensor:
    """A neighbour with the numbers that torchattacks draws, which makes normal ones before and does not use them."""
    del streams, purpose
    noise = torch.randn(images.shape, dtype=images.dtype, generator=draws)
    return images + noise.uniform_(-self.beta * ball.eps, self.beta * ball.eps, generator=draws)


if __name__ == "__main__":
    raise SystemExit(main())
