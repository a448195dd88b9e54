"""The frozen model: a copy of a classifier for attacking, with the same logits and less work.

What is changed in the copy, where it changes no logit:

- dropout is taken out, since in evaluation mode it does nothing;
- a batch norm that follows a convolution or a dense layer is folded into it, and one that a dense layer, or a
  convolution without zero padding, follows into that (behind zero padding it would shift the border too: such a one
  is left);
- a ReLU in front of a max-pooling goes behind it: the largest of several does not care, value and gradient are the
  same, and a quarter of the numbers are left to look at;
- a convolution of few channels passes its gradient back by one matrix product (`few_channels.py`);
- weights lie channels-last.

What follows what is found by tracing (`torch.fx`). The trace is only looked at and never run: layers are exchanged
inside the model, whose own code goes on calling them, so that branches, randomness and state stay what they are. Where
a part of a model cannot be traced, its parts are tried one by one; in the end a layer is left as it is.

The copy's logits are compared with the model's before it is used; see `Frozen.faithful`. It also knows how many images
should pass through it at a time.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from casemate.memory import batched
from casemate.models.classifier import Classifier
from casemate.models.few_channels import FewChannels, suits
from casemate.models.pass_size import DEFAULT, fastest_pass_size
from casemate.progress import SILENT, Observer
from casemate.types import Images

TOLERANCE = 1e-4
"""By how much a logit of the copy may differ, as a share of the largest logit of the images compared: some hundred
times what float32 rounds, and far below what an attack could make use of."""

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}
"""By layer, the batch norm over its channels."""
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


@final
@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A classifier, and the copy of it that attacks work on."""

    original: Classifier
    """As it was given; what is claimed of it is checked with it."""
    copy: Classifier
    """What is attacked; another view of the original where there is nothing to change, or no change can be used."""
    changes: dict[str, int] = field(default_factory=dict)
    """What was changed, and how often."""
    difference: float = 0.0
    """The largest difference of a logit, as a share of the largest one."""

    @property
    def checking(self) -> Classifier:
        """The original, asked about as many images at a time as the copy."""
        size = self.copy.pass_size or DEFAULT
        return as_it_is(self.original, size, self.copy.observer).copy

    @property
    def faithful(self) -> bool:
        """Whether the copy answered as the original did; where not, the original is attacked itself."""
        return self.difference <= TOLERANCE


def freeze(
    model: Classifier, images: Images, *, pass_size: int | None = DEFAULT, observer: Observer = SILENT
) -> Frozen:
    """Make the copy, and compare its logits with the model's on a few images.

    The model is left as it was. It has to be in the state in which it is to be attacked (`attacks.frozen`).

    Args:
        images: the first ones that will be attacked, `(n, channels, height, width)` within the bounds.
        pass_size: images that pass through the copy at a time; measured if None.
        observer: is told where that has to become smaller for want of memory.
    """
    found = as_it_is(model, pass_size or DEFAULT, observer)
    with torch.no_grad():
        found = _changed(found, images)
    if pass_size is None:
        found.copy.pass_size = fastest_pass_size(found.copy, images)
    return found


def as_it_is(model: Classifier, pass_size: int, observer: Observer = SILENT) -> Frozen:
    """The model and another view of the same layers and weights, with a pass size of its own."""
    same = copy.copy(model)
    same.pass_size, same.observer = pass_size, observer
    return Frozen(original=model, copy=same)


def _changed(given: Frozen, images: Images) -> Frozen:
    """The same with a copy, if there is anything to change and the copy answers as the model does."""
    try:
        made = copy.deepcopy(given.original)
    except Exception:  # a model may hold what cannot be copied; it is attacked as it is
        return given
    made.pass_size, made.observer = given.copy.pass_size, given.copy.observer
    made.requires_grad_(False)
    found = {
        "dropout removed": sum(_without_dropout(made)),
        **_rearranged(made),
        "convolution of few channels": sum(_narrow(made)),  # last: by then the batch norms behind it are folded
    }
    changes = {name: count for name, count in found.items() if count}
    if any(isinstance(module, nn.Conv2d | FewChannels) for module in made.modules()):
        made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        changes["channels-last"] = 1
    if not changes:
        return given
    model = given.original
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        difference = _difference(_answers(model, images), _answers(made, images))
    usable = made if difference <= TOLERANCE else given.copy
    return replace(given, copy=usable, changes=changes, difference=difference)


def _answers(model: Classifier, images: Images) -> Tensor:
    """Logits, from the same random numbers for every model."""
    torch.manual_seed(0)
    return torch.cat(batched(len(images), len(images), lambda part: model(images[part].to(model.device)))).double()


def _difference(expected: Tensor, seen: Tensor) -> float:
    """The largest difference as a share of the largest number; infinite where only one of two is finite."""
    if expected.shape != seen.shape or not torch.equal(expected.isfinite(), seen.isfinite()):
        return float("inf")
    known = expected.isfinite()
    if not known.any():
        return 0.0
    largest = expected[known].abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((expected[known] - seen[known]).abs().max() / largest)


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module below, with its parent and its name there."""
    for parent in model.modules():
        for name, child in parent.named_children():
            yield parent, name, child


def _plain(module: nn.Module) -> bool:
    """Whether nothing but its own code acts when it is called: no hooks, no parametrised weights."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and not parametrize.is_parametrized(module)


def _without_dropout(model: nn.Module) -> Iterator[int]:
    for parent, name, child in list(_children(model)):
        if type(child) in _DROPOUT and not child.training and _plain(child):
            setattr(parent, name, nn.Identity())
            yield 1


def _narrow(model: nn.Module) -> Iterator[int]:
    for parent, name, child in list(_children(model)):
        if isinstance(child, nn.Conv2d) and suits(child) and _plain(child):
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


def _rearranged(model: nn.Module) -> dict[str, int]:
    """Fold and exchange in place; what was done, and how often."""
    graph = _traced(model)
    if graph is None:
        total: dict[str, int] = {}
        for child in {id(child): child for child in model.children()}.values():
            for name, count in _rearranged(child).items():
                total[name] = total.get(name, 0) + count
        return total
    layers = _Layers(model, graph)
    return {
        "batch norm folded": sum(_folded(layers)),
        "ReLU behind pooling": sum(_pooled_first(layers)),
    }


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
        self._named[name] = layer

    def _alone(self, node: fx.Node) -> bool:
        """Whether it calls a plain layer that is called nowhere else."""
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return False
        layer = self._named[str(node.target)]
        same = [name for name, each in self._named.items() if each is layer]
        return len(same) == 1 and len(self._calls.get(id(layer), [node])) == 1 and _plain(layer)

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
            layers.put(first_name, nn.Identity())
            layers.put(second_name, nn.Sequential(second, nn.ReLU()))
            yield 1
