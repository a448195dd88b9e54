"""`Classifier`: the model that is attacked, defended and judged, a module from images within bounds to logits.

It is the only code that calls the user's network. The network gets a copy of the images, which it may write into, in
the layout and type that it accepts; the logits are taken from its output (see `casemate.models.outputs`), or from
before the softmax that it ends in (see `casemate.models.softmax`), checked at every call, and copied where the network
could change them later. A network that fails, or does not return one logit per class, raises an error that says what to
change.
"""

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from casemate.errors import CasemateError, ModelError, NoGradientError, ShapeError, kind_of
from casemate.memory import batched, is_out_of_memory
from casemate.models.examination import NetworkTraits, examine_ending, examine_gradient, examine_outputs
from casemate.models.output_errors import check_output, sigmoid_error
from casemate.models.outputs import Output, is_one_logit, select_logits, two_logits
from casemate.models.softmax import Ending, logits_before_ending
from casemate.models.state import frozen, is_in_training
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Images, Logits

PerChannel = float | Sequence[float] | Tensor | np.ndarray
"""Numbers for the channels of an image: one for all, or one each."""


@final
class Classifier(nn.Module):
    """A network with its input shape, bounds, classes and normalisation.

    Normalisation is part of the classifier, so that eps always refers to pixels within `bounds`. The network must
    return logits, or end in the softmax or sigmoid of them: the classifier then returns the logits before it, with the
    classes that the network predicts (see `ending`). One logit z per image, `(n, 1)` or `(n,)`, stands for two classes
    with the logits 0 and z: class 1 is predicted where z > 0, and the cross-entropy is the binary one of z.

    Args:
        network: maps normalised images `(n, channels, height, width)` to logits `(n, classes)`.
        input_shape: `(channels, height, width)` of one image; None for that of the first images it is called with.
        classes: the class names in the order of the logits, or their number, for the names "0", "1" and so on; None
            for as many as the network returns logits at its first call, or two for one logit.
        bounds: smallest and largest value of a pixel.
        mean, std: subtracted and divided by before the network: a number for all channels, or one per channel; None
            for no normalisation.
        output: which part of the network's output are the logits: an index, a key, the name of an attribute, or a
            function of the output that returns them. None for a tensor, or the only element of a tuple, or what is
            called `logits` (as in the outputs of Hugging Face's models). Without effect where the output is a tensor,
            except for a function.

    It is in training mode where the network is.

    Raises:
        ShapeError: settings that contradict each other, or of another kind.
    """

    mean: Float[Tensor, "1 channels 1 1"] | None
    std: Float[Tensor, "1 channels 1 1"] | None

    def __init__(
        self,
        network: nn.Module,
        *,
        input_shape: Sequence[int] | None = None,
        classes: int | Iterable[str] | None = None,
        bounds: Sequence[float] = (0.0, 1.0),
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        output: Output | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise ModelError(f"the network is {kind_of(network)}; expected an object of a torch.nn.Module")
        shape = None if input_shape is None else _shape(input_shape)
        names = None if classes is None else class_names(classes)
        self.bounds: tuple[float, float] = _bounds(bounds)
        means, stds = _normalisation(mean, std, None if shape is None else shape[0])
        self.network = network
        self.output = output
        """Which part of the network's output are the logits; None if that need not be said."""
        self.pass_size: int | None = None
        """Images that pass through the network at a time; None for all of them. Reduced when memory runs out."""
        self.observer: Observer = NULL_OBSERVER
        """Receives a message when `pass_size` is reduced."""
        self.memory_format: torch.memory_format = torch.contiguous_format
        """Memory layout of the images that the network gets; every network accepts the contiguous one."""
        self._given: tuple[tuple[int, ...] | None, tuple[str, ...] | None] = (shape, names)
        self._traits = NetworkTraits()
        here = None if self.device.type == "meta" else self.device
        self.register_buffer("mean", None if means is None else means.to(here))
        self.register_buffer("std", None if stds is None else stds.to(here))
        self.training = network.training and is_in_training(network)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(channels, height, width)` of one image.

        Raises `ModelError` if it was not given, and the model has not been called yet.
        """
        shape = self._given[0] or self._traits.input_shape
        if shape is None:
            raise ModelError(
                "the shape of the images is not known before the model is called for the first time; write "
                "Classifier(network, input_shape=(channels, height, width)), or call the model on a few images"
            )
        return shape

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the logits.

        Raises `ModelError` if neither they nor their number was given, and the model has not been called yet.
        """
        names = self._given[1] or self._traits.classes
        if names is None:
            raise ModelError(
                "the number of classes is not known before the model is called for the first time; write "
                "Classifier(network, classes=10) or classes=(...) with the names, or call the model on a few images"
            )
        return names

    def name_classes(self, names: Iterable[str]) -> None:
        """Give the classes names, in the order of the logits, in place of those they have.

        Raises `ShapeError` for another number of them than is known.
        """
        given, known = class_names(list(names)), self.interface["classes"]
        if known is not None and len(given) != len(known):
            raise ShapeError(f"{len(given)} names, but the model has {len(known)} classes; expected one for each")
        self._given = (self._given[0], given)

    @property
    def interface(self) -> dict[str, Any]:
        """The arguments `input_shape`, `classes` and `bounds` of a classifier with the same ones, as far as known."""
        shape, names = self._given
        found = self._traits
        return {
            "input_shape": shape or found.input_shape,
            "classes": names or found.classes,
            "bounds": self.bounds,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> "Classifier":
        """Copy network, weights and settings; the observer, which may hold locks or pipes, is shared.

        What a module keeps of its last call, such as its output, is copied without the graph that it came from, which
        PyTorch does not copy.
        """
        memo[id(self.observer)] = self.observer
        kept = [value for module in self.modules() for value in vars(module).values() if isinstance(value, Tensor)]
        memo |= {id(value): value.detach().clone() for value in kept if not value.is_leaf}
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

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode, or evaluation mode; the modules of torch.export, which have only one, keep it."""
        try:
            return super().train(mode)
        except NotImplementedError:
            for module in self.modules():
                module.training = mode
            return self

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

    def infer(self, images: Images) -> None:
        """Find out the shape of the images and the number of classes from a first batch, unless both are known.

        The model is called in evaluation mode and does not change. Raises as `examine`.
        """
        if None not in self.interface.values() or not len(images):
            return
        with frozen(self):
            self.examine(images[:2].detach().to(self.device))

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
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return self.inconsistencies  # in an export to ONNX, nothing can be restored
        if self._traits.examined or isinstance(images, fx.Proxy) or not len(images):
            return self.inconsistencies
        self._traits.examined = True
        pair = images[torch.arange(2) % len(images)].to(self.device)
        try:
            alone = examine_outputs(self, self._logits, pair, self._traits)
            examine_ending(self, self._output, pair, alone, self._traits)
            if self._traits.ending is not None:  # differences between logits are not seen in saturated probabilities
                examine_outputs(self, self._logits, pair, self._traits)
            examine_gradient(self, self._logits, pair, self._traits)
            if self._traits.ends_in_sigmoid:
                raise sigmoid_error()
        except Exception:
            # in place, since an outer `preserve_state` restores the attribute itself
            vars(self._traits).update(vars(NetworkTraits()))
            raise
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

    @property
    def ending(self) -> Ending | None:
        """The softmax or sigmoid that the network ends in, before which the logits are taken.

        None if there is none that can be taken off, or before `examine` was called.
        """
        return self._traits.ending

    def _logits(self, images: Images) -> Logits:
        """Normalise images, pass them through the network at once, and return checked logits as `forward` does."""
        logits = self._output(images)
        if isinstance(logits, fx.Proxy):  # while the model is traced
            return logits  # pyright: ignore[reportReturnType]
        self._check(logits, images)
        if logits.is_inference():
            logits = logits.clone()
        self._traits.one_logit = is_one_logit(logits, len(images))
        if self._traits.one_logit:
            logits = two_logits(logits)
        wanted = images.dtype if images.dtype == torch.float64 else torch.float32
        # copied, since the network may write into its output at its next call
        return logits.to(wanted, copy=not logits.requires_grad)

    def _output(self, images: Images) -> Any:
        """Normalise images, pass them through the network at once, and return its logits, unchecked."""
        scaled = images if self.mean is None or self.std is None else (images - self.mean) / self.std
        try:
            return self._call(scaled)
        except Exception as error:
            if isinstance(error, CasemateError) or is_out_of_memory(error):
                raise
            return self._retry(scaled, error)

    def _check(self, logits: Any, images: Images) -> None:
        """Raise `ModelError` unless `logits` are one per class; what is not known yet is set from the images and them.

        Raises `ShapeError` if mean and std are not for as many channels as the images have.
        """
        shape, names = self._given[0] or self._traits.input_shape, self._given[1] or self._traits.classes
        check_output(logits, len(images), None if names is None else len(names))
        if names is None:
            self._traits.classes = class_names(2 if is_one_logit(logits, len(images)) else logits.shape[1])
        if shape is None:
            for each in (self.mean, self.std):
                if each is not None and each.shape[1] not in (1, images.shape[1]):
                    raise ShapeError(
                        f"images of {images.shape[1]} channels, but mean and std of {each.shape[1]}; expected as many"
                    )
            self._traits.input_shape = tuple(images.shape[1:])

    def _call(self, images: Images) -> Any:
        """The logits in the network's output, unchecked, for a copy of the images, called as the traits require."""
        if self._traits.needs_own_dtype and self.dtype is not None:
            images = images.to(self.dtype)
        if self._traits.needs_pairs and len(images) == 1:
            logits = self._call(torch.cat([images, images]))
            return logits[:1] if isinstance(logits, Tensor) and logits.ndim else logits
        wanted = torch.is_grad_enabled() and images.requires_grad and not self.training
        if wanted and self._traits.gradient_error is not None:
            kind = NoGradientError if self._traits.is_black_box else ModelError
            raise kind(self._traits.gradient_error)
        own = images.clone(memory_format=self.memory_format)
        enabled = torch.is_grad_enabled()
        try:
            with self._without_cudnn_if_recurrent(own):
                if wanted and self._traits.needs_functionalization:  # of a clone, since writes reach the input too
                    return torch.func.functionalize(lambda each: self._passed(each.clone()))(own)
                return self._passed(own)
        finally:
            if torch.is_grad_enabled() != enabled:
                torch.autograd.set_grad_enabled(enabled)

    def _passed(self, images: Images) -> Any:
        """What of the network's output are the logits, or those before its ending; all of it while it is traced."""

        def call() -> Any:
            output = self.network(images)
            return output if isinstance(output, fx.Proxy) else select_logits(output, self.output)

        traced = isinstance(images, fx.Proxy)
        return call() if self._traits.ending is None or traced else logits_before_ending(call)

    def _without_cudnn_if_recurrent(self, images: Images) -> AbstractContextManager[object]:
        """A context that disables cuDNN where it cannot differentiate a recurrent layer: outside training mode."""
        if not (images.is_cuda and torch.is_grad_enabled() and not self.training):
            return nullcontext()
        if self._traits.recurrent is None:
            self._traits.recurrent = any(isinstance(module, nn.RNNBase) for module in self.network.modules())
        return _without_cudnn() if self._traits.recurrent else nullcontext()

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


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Without `torch.backends.cudnn.flags`, which fails where PyTorch's settings of precision contradict each other."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def numbered_classes(count: int) -> tuple[str, ...]:
    """The names of classes that were given none: "0", "1" and so on."""
    return tuple(map(str, range(count)))


def is_numbered(names: tuple[str, ...]) -> bool:
    """Whether classes have the names of `numbered_classes`."""
    return names == numbered_classes(len(names))


def _shape(given: Sequence[int]) -> tuple[int, ...]:
    """`input_shape` as whole numbers. Raises `ShapeError` unless they are three, all positive."""
    try:
        shape = tuple(operator.index(size) for size in given)
    except TypeError as error:
        raise ShapeError(f"input_shape = {given!r}; expected (channels, height, width)") from error
    if len(shape) != 3 or min(shape) < 1:
        raise ShapeError(f"input_shape = {given!r}; expected (channels, height, width), all positive")
    return shape


def class_names(given: int | Iterable[str]) -> tuple[str, ...]:
    """Names of classes, from themselves or their number. Raises `ShapeError` for anything else, or fewer than two."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        try:
            given = numbered_classes(operator.index(given))  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise ShapeError(f"classes = {given!r}; expected their number, or the names as a list or tuple") from error
    names = tuple(str(name) for name in given)
    if len(names) < 2:
        raise ShapeError(f"{len(names)} classes; expected at least 2")
    return names


def _bounds(given: Sequence[float]) -> tuple[float, float]:
    """`bounds` as two numbers. Raises `ShapeError` unless the first is the smaller one."""
    try:
        low, high = (float(each) for each in given)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"bounds {given!r}; expected the smallest and the largest value of a pixel") from error
    if not low < high:
        raise ShapeError(f"bounds {given}; expected the smaller one first")
    return low, high


def _normalisation(
    mean: PerChannel | None, std: PerChannel | None, channels: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """`mean` and `std` as tensors `(1, channels, 1, 1)`, or `(1, 1, 1, 1)` for all channels if not known how many.

    Raises `ShapeError` unless both or neither are given, with as many numbers as channels, and the std is positive.
    """
    if (mean is None) != (std is None):
        raise ShapeError("only one of mean and std is given; expected both or neither")
    if mean is None or std is None:
        return None, None
    try:
        found = [torch.as_tensor(each, dtype=torch.float64).cpu() for each in (mean, std)]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ShapeError(f"mean {mean!r} and std {std!r}; expected a number each, or one per channel") from error
    counts = {each.numel() for each in found if each.ndim}  # a number without dimensions is for all channels
    count = channels or max(counts, default=1)
    rows = [each.flatten() if each.ndim else each.expand(count) for each in found]
    if not counts <= {count}:
        raise ShapeError(f"mean {mean} and std {std}; expected {count} numbers each, one per channel")
    if not (rows[1] > 0).all():
        raise ShapeError(f"std {std}; expected positive numbers")
    means, stds = (row.to(torch.get_default_dtype(), copy=True).reshape(1, -1, 1, 1) for row in rows)
    return means, stds
