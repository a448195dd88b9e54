"""The softmax or sigmoid at the end of a network, and the logits before it.

A softmax saturates: where the network is confident, its output rounds to 1 and has no gradient. Its input has the same
largest class and saturates nowhere. The network is called as it is, while the calls of softmax and sigmoid inside it
are recorded with their inputs (`torch.overrides`); where the output is such a result, or one only rearranged or copied,
the input, rearranged in the same way, stands for it. Python sees no calls inside TorchScript and compiled modules, and
an average of several softmaxes is none: there the output stays as it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Ending = Literal["softmax", "sigmoid"]
"""A function at the end of a network that turns logits into probabilities, and keeps their order."""

_ENDINGS: dict[str, Ending] = {"softmax": "softmax", "sigmoid": "sigmoid", "expit": "sigmoid"}
"""By PyTorch's name of the function, without underscores, variant and the prefix "special"."""
_COPYING = frozenset(
    {"to", "float", "double", "half", "bfloat16", "type", "type_as", "cpu", "cuda", "clone", "contiguous", "to_copy"}
)
"""Names of functions that return the numbers of their first argument, perhaps of another type or on another device."""
_REARRANGING = frozenset(
    {"view", "reshape", "flatten", "squeeze", "unsqueeze", "getitem", "select", "permute", "transpose", "movedim", "t"}
)
"""Names of functions that return the numbers of their first argument in another shape or order."""
_ROUNDING = 16
"""Largest difference between a network's output and the softmax or sigmoid of the logits found, in units of the
rounding error of 1."""


def find_ending(network: nn.Module, call: Callable[[], Any]) -> Ending | None:
    """The function that a network ends in, if it is seen, and if the output is what it makes of the logits before it.

    Args:
        network: calls of compiled modules in it are not seen.
        call: passes a few images through the network once, and returns the output `(n, classes)`, or one number each.
    """
    if _is_compiled(network.modules()):
        return None
    output, found = _call(call)
    if found is None:
        return None
    logits, rounding = found.logits.double(), max(torch.finfo(each.dtype).eps for each in (output, found.logits))
    if found.ending == "softmax" and _is_one_number(output):
        return None  # a softmax over one class is always 1
    expected = logits.softmax(1) if found.ending == "softmax" else logits.sigmoid()
    same = (output.double() - expected).abs() <= _ROUNDING * rounding
    return found.ending if same.all() else None


def logits_before_ending(call: Callable[[], Any]) -> Any:
    """What `call` returns, or, if that is the result of a softmax or sigmoid, the logits before it.

    `call` passes images through a network. The logits are float32 or float64. Their predicted classes are those of the
    output: where probabilities round to a tie, the logit of the class that the output predicts is raised to the
    largest.
    """
    output, found = _call(call)
    return output if found is None else _predicting_as(output, found.logits)


@final
@dataclass(frozen=True)
class _Found:
    """The logits that a softmax or sigmoid was computed from, in the shape of its result."""

    ending: Ending
    logits: Tensor
    versions: tuple[int, int]
    """The `_version` of result and logits: how often they had been written into."""

    def is_current(self, result: Tensor) -> bool:
        """Whether neither the result nor the logits were written into since."""
        return self.versions == (_version(result), _version(self.logits))


@final
class _Recorder(TorchFunctionMode):
    """A context that records the result and the input of every softmax and sigmoid, as long as the result exists."""

    def __init__(self) -> None:
        super().__init__()
        self._found = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, and record its result if it is that of a softmax or sigmoid, or such a result rearranged."""
        del types
        kwargs = kwargs or {}
        called = getattr(func, "__name__", "").split(".")[0].removeprefix("special_")
        name, in_place = called.strip("_"), called.endswith("_") and not called.endswith("__")
        given = args[0] if args else kwargs.get("input")
        if in_place and name in _ENDINGS and isinstance(given, Tensor):
            given = given.clone()  # it is overwritten
        result = func(*args, **kwargs)
        if not (isinstance(given, Tensor) and isinstance(result, Tensor)) or result is given:
            return result
        found = self.of(given)
        if name in _ENDINGS and found is None:  # the softmax of a softmax is not one of logits
            self._record(result, _ENDINGS[name], given)
        elif found is not None and name in _COPYING:
            self._record(result, found.ending, found.logits.to(result.device))
        elif found is not None and name in _REARRANGING:  # contiguous, as the result may be where the logits are not
            self._record(result, found.ending, func(found.logits.contiguous(), *args[1:], **kwargs))
        return result

    def of(self, output: Any) -> _Found | None:
        """What is known of a network's output; None if it is not the result of a softmax or sigmoid."""
        found = self._found.get(output) if isinstance(output, Tensor) else None
        return found if found is not None and found.is_current(output) else None

    def _record(self, result: Tensor, ending: Ending, logits: Tensor) -> None:
        self._found[result] = _Found(ending, logits, (_version(result), _version(logits)))


def _call(call: Callable[[], Any]) -> tuple[Any, _Found | None]:
    """What `call` returns, and the logits that it is the softmax or sigmoid of, if it is."""
    with _Recorder() as recorder:
        output = call()
    found = recorder.of(output)
    return output, found if found is not None and found.logits.shape == output.shape else None


def _version(tensor: Tensor) -> int:
    """How often a tensor was written into; 0 for one of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _is_compiled(modules: Iterable[nn.Module]) -> bool:
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules)


def _is_one_number(output: Tensor) -> bool:
    """Whether a network's output is one number per image, `(n, 1)` or `(n,)`."""
    return output.ndim < 2 or output.shape[1] == 1


def _predicting_as(output: Tensor, logits: Tensor) -> Tensor:
    """A copy of the logits that predicts the classes that the output predicts.

    Where it would predict others, since probabilities round to ties, the logit of the output's class becomes the
    largest, or the only logit 0. The gradient is that of the logits.
    """
    made = (logits if logits.dtype == torch.float64 else logits.float()).clone()
    known, predicted, limits = made.detach(), output.detach(), torch.finfo(made.dtype)
    if _is_one_number(output):
        second = predicted > 0.5
        differs, wanted = second != (known > 0), second.to(made.dtype) * limits.tiny
    else:
        chosen, largest = predicted.argmax(1, keepdim=True), known.amax(1, keepdim=True)
        differs = torch.zeros_like(known, dtype=torch.bool).scatter(1, chosen, chosen != known.argmax(1, keepdim=True))
        wanted = largest + largest.abs() * limits.eps + limits.tiny  # the next larger number, or the one after
    # not in place: within `torch.func.functionalize` that would cut off the gradient
    return torch.where(differs, wanted + (made - known), made)
