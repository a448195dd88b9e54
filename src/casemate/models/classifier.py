"""The one thing that is attacked, defended and judged: a module mapping images within bounds to logits."""

from collections.abc import Callable
from itertools import chain
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from casemate.errors import ShapeError
from casemate.memory import batched
from casemate.progress import SILENT, Observer
from casemate.types import Images, Logits


@final
class Classifier(nn.Module):
    """A network with what an attack must know of it: input shape, bounds, classes, normalisation.

    Normalisation lives inside, so that eps always means pixels within `bounds`. The network must return
    logits, not probabilities.

    Args:
        network: maps normalised images `(n, channels, height, width)` to logits `(n, classes)`.
        input_shape: `(channels, height, width)` of one image.
        classes: the class names, in the order of the logits.
        bounds: smallest and largest value of a pixel.
        mean, std: per channel, subtracted and divided by before the network; None for no normalisation.

    Raises:
        ShapeError: settings that contradict each other.
    """

    mean: Float[Tensor, "1 channels 1 1"] | None
    std: Float[Tensor, "1 channels 1 1"] | None

    def __init__(
        self,
        network: nn.Module,
        *,
        input_shape: tuple[int, int, int],
        classes: tuple[str, ...],
        bounds: tuple[float, float] = (0.0, 1.0),
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        if len(classes) < 2:
            raise ShapeError(f"{len(classes)} classes; a classifier tells at least 2 apart")
        if not bounds[0] < bounds[1]:
            raise ShapeError(f"bounds {bounds}: the lower must lie below the upper")
        if (mean is None) != (std is None):
            raise ShapeError("a mean without a std, or the reverse: give both or neither")
        if mean is not None and std is not None:
            if not len(mean) == len(std) == input_shape[0]:
                raise ShapeError(
                    f"mean {mean} and std {std} for {input_shape[0]} channels: one number per channel each"
                )
            if min(std) <= 0:
                raise ShapeError(f"std {std}: every entry must be positive")
        self.network = network
        self.input_shape = tuple(input_shape)
        self.classes = tuple(classes)
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.pass_size: int | None = None
        """Images that pass through the network at a time; None for all that are given. It grows smaller where the
        memory does not hold them."""
        self.observer: Observer = SILENT
        """Is told of that."""
        self.register_buffer("mean", None if mean is None else torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Images) -> Logits:
        """Return logits `(n, classes)` of images `(n, channels, height, width)` within `bounds`."""
        if torch.is_grad_enabled():  # whoever differentiates goes part by part itself, to keep only one part's graph
            return self._answer(images)
        (logits,) = self.in_parts(len(images), lambda part: (self._answer(images[part]),))
        return logits

    def in_parts(self, count: int, work: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `work` returns for `count` images, `(n, ...)` each, done for as many at a time as `pass_size` says.

        Raises `MachineError` if the memory does not hold one image.
        """
        if self.pass_size is None or count == 0:
            return work(slice(0, count))
        passes = -(-count // self.pass_size)  # of equal size: a last one of a few images is as slow as a whole one
        parts = batched(count, -(-count // passes), work, self.observer, shrunk=self._shrink)
        return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _shrink(self, size: int) -> None:
        self.pass_size = size

    def _answer(self, images: Images) -> Logits:
        if self.mean is not None and self.std is not None:
            images = (images - self.mean) / self.std
        logits = self.network(images)
        # losses of logits in half precision would be in half precision too; what is not a tensor is told of elsewhere
        half = isinstance(logits, Tensor) and logits.dtype in (torch.bfloat16, torch.float16)
        return logits.float() if half else logits

    @property
    def device(self) -> torch.device:
        """Where the weights lie (the CPU if there are none)."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device
