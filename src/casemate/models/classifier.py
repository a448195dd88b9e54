"""`Classifier`: the model that is attacked, defended and judged, a module from images within bounds to logits.

It is the only code that calls the user's network. The network gets a copy of the images, which it may write into, in
the layout and type that it accepts; its output is checked at every call, and copied where the network could change it
later. A network that fails, or does not return one logit per class, raises an error that says what to change.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from casemate.errors import CasemateError, ModelError, ShapeError
from casemate.memory import batched, is_out_of_memory
from casemate.models.examination import NetworkTraits, examine_gradient, examine_outputs
from casemate.models.output_errors import check_output
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Images, Logits


@final
class Classifier(nn.Module):
    """A network with its input shape, bounds, classes and normalisation.

    Normalisation is part of the classifier, so that eps always refers to pixels within `bounds`. The network must
    return logits, not probabilities.

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
            raise ShapeError(f"{len(classes)} classes; expected at least 2")
        if not bounds[0] < bounds[1]:
            raise ShapeError(f"bounds {bounds}; expected the smaller one first")
        if (mean is None) != (std is None):
            raise ShapeError("only one of mean and std is given; expected both or neither")
        if mean is not None and std is not None:
            if not len(mean) == len(std) == input_shape[0]:
                raise ShapeError(f"mean {mean} and std {std}; expected {input_shape[0]} numbers each, one per channel")
            if min(std) <= 0:
                raise ShapeError(f"std {std}; expected positive numbers")
        self.network = network
        self.input_shape: tuple[int, ...] = tuple(input_shape)
        self.classes: tuple[str, ...] = tuple(classes)
        self.bounds: tuple[float, float] = (float(bounds[0]), float(bounds[1]))
        self.pass_size: int | None = None
        """Images that pass through the network at a time; None for all of them. Reduced when memory runs out."""
        self.observer: Observer = NULL_OBSERVER
        """Receives a message when `pass_size` is reduced."""
        self.memory_format: torch.memory_format = torch.contiguous_format
        """Memory layout of the images that the network gets; every network accepts the contiguous one."""
        self._traits = NetworkTraits()
        self.register_buffer("mean", None if mean is None else torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.tensor(std).view(1, -1, 1, 1))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Classifier":
        """Copy network, weights and settings; the observer, which may hold locks or pipes, is shared."""
        memo[id(self.observer)] = self.observer
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__dict__, memo))
        return made

    def forward(self, images: Images) -> Logits:
        """Return logits `(n, classes)` of images `(n, channels, height, width)` within `bounds`.

        They are float32, or float64 for float64 images, whatever the network computes in. The first call in evaluation
        mode examines the network (see `examine`).

        Raises:
            ModelError: the network fails, or returns something other than one logit per class.
        """
        if not (self._traits.examined or self.training):
            self.examine(images)
        if torch.is_grad_enabled():  # gradients are computed in parts by the caller, so that only one graph is kept
            return self._logits(images)
        (logits,) = self.in_parts(len(images), lambda part: (self._logits(images[part]),))
        return logits

    def in_parts(self, count: int, work: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Call `work` with slices of `count` images, at most `pass_size` long, and concatenate the results, `(n, ...)`.

        Raises `MachineError` if memory does not suffice for one image.
        """
        if self.pass_size is None or count == 0:
            return work(slice(0, count))
        passes = -(-count // self.pass_size)  # of equal size: a small last one takes as long as a full one
        parts = batched(count, -(-count // passes), work, self.observer, shrunk=self._shrink)
        return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _shrink(self, size: int) -> None:
        self.pass_size = size

    @torch.no_grad()
    def examine(self, images: Images) -> tuple[str, ...]:
        """Call the network with the first two images, in evaluation mode, to find out whether and how it can be judged.

        It can if its outputs are those of one fixed function of an image. Only the first call of this method does so.
        The network and all random numbers are restored; see `casemate.models.examination`.

        Returns:
            sentences on inconsistencies: outputs that depend on the rest of the batch, or on earlier calls.

        Raises:
            ModelError: as `forward`, also if it fails only for one batch size, or only from the second call on.
        """
        if self._traits.examined or isinstance(images, fx.Proxy) or not len(images):
            return self.inconsistencies
        self._traits.examined = True
        pair = images[torch.arange(2) % len(images)].to(self.device)
        try:
            examine_outputs(self, self._logits, pair, self._traits)
        except Exception:
            # in place, since an outer `preserve_state` restores the attribute itself
            vars(self._traits).update(vars(NetworkTraits()))
            raise
        examine_gradient(self, self._logits, pair, self._traits)
        return self.inconsistencies

    def forget(self) -> None:
        """Discard what `examine` found, so that the next call examines the network again, because it was replaced."""
        self._traits = NetworkTraits()

    @property
    def inconsistencies(self) -> tuple[str, ...]:
        """Sentences on why the outputs are not those of one fixed function of an image, as `examine` found them.

        Empty if there is no reason, or before `examine` was called.
        """
        return self._traits.inconsistencies

    def _logits(self, images: Images) -> Logits:
        """Normalise images, pass them through the network at once, and return checked logits as `forward` does."""
        scaled = images if self.mean is None or self.std is None else (images - self.mean) / self.std
        try:
            logits = self._call(scaled)
        except Exception as error:
            if isinstance(error, CasemateError) or is_out_of_memory(error):
                raise
            logits = self._retry(scaled, error)
        if isinstance(logits, fx.Proxy):  # while the model is traced
            return logits  # pyright: ignore[reportReturnType]
        check_output(logits, len(images), len(self.classes))
        if logits.is_inference():
            logits = logits.clone()
        wanted = images.dtype if images.dtype == torch.float64 else torch.float32
        # copied, since the network may write into its output at its next call
        return logits.to(wanted, copy=not logits.requires_grad)

    def _call(self, images: Images) -> Any:
        """The network's output, not checked yet, for a copy of the images, called as the traits require."""
        if self._traits.needs_own_dtype and self.dtype is not None:
            images = images.to(self.dtype)
        if self._traits.needs_pairs and len(images) == 1:
            logits = self._call(torch.cat([images, images]))
            return logits[:1] if isinstance(logits, Tensor) and logits.ndim else logits
        wanted = torch.is_grad_enabled() and images.requires_grad and not self.training
        if wanted and self._traits.gradient_error is not None:
            raise ModelError(self._traits.gradient_error)
        own = images.clone(memory_format=self.memory_format)
        enabled = torch.is_grad_enabled()
        try:
            with self._without_cudnn_if_recurrent(own):
                if wanted and self._traits.needs_functionalization:  # of a clone, since writes reach the input too
                    return torch.func.functionalize(lambda each: self.network(each.clone()))(own)
                return self.network(own)
        finally:
            if torch.is_grad_enabled() != enabled:
                torch.autograd.set_grad_enabled(enabled)

    def _without_cudnn_if_recurrent(self, images: Images) -> AbstractContextManager[object]:
        """A context that disables cuDNN where it cannot differentiate a recurrent layer: outside training mode."""
        if not (images.is_cuda and torch.is_grad_enabled() and not self.training):
            return nullcontext()
        if self._traits.recurrent is None:
            self._traits.recurrent = any(isinstance(module, nn.RNNBase) for module in self.network.modules())
        return torch.backends.cudnn.flags(enabled=False) if self._traits.recurrent else nullcontext()

    def _retry(self, images: Images, error: Exception) -> Any:
        """Call a network that failed with `error` again: with images of its weights' type, or a single image twice.

        The setting that works is kept in the traits. Raises `ModelError` from the first error if neither does.
        """
        traits = ["needs_own_dtype"] if self.dtype not in (None, images.dtype) else []
        traits += ["needs_pairs"] if len(images) == 1 else []
        for trait in traits:
            before = getattr(self._traits, trait)
            setattr(self._traits, trait, True)
            try:
                return self._call(images)
            except Exception as another:
                if is_out_of_memory(another):
                    raise
                setattr(self._traits, trait, before)
        raise ModelError(
            f"the model fails on a batch of shape {tuple(images.shape)}: {type(error).__name__}: {error}. Its forward "
            "must accept any number of images, in evaluation mode, and keep nothing of them for the next call"
        ) from error

    @property
    def device(self) -> torch.device:
        """Device of the weights (the CPU if there are none)."""
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the network's first floating-point weights; None if there are none."""
        tensors = chain(self.network.parameters(), self.network.buffers())
        return next((each.dtype for each in tensors if each.is_floating_point()), None)
