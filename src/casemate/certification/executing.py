"""Whether a model executes for given images what its trace says: the same operations, in the same types, on the same.

A trace shows one path through the model's code, for a placeholder in place of images. The code may do something else
for real ones, without any image showing it: compute in lower precision, draw random numbers, or change logits only in a
corner of the images' space. So what PyTorch executes for the model is recorded, with the type and shape of every tensor
and where it comes from, and compared with what it executes for the trace.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from casemate.types import Images

_COPIES = frozenset({"aten.clone.default", "aten.detach.default", "aten.alias.default", "aten.lift_fresh.default"})
"""Operations whose results hold the numbers of their input; what makes them differs between a model and its trace."""
_CAST = "aten._to_copy.default"

Executed = list[tuple[Any, ...]]
"""The operations in their order: name and arguments; a tensor is its type, its shape and where it comes from."""


def executed(run: Callable[[Images], Any], images: Images, module: nn.Module) -> Executed:
    """What PyTorch executes for `run(images)`, which uses the weights of `module`.

    The last entry is where the result comes from.
    """
    own = images.detach().clone()
    kept = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    origins = {id(own): "images", **{id(each): name for name, each in kept.items()}}
    with torch.enable_grad(), _without_autocast_cache(), _Recorder(origins) as seen:
        result = run(own)
    return [*seen.calls, ("result", seen.described(result))]


def executed_by_trace(whole: nn.Module, trace: fx.Graph, images: Images) -> Executed:
    """What PyTorch executes for the trace of the module `whole`."""
    return executed(lambda each: fx.Interpreter(whole, graph=trace).run(each), images, whole)


def first_difference(model: Executed, trace: Executed) -> str | None:
    """The operation by which what a model executes first differs from what its trace does; None for no difference."""
    if model == trace:
        return None
    place = next((n for n, (one, other) in enumerate(zip(model, trace, strict=False)) if one != other), -1)
    return str((model if len(model) >= len(trace) else trace)[place][0])


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """A cached weight is not cast again, so that the second of two runs would execute less than the first."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@final
class _Recorder(TorchDispatchMode):
    """Records operations while it is entered."""

    def __init__(self, origins: Mapping[int, str]) -> None:
        super().__init__()
        self.calls: Executed = []
        self._origins = dict(origins)
        self._kept: list[Any] = []  # so that no other tensor gets the id of one of them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made, name = func(*args, **kwargs), str(func)
        results = [each for each in tree_flatten(made)[0] if isinstance(each, Tensor)]
        self._kept += results
        is_cast = name == _CAST and made.dtype == args[0].dtype and made.device == args[0].device
        if name in _COPIES or is_cast:
            self._origins[id(made)] = self._origins.get(id(args[0]), "elsewhere")
            return made
        self.calls.append((name, self.described(args), self.described(kwargs)))
        self._origins |= {id(each): f"{len(self.calls)}.{number}" for number, each in enumerate(results)}
        return made

    def described(self, given: Any) -> Any:
        """Arguments as they are compared."""
        return str(tree_map(self._one, given))

    def _one(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            return str(given.dtype), tuple(given.shape), self._origins.get(id(given), "elsewhere")
        return type(given).__name__ if isinstance(given, torch.Generator) else given
