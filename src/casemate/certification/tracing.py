"""The calls that a model makes for a batch of images, found by symbolic tracing (`torch.fx`) and kept per model.

A trace is one path through the model's code. Where the code does something else for other images, or writes into a
tensor that it uses again, the trace is not the model; `casemate.certification.taking_apart` compares the two.
"""

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from casemate.errors import ModelError
from casemate.models import Classifier
from casemate.models.accel.dropout import HashDropout
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
_PLAIN = (bool, int, float, str, type(None))
_traces: WeakKeyDictionary[Classifier, dict[_Key, fx.Graph]] = WeakKeyDictionary()


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

    `check` is called with a new trace, and raises if it is not the model. Raises `ModelError` for a model that cannot
    be traced.
    """
    key = tuple((name, type(each), _plain_attributes(each)) for name, each in _modules(model))
    known = _traces.setdefault(model, {})
    if key not in known:
        if len(known) == _KEPT:  # a model may count its calls
            known.clear()
        graph = _trace(model)
        check(graph)
        known[key] = graph
    return known[key]


def forget_calls(model: Classifier) -> None:
    """Discard the traces of a model, since its code may depend on what its layers do not hold."""
    _traces.pop(model, None)


def _plain_attributes(module: nn.Module) -> tuple[tuple[str, object], ...]:
    """The attributes that the module's code may branch on or compute with: its mode, and numbers and texts.

    Of a layer that is traced as one call only its mode, since the operations are built from what it holds then.
    """
    if _is_one_call(module):
        return (("training", module.training),)
    return tuple((name, _hashable(value)) for name, value in vars(module).items())


def _hashable(value: Any) -> object:
    """A number or a text with its type, or those in a tuple or a list; the type only, of anything else."""
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_hashable, value))
    return (type(value), value) if isinstance(value, _PLAIN) else type(value)


def _is_one_call(module: nn.Module) -> bool:
    kind = parametrize.type_before_parametrizations(module)
    return kind in _OWN_LAYERS or (kind.__module__.startswith("torch.nn") and kind is not nn.Sequential)


def _modules(model: Classifier) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))


@final
class _Whole(nn.Module):
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
        return super().call_module(m, partial(_classified, m) if isinstance(m, Classifier) else forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        is_kept = any(a is each for each in self.root.parameters()) or any(a is each for each in self.root.buffers())
        if isinstance(a, Tensor) and not is_kept:
            raise unsupported("a tensor that the model's forward makes", "register it as a buffer")
        return super().create_arg(a)


def _classified(model: Classifier, images: Any) -> Any:
    """What a classifier does with images: normalisation, network, and the part of its output that is the logits."""
    if callable(model.output):
        raise unsupported("a function given as output=", "let the network return the logits")
    scaled = images if model.mean is None or model.std is None else (images - model.mean) / model.std
    output = model.network(scaled)
    return output if isinstance(output, fx.Proxy) else select_logits(output, model.output)


def _trace(model: Classifier) -> fx.Graph:
    whole = _Whole(model)
    with torch_forked(), torch.enable_grad(), restored(model):
        try:
            return _Tracer().trace(whole)
        except ModelError:
            raise
        except Exception as error:  # the model's own code runs on proxies, and may raise anything
            raise unsupported(
                "this model", f"its code cannot be traced ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
            ) from error
