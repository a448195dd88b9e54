"""Reads parsed JSON into dataclasses by their type hints, so that the rest of the package meets no result as a
dictionary.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from casemate.errors import StoreError

T = TypeVar("T")


def read_as(kind: type[T], found: Any, where: str) -> T:
    """Convert parsed JSON to an object of the dataclass `kind`, whose fields have the names of the JSON
    object's keys.

    A field may be a plain value, `X | None`, `tuple[X, ...]`, `Mapping[str, X]`, another dataclass, or a class with
    `from_json`. Keys without a field are ignored; a field with a default may be missing.

    Raises:
        StoreError: a field is missing or has a value of another type; `where` is the name of the JSON in that message.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]  # `kind` is a dataclass
        if field.name not in found and not field.default is field.default_factory is MISSING:
            continue
        try:
            values[field.name] = _convert(hints[field.name], found[field.name], f"{where}, {field.name}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{where}: the field {field.name} is missing or not of the expected type {hints[field.name]}; another "
                "version of casemate wrote it: run the study again"
            ) from error
    return kind(**values)


def _convert(kind: Any, found: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if found is None else _convert(arguments[0], found, where)
    if origin is tuple:
        return tuple(_convert(arguments[0], each, where) for each in found)
    if origin is Mapping:
        return {name: _convert(arguments[1], each, f"{where}, {name}") for name, each in found.items()}
    if hasattr(kind, "from_json"):
        return kind.from_json(found)
    if isinstance(kind, type) and is_dataclass(kind):
        return read_as(kind, found, where)
    return kind(found) if kind in (float, int, str) else found
