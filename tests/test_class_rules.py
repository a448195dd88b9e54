"""The abstract/final rule (Equinox's), by introspection over every room: nothing that is implemented is overridden."""

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any, final

from torch import nn

import casemate
from casemate.attacks import AbstractAttack
from casemate.attacks.overriding import overridable

_OPTIONS = ("casemate.cli", "casemate.play")
"""Options of commands build on one another as their parser wants it."""


def _classes() -> Iterator[type]:
    """All classes that casemate defines."""
    for module in pkgutil.walk_packages(casemate.__path__, "casemate."):
        if module.name.startswith(_OPTIONS) or module.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(kind) and kind.__module__ == module.name:
                yield kind


def is_protocol(kind: type) -> bool:
    """Whether a class only describes what others have to have."""
    return getattr(kind, "_is_protocol", False)


def broken_rules(kind: type) -> list[str]:
    """What a class does against the rule."""
    found: list[str] = []
    abstract = inspect.isabstract(kind) or ABC in kind.__bases__
    if abstract and not is_protocol(kind) and not kind.__name__.startswith("Abstract"):
        found.append(f"{kind.__name__} is abstract, and its name does not begin with Abstract")
    if kind.__name__.startswith("Abstract") and not issubclass(kind, ABC):
        found.append(f"{kind.__name__} is called abstract, and is not")
    concrete = is_dataclass(kind) and not abstract and not is_protocol(kind) and not issubclass(kind, Enum)
    if concrete and not getattr(kind, "__final__", False):
        found.append(f"{kind.__name__} is a concrete dataclass without @final")
    for base in kind.__mro__[1:]:
        if not base.__module__.startswith(("casemate.", __name__)) or is_protocol(base):
            continue
        for name, mine in vars(kind).items():
            if name == "__init__" and issubclass(kind, nn.Module):  # PyTorch's way: it calls that of its base
                continue
            if not _is_written(kind, name, mine) or not _is_written(base, name, theirs := vars(base).get(name)):
                continue
            if not getattr(theirs, "__isabstractmethod__", False) and not getattr(theirs, "__overridable__", False):
                found.append(f"{kind.__name__}.{name} overrides what {base.__name__} implements")
    return found


def _is_written(kind: type, name: str, member: Any) -> bool:
    """Whether a member is a method or property of the class's own text, not one that `dataclass` made."""
    code = member.fget if isinstance(member, property) else member
    code = code.__func__ if isinstance(code, classmethod | staticmethod) else code
    if not inspect.isfunction(code):
        return False
    code = inspect.unwrap(code)
    return code.__code__.co_filename == inspect.getsourcefile(kind) and code.__name__ == name


def test_every_class_is_abstract_or_final_and_overrides_nothing_that_is_implemented() -> None:
    kinds = list(_classes())
    assert AbstractAttack in kinds
    assert len(kinds) > 100
    assert [words for kind in kinds for words in broken_rules(kind)] == []


class AbstractThing(ABC):
    """A base for the test of the test."""

    @abstractmethod
    def missing(self) -> int:
        """To be implemented."""

    def done(self) -> int:
        """Implemented."""
        return 1

    @overridable
    def default(self) -> int:
        """May be replaced."""
        return 1


@dataclass
class Open(AbstractThing):
    """Overrides, and is not final."""

    def missing(self) -> int:
        """Implemented."""
        return 0

    def done(self) -> int:
        """Again."""
        return 2

    def default(self) -> int:
        """Replaced."""
        return 2


class Unnamed(ABC):
    """Abstract, and does not say so."""

    @abstractmethod
    def missing(self) -> int:
        """To be implemented."""


@final
@dataclass
class Fine(AbstractThing):
    """Keeps the rule."""

    def missing(self) -> int:
        """Implemented."""
        return 0


def test_the_test_sees_each_way_to_break_the_rule() -> None:
    assert broken_rules(AbstractThing) == broken_rules(Fine) == []
    assert broken_rules(Open) == [
        "Open is a concrete dataclass without @final",
        "Open.done overrides what AbstractThing implements",
    ]
    assert broken_rules(Unnamed) == ["Unnamed is abstract, and its name does not begin with Abstract"]
