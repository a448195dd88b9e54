"""Work with a user's network that leaves no trace: weights, buffers, attributes, random numbers and switches.

A network is the user's own code. It may write into its buffers, count its calls, keep what it saw, draw random numbers
or switch autograd off. Whatever it did, all of that is as it was when the work with it ends, be it by an error.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from casemate.rng import derive

_DEPTH = 3
"""How deep lists and dictionaries in a module's attributes are looked into."""
_inside: ContextVar[frozenset[int] | None] = ContextVar("identities of the modules at work", default=None)
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.is_grad_enabled, torch.autograd.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    *(
        (partial(getattr, place, name), partial(setattr, place, name))
        for place, names in (
            (torch.backends.cudnn, ("enabled", "benchmark", "deterministic", "allow_tf32")),
            (torch.backends.cuda.matmul, ("allow_tf32",)),
        )
        for name in names
    ),
)
"""What holds for all of PyTorch: how it is read, and how it is set."""


@contextmanager
def preserve_state(*models: nn.Module, seed: int | None = None, trained: nn.Module | None = None) -> Iterator[bool]:
    """Inside, autograd can be used; afterwards the models and everything global are as they were before.

    Inside of another such region only models that are new to it are restored at the end, so that a network which
    changes from call to call is seen to change. The value is whether this is the outermost region, that is, whether
    the user called what it belongs to.

    Args:
        models: all of their modules are restored: parameters, buffers, attributes.
        seed: of the random numbers that networks draw from PyTorch's, NumPy's and Python's global generators, in the
            outermost region; None lets them go on from where they are.
        trained: a model that changes because it is trained; it is not restored, here or further inside.
    """
    before = _inside.get()
    known = before or frozenset()
    new = {id(module): module for model in models for module in model.modules() if id(module) not in known}
    learning = {id(module) for module in trained.modules()} if trained is not None else set()
    with ExitStack() as stack:
        if before is None:
            stack.enter_context(_global_state(_devices(*models, *([trained] if trained is not None else []))))
            if seed is not None:
                _start_from(derive(seed, "answers at random"))
        stack.enter_context(_restored(new.values()))
        stack.callback(_inside.reset, _inside.set(known | new.keys() | learning))
        yield before is None


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """All modules of a model are what they were before if what happens inside fails."""
    restorers = _all_of([_restorer(module) for module in model.modules()])
    try:
        yield
    except Exception:
        restorers()
        raise


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; every module's mode and parameter's flag restored after.

    So is everything else that the network may change; see `preserve_state`.
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
                with in_its_mode(parameter):
                    parameter.requires_grad_(flag)


def restored(model: nn.Module) -> AbstractContextManager[None]:
    """Inside of whatever region: all modules of a model are afterwards what they were before."""
    return _restored(model.modules())


@contextmanager
def _restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.callback(_restorer(module))
        yield


def _devices(*models: nn.Module) -> list[torch.device]:
    """The GPUs that models lie on."""
    return list({each.device for model in models for each in model.parameters() if each.device.type == "cuda"})


@contextmanager
def _global_state(devices: list[torch.device]) -> Iterator[None]:
    """Outside of inference mode; switches and generators are restored at the end."""
    switches = [(write, read()) for read, write in _SWITCHES]
    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  # what networks may draw from
    with torch.random.fork_rng(devices=devices), ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            torch.autograd.set_grad_enabled(
                False
            )  # as it is in inference mode; attacks switch it on where they need it
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)  # noqa: NPY002
            for (read, _), (write, value) in zip(_SWITCHES, switches, strict=True):
                if read() != value:
                    write(value)


def _start_from(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


def _restorer(module: nn.Module) -> Callable[[], None]:
    """What brings a module back to what it is now."""
    attributes = vars(module)
    theirs = dict(attributes)
    contents = _all_of([_content(value) for value in theirs.values()])

    def restore() -> None:
        if not _alike(attributes, theirs):
            attributes.clear()
            attributes.update(theirs)
        contents()

    return restore


def _alike(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return list(now) == list(before) and all(now[name] is value for name, value in before.items())


def normal_tensor(tensor: Tensor) -> Tensor:
    """The tensor, or, of one that was made in inference mode, a copy of which gradients can be taken."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _nothing() -> None:
    pass


def _content(value: Any, depth: int = 0) -> Callable[[], None]:
    """What brings the content of an attribute back to what it is now; modules inside are restored on their own."""
    match value:
        case Tensor():
            return _tensor(value)
        case np.ndarray():
            return _array(value)
        case torch.Generator():
            state = value.get_state()
            return lambda: _discard(value.set_state(state))
        case np.random.Generator():
            drawn = value.bit_generator.state
            return lambda: setattr(value.bit_generator, "state", drawn)
        case np.random.RandomState():
            legacy = value.get_state()
            return lambda: value.set_state(legacy)
        case random.Random():
            pythons = value.getstate()
            return lambda: value.setstate(pythons)
        case dict() | list() | set() | deque() if depth < _DEPTH:
            return _container(value, depth)
        case tuple() if depth < _DEPTH:
            return _all_of([_content(each, depth + 1) for each in value])
        case _:
            return _nothing


def _discard(value: object) -> None:
    del value


def _all_of(parts: list[Callable[[], None]]) -> Callable[[], None]:
    def restore() -> None:
        for part in parts:
            part()

    return restore


def _container(value: Any, depth: int) -> Callable[[], None]:
    theirs = list(value.items()) if isinstance(value, dict) else list(value)
    parts = value.values() if isinstance(value, dict) else value
    inner = _all_of([_content(each, depth + 1) for each in parts])

    def restore() -> None:
        now = list(value.items()) if isinstance(value, dict) else list(value)
        if len(now) != len(theirs) or any(not _is(one, other) for one, other in zip(now, theirs, strict=True)):
            value.clear()
            value.update(theirs) if isinstance(value, dict | set) else value.extend(theirs)
        inner()

    return restore


def _is(one: Any, other: Any) -> bool:
    """The same object, or a name with the same object."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:
        return one[0] is other[0] and one[1] is other[1]
    return one is other


def _array(value: np.ndarray) -> Callable[[], None]:
    saved = value.copy()

    def restore() -> None:
        if value.flags.writeable and value.tobytes() != saved.tobytes():
            value[...] = saved

    return restore


def in_its_mode(value: Tensor) -> AbstractContextManager[object]:
    """Where a tensor may be changed: one that was made in inference mode only there."""
    return torch.inference_mode() if value.is_inference() else nullcontext()


def _tensor(value: Tensor) -> Callable[[], None]:
    """Values, flag and gradient. What has not changed is not written: a graph of the user's may still need it."""
    try:
        saved, gradient = value.detach().clone(), value.grad if value.is_leaf else None
    except (RuntimeError, NotImplementedError, ValueError):  # not there yet (a lazy layer), or of a kind without values
        return _nothing
    flag = value.requires_grad
    of_gradient = _nothing if gradient is None else _tensor(gradient)

    def restore() -> None:
        with in_its_mode(value):
            if value.dtype != saved.dtype or value.shape != saved.shape:
                value.data = saved
            elif not torch.equal(value.data, saved):
                value.data.copy_(saved)
            if value.is_leaf and value.requires_grad != flag:
                value.requires_grad_(flag)
            if value.is_leaf and value.grad is not gradient:
                value.grad = gradient
        of_gradient()

    return restore
