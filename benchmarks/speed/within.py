"""What part of an attack's time goes into the network: into passes forward, and into passes back."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from casemate.models import Classifier


@dataclass
class Within:
    """Seconds of the processor inside the network, and images that passed forward."""

    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    forward: int = 0

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, with its seconds added to a field."""

        def run(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            found = function(*args, **options)
            setattr(self, name, getattr(self, name) + time.process_time() - start)
            return found

        return run


@contextmanager
def watched() -> Iterator[Within]:
    """Inside, every classifier's passes are timed, whoever asks for them and in whichever of PyTorch's two ways."""
    found = Within()
    answer = found.timed(Classifier._logits, "forward_seconds")

    def answered(model: Classifier, images: torch.Tensor) -> torch.Tensor:
        found.forward += len(images)
        return answer(model, images)

    with (
        patch.object(Classifier, "_logits", answered),
        patch.object(torch.autograd, "grad", found.timed(torch.autograd.grad, "backward_seconds")),
        patch.object(torch.Tensor, "backward", found.timed(torch.Tensor.backward, "backward_seconds")),
    ):
        yield found
