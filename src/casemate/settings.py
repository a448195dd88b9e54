"""What the settings of a dataclass may be: stated in the annotations of its fields, checked when it is made.

    @dataclass(frozen=True, kw_only=True)
    class Example:
        steps: Annotated[int, at_least(1)] = 40
        share: Annotated[float, between(0, 1)] = 0.5

        def __post_init__(self) -> None:
            expect(self)

`rules_of` gives the rules by field, for help texts.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, final, get_args, get_origin, get_type_hints

from casemate.errors import SettingError


def _as_it_is(value: Any, name: str) -> Any:
    del name
    return value


@final
@dataclass(frozen=True)
class Rule:
    """What a setting may be."""

    expected: str
    """In words, after "expected"."""
    holds: Callable[[Any], bool]
    read: Callable[[Any, str], Any] = _as_it_is
    """Turns what was given, for the setting of that name, into what is stored. Raises `SettingError`."""
    choices: tuple[str, ...] = ()
    """All values, where there are only a few."""

    def check(self, value: Any, name: str) -> Any:
        """What is stored for the setting `name`. Raises `SettingError` for a value outside the rule."""
        stored = self.read(value, name)
        try:
            holds = self.holds(stored)
        except TypeError:  # of a type that cannot be compared
            holds = False
        if not holds:
            raise SettingError(f"{name} = {value!r}; expected {self.expected}")
        return stored


def at_least(lowest: int, why: str = "") -> Rule:
    """A whole number, `lowest` or more; `why` is added in brackets."""
    words = f"at least {lowest}{_bracketed(why)}"

    def read(value: Any, name: str) -> int:
        try:
            return operator.index(value)
        except TypeError as error:
            raise SettingError(f"{name} = {value!r}; expected a whole number, {words}") from error

    return Rule(words, lambda value: value >= lowest, read)


def not_negative(unit: str = "") -> Rule:
    """A finite number, zero or more."""
    return Rule(f"zero or more and finite{_after(unit)}", lambda value: 0 <= value < math.inf)


def positive(why: str = "") -> Rule:
    """A finite number above zero."""
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
    """A number from `low` to `high`, both among them unless said otherwise.

    Args:
        what: the number is, such as "a share".
        unit: of the number, such as "in pixels".
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
    """One of a few names, in lower or upper case; stored as they are written here."""
    spelled = {choice.lower(): choice for choice in choices}

    def read(value: Any, name: str) -> Any:
        del name
        return spelled.get(value.lower(), value) if isinstance(value, str) else value

    *first, last = choices
    words = f"{', '.join(first)} or {last}" if first else last
    return Rule(f"{words}{_bracketed(why)}", lambda value: value in choices, read, choices)


def expect(settings: Any) -> None:
    """Check the fields of a new dataclass by the rules in their annotations, and store what was read.

    A field that may be None is not checked when it is. Raises `SettingError`.
    """
    for name, (rule, optional) in _rules(type(settings)).items():
        given = getattr(settings, name)
        if given is None and optional:
            continue
        stored = rule.check(given, name)
        if stored is not given:
            object.__setattr__(settings, name, stored)


def rules_of(kind: type) -> Mapping[str, Rule]:
    """The rules that the annotations of a class hold, by field."""
    return {name: rule for name, (rule, _) in _rules(kind).items()}


@cache
def _rules(kind: type) -> Mapping[str, tuple[Rule, bool]]:
    """The rules by field, and whether the field may be None."""
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
