"""Less work for the same logits: what is exchanged in a copy of a network, and how it is found.

What follows what is found by tracing (`torch.fx`). The trace is only looked at and never run: layers are exchanged
inside the model, whose own code goes on calling them, so that branches, randomness and state stay what they are. Where
a part of a model cannot be traced, its parts are tried one by one; in the end a layer is left as it is.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from casemate.models.accel import few_channels, pooled
from casemate.models.accel.dense_on_maps import DenseOnMaps
from casemate.models.accel.dropout import QuickDropout
from casemate.models.accel.few_channels import FewChannels

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, QuickDropout)
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
"""By layer, the batch norm over its channels."""
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)

WITHOUT_WEIGHTS = (nn.Dropout, nn.Identity, nn.ReLU, *_POOLS, QuickDropout, pooled.RectifiedPool)
"""What `quicken` exchanges, and for what."""

_OVERWRITTEN = (*_NORMS, *set(_NORMS.values()), *_POOLS, DenseOnMaps)
"""Layers whose own output they do not need for their gradient."""


def lighten(model: nn.Module) -> Counter[str]:
    """Rearrange a frozen network in place; what was done, and how often."""
    done = Counter({"dropout removed": sum(_without_dropout(model))})
    done.update(_rearranged(model, _STEPS))
    done["convolution of few channels"] = sum(_narrow(model))  # last: by then the batch norms behind it are folded
    if any(isinstance(module, nn.Conv2d | FewChannels) for module in model.modules()):
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        done["channels-last"] = 1
    return +done


def quicken(model: nn.Module) -> None:
    """Rearrange a network that is trained, in place: only layers without weights are exchanged."""
    for parent, name, child in list(_children(model)):
        if type(child) is nn.Dropout and not child.inplace and _plain(child):
            setattr(parent, name, QuickDropout(child))
    _rearranged(model, {"ReLU behind pooling": _pooled_first, "pooling with ReLU": _rectified})


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module below, with its parent and its name there."""
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks on, or takes part, when it is called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _plain(module: nn.Module) -> bool:
    """Whether nothing but its own code acts when it is called: no hooks, no parametrised weights."""
    return not hooked(module) and not parametrize.is_parametrized(module)


def _without_dropout(model: nn.Module) -> Iterator[int]:
    for parent, name, child in list(_children(model)):
        if type(child) in _DROPOUT and not child.training and _plain(child):
            setattr(parent, name, nn.Identity())
            yield 1


def _narrow(model: nn.Module) -> Iterator[int]:
    for parent, name, child in list(_children(model)):
        if isinstance(child, nn.Conv2d) and few_channels.suits(child) and _plain(child):
            setattr(parent, name, FewChannels(child))
            yield 1


class _Tracer(fx.Tracer):
    """Looks into modules that hold others; a layer of whatever kind is a leaf."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del module_qualified_name
        return next(m.children(), None) is None


def _traced(model: nn.Module) -> fx.Graph | None:
    """The graph of a model, or None if it cannot be traced; its random numbers and the caller's are left alone."""
    with torch.random.fork_rng(devices=[]):
        try:
            return _Tracer().trace(model)
        except Exception:  # a trace runs the model's own code on stand-ins, which may raise anything
            return None


def _rearranged(model: nn.Module, steps: Mapping[str, Callable[["_Layers"], Iterator[int]]]) -> Counter[str]:
    """Fold and exchange in place, step by step; what was done, and how often."""
    graph = _traced(model)
    if graph is None:
        done: Counter[str] = Counter()
        for child in {id(child): child for child in model.children()}.values():
            done.update(_rearranged(child, steps))
        return done
    layers = _Layers(model, graph)
    return Counter({about: sum(step(layers)) for about, step in steps.items()})


class _Layers:
    """Pairs of layers of which the second alone takes what the first gives, every time either is called."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model = model
        self._calls: dict[int, list[fx.Node]] = {}
        named = dict(model.named_modules(remove_duplicate=False))
        for node in graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(id(named[str(node.target)]), []).append(node)
        self._named = named
        self._known_as = Counter(id(module) for module in named.values())
        self._replaced: list[nn.Module] = []  # kept, since another layer could come by the identity of one that is gone
        self._graph = graph

    def pairs(self) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
        """Names and layers, first and second. Identities between them do not count."""
        for node in self._graph.nodes:
            following = self._next(node)
            if self._alone(node) and following is not None and self._alone(following):
                first, second = str(node.target), str(following.target)
                yield first, self._named[first], second, self._named[second]

    def put(self, name: str, layer: nn.Module) -> None:
        """Exchange a layer."""
        parent, _, own = name.rpartition(".")
        setattr(self.model.get_submodule(parent), own, layer)
        self._replaced.append(self._named[name])
        self._known_as[id(self._named[name])] -= 1
        self._named[name] = layer
        self._known_as[id(layer)] += 1

    def _alone(self, node: fx.Node) -> bool:
        """Whether it calls a plain layer that is called nowhere else."""
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return False
        layer = self._named[str(node.target)]
        return self._known_as[id(layer)] == 1 and len(self._calls.get(id(layer), [node])) == 1 and _plain(layer)

    def _next(self, node: fx.Node) -> fx.Node | None:
        """The call that alone takes what this one gives."""
        while len(node.users) == 1:
            (following,) = node.users
            if following.op != "call_module" or following.args != (node,):
                return None
            if not isinstance(self._named[str(following.target)], nn.Identity):
                return following
            node = following
        return None


def _fixed(norm: nn.Module) -> bool:
    """Whether a batch norm is a fixed scale and shift: in evaluation mode, with averages of its own."""
    return not norm.training and getattr(norm, "running_mean", None) is not None


def _folded(layers: _Layers) -> Iterator[int]:
    """Batch norms into the layer before or behind."""
    for first_name, first, second_name, second in layers.pairs():
        if type(second) is _NORMS.get(type(first)) and _fixed(second):
            fuse: Any = fuse_linear_bn_eval if type(first) is nn.Linear else fuse_conv_bn_eval
            layers.put(first_name, fuse(first, second))
            layers.put(second_name, nn.Identity())
            yield 1
    for first_name, first, second_name, second in layers.pairs():
        if type(first) is _NORMS.get(type(second)) and _fixed(first) and not _zero_padded(second):
            layers.put(second_name, _behind(first, second))
            layers.put(first_name, nn.Identity())
            yield 1


def _zero_padded(layer: nn.Module) -> bool:
    """Whether it puts zeros round its input, which a shift before it would not reach."""
    padding = getattr(layer, "padding", 0)
    none = padding in (0, "valid") or (isinstance(padding, tuple) and not any(padding))
    return not none and getattr(layer, "padding_mode", "zeros") == "zeros"


def _behind(norm: Any, layer: Any) -> nn.Module:
    """The layer that does what the norm and then `layer` do."""
    made = copy.deepcopy(layer)
    ones = torch.ones_like(norm.running_var)
    scale = (ones if norm.weight is None else norm.weight) / torch.sqrt(norm.running_var + norm.eps)
    shift = (0 * ones if norm.bias is None else norm.bias) - norm.running_mean * scale
    groups = getattr(layer, "groups", 1)
    # weights are (outputs, inputs of a group, places ...); the outputs of each group see their own inputs
    per_group = made.weight.view(groups, made.weight.shape[0] // groups, *made.weight.shape[1:])
    factor = scale.view(groups, 1, -1, *[1] * (made.weight.ndim - 2))
    offset = (per_group * shift.view_as(factor)).flatten(2).sum(2).flatten()
    made.weight = nn.Parameter((per_group * factor).view_as(made.weight), requires_grad=False)
    made.bias = nn.Parameter(offset if layer.bias is None else layer.bias + offset, requires_grad=False)
    return made


def _pooled_first(layers: _Layers) -> Iterator[int]:
    """ReLU and then a max-pooling: the other way round."""
    for first_name, first, second_name, second in layers.pairs():
        if type(first) is nn.ReLU and type(second) in _POOLS and not getattr(second, "return_indices", False):
            layers.put(first_name, second)
            layers.put(second_name, nn.ReLU(inplace=True))
            yield 1


def _rectified(layers: _Layers) -> Iterator[int]:
    """A max-pooling over 2 x 2 and then a ReLU: one layer."""
    for first_name, first, second_name, second in layers.pairs():
        if pooled.suits_pooling(first) and type(second) is nn.ReLU:
            layers.put(first_name, nn.Identity())
            layers.put(second_name, pooled.RectifiedPool())
            yield 1


def _pooled(layers: _Layers) -> Iterator[int]:
    """A convolution of few channels and then such a pooling: one layer."""
    for first_name, first, second_name, second in layers.pairs():
        if pooled.suits_convolution(first) and type(second) is pooled.RectifiedPool:
            layers.put(first_name, nn.Identity())
            layers.put(second_name, pooled.PooledFewChannels(FewChannels(first)))
            yield 1


def _unflattened(layers: _Layers) -> Iterator[int]:
    """A flattening of all but the first dimension and then a dense layer: one layer."""
    for first_name, first, second_name, second in layers.pairs():
        if type(first) is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1) and type(second) is nn.Linear:
            layers.put(first_name, nn.Identity())
            layers.put(second_name, DenseOnMaps(second))
            yield 1


def _overwriting(layers: _Layers) -> Iterator[int]:
    """A ReLU in the place of what a layer before it gives to it alone."""
    for _, first, second_name, second in layers.pairs():
        if type(first) in _OVERWRITTEN and type(second) is nn.ReLU and not second.inplace:
            layers.put(second_name, nn.ReLU(inplace=True))
            yield 1


_STEPS = {
    "batch norm folded": _folded,
    "ReLU behind pooling": _pooled_first,
    "pooling with ReLU": _rectified,
    "convolution with pooling": _pooled,
    "dense layer on maps": _unflattened,
    "ReLU in place": _overwriting,
}
"""What is done in a frozen copy, in this order."""
