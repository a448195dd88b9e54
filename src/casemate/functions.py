"""A function of a user's own as results name it: its qualified name, and a hash of all that its values depend on.

The hash covers the code of the function and of the functions that it calls, their defaults, and the values of the
globals and enclosing variables that they read. Where one of these is not a number, a text, a tensor, a collection of
such, or a part of PyTorch, NumPy or a few modules of the standard library, nothing is certain, and there is no hash:
whoever stores results under it must then not take two functions for the same.

`stable_repr` sees more, for trainings that are resumed, of which no result is taken for that of another: objects of a
user's own classes, by the code of their methods and their attributes, and all that is installed, by its version.
"""

import builtins
import dis
import hashlib
import re
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Protocol, final
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor, nn

from casemate.arrays import bytes_of

_FIXED = {"torch", "numpy", "math", "operator", "functools", "itertools", "typing", "collections"}
"""Packages whose functions do the same at every call and in every process, as far as their version is the same."""
_UNCERTAIN = {"open", "eval", "exec", "compile", "globals", "locals", "vars", "input", "__import__"}
"""Builtins with which a function can read what is not seen here."""
_LIBRARY = "casemate"
"""This package, of whose objects `stable_repr` sees the attributes."""
_METACLASSES = (type, ABCMeta, type(Protocol))
"""Metaclasses that change nothing in what the methods of an object do."""
_WITHOUT_STATE = {"typing", "abc"}
"""Modules of classes whose objects have no state of their own."""
_UNSEEN = {
    *("__new__", "__init__", "__post_init__", "__init_subclass__", "__getstate__", "__setstate__", "__replace__"),
    *("__repr__", "__str__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__match_args__"),
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__", "__firstlineno__", "__final__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__static_attributes__"),
    *("__parameters__", "__orig_bases__", "__type_params__", "__dataclass_fields__", "__dataclass_params__"),
    *("__abstractmethods__", "_abc_impl", "_is_protocol", "_is_runtime_protocol", "__protocol_attrs__"),
    "__non_callable_proto_members__",
}
"""What a class has that says nothing of what its objects do once they are made, beyond their attributes."""
_FREEZING = {"__setattr__", "__delattr__"}
"""What a frozen dataclass has besides."""
_PLACE = re.compile(r" at 0x[0-9a-fA-F]+")
"""The place in memory in the `repr` of an object, which differs from process to process."""
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


def stable_repr(value: Any, known: Mapping[str, Any] | None = None) -> str:
    """The `repr` of a value, or where that names a place in memory, its qualified name and its hash.

    The hash is the same in every process. Where it is not certain that two values with the same one do the same, a
    random text takes its place.

    Args:
        value: anything, such as a training objective.
        known: objects inside it that are identified elsewhere, by the names that they have there.
    """
    shown = repr(value)
    if not _PLACE.search(shown):
        return shown
    digest = _Digest(known or {}, objects=True)
    try:
        digest.add(value)
        return f"{qualified_name(value)} {digest.hexdigest()}"
    except _UncertainError:
        return f"{qualified_name(value)} {uuid4().hex}"


@final
class _Digest:
    """The hash of a value and of all that it depends on. Raises `_UncertainError` for what cannot be hashed.

    Args:
        known: objects that are hashed by their names here.
        objects: see objects of a user's own classes, and take all installed packages as fixed.
    """

    def __init__(self, known: Mapping[str, Any] | None = None, *, objects: bool = False) -> None:
        self._known = {id(each): name for name, each in (known or {}).items()}
        self._objects = objects
        self._fixes: Callable[[str], bool] = _is_installed if objects else _FIXED.__contains__
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
        if id(value) in self._known:
            self._say("known", self._known[id(value)])
        elif type(value) in _PLAIN or isinstance(value, np.generic):
            self._say(type(value).__name__, repr(value))
        elif isinstance(value, Tensor | np.ndarray):
            tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
            self._say("tensor", str(tensor.dtype), str(tuple(tensor.shape)))
            self._hash.update(bytes_of(tensor.detach()))
        elif isinstance(value, ModuleType) or self._is_fixed(value):
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
        """A module, function or class of one of the fixed packages, by its name and version."""
        module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "numpy")
        root = str(module).partition(".")[0]
        if not self._fixes(root):
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
        elif type(value) is dict or (isinstance(value, dict) and _is_of(type(value), _FIXED.__contains__)):
            self._say("dict", str(len(value)))
            self._add_all(each for pair in value.items() for each in pair)
        elif type(value) in (set, frozenset) and all(type(each) in _PLAIN for each in value):
            self._say("set", repr(sorted(map(repr, value))))
        elif isinstance(value, nn.Module):
            if not _is_of(type(value), _FIXED.__contains__):  # it may keep anything of its last call
                raise _UncertainError
            self._say("module")
            self._add_all((type(value), vars(value)))
        elif self._objects and isinstance(value, type):
            self._add_class(value)
        elif self._objects:
            self._add_object(value)
        else:
            raise _UncertainError

    def _add_object(self, value: Any) -> None:
        """An object of a class written in Python: the code of its methods, and its attributes.

        Fields of a dataclass that are not compared are not part of what it is.
        """
        kinds = [each for each in type(value).__mro__ if each is not object and each.__module__ not in _WITHOUT_STATE]
        packages = {_root(each.__module__) for each in kinds} - {_LIBRARY}
        if not kinds or any(map(self._fixes, packages)):
            raise _UncertainError  # an object of another package may have a state that is not among its attributes
        left_out = {each.name for each in fields(value) if not each.compare} if is_dataclass(value) else set()
        slots = [name for kind in type(value).__mro__ for name, each in vars(kind).items() if _is_slot(each)]
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
        self._say("object")
        self._add_all((type(value), {name: each for name, each in sorted(held.items()) if name not in left_out}))

    def _add_class(self, kind: type) -> None:
        """A class of a user's own, by the code of its methods and its other attributes, and its bases."""
        if type(kind) not in _METACLASSES:
            raise _UncertainError
        self._say("class", kind.__qualname__)
        self._add_all(each for each in kind.__bases__ if each is not object)
        for name, each in sorted(vars(kind).items()):
            if name in _UNSEEN or _is_slot(each) or (name in _FREEZING and is_dataclass(kind)):
                continue
            self._say("attribute", name)
            if isinstance(each, staticmethod | classmethod):
                self._say(type(each).__name__)
                self.add(each.__func__)
            elif isinstance(each, property):
                self._say("property")
                self._add_all((each.fget, each.fset, each.fdel))
            else:
                self.add(each)

    def _is_fixed(self, value: Any) -> bool:
        """Whether a value is a function or class of one of the fixed packages."""
        return _is_of(value, self._fixes)

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
        elif not self._is_fixed(owner if isinstance(owner, type) else type(owner)):
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
        imported = (each.argval for each in dis.get_instructions(code) if each.opname == "IMPORT_NAME")
        if not all(self._fixes(_root(each)) for each in imported):
            raise _UncertainError


def _names(code: CodeType) -> set[str]:
    """The names of globals and builtins that code, and code inside it, looks up; not those of attributes."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname in {"LOAD_GLOBAL", "LOAD_NAME"}}
    return own.union(*map(_names, _inner(code)))


def _inner(code: CodeType) -> Iterator[CodeType]:
    return (each for each in code.co_consts if isinstance(each, CodeType))


def _root(module: Any) -> str:
    return str(module).partition(".")[0]


def _is_slot(value: Any) -> bool:
    """Whether an attribute of a class is a slot, whose value each object has."""
    return isinstance(value, MemberDescriptorType)


def _is_installed(package: str) -> bool:
    """Whether a package is installed, and not a user's own code."""
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return package in _FIXED or package == _LIBRARY or package in sys.stdlib_module_names or bool(installed)


def _is_of(value: Any, fixes: Callable[[str], bool]) -> bool:
    """Whether a value is a function or class of a package that `fixes` holds for.

    It must be found there under its own name, since `functools.wraps` gives a wrapper the name of what it wraps.
    """
    if isinstance(value, np.ufunc):
        return getattr(np, value.__name__, None) is value
    if not isinstance(value, type | FunctionType) or not fixes(_root(value.__module__)):
        return False
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value
