"""The calls that a model makes for a batch of images, found by symbolic tracing (`torch.fx`) and kept per model.

A trace is one path through the model's code. Where the code does something else for other images, or writes into a
tensor that it uses again, the trace is not the model; `casemate.certification.taking_apart` compares the two.
"""

import operator
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from casemate.errors import ModelError
from casemate.models import Classifier
from casemate.models.accel.dropout import HashDropout
from casemate.models.accel.optimize import is_altered
from casemate.models.accel.relu_max_pool import ReLUMaxPool2d
from casemate.models.layers import NoiseLayer
from casemate.models.outputs import select_logits
from casemate.models.state import restored
from casemate.rng import torch_forked

SUPPORTED = (
    "Linear, Conv2d, BatchNorm1d, BatchNorm2d, ReLU, LeakyReLU (slope 0 to 1), MaxPool2d, AvgPool2d, "
    "AdaptiveAvgPool2d, Flatten, Dropout, Dropout2d, Identity, NoiseLayer, their functions in torch.nn.functional "
    "without weights, flatten, view, reshape, mean over height and width, the sum of two tensors, cat along dimension "
    "1, and sum, difference, product and quotient with constants"
)
"""What bounds can be computed for, in words, for errors."""

_OWN_LAYERS = (HashDropout, ReLUMaxPool2d, NoiseLayer)
_PREFIX = "model"
_Key = tuple[tuple[str, type[nn.Module], tuple[tuple[str, object], ...]], ...]
_KEPT = 8
"""Traces kept per model."""
_CHECK_EVERY = 64
"""A trace is compared with the model again after 1, 2, 4, ... uses, and then after as many."""
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
_DEEP, _LARGEST = 4, 64
"""Collections inside one another that are looked at for numbers and texts, and entries of one."""
_ALTERED = "it has hooks, or a forward of its own in place of that of its class, which the trace does not show"


@final
@dataclass
class _Kept:
    """A trace, and how often it was used."""

    graph: fx.Graph
    uses: int = 0


_traces: WeakKeyDictionary[Classifier, dict[_Key, _Kept]] = WeakKeyDictionary()


def unsupported(what: str, why: str = "") -> ModelError:
    """The error, to be raised by the caller, for a part of a model that there are no bounds for."""
    return ModelError(
        f"no bounds for {what}{why and f': {why}'}. They can be computed for {SUPPORTED}. Any network at all can be "
        "certified in l2 by randomised smoothing: `certify_smoothed` in Python, `casemate certify --smoothing` on the "
        "command line"
    )


def layers_of(model: Classifier) -> Mapping[str, nn.Module]:
    """The modules of a model by the names that its trace has for them."""
    return {f"{_PREFIX}.{name}" if name else _PREFIX: each for name, each in _modules(model)}


def calls_of(model: Classifier, check: Callable[[fx.Graph], None]) -> fx.Graph:
    """The trace of a model in the mode that it is in, the same one until layers, or numbers that they hold, change.

    `check` is called with a new trace, and raises if it is not the model; also with a known one from time to time,
    since code may depend on what the trace is not keyed by, such as random numbers. Raises `ModelError` for a model
    that cannot be traced.
    """
    if nn.modules.module._has_any_global_hook():
        raise unsupported("a model while hooks are registered for all modules", "remove them")
    key = tuple((name, type(each), _plain_attributes(each)) for name, each in _modules(model))
    known = _traces.setdefault(model, {})
    if len(known) == _KEPT and key not in known:  # a model may count its calls
        known.clear()
    found = known.pop(key, None) or _Kept(_trace(model))
    found.uses += 1
    if found.uses % _CHECK_EVERY == 0 or (found.uses < _CHECK_EVERY and found.uses.bit_count() == 1):
        check(found.graph)  # if it raises, whatever that is, the trace is not kept
    known[key] = found
    return found.graph


def forget_calls(model: Classifier) -> None:
    """Discard the traces of a model, since its code may depend on what its layers do not hold."""
    _traces.pop(model, None)


def calls_as_text(model: Classifier) -> str:
    """A text that is the same for models that compute the same but for their weights: all calls, and their layers."""
    calls, layers = _trace(model), layers_of(model)
    return "\n".join(
        [str(calls), *(repr(layers[str(each.target)]) for each in calls.nodes if each.op == "call_module")]
    )


def _plain_attributes(module: nn.Module) -> tuple[tuple[str, object], ...]:
    """The attributes that the module's code may branch on or compute with: its mode, and numbers and texts.

    Of a layer that is traced as one call only its mode, since the operations are built from what it holds then.
    """
    if _is_one_call(module):
        return ("training", module.training), ("altered", is_altered(module))
    return tuple((name, _hashable(value)) for name, value in vars(module).items())


def _hashable(value: Any, deep: int = _DEEP) -> object:
    """A number or a text with its type, or those inside collections and plain records; of anything else the type only.

    An object of another kind may count the calls, and be large; where its numbers matter, the repeated check shows it.
    """
    if isinstance(value, _PLAIN):
        return type(value), value
    if is_dataclass(value) or isinstance(value, SimpleNamespace | Namespace):
        value = vars(value) if hasattr(value, "__dict__") else {}
    if not deep or not isinstance(value, tuple | list | dict) or len(value) > _LARGEST:
        return type(value)
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return type(value), tuple((_hashable(name), _hashable(each, deep - 1)) for name, each in list(inside))


def _is_one_call(module: nn.Module) -> bool:
    kind = parametrize.type_before_parametrizations(module)
    return kind in _OWN_LAYERS or (kind.__module__.startswith("torch.nn") and kind is not nn.Sequential)


def _modules(model: Classifier) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


@final
class Whole(nn.Module):
    """A model inside another module, so that the model itself is called too."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.add_module(_PREFIX, model)
        self.training = model.training

    def forward(self, images: Any) -> Any:
        return self.get_submodule(_PREFIX)(images)


class _InPlaceProxy(fx.Proxy):
    """A tensor of a trace whose operators in place are traced as such; by default Python takes `x += y` as a sum."""

    def __iadd__(self, other: Any) -> Any:
        return self._written(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._written(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._written(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._written(operator.itruediv, other)

    def _written(self, by: Callable[..., Any], other: Any) -> Any:
        return self.tracer.create_proxy("call_function", by, (self, other), {})


@final
class _Tracer(fx.Tracer):
    """A tracer that stops at PyTorch's layers and those of casemate, and passes through a classifier by its fields."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return _is_one_call(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(m, Classifier):
            if is_altered(m):
                raise unsupported("the Classifier", _ALTERED)
            return super().call_module(m, partial(classified, m), args, kwargs)
        if _is_one_call(m) and is_altered(m):
            name = self.path_of_module(m).removeprefix(f"{_PREFIX}.")
            raise unsupported(f"the layer {name} ({type(m).__name__})", _ALTERED)
        return super().call_module(m, forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        is_kept = any(a is each for each in self.root.parameters()) or any(a is each for each in self.root.buffers())
        if isinstance(a, Tensor) and not is_kept:
            raise unsupported("a tensor that the model's forward makes", "register it as a buffer")
        return super().create_arg(a)


def classified(model: Classifier, images: Any) -> Any:
    """What a classifier does with images: normalisation, network, and the part of its output that is the logits.

    The images may be a placeholder of a trace; then a softmax that the network ends in is part of the result.
    """
    if callable(model.output):
        raise unsupported("a function given as output=", "let the network return the logits")
    scaled = images if model.mean is None or model.std is None else (images - model.mean) / model.std
    output = model.network(scaled)
    return output if isinstance(output, fx.Proxy) else select_logits(output, model.output)


def _trace(model: Classifier) -> fx.Graph:
    whole = Whole(model)
    with torch_forked(), torch.enable_grad(), restored(model):
        try:
            return _Tracer().trace(whole)
        except ModelError:
            raise
        except Exception as error:  # the model's own code runs on proxies, and may raise anything
            raise unsupported(
                "this model", f"its code cannot be traced ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            ) from error
