"""A function of a user's own as results name it: its qualified name, and a hash of all that its values depend on.

The hash covers the code of the function and of the functions that it calls, their defaults, and the values of the
globals and enclosing variables that they read. Where one of these is not a number, a text, a tensor, a collection of
such, or a part of PyTorch, NumPy or a few modules of the standard library, nothing is certain, and there is no hash:
whoever stores results under it must then not take two functions for the same.
"""

import builtins
import dis
import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from casemate.arrays import bytes_of

_FIXED = {"torch", "numpy", "math", "operator", "functools", "itertools", "typing", "collections"}
"""Packages whose functions do the same at every call and in every process, as far as their version is the same."""
_UNCERTAIN = {"open", "eval", "exec", "compile", "globals", "locals", "vars", "input", "__import__"}
"""Builtins with which a function can read what is not seen here."""
_PLAIN = {type(None), bool, int, float, complex, str, bytes, type(Ellipsis), torch.dtype, torch.device}


class _UncertainError(Exception):
    """Something that a function depends on cannot be hashed."""


def qualified_name(function: Callable[..., Any]) -> str:
    """Module and qualified name of a function, or of the class of another callable object."""
    named = function.func if isinstance(function, partial) else function
    named = named if hasattr(named, "__qualname__") else type(named)
    return f"{named.__module__}.{named.__qualname__}"


def function_record(function: Callable[..., Any]) -> dict[str, str | None]:
    """What results say of a function: its qualified name ("function") and its hash ("sha256").

    The hash is None where it is not certain that two functions with the same one return the same; see the module.
    """
    digest = _Digest()
    try:
        digest.add(function)
        return {"function": qualified_name(function), "sha256": digest.hexdigest()}
    except _UncertainError:
        return {"function": qualified_name(function), "sha256": None}


@final
class _Digest:
    """The hash of a value and of all that it depends on. Raises `_UncertainError` for what cannot be hashed."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._seen: dict[int, int] = {}
        """The functions and collections begun, by identity, so that one that leads back to itself ends."""
        self._kept: list[Any] = []
        """Keeps these alive, so that no identity is used again."""

    def hexdigest(self) -> str:
        """The hash as text."""
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        """Add a value."""
        if type(value) in _PLAIN or isinstance(value, np.generic):
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, Tensor | np.ndarray):
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
            self._say("tensor", str(tensor.dtype), str(tuple(tensor.shape)))
            self._hash.update(bytes_of(tensor.detach()))
        elif isinstance(value, ModuleType) or _is_fixed(value):
            self._add_fixed(value)
        elif id(value) in self._seen:
            self._say("again", str(self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
            self._add_compound(value)

    def _say(self, *words: str) -> None:
        self._hash.update(repr(words).encode())

    def _add_fixed(self, value: Any) -> None:
        """A module, function or class of one of the packages in `_FIXED`, by its name and version."""
        module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "numpy")
        root = str(module).partition(".")[0]
        if root not in _FIXED:
            raise _UncertainError
        version = getattr(sys.modules.get(root), "__version__", "")
        name = getattr(value, "__qualname__", value.__name__)
        self._say("fixed", str(module), name, str(version))

    def _add_compound(self, value: Any) -> None:
        if isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, BuiltinFunctionType):
            self._add_builtin(value)
        elif isinstance(value, partial):
            self._say("partial")
            self._add_all((value.func, value.args, dict(value.keywords)))
        elif isinstance(value, MethodType):
            self._say("method")
            self._add_all((value.__func__, value.__self__))
        elif type(value) in (list, tuple):
            self._say(type(value).__name__, str(len(value)))
            self._add_all(value)
        elif isinstance(value, dict):
            self._say("dict", str(len(value)))
            self._add_all(each for pair in value.items() for each in pair)
        elif type(value) in (set, frozenset) and all(type(each) in _PLAIN for each in value):
            self._say("set", repr(sorted(map(repr, value))))
        elif isinstance(value, nn.Module) and _is_fixed(type(value)):
            self._say("module")
            self._add_all((type(value), vars(value)))
        else:
            raise _UncertainError

    def _add_all(self, values: Any) -> None:
        for each in values:
            self.add(each)

    def _add_builtin(self, value: BuiltinFunctionType) -> None:
        owner = value.__self__
        if isinstance(owner, ModuleType):
            if owner is builtins and value.__name__ in _UNCERTAIN:
                raise _UncertainError
            if owner is not builtins:
                self._add_fixed(owner)
        elif not _is_fixed(owner if isinstance(owner, type) else type(owner)):
            raise _UncertainError
        self._say("builtin", value.__qualname__)

    def _add_function(self, function: FunctionType) -> None:
        self._say("function")
        self._add_code(function.__code__)
        self._add_all((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError as error:  # an enclosing variable without a value yet
                raise _UncertainError from error
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                self._say("global", name)
                self.add(function.__globals__[name])
            elif name in _UNCERTAIN:
                raise _UncertainError

    def _add_code(self, code: CodeType) -> None:
        """The instructions of a function; not its place in a file, or its name."""
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self._say("code", code.co_code.hex(), repr(shape), repr(code.co_exceptiontable))
        self._say(repr(code.co_names), repr(code.co_varnames), repr(code.co_freevars), repr(code.co_cellvars))
        for each in code.co_consts:
            if isinstance(each, CodeType):
                self._add_code(each)
            else:
                self.add(each)
        if any(
            each.opname == "IMPORT_NAME" and _root(each.argval) not in _FIXED for each in dis.get_instructions(code)
        ):
            raise _UncertainError


def _names(code: CodeType) -> set[str]:
    """All names that code, and code inside it, may look up: those of globals, and of attributes, too many at most."""
    return set(code.co_names).union(*map(_names, _inner(code)))


def _inner(code: CodeType) -> Iterator[CodeType]:
    return (each for each in code.co_consts if isinstance(each, CodeType))


def _root(module: Any) -> str:
    return str(module).partition(".")[0]


def _is_fixed(value: Any) -> bool:
    """Whether a value is a function or class of one of the packages in `_FIXED`.

    It must be found there under its own name, since `functools.wraps` gives a wrapper the name of what it wraps.
    """
    if isinstance(value, np.ufunc):
        return getattr(np, value.__name__, None) is value
    if not isinstance(value, type | FunctionType) or _root(value.__module__) not in _FIXED:
        return False
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value
