"""Contexts that restore a user's network, the global random generators and PyTorch's global settings at the end.

A network is the user's own code. It may write into its buffers, count its calls, keep its inputs, draw random numbers
or disable autograd. All of that is as before when the context ends, even by an exception.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from casemate.float32_precision import read_float32_precision, set_float32_precision
from casemate.rng import all_forked, derive, seed_all

_Restore = Callable[[], object]

_DEPTH = 3
"""Nesting depth of lists and dictionaries in a module's attributes up to which their contents are restored."""
_preserved: ContextVar[frozenset[int] | None] = ContextVar(
    "ids of the modules that outer contexts restore", default=None
)
_Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How a global setting is read, and how it is set."""
_NUMERIC: tuple[_Setting, ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (read_float32_precision, set_float32_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *(
        (partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name))
        for name in ("enabled", "benchmark", "deterministic")
    ),
)
"""PyTorch's global settings on which the bits of a result depend, without the number of threads."""
_SETTINGS: tuple[_Setting, ...] = (
    *_NUMERIC,
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.autograd.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
)
"""All global settings of PyTorch that a network's code might change."""


@contextmanager
def preserve_state(*models: nn.Module, seed: int | None = None, trained: nn.Module | None = None) -> Iterator[bool]:
    """Restore the models and all global state at the end; autograd works inside, even within inference mode.

    Nested contexts restore only modules that no outer one does, so that within an evaluation a network that changes
    from call to call still shows it. Yields whether this is the outermost context, that is, whether the user called
    the function that opened it.

    Args:
        models: every module in them is restored: parameters, buffers, attributes.
        seed: of PyTorch's, NumPy's and Python's global generators, in the outermost context; None leaves their state.
        trained: a model that training changes; neither this context nor a nested one restores it.
    """
    before = _preserved.get()
    known = before or frozenset()
    new = {id(module): module for model in models for module in model.modules() if id(module) not in known}
    training = {id(module) for module in trained.modules()} if trained is not None else set()
    with ExitStack() as stack:
        if before is None:
            stack.enter_context(_preserve_globals(*models, *([trained] if trained is not None else [])))
            if seed is not None:
                hashed = derive(seed, "answers at random")
                seed_all(hashed, hashed)
        stack.enter_context(_restored(new.values()))
        stack.callback(_preserved.reset, _preserved.set(known | new.keys() | training))
        yield before is None


@contextmanager
def restore_on_error(model: nn.Module) -> Iterator[None]:
    """Restore every module of a model if an exception leaves the context."""
    restore = _all_of([_restorer(module) for module in model.modules()])
    try:
        yield
    except Exception:
        restore()
        raise


def is_in_training(module: nn.Module) -> bool:
    """Whether a module, or one inside it, is in training mode; those of torch.export have one mode, which is none."""
    if "train" in vars(module):  # torch.export replaces the method by one that raises
        return False
    return module.training or any(is_in_training(each) for each in module.children())


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without weight gradients inside the context.

    Modes, `requires_grad` flags and all other state are restored at the end (see `preserve_state`).
    """
    with preserve_state(model):
        modes = [(module, module.training) for module in model.modules()]
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            model.eval()
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in flags:
                with _inference_mode_of(parameter):
                    parameter.requires_grad_(flag)


def restored(model: nn.Module) -> AbstractContextManager[None]:
    """Restore every module of a model at the end, even if an outer `preserve_state` will do so too."""
    return _restored(model.modules())


@contextmanager
def _restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.callback(_restorer(module))
        yield


@contextmanager
def _preserve_globals(*models: nn.Module) -> Iterator[None]:
    """Restore the global generators and `_SETTINGS` at the end, and leave inference mode inside.

    The generators include those of the GPUs that hold parameters of the models.
    """
    settings = [read() for read, _ in _SETTINGS]
    with all_forked(*{each.device for model in models for each in model.parameters()}), ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            torch.autograd.set_grad_enabled(False)  # as in inference mode; attacks enable it where they need it
        try:
            yield
        finally:
            _set(_SETTINGS, settings)


def _set(settings: Sequence[_Setting], values: Sequence[Any]) -> None:
    for (read, write), value in zip(settings, values, strict=True):
        if read() != value:
            write(value)


def numeric_settings() -> tuple[Any, ...]:
    """PyTorch's global settings on which the bits of a result depend, for `numeric_settings_as` in another process."""
    return tuple(read() for read, _ in _NUMERIC)


@contextmanager
def numeric_settings_as(values: Sequence[Any]) -> Iterator[None]:
    """Context in which those settings are `values`."""
    before = numeric_settings()
    _set(_NUMERIC, values)
    try:
        yield
    finally:
        _set(_NUMERIC, before)


def _restorer(module: nn.Module) -> _Restore:
    """A function that restores a module's attributes, and their contents, to what they are now."""
    attributes = vars(module)
    saved = dict(attributes)
    restore_contents = _all_of([_content_restorer(value) for value in saved.values()])

    def restore() -> None:
        if list(attributes) != list(saved) or any(attributes[name] is not value for name, value in saved.items()):
            attributes.clear()
            attributes.update(saved)
        restore_contents()

    return restore


def normal_tensor(tensor: Tensor) -> Tensor:
    """The tensor, or, if it was created in inference mode, a copy that autograd can use."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _nothing() -> None:
    pass


def _content_restorer(value: Any, depth: int = 0) -> _Restore:
    """A function that restores the content of an attribute's value to what it is now; submodules are not restored."""
    match value:
        case Tensor():
            return _tensor_restorer(value)
        case np.ndarray():
            return _array_restorer(value)
        case torch.Generator():
            return partial(value.set_state, value.get_state())
        case np.random.Generator():
            return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
        case np.random.RandomState():
            return partial(value.set_state, value.get_state())
        case random.Random():
            return partial(value.setstate, value.getstate())
        case dict() | list() | set() | deque() if depth < _DEPTH:
            return _container_restorer(value, depth)
        case tuple() if depth < _DEPTH:
            return _all_of([_content_restorer(each, depth + 1) for each in value])
        case _:
            return _nothing


def _all_of(restorers: list[_Restore]) -> _Restore:
    def restore() -> None:
        for each in restorers:
            each()

    return restore


def _container_restorer(value: Any, depth: int) -> _Restore:
    saved = list(value.items()) if isinstance(value, dict) else list(value)
    parts = value.values() if isinstance(value, dict) else value
    restore_contents = _all_of([_content_restorer(each, depth + 1) for each in parts])

    def restore() -> None:
        now = list(value.items()) if isinstance(value, dict) else list(value)
        if len(now) != len(saved) or not all(_is_same(one, other) for one, other in zip(now, saved, strict=True)):
            value.clear()
            value.update(saved) if isinstance(value, dict | set) else value.extend(saved)
        restore_contents()

    return restore


def _is_same(one: Any, other: Any) -> bool:
    """Whether two elements are the same object, or two pairs hold the same objects."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:
        return one[0] is other[0] and one[1] is other[1]
    return one is other


def _array_restorer(value: np.ndarray) -> _Restore:
    saved = value.copy()

    def restore() -> None:
        if value.flags.writeable and value.tobytes() != saved.tobytes():
            value[...] = saved

    return restore


def _inference_mode_of(value: Tensor) -> AbstractContextManager[object]:
    """A context in which a tensor may be changed: inference mode for one that was created in it, else no change."""
    return torch.inference_mode() if value.is_inference() else nullcontext()


def _tensor_restorer(value: Tensor) -> _Restore:
    """A function that restores a tensor's values, `requires_grad` and gradient to what they are now.

    Unchanged values are not written, since an outer autograd graph may need them.
    """
    try:
        saved, gradient = value.detach().clone(), value.grad if value.is_leaf else None
    except (RuntimeError, NotImplementedError, ValueError):  # uninitialised (a lazy layer), or a tensor without storage
        return _nothing
    flag = value.requires_grad
    restore_gradient = _nothing if gradient is None else _tensor_restorer(gradient)

    def restore() -> None:
        with _inference_mode_of(value):
            if value.dtype != saved.dtype or value.shape != saved.shape:
                value.data = saved
            elif not torch.equal(value.data, saved):
                value.data.copy_(saved)
            if value.is_leaf and value.requires_grad != flag:
                value.requires_grad_(flag)
            if value.is_leaf and value.grad is not gradient:
                value.grad = gradient
        restore_gradient()

    return restore
