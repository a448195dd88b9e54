"""A network whose passes a GPU replays: the same kernels on the same memory, without being told each one again.

Small networks spend most of their time on a GPU waiting for Python to ask for the next kernel. A CUDA graph holds all
kernels of a pass and is started as one; but it takes as many images each time, from the same place, and leaves what it
finds in the same place. So images are filled up to one of a few sizes, results are copied out, and before a way back
whose way forward has been overwritten since that one is gone again.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from casemate.memory import is_out_of_memory
from casemate.models.accel.equivalence import (
    TOLERANCE,
    answers,
    largest_difference,
    largest_difference_of_gradients,
    own_randomness,
)
from casemate.models.accel.pass_size import seconds_per_pass
from casemate.models.classifier import Classifier
from casemate.types import Images, Logits

SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Images of a pass; more of them go through the network as it is."""
_WARM_UP = 3
"""Passes before one is recorded, in which libraries choose their kernels."""
_WORTH = 1.1
"""How many times as fast an input gradient must be."""
_ASKED = 8
"""Times that a network must say the same."""


@runtime_checkable
class Recording(Protocol):
    """A pass over a number of images of one shape. What it returns lies in memory that the next call overwrites."""

    def forward(self, images: Images) -> Logits:
        """Return the logits."""
        ...

    def backward(self, gradient: Logits) -> Images:
        """Return the gradient to the images of the last pass forward; once for each."""
        ...


Record = Callable[[nn.Module, Images], Recording]
"""Records the passes of a network over images such as these. Recordings may share their memory."""


@final
class Replayed(nn.Module):
    """Does what a frozen network does, by replaying recorded passes; by the network itself where that fails.

    The network must do the same every time: no branches on what it sees, no state, no randomness. Only one thread may
    use it at a time.
    """

    def __init__(self, network: nn.Module, record: Record | None = None) -> None:
        super().__init__()
        self.network = network
        self.failed: str | None = None
        """Why nothing is recorded any more, if so."""
        self._record = record or RecordsCuda()
        self._sizes = SIZES
        self._recorded: dict[tuple[Any, ...], Recording] = {}
        self.turn = 0
        """Which pass forward the memory tells of."""

    def forward(self, images: Images) -> Logits:
        """Return logits `(n, classes)`."""
        size = next((size for size in self._sizes if size >= len(images)), None)
        if size is None or len(images) == 0 or self.failed is not None:
            return self.network(images)
        more = images[:1].detach().expand(size - len(images), *images.shape[1:])
        full = torch.cat([images, more]).contiguous(memory_format=torch.channels_last)
        key = (full.shape, full.dtype, full.device)
        if key not in self._recorded:
            try:
                self._recorded[key] = self._record(self.network, full.detach())
            except Exception as error:  # networks do what no graph can hold, memory ends
                if is_out_of_memory(error):
                    self._sizes = tuple(smaller for smaller in self._sizes if smaller < size)
                else:
                    self.failed = f"{type(error).__name__}: {error}"
        if key not in self._recorded:  # outside the handler, so that what the failed attempt held is gone
            return self.network(images)
        logits: Logits = _Replay.apply(full, self, self._recorded[key])  # pyright: ignore[reportAssignmentType]
        return logits[: len(images)]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, owner: Replayed, recording: Recording) -> Tensor:
        owner.turn += 1
        ctx.owner, ctx.turn, ctx.recording = owner, owner.turn, recording
        ctx.save_for_backward(images)
        return recording.forward(images).clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.turn != ctx.owner.turn:
            ctx.recording.forward(*ctx.saved_tensors)
        ctx.owner.turn += 1  # the way back overwrites what it has read
        return ctx.recording.backward(gradients[0]).clone(), None, None


def replaying(model: Classifier, images: Images, record: Record | None = None) -> Classifier | None:
    """Another view of a frozen model that replays its passes; None if it fails, answers otherwise, or is no faster.

    Args:
        images: a few, on which logits and gradients are compared.
        record: what records a pass; CUDA graphs if None.
    """
    replayed = Replayed(model.network, record)
    made = copy.copy(model)
    made._modules = {**model._modules, "network": replayed}
    images = images.to(model.device)
    try:
        with own_randomness(model):
            if not _steady(model, images):
                return None
            apart = 0.0
            for some in (images, images[: -(-2 * len(images) // 3)]):  # of a number that has to be filled up too
                expected, seen = (_with_gradient(each, some) for each in (model, made))
                apart = max(apart, largest_difference(expected[0], seen[0]))
                apart = max(apart, largest_difference_of_gradients(expected[1], seen[1]))
            gain = seconds_per_pass(model, images) / seconds_per_pass(made, images)
    except Exception:  # among others, a model that has no gradient
        return None
    return made if apart <= TOLERANCE and gain >= _WORTH and replayed.failed is None else None


@torch.no_grad()
def _steady(model: Classifier, images: Images) -> bool:
    """Whether it says the same whenever it is asked: a recording would repeat one draw of any other."""
    first = model(images)
    return all(largest_difference(first, model(images)) <= TOLERANCE for _ in range(_ASKED))


def _with_gradient(model: Classifier, images: Images) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the sum of their squares."""
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        logits = answers(model, leaf)
        (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), gradient


@final
class RecordsCuda:
    """Records CUDA graphs, which share their memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, network: nn.Module, images: Images) -> Recording:
        """Record the passes over images such as these, on a stream of their own."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        before, beside = torch.cuda.current_stream(images.device), torch.cuda.Stream(images.device)
        beside.wait_stream(before)
        # the stream is left again whatever happens, which `torch.cuda.graph` alone does not see to
        with torch.cuda.device(images.device), torch.cuda.stream(beside), torch.enable_grad():
            recording = _CudaRecording(network, images, self._pool, beside)
        before.wait_stream(beside)
        return recording


class _CudaRecording:
    """CUDA graphs of a pass forward and of the way back."""

    def __init__(self, network: nn.Module, images: Images, pool: Any, beside: torch.cuda.Stream) -> None:
        self._images = images.clone().requires_grad_(True)
        asked = torch.cuda.get_sync_debug_mode()
        try:
            for turn in range(_WARM_UP):
                if turn:  # what waits for the GPU cannot be recorded; better an error here than in the midst of it
                    torch.cuda.set_sync_debug_mode("error")
                logits = network(self._images)
                torch.autograd.grad(logits, self._images, torch.ones_like(logits))
                del logits  # its graph belongs to no recording
        finally:
            torch.cuda.set_sync_debug_mode(asked)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, pool=pool, stream=beside):
            self._logits = network(self._images)
        self._gradient = torch.zeros_like(self._logits)
        with torch.cuda.graph(self._backward, pool=pool, stream=beside):
            (self._found,) = torch.autograd.grad(self._logits, self._images, self._gradient)

    def forward(self, images: Images) -> Logits:
        """Copy the images to where the graph takes them; replay it."""
        with torch.no_grad():
            self._images.copy_(images)
        self._forward.replay()
        return self._logits.detach()

    def backward(self, gradient: Logits) -> Images:
        """The same on the way back."""
        self._gradient.copy_(gradient)
        self._backward.replay()
        return self._found
