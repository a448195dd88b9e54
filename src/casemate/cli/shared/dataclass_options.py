"""Options generated from a dataclass: names, types, defaults and help come from its fields.

Not every field can be written as text: callables, tensors and other attacks can be set in Python only, and the help
lists them (see `python_only`). A model is given by its file, or by a function that returns it.
"""

import ast
import inspect
import textwrap
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from casemate.cli.shared.options import MODEL_HELP, parse_number
from casemate.errors import SettingError

_TEXT = (bool, int, float, str, Path, type(None))
"""Basic types whose values can be written on the command line."""


def options_of(
    kind: type,
    *,
    skip: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    none: str = "none",
    words: str = "",
) -> type:
    """A new dataclass for `tyro`: it has the fields of `kind` that can be written as text, as command-line options.

    A field for a model becomes an option that takes the model's file or function.

    Args:
        kind: a dataclass with attribute docstrings.
        skip: fields that do not become options.
        defaults: by field, instead of the fields' own. A None that the field does not accept stands for a value that
            the caller finds after parsing.
        none: how the help describes such a None, such as "the teacher's".
        words: the help text above the group of options.
    """
    given, hints, helps = defaults or {}, get_type_hints(kind), field_help(kind)
    options: list[tuple[str, Any, Any]] = []
    for each in fields(kind):
        if each.name in skip:
            continue
        default, about = given.get(each.name, each.default), helps.get(each.name, "")
        hint = in_text(hints[each.name])
        if _is_model(hints[each.name]):
            option: Any = Annotated[str, arg(metavar="MODEL", help=f"{about} {MODEL_HELP}")]
        elif hint is None:
            continue
        else:
            foreign = default is None and type(None) not in get_args(hint)
            shown = {None: none if foreign else "none", (): "none"}.get(default) if default in (None, ()) else None
            behaviour = None if shown is None else f"(default: {shown})"
            metavar = {int: "N", int | None: "N"}.get(hint)
            shape = hint | None if foreign else hint
            if shape in (float, float | None):
                shape = _number_or_none(shape)
            option = Annotated[shape, arg(metavar=metavar, help=about, help_behavior_hint=behaviour)]
        options.append((each.name, option, field() if default is MISSING else field(default=default)))
    made = make_dataclass(f"{kind.__name__}Options", options, frozen=True, kw_only=True)
    made.__doc__ = words
    return made


def chosen_settings(options: Any) -> dict[str, Any]:
    """All values of a dataclass of parsed options, by field name, including defaults of options that were not given."""
    return {each.name: getattr(options, each.name) for each in fields(options)}


def python_only(kind: type) -> list[str]:
    """Names of a dataclass's fields that have no command-line option, as their type cannot be written as text.

    Models are not among them: an option takes the model's file or function.
    """
    hints = get_type_hints(kind)
    names = [each.name for each in fields(kind) if not _is_model(hints[each.name])]
    return [name for name in names if in_text(hints[name]) is None]


def _is_model(hint: Any) -> bool:
    """Whether a type annotation is that of a model."""
    return isinstance(hint, type) and issubclass(hint, nn.Module)


def in_text(hint: Any) -> Any:
    """The part of a type annotation whose values can be written on the command line; None if there is none.

    Of `float | Callable`, for example, it is `float`. The metadata of `Annotated` is dropped.
    """
    origin = get_origin(hint)
    if origin is Annotated:
        return in_text(get_args(hint)[0])
    if hint in _TEXT or origin is Literal:
        return hint
    if origin in (Union, types.UnionType):
        parts = [part for part in map(in_text, get_args(hint)) if part is not None]
        return Union[tuple(parts)] if any(part is not type(None) for part in parts) else None  # noqa: UP007
    if origin is tuple and get_args(hint)[1:] == (...,) and in_text(get_args(hint)[0]) is not None:
        return hint
    return None


def field_help(kind: type) -> dict[str, str]:
    """The attribute docstrings of a class and its bases, by field name, each joined to one line."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        except (OSError, TypeError, SyntaxError):  # no source, such as `object`
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for before, after in pairwise(body):
            match before, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    return found


def _number_or_none(hint: Any) -> Any:
    """`float` or `float | None` for tyro, so that the option takes a number, a fraction, or `none` for a None."""
    spec = PrimitiveConstructorSpec(
        nargs=1,
        metavar="X",
        instance_from_str=partial(_read_number, optional=hint is not float),
        is_instance=lambda value: value is None or isinstance(value, float | int),
        str_from_instance=lambda value: ["none" if value is None else f"{value:g}"],
    )
    return Annotated[hint, spec]


def _read_number(texts: list[str], *, optional: bool) -> float | None:
    if optional and texts[0].lower() == "none":
        return None
    try:
        return parse_number("", texts[0])
    except SettingError as error:
        raise ValueError(str(error).strip()) from error
