"""Attacks as a caller gives them, by name. It imports no attack: what uses it does not depend on all of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from casemate.attacks.base import AbstractAttack, as_attack, name_of

A = TypeVar("A", bound=AbstractAttack)
Attacks = AbstractAttack | Sequence[AbstractAttack] | Mapping[str, AbstractAttack]
"""Attacks as a caller gives them: one, several, or several by name (`named_attacks`)."""

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def named_attacks(given: Any, kind: type[A] = AbstractAttack) -> dict[str, A]:
    """The attacks that a caller gave by name; of one attack or a sequence, each by the name of its class.

    An attack whose name is in use gets a number too: "pgd", "pgd-2". Raises `SettingError` for anything else.
    """
    if isinstance(given, Mapping):
        return {str(name): as_attack(attack, kind) for name, attack in given.items()}
    listed = [given] if isinstance(given, AbstractAttack) or not isinstance(given, Iterable) else list(given)
    found: dict[str, A] = {}
    for each in listed:
        attack = as_attack(each, kind)
        name = kebab_case(name_of(attack))
        numbered = (name, *(f"{name}-{number}" for number in range(2, len(listed) + 1)))
        found[next(free for free in numbered if free not in found)] = attack
    return found


def kebab_case(name: str) -> str:
    """A class name as a name on the command line: "targeted-apgd" for `TargetedAPGD`."""
    return _WORDS.sub("-", name).replace("_", "-").lower()
