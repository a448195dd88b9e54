"""The one thing that is attacked, defended and judged: a module mapping images within bounds to logits.

Here, and nowhere else, the user's own network is called. It is given images of its own, so that it may write into
them, in the layout and the type of number that it takes; what comes back is checked at every call, and is nobody's
memory but the caller's. A network that fails, or returns something else than one logit for each class, is refused with
one sentence that says what to write.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from casemate.errors import CasemateError, ModelError, ShapeError
from casemate.logits import difference, is_valid, magnitude
from casemate.memory import batched, is_out_of_memory
from casemate.models.answers import backward_failed, what_is_wrong
from casemate.models.state import preserve_state, restored
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import all_seeded
from casemate.types import Images, Logits

_SAME = 1e-3
"""Difference of logits, as a share of the largest, up to which two answers are the same but for rounding."""


@final
class _Habits:
    """What was found out about a network when it was first called."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """As before the first call."""
        self.known = False
        self.own_type = False
        """It takes images in the type of its weights only."""
        self.pairs = False
        """It fails on a single image, and is given that image twice."""
        self.recurrent: bool | None = None
        """It has a recurrent layer, which cuDNN differentiates in training mode only; None while that is not known."""
        self.functional = False
        """It writes in place where autograd does not allow it, and is differentiated with that taken out."""
        self.no_gradient: str | None = None
        """What to say when its gradient is asked for, if it fails then."""
        self.doubts: tuple[str, ...] = ()
        """Reasons, as sentences, why its answers are not those of one fixed function of an image."""


def _apart(logits: Logits, others: Logits) -> bool:
    """Whether two answers to the same images differ by more than rounding."""
    return not bool((difference(logits, others) <= _SAME * magnitude(others).clamp(min=1e-6)).all())


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
        self.observer: Observer = NULL_OBSERVER
        """Is told of that."""
        self.memory_format = torch.contiguous_format
        """In which layout the network is given images: the plain one, which all networks take."""
        self._habits = _Habits()
        self.register_buffer("mean", None if mean is None else torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Images) -> Logits:
        """Return logits `(n, classes)` of images `(n, channels, height, width)` within `bounds`.

        They are float32, or float64 for images in float64, whatever the network computes in. The first time that it is
        called in evaluation mode the network is examined (see `examine`).

        Raises:
            ModelError: the network fails, or returns something other than one logit per class.
        """
        if not (self._habits.known or self.training):
            self.examine(images)
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

    @torch.no_grad()
    def examine(self, images: Images) -> tuple[str, ...]:
        """Call the network with one image, with two, and with the first again, and for a gradient: can it be judged?

        Done once, in evaluation mode; the network and all random numbers are left as they were.

        Returns:
            sentences on what is doubtful: an answer that depends on what else is in the batch, or on the calls before.

        Raises:
            ModelError: as `forward`, be it for batches of one size only, or from the second call on.
        """
        if self._habits.known or isinstance(images, fx.Proxy) or not len(images):
            return self._habits.doubts
        self._habits.known = True
        pair = images[torch.arange(2) % len(images)].to(self.device)
        try:
            with preserve_state(self), restored(self):  # round all three, so that a state lives from one to the next
                alone, together, again = (self._first_answer(batch) for batch in (pair[:1], pair, pair[:1]))
        except Exception:
            self._habits.forget()
            raise
        self._try_gradient(pair)
        if not is_valid(alone).all():
            return ()
        if _apart(again, alone):
            self._habits.doubts = (
                "the network answers otherwise when it is called again with the same image and the same random "
                "numbers: it keeps a state from call to call",
            )
        elif not self._habits.pairs and _apart(together, alone) and not self._draws(pair[:1], alone):
            self._habits.doubts = (
                "the network gives an image other logits when another one is in its batch, as batch normalisation does "
                "in training mode",
            )
        return self._habits.doubts

    def _first_answer(self, images: Images, seed: int = 0) -> Tensor:
        """The logits of the first of a few images, from random numbers of their own; nothing remembers it."""
        with preserve_state(self), all_seeded(self.device, seed):
            return self._answer(images)[:1]

    def _draws(self, image: Images, before: Tensor) -> bool:
        """Whether the answer hangs on random numbers, so that a batch of two may get others than one image alone."""
        return _apart(self._first_answer(image, seed=1), before)

    def _try_gradient(self, pair: Images) -> None:
        """Ask for a gradient; if the network fails, once more with its writing in place taken out, and remember."""
        if any(each.is_inference() for each in chain(self.parameters(), self.buffers())):
            return  # it has to be copied first
        errors: list[Exception] = []
        for functional in (False, True):
            self._habits.functional = functional
            try:
                with preserve_state(self), restored(self), all_seeded(self.device, 0), torch.enable_grad():
                    leaf = pair.detach().requires_grad_(True)
                    logits = self._answer(leaf)
                    if logits.requires_grad:
                        torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
                return
            except Exception as error:
                if is_out_of_memory(error):
                    return
                errors.append(error)
        self._habits.functional = False
        first = errors[0]
        self._habits.no_gradient = str(first if isinstance(first, CasemateError) else backward_failed(first))

    def forget(self) -> None:
        """Examine the network anew when it is next called: it is another now."""
        self._habits = _Habits()

    @property
    def doubts(self) -> tuple[str, ...]:
        """What `examine` found doubtful; nothing before the first call."""
        return self._habits.doubts

    def _answer(self, images: Images) -> Logits:
        """The checked logits of images that pass through the network at once."""
        scaled = images if self.mean is None or self.std is None else (images - self.mean) / self.std
        try:
            logits = self._call(scaled)
        except Exception as error:
            if isinstance(error, CasemateError) or is_out_of_memory(error):
                raise
            logits = self._called_otherwise(scaled, error)
        if isinstance(logits, fx.Proxy):  # of a trace, which only looks at what is called
            return logits  # pyright: ignore[reportReturnType]
        wrong = what_is_wrong(logits, len(images), len(self.classes))
        if wrong is not None:
            raise ModelError(wrong)
        if logits.is_inference():
            logits = logits.clone()
        wanted = images.dtype if images.dtype == torch.float64 else torch.float32
        # a network may return what it will write into at its next call
        return logits.to(wanted, copy=not logits.requires_grad)

    def _call(self, images: Images) -> Any:
        """What the network returns for images of its own."""
        if self._habits.own_type and self.dtype is not None:
            images = images.to(self.dtype)
        if self._habits.pairs and len(images) == 1:
            return self._first_of(images)
        wanted = torch.is_grad_enabled() and images.requires_grad and not self.training
        if wanted and self._habits.no_gradient is not None:
            raise ModelError(self._habits.no_gradient)
        own = images.clone(memory_format=self.memory_format)
        enabled = torch.is_grad_enabled()
        try:
            with self._differentiable(own):
                if wanted and self._habits.functional:  # of a clone: what is written reaches the input too
                    return torch.func.functionalize(lambda each: self.network(each.clone()))(own)
                return self.network(own)
        finally:
            if torch.is_grad_enabled() != enabled:
                torch.autograd.set_grad_enabled(enabled)

    def _differentiable(self, images: Images) -> AbstractContextManager[object]:
        """Without cuDNN where it could not pass a gradient back through a recurrent layer."""
        if not (images.is_cuda and torch.is_grad_enabled() and not self.training):
            return nullcontext()
        if self._habits.recurrent is None:
            self._habits.recurrent = any(isinstance(module, nn.RNNBase) for module in self.network.modules())
        return torch.backends.cudnn.flags(enabled=False) if self._habits.recurrent else nullcontext()

    def _first_of(self, images: Images) -> Any:
        """The answer to the first of a pair of the same image."""
        logits = self._call(torch.cat([images, images]))
        return logits[:1] if isinstance(logits, Tensor) and logits.ndim else logits

    def _called_otherwise(self, images: Images, error: Exception) -> Any:
        """The answer of a network that does not take images as they come: in another type, or more than one.

        Raises `ModelError` from the first error if none of that helps.
        """
        ways = ["own_type"] if self.dtype not in (None, images.dtype) else []
        ways += ["pairs"] if len(images) == 1 else []
        for way in ways:
            before = getattr(self._habits, way)
            setattr(self._habits, way, True)
            try:
                return self._call(images)
            except Exception as another:
                if is_out_of_memory(another):
                    raise
                setattr(self._habits, way, before)
        raise ModelError(
            f"the model fails on a batch of shape {tuple(images.shape)}: {type(error).__name__}: {error}. Its forward "
            "must take any number of images, in evaluation mode, and keep nothing of them for the next call"
        ) from error

    @property
    def device(self) -> torch.device:
        """Where the weights lie (the CPU if there are none)."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the network's weights: of the first that are floating point; None if there are none."""
        tensors = chain(self.network.parameters(), self.network.buffers())
        return next((each.dtype for each in tensors if each.is_floating_point()), None)
