"""Taking a classifier apart: from its traced calls to operations that bounds pass through.

The normalisation of the classifier is included; a softmax or sigmoid at its end is left out, as the classifier itself
does, and one logit becomes two. A network in training mode is taken apart as it is for one batch (see
`casemate.certification.layers`).
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.utils import parametrize

from casemate.certification.builder import BatchSize, GraphBuilder, RefusedError, Value
from casemate.certification.executing import executed, executed_by_trace, first_difference
from casemate.certification.functions import FUNCTIONS
from casemate.certification.layers import LAYERS
from casemate.certification.operations import Dense, Reshape
from casemate.certification.propagation import OperationGraph
from casemate.certification.tracing import Whole, calls_of, classified, layers_of, unsupported
from casemate.errors import ModelError
from casemate.memory import is_out_of_memory
from casemate.models import Classifier
from casemate.models.state import restored
from casemate.rng import torch_forked
from casemate.types import Images, Logits

_SAME = 1e-2
"""Largest difference between the logits of the model and of its operations, relative to the image's largest logit."""
_COMPARED = 8
"""Images on which they are compared."""
_NEW_MEMORY = frozenset(
    {
        *(nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d),
        *(F.max_pool2d, torch.max_pool2d, F.avg_pool2d, torch.cat, operator.add, operator.sub, operator.mul),
        *(operator.truediv, torch.add, torch.sub, torch.mul, torch.div, torch.relu, "add", "sub", "mul", "div"),
    }
)
"""Layers, functions and methods whose result never shares memory with their input."""
_IN_PLACE = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv})
"""Functions that write into their first input; of those with an argument `inplace` see `_is_in_place`."""
_OVERWRITTEN = "it writes into a tensor that is used elsewhere; write inplace=False"


@final
@dataclass(frozen=True)
class TakenApart:
    """A model as operations, for a batch of images."""

    graph: OperationGraph
    logits: Logits
    """Of the images."""
    ending: str
    """softmax, log_softmax or sigmoid, if the model ends in one, which is left out; else ""."""
    calls: fx.Graph
    """The calls that the operations were made from."""


def take_apart(model: Classifier, images: Images, *, dtype: torch.dtype | None = None) -> TakenApart:
    """The operations of a model, and its logits for `images`, in the mode that the model is in; both differentiable.

    Args:
        model: its weights are converted to the type of the computation.
        images: `(n, channels, height, width)` within the model's bounds.
        dtype: type of the computation; that of the images if None.

    Raises:
        ModelError: a model with parts that there are no bounds for, or whose operations have other logits.
    """

    def check(calls: fx.Graph) -> None:
        _compare(model, calls, images[:_COMPARED])

    calls = calls_of(model, check)
    return _operations(model, calls, images.to(dtype or images.dtype))


def check_executed(model: Classifier, calls: fx.Graph, batches: Sequence[Images]) -> None:
    """Raise `ModelError` unless the model executes its traced calls, and nothing else, for batches of one shape.

    The model does not change.
    """
    with torch_forked(model.device), restored(model):
        try:
            expected = executed_by_trace(Whole(model), calls, _as_called(model, batches[0]))
        except Exception as error:  # such as for what TorchScript compiled, which the trace cannot call
            if is_out_of_memory(error):
                raise
            raise unsupported(
                "this model", f"its trace cannot be executed ({type(error).__name__}: {str(error).splitlines()[0]})"
            ) from error
        for batch in batches:
            found = executed(lambda images: classified(model, images), _as_called(model, batch), Whole(model))
            if (where := first_difference(found, expected)) is not None:
                raise ModelError(
                    f"the model executes other operations for its images than its code shows (the first is {where}): "
                    "its forward is random, keeps something between calls, depends on the images in Python code, or "
                    "computes in lower precision, as autocast does. Write that part without if and loops over values, "
                    "and without autocast"
                )


def _as_called(model: Classifier, images: Images) -> Images:
    """The images in the type of the model's weights, which some networks need."""
    return images if model.dtype is None else images.to(model.dtype)


def _compare(model: Classifier, calls: fx.Graph, images: Images) -> None:
    """Raise `ModelError` unless the operations compute the logits of the model, which does not change."""
    check_executed(model, calls, [images])
    with torch.no_grad(), torch_forked(model.device), restored(model):
        torch.manual_seed(0)
        found = _operations(model, calls, images).logits
        torch.manual_seed(0)  # dropout and noise are drawn in the same order
        expected = model(images)
    if not _is_same_function(expected, found):
        raise ModelError(
            "the operations found in the model compute other logits than the model: its forward depends on the images "
            "in Python code, keeps something between calls, or writes into a tensor that it uses again. Write such a "
            "part without that"
        )


def _is_same_function(expected: Logits, found: Logits) -> bool:
    """Whether two computations of logits agree up to rounding and one number per image, which no margin depends on.

    Images for which the expected logits are not finite do not count: nothing is claimed about them.
    """
    if expected.shape != found.shape:
        return False
    known = expected.isfinite().all(1)
    one, other = (each[known].double().log_softmax(1) for each in (expected, found))
    return bool(((one - other).abs() <= _SAME * one.abs().amax(1, keepdim=True)).all())


def _operations(model: Classifier, calls: fx.Graph, images: Images) -> TakenApart:
    """The operations for the calls of a model."""
    made = _Calls(model, images)
    for node in calls.nodes:
        made.add(node)
    graph = OperationGraph(tuple(made.builder.nodes))
    return TakenApart(graph=graph, logits=made.builder.values[-1], ending=made.ending, calls=calls)


@final
class _Calls:
    """Adds the operations of a model, call by call."""

    def __init__(self, model: Classifier, images: Images) -> None:
        self.builder = GraphBuilder(images, training=model.training)
        self.ending = ""
        self._model = model
        self._layers = layers_of(model)
        self._results: dict[fx.Node, Any] = {}

    def add(self, node: fx.Node) -> None:
        """Add the operations of one call."""
        match node.op:
            case "placeholder":
                result: Any = Value(0)
            case "get_attr":
                result = self._constant(str(node.target))
            case "output":
                self._end(node.args[0])
                return
            case "call_module":
                result = self._layer(str(node.target), node)
            case _:
                result = self._function(node)
        self._results[node] = result

    def _constant(self, name: str) -> Tensor:
        place, _, attribute = name.rpartition(".")
        return getattr(self._layers[place], attribute)

    def _resolved(self, given: Any) -> Any:
        return map_arg(given, lambda node: self._results[node])

    def _layer(self, name: str, node: fx.Node) -> Value | None:
        layer = self._layers[name]
        kind = parametrize.type_before_parametrizations(layer)
        shown = f"the layer {name.removeprefix('model.')} ({kind.__name__})"
        build = LAYERS.get(kind)
        given = self._resolved(node.args)
        if _is_ending(node, kind):
            self.ending = _ENDINGS[kind]
            return given[0]
        if kind in _ENDINGS and not node.users:
            return None
        if build is None:
            raise unsupported(shown)
        if len(given) != 1 or node.kwargs or not isinstance(given[0], Value):
            raise unsupported(shown, "it is called with more than one tensor")
        if getattr(layer, "inplace", False) and self._is_used_again(node):
            raise unsupported(shown, _OVERWRITTEN)
        return _naming(shown, lambda: build(self.builder, layer, given[0]))

    def _function(self, node: fx.Node) -> Any:
        target = node.target.strip("_") if isinstance(node.target, str) else node.target
        given, options = self._resolved(node.args), dict(self._resolved(node.kwargs))
        if not any(isinstance(each, Value) for each in _flat((given, options))):
            return _plain(node, given, options)
        if _is_ending(node, target):
            self.ending = _ENDINGS[target]
            kinds = {each for each in _flat((given, options)) if isinstance(each, torch.dtype)}
            if not kinds <= {torch.float32, torch.float64}:
                raise unsupported(f"a {self.ending} in {kinds.pop()}", "it rounds more than float32 does")
            return self._resolved(_first_input(node))
        if target in _ENDINGS and not node.users:
            return None
        shown = f"the call of {target if isinstance(target, str) else getattr(target, '__name__', target)}"
        if target not in FUNCTIONS:
            raise unsupported(shown)
        if _is_in_place(node) and self._is_used_again(node):
            raise unsupported(shown, _OVERWRITTEN)
        return _naming(shown, lambda: FUNCTIONS[target](self.builder, *given, **options))

    def _is_used_again(self, node: fx.Node) -> bool:
        """Whether something else uses the memory that a call writes into; the trace does not show that it changes."""
        place = _first_input(node)
        while isinstance(place, fx.Node):
            if len(place.users) > 1 or not node.users:
                return True
            layer = self._layers.get(str(place.target)) if place.op == "call_module" else None
            if (place.target if layer is None else parametrize.type_before_parametrizations(layer)) in _NEW_MEMORY:
                return False
            place = _first_input(place)
        return False

    def _end(self, output: Any) -> None:
        """Make the result the logits of the model."""
        found = self._results.get(output) if isinstance(output, fx.Node) else None
        if not isinstance(found, Value):
            raise unsupported(f"an output that is {type(output).__name__}", "let the network return the logits only")
        shape = tuple(self.builder.value(found).shape[1:])
        if self.ending == "sigmoid" and shape not in ((), (1,)):
            raise unsupported("a sigmoid of several classes at the end", "its results are equal where logits are large")
        if shape in ((), (1,)):
            if not shape:
                found = self.builder.add(Reshape((), (1,)), found)
            column = self.builder.values[0].new_tensor([[0.0], [1.0]])
            found = self.builder.add(Dense(column, None), found)
        if found.number != len(self.builder.values) - 1:
            same = tuple(self.builder.value(found).shape[1:])
            found = self.builder.add(Reshape(same, same), found)
        classes = self._model.interface["classes"]
        count = self.builder.value(found).shape[1:]
        if len(count) != 1 or (classes is not None and len(classes) != count[0]):
            raise unsupported(f"an output of shape (n, {', '.join(map(str, count))})", "one logit per class is needed")


def _first_input(node: fx.Node) -> Any:
    """What a call in place writes into; the result of another call may share its memory."""
    return node.args[0] if node.args else node.kwargs.get("input")


def _is_in_place(node: fx.Node) -> bool:
    """Whether a call of a function or method writes into its first input."""
    match node.target:
        case str(name):
            return name.endswith("_") and not name.startswith("_")
        case F.relu | F.leaky_relu | F.dropout:
            return bool(signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace", False))
        case _:
            return node.target in _IN_PLACE


def _naming(what: str, build: Callable[[], Any]) -> Any:
    """What `build` returns; an error in reading a call's arguments names the call."""
    try:
        return build()
    except (TypeError, AttributeError, IndexError) as error:
        raise unsupported(what, f"with these arguments ({error})") from error
    except RefusedError as error:
        raise unsupported(what, str(error)) from error


def _flat(given: Any) -> list[Any]:
    """All arguments inside tuples, lists and dictionaries."""
    if isinstance(given, dict):
        given = tuple(given.values())
    if isinstance(given, tuple | list):
        return [each for part in given for each in _flat(part)]
    return [given]


def _plain(node: fx.Node, given: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The result of a call whose arguments are no tensors of the images: sizes and their arithmetic."""
    if any(isinstance(each, BatchSize) for part in (given, options) for each in _flat(part)):
        is_lookup = node.target is operator.getitem
        if not is_lookup:
            raise unsupported("arithmetic with the number of images")
    if node.op != "call_function":
        raise unsupported(f"the call of {node.target}")
    return node.target(*given, **options)  # pyright: ignore[reportCallIssue]


_ENDINGS: Mapping[Any, str] = {
    **dict.fromkeys((nn.Softmax, F.softmax, torch.softmax, "softmax"), "softmax"),
    **dict.fromkeys((nn.LogSoftmax, F.log_softmax, torch.log_softmax, "log_softmax"), "log_softmax"),
    **dict.fromkeys((nn.Sigmoid, F.sigmoid, torch.sigmoid, "sigmoid"), "sigmoid"),
}
"""Layers, functions and methods that end a model, by what they compute."""


def _is_ending(node: fx.Node, kind: Any) -> bool:
    """Whether a call is a softmax over classes at the end of the model, which `Classifier` leaves out.

    A log-softmax too: it shifts all logits of an image by one number, which no margin and no cross-entropy shows. What
    margins show is the rounding of an ending (`TakenApart.ending`).
    """
    return kind in _ENDINGS and [user.op for user in node.users] == ["output"]
