"""Optimisations that replace layers of a network in place without changing its logits, and how they are found.

Which layer follows which is found by tracing (`torch.fx`). The trace is only read, never run: layers are replaced
inside the model, whose own code goes on calling them, so that branches, randomness and state are kept. Where a model
cannot be traced, its children are tried one by one; what cannot be traced at all stays unchanged.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from casemate.models.accel.channels_last_linear import ChannelsLastLinear
from casemate.models.accel.dropout import HashDropout
from casemate.models.accel.relu_max_pool import (
    ReLUMaxPool2d,
    SmallInputConvPool,
    can_fuse_convolution,
    is_2x2_pooling,
)
from casemate.models.accel.small_input_conv import SmallInputConv, is_small_input_conv
from casemate.rng import torch_forked

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, HashDropout)
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
"""For each kind of layer, the kind of batch norm that can be folded into it."""
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)

WITHOUT_WEIGHTS = (nn.Dropout, nn.Identity, nn.ReLU, *_POOLS, HashDropout, ReLUMaxPool2d)
"""Layers without weights, the only ones that `optimize_for_training` may replace or insert."""

_OVERWRITTEN = (*_NORMS, *set(_NORMS.values()), *_POOLS, ChannelsLastLinear)
"""Layers whose backward pass does not need their output, so that a ReLU may overwrite it."""


def optimize_for_inference(model: nn.Module) -> Counter[str]:
    """Optimise a frozen network in place, and return how often each change was made, by its name."""
    done = Counter({"dropout removed": sum(_remove_dropout(model))})
    done.update(_apply(_STEPS, model))
    # last, when the batch norms after it are folded
    done["convolution of few channels"] = sum(_replace_small_input_convs(model))
    if any(isinstance(module, nn.Conv2d | SmallInputConv) for module in model.modules()):
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        done["channels-last"] = 1
    return +done


def optimize_for_training(model: nn.Module) -> None:
    """Optimise a network that is being trained, in place; only layers without weights are replaced."""
    for parent, name, child in list(_children(model)):
        if type(child) is nn.Dropout and not child.inplace and _is_plain(child):
            setattr(parent, name, HashDropout(child))
    _apply({"ReLU behind pooling": _pool_before_relu, "pooling with ReLU": _fuse_pool_and_relu}, model)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every submodule, with its parent and its name in the parent."""
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def is_altered(module: nn.Module) -> bool:
    """Whether a module may compute something else than its class does: it has hooks, or a `forward` of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is that of its class, and has no parametrised weights."""
    return not is_altered(module) and not parametrize.is_parametrized(module)


def _remove_dropout(model: nn.Module) -> Iterator[int]:
    for parent, name, child in list(_children(model)):
        if type(child) in _DROPOUT and not child.training and _is_plain(child):
            setattr(parent, name, nn.Identity())
            yield 1


def _replace_small_input_convs(model: nn.Module) -> Iterator[int]:
    for parent, name, child in list(_children(model)):
        if is_small_input_conv(child) and _is_plain(child):
            setattr(parent, name, SmallInputConv(child))
            yield 1


class _Tracer(fx.Tracer):
    """A tracer that enters every module with submodules; a module without any is a leaf of the graph."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return next(m.children(), None) is None


def _trace(model: nn.Module) -> fx.Graph | None:
    """The graph of a model, or None if it cannot be traced; PyTorch's random state is restored."""
    with torch_forked():
        try:
            return _Tracer().trace(model)
        except Exception:  # the user's own code runs on proxies, and may raise anything
            return None


def _apply(steps: Mapping[str, Callable[["_Layers"], Iterator[int]]], model: nn.Module) -> Counter[str]:
    """Run the optimisations `steps`, in order and in place, and count the changes by name.

    A step yields 1 for each change. In a model that cannot be traced, they are run on each of its children.
    """
    graph = _trace(model)
    if graph is None:
        done: Counter[str] = Counter()
        for child in {id(child): child for child in model.children()}.values():
            done.update(_apply(steps, child))
        return done
    layers = _Layers(model, graph)
    return Counter({name: sum(step(layers)) for name, step in steps.items()})


class _Layers:
    """The layers of a traced model, for replacing pairs of layers where one feeds only the other."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model = model
        self._calls: dict[int, list[fx.Node]] = {}
        named = dict(model.named_modules(remove_duplicate=False))
        for node in graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(id(named[str(node.target)]), []).append(node)
        self._named = named
        self._name_count = Counter(id(module) for module in named.values())
        self._replaced: list[nn.Module] = []  # kept alive, so that no new layer gets the `id` of one of them
        self._graph = graph

    def pairs(self) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
        """Names and layers of which the first's output is the second's only input and used nowhere else.

        Both are plain and called once; `nn.Identity` between them is skipped.
        """
        for node in self._graph.nodes:
            following = self._only_user(node)
            if self._is_single_call(node) and following is not None and self._is_single_call(following):
                first, second = str(node.target), str(following.target)
                yield first, self._named[first], second, self._named[second]

    def put(self, name: str, layer: nn.Module) -> None:
        """Replace the layer called `name`."""
        self.model.set_submodule(name, layer)
        self._replaced.append(self._named[name])
        self._name_count[id(self._named[name])] -= 1
        self._named[name] = layer
        self._name_count[id(layer)] += 1

    def _is_single_call(self, node: fx.Node) -> bool:
        """Whether a node calls a plain layer, with one argument, that is called nowhere else."""
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return False
        layer = self._named[str(node.target)]
        return self._name_count[id(layer)] == 1 and len(self._calls.get(id(layer), [node])) == 1 and _is_plain(layer)

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        """The layer call that alone uses a node's output, past any `nn.Identity`; None if there is no such call."""
        while len(node.users) == 1:
            (following,) = node.users
            if following.op != "call_module" or following.args != (node,):
                return None
            if not isinstance(self._named[str(following.target)], nn.Identity):
                return following
            node = following
        return None


def _is_affine(norm: nn.Module) -> bool:
    """Whether a batch norm is a fixed scale and shift: in evaluation mode, with running statistics."""
    return not norm.training and getattr(norm, "running_mean", None) is not None


def _fold_batch_norm(layers: _Layers) -> Iterator[int]:
    """Fold batch norms into the layer before or after; yield 1 for each."""
    for first_name, first, second_name, second in layers.pairs():
        if type(second) is _NORMS.get(type(first)) and _is_affine(second):
            fuse: Any = fuse_linear_bn_eval if type(first) is nn.Linear else fuse_conv_bn_eval
            layers.put(first_name, fuse(first, second))
            layers.put(second_name, nn.Identity())
            yield 1
    for first_name, first, second_name, second in layers.pairs():
        if type(first) is _NORMS.get(type(second)) and _is_affine(first) and not _zero_padded(second):
            layers.put(second_name, _with_norm_before(first, second))
            layers.put(first_name, nn.Identity())
            yield 1


def _zero_padded(layer: nn.Module) -> bool:
    """Whether a layer pads its input with zeros, to which a batch norm before it is not applied."""
    padding = getattr(layer, "padding", 0)
    none = padding in (0, "valid") or (isinstance(padding, tuple) and not any(padding))
    return not none and getattr(layer, "padding_mode", "zeros") == "zeros"


def _with_norm_before(norm: Any, layer: Any) -> nn.Module:
    """A copy of `layer` with the batch norm before it folded in."""
    made = copy.deepcopy(layer)
    ones = torch.ones_like(norm.running_var)
    scale = (ones if norm.weight is None else norm.weight) / torch.sqrt(norm.running_var + norm.eps)
    shift = (0 * ones if norm.bias is None else norm.bias) - norm.running_mean * scale
    groups = getattr(layer, "groups", 1)
    # weights are (outputs, inputs of a group, kernel ...), and each group has inputs of its own
    per_group = made.weight.view(groups, made.weight.shape[0] // groups, *made.weight.shape[1:])
    factor = scale.view(groups, 1, -1, *[1] * (made.weight.ndim - 2))
    offset = (per_group * shift.view_as(factor)).flatten(2).sum(2).flatten()
    made.weight = nn.Parameter((per_group * factor).view_as(made.weight), requires_grad=False)
    made.bias = nn.Parameter(offset if layer.bias is None else layer.bias + offset, requires_grad=False)
    return made


def _pool_before_relu(layers: _Layers) -> Iterator[int]:
    """Swap every ReLU and the max-pooling after it; yield 1 for each pair."""
    for first_name, first, second_name, second in layers.pairs():
        if type(first) is nn.ReLU and type(second) in _POOLS and not getattr(second, "return_indices", False):
            layers.put(first_name, second)
            layers.put(second_name, nn.ReLU(inplace=True))
            yield 1


def _fuse_pool_and_relu(layers: _Layers) -> Iterator[int]:
    """Fuse every 2 x 2 max-pooling and the ReLU after it; yield 1 for each pair."""
    for first_name, first, second_name, second in layers.pairs():
        if is_2x2_pooling(first) and type(second) is nn.ReLU:
            layers.put(first_name, nn.Identity())
            layers.put(second_name, ReLUMaxPool2d())
            yield 1


def _fuse_conv_and_pool(layers: _Layers) -> Iterator[int]:
    """Fuse every small-input convolution and the `ReLUMaxPool2d` after it; yield 1 for each pair."""
    for first_name, first, second_name, second in layers.pairs():
        if can_fuse_convolution(first) and type(second) is ReLUMaxPool2d:
            layers.put(first_name, nn.Identity())
            layers.put(second_name, SmallInputConvPool(SmallInputConv(first)))
            yield 1


def _fuse_flatten_and_linear(layers: _Layers) -> Iterator[int]:
    """Fuse every flattening of all dimensions but the first and the dense layer after it; yield 1 for each pair."""
    for first_name, first, second_name, second in layers.pairs():
        if type(first) is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1) and type(second) is nn.Linear:
            layers.put(first_name, nn.Identity())
            layers.put(second_name, ChannelsLastLinear(second))
            yield 1


def _relu_in_place(layers: _Layers) -> Iterator[int]:
    """Let every ReLU overwrite its input where the layer before does not need it; yield 1 for each."""
    for _, first, second_name, second in layers.pairs():
        if type(first) in _OVERWRITTEN and type(second) is nn.ReLU and not second.inplace:
            layers.put(second_name, nn.ReLU(inplace=True))
            yield 1


_STEPS = {
    "batch norm folded": _fold_batch_norm,
    "ReLU behind pooling": _pool_before_relu,
    "pooling with ReLU": _fuse_pool_and_relu,
    "convolution with pooling": _fuse_conv_and_pool,
    "dense layer on maps": _fuse_flatten_and_linear,
    "ReLU in place": _relu_in_place,
}
"""The optimisations of a frozen copy, by name and in the order in which they are made."""
