"""Reads parsed JSON into dataclasses by their type hints. Above this package no result is a dictionary."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from casemate.errors import StoreError

T = TypeVar("T")


def read_as(kind: type[T], found: Any, where: str) -> T:
    """Parsed JSON as an object of the dataclass `kind`, whose fields have the names of the JSON object's keys.

    A field may be a plain value, `X | None`, `tuple[X, ...]`, `Mapping[str, X]`, another dataclass, or a class with
    `from_json`. Keys without a field are ignored; a field with a default may be missing.

    Raises:
        StoreError: `found`, which messages call `where`, lacks a field or has a value of another type there.
    """
    try:
        return _convert(kind, found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{where} cannot be read as {kind.__name__} ({type(error).__name__}: {error}); another version of casemate "
            "wrote it: run the study again"
        ) from error


def _convert(kind: Any, found: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if found is None else _convert(arguments[0], found)
    if origin is tuple:
        return tuple(_convert(arguments[0], each) for each in found)
    if origin is Mapping:
        return {name: _convert(arguments[1], each) for name, each in found.items()}
    if hasattr(kind, "from_json"):
        return kind.from_json(found)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        known = [
            each.name for each in fields(kind) if each.name in found or each.default is each.default_factory is MISSING
        ]
        return kind(**{name: _convert(hints[name], found[name]) for name in known})
    return kind(found) if kind in (float, int, str) else found
