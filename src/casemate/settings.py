"""Validation of dataclass settings: rules in the annotations of the fields, checked when an object is created.

    @dataclass(frozen=True, kw_only=True)
    class Example:
        steps: Annotated[int, at_least(1)] = 40
        share: Annotated[float, between(0, 1)] = 0.5

        def __post_init__(self) -> None:
            expect(self)

`rules_of` returns the rules by field, for help texts.
"""

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from numbers import Real
from types import NoneType
from typing import Annotated, Any, final, get_args, get_origin, get_type_hints

from casemate.errors import SettingError


def _unchanged(value: Any, name: str) -> Any:
    del name
    return value


@final
@dataclass(frozen=True)
class Rule:
    """A rule for the values of a setting: which are allowed, and how a given value is converted."""

    expected: str
    """Description of the allowed values, which follows "expected" in errors."""
    holds: Callable[[Any], bool]
    """Whether a converted value is allowed; may raise `TypeError`."""
    read: Callable[[Any, str], Any] = _unchanged
    """Converts a given value to the one that is stored; the text is the setting's name. Raises `SettingError`."""
    choices: tuple[str, ...] = ()
    """The allowed values, if they are a few names; otherwise empty."""

    def check(self, value: Any, name: str) -> Any:
        """Convert and return a value given for the setting `name`. Raises `SettingError` if it is not allowed."""
        stored = self.read(value, name)
        try:
            holds = self.holds(stored)
        except TypeError:
            holds = False
        if not holds:
            raise SettingError(f"{name} = {value!r}; expected {self.expected}")
        return stored

    def check_optional(self, value: Any, name: str) -> Any:
        """None as it is, another value as by `check`."""
        return None if value is None else self.check(value, name)


def at_least(lowest: int, why: str = "") -> Rule:
    """Rule for a whole number, `lowest` or more; errors give the reason `why` in brackets."""
    words = f"at least {lowest}{_bracketed(why)}"

    def read(value: Any, name: str) -> int:
        try:
            return operator.index(value)
        except TypeError as error:
            raise SettingError(f"{name} = {value!r}; expected a whole number, {words}") from error

    return Rule(words, lambda value: value >= lowest, read)


def not_negative(unit: str = "") -> Rule:
    """Rule for a finite number, zero or more; errors name its `unit`."""
    return Rule(f"zero or more and finite{_after(unit)}", lambda value: 0 <= value < math.inf)


def positive(why: str = "") -> Rule:
    """Rule for a finite number above zero; errors give the reason `why` in brackets."""
    return Rule(f"positive and finite{_bracketed(why)}", lambda value: 0 < value < math.inf)


def between(
    low: float,
    high: float,
    what: str = "",
    *,
    unit: str = "",
    without_low: bool = False,
    without_high: bool = False,
) -> Rule:
    """Rule for a number from `low` to `high`, including both unless `without_low` or `without_high`.

    Args:
        low, high: the limits.
        what: what the number is, such as "a probability", for errors.
        unit: its unit, such as "in pixels", for errors.
        without_low, without_high: exclude a limit.
    """
    words = {
        (False, False): f"from {low:g} to {high:g}",
        (True, False): f"above {low:g} and at most {high:g}",
        (False, True): f"at least {low:g} and below {high:g}",
        (True, True): f"between {low:g} and {high:g}",
    }[without_low, without_high]
    if high == math.inf:
        words = f"{low:g} or more{' and finite' if without_high else ''}"

    def holds(value: float) -> bool:
        return (low < value if without_low else low <= value) and (value < high if without_high else value <= high)

    return Rule(f"{what} {words}".lstrip() + _after(unit), holds)


def one_of(*choices: str, why: str = "") -> Rule:
    """Rule for one of a few names, in any case, stored as spelled here; errors give the reason `why` in brackets."""
    spelled = {choice.lower(): choice for choice in choices}

    def read(value: Any, name: str) -> Any:
        del name
        return spelled.get(value.lower(), value) if isinstance(value, str) else value

    *first, last = choices
    words = f"{', '.join(first)} or {last}" if first else last
    return Rule(f"{words}{_bracketed(why)}", lambda value: value in choices, read, choices)


def listed(value: Any, name: str) -> tuple[Any, ...]:
    """The values of a setting that takes several. Raises `SettingError`, which begins with `name`, for a single one."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise SettingError(f"{name} = {value!r}; expected a list of values")
    return tuple(value)


def parse_number(name: str, text: str) -> float:
    """Read a number or a fraction such as 8/255. Raises `SettingError`, which begins with `name`, for anything else."""
    try:
        value = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise SettingError(f"{name} {text!r} is not a number; write 0.2 or 8/255")
    return value


def parse_share(name: str, given: str | float) -> float:
    """Read a share from 0 to 1: a number such as 0.6, or a text such as 0.6, 3/5 or 60%.

    Raises `SettingError`, which begins with `name`, for anything else.
    """
    if isinstance(given, str):
        stripped = given.strip()
        share = parse_number(name, stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    else:
        share = float(given) if isinstance(given, Real) else math.nan
    if not 0 <= share <= 1:
        raise SettingError(f"{name} {given}; expected a fraction from 0 to 1, such as 0.6 or 60%")
    return share


def unknown_name(what: str, name: str, known: Iterable[str]) -> SettingError:
    """The error, to be raised by the caller, for a `name` not among the `known` ones; it suggests the most similar.

    `what` is the kind of thing that is named, such as "attack".
    """
    known = list(known)
    return SettingError(f"unknown {what} {name!r}; known: {', '.join(known)}{suggestion(name, known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error message that suggests the known name most similar to `name`; "" if none is similar.

    Case does not matter.
    """
    names = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""


def expect(settings: Any) -> None:
    """Check the fields of a new dataclass object by the rules in their annotations, and store the converted values.

    None is accepted where the annotation allows it. Raises `SettingError`.
    """
    for name, (rule, optional) in _rules(type(settings)).items():
        given = getattr(settings, name)
        if given is None and optional:
            continue
        stored = rule.check(given, name)
        if stored is not given:
            object.__setattr__(settings, name, stored)


def rules_of(kind: type) -> Mapping[str, Rule]:
    """The rules in the annotations of a dataclass, by the names of the fields that have one."""
    return {name: rule for name, (rule, _) in _rules(kind).items()}


@cache
def _rules(kind: type) -> Mapping[str, tuple[Rule, bool]]:
    """For each field of a dataclass that has a rule: the rule, and whether the field may be None."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        parts = [hint] if get_origin(hint) is Annotated else [hint, *get_args(hint)]
        for part in parts:
            for rule in getattr(part, "__metadata__", ()):
                if isinstance(rule, Rule):
                    found[name] = rule, NoneType in parts or NoneType in get_args(get_args(part)[0])
    return found


def _bracketed(words: str) -> str:
    return f" ({words})" if words else ""


def _after(words: str) -> str:
    return f", {words}" if words else ""
