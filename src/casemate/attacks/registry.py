"""All attacks by name: those that `casemate.attacks` exports, and those that other packages register.

An attack exported by `casemate.attacks` is available on the command line, and is in the table of the documentation and
in the property tests. Another package registers an attack under the entry point group `casemate.attacks`, in its
pyproject.toml:

    [project.entry-points."casemate.attacks"]
    my-attack = "my_package.my_module:MyAttack"

Wrappers of other attacks (EOT, Restarts, Transfer) are not listed; they are built around an attack in Python.
"""

import inspect
import re
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeGuard, get_args, get_type_hints

from casemate import attacks
from casemate.attacks.base import AbstractAttack, AbstractMinimumNormAttack
from casemate.attacks.named import kebab_case
from casemate.errors import CasemateError, CasemateWarning
from casemate.extensions import ATTACKS, extensions
from casemate.norms import Norm
from casemate.settings import unknown_name

_CITATION = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")


def library_attack_types() -> dict[str, type[AbstractAttack]]:
    """The attacks that `casemate.attacks` exports, by name in kebab-case (`TargetedAPGD` is "targeted-apgd")."""
    public = (getattr(attacks, name) for name in dir(attacks) if not name.startswith("_"))
    return dict(sorted((kebab_case(kind.__name__), kind) for kind in public if is_attack(kind)))


def attack_types() -> dict[str, type[AbstractAttack]]:
    """All attacks by name, sorted: the library's own and those that other packages register.

    An entry point that cannot be loaded, is not an attack, or has a name already in use is left out with a
    `CasemateWarning`.
    """
    found = library_attack_types()
    for point in extensions(ATTACKS):
        try:
            kind = point.load()
        except Exception as error:  # whatever another package raises, all other attacks remain available
            _skip(point, f"it cannot be loaded: {type(error).__name__}: {error}")
            continue
        if not is_attack(kind):
            _skip(point, f"{point.value} is not a concrete dataclass derived from casemate.attacks.AbstractAttack")
        elif found.get(point.name, kind) is not kind:
            _skip(point, "another attack already has that name")
        else:
            found[point.name] = kind
    return dict(sorted(found.items()))


def attack_type(name: str) -> type[AbstractAttack]:
    """The class of the attack `name`; case, hyphens and underscores do not matter. Raises `SettingError` if unknown."""
    known = attack_types()
    found = next((kind for each, kind in known.items() if _normalized(each) == _normalized(name)), None)
    if found is not None:
        return found
    raise unknown_name("attack", name, known)


def is_attack(kind: object) -> TypeGuard[type[AbstractAttack]]:
    """Whether an object is a concrete attack class that can be built from settings alone, without another attack."""
    return (
        isinstance(kind, type)
        and issubclass(kind, AbstractAttack)
        and is_dataclass(kind)
        and not inspect.isabstract(kind)
        and not is_wrapper(kind)
    )


def is_wrapper(kind: type[AbstractAttack]) -> bool:
    """Whether the attack class has a field for another attack."""
    return any(isinstance(hint, type) and issubclass(hint, AbstractAttack) for hint in get_type_hints(kind).values())


def norms_of(kind: type[AbstractAttack]) -> tuple[Norm, ...]:
    """The norms that an attack class accepts: without a field `norm` that of its ball, and none without eps."""
    hints = get_type_hints(kind)
    radius: dict[str, Any] = {"eps": 1.0} if "eps" in hints else {}
    if "norm" not in hints:
        return (kind(**radius).ball().norm,) if radius else ()

    def allows(norm: Norm) -> bool:
        try:
            kind(**radius, norm=norm)  # type: ignore[call-arg]  # the fields are those that the hints name
        except CasemateError:
            return False
        return True

    return tuple(norm for norm in get_args(Norm) if allows(norm))


def paper_of(kind: type[AbstractAttack]) -> str:
    """The first publication cited in the docstring of the class, or else of its module; "" if none."""
    module = inspect.getmodule(kind)
    for text in (kind.__doc__, module.__doc__ if module is not None else None):
        for citation in _CITATION.findall(" ".join((text or "").split())):
            return citation.split(";")[0].strip(" .")
    return ""


def summary_of(kind: type) -> str:
    """The first line of a class's docstring, without citations."""
    lines = inspect.cleandoc(kind.__doc__ or "").splitlines()
    return re.sub(rf"\s*{_CITATION.pattern}", "", lines[0]) if lines else ""


def markdown_table(kinds: Mapping[str, type[AbstractAttack]]) -> str:
    """A table in Markdown with one row per attack, for the documentation.

    Columns: name on the command line, class, summary, norms, goal (any image within eps, or the nearest image), whether
    it can be targeted, paper.
    """
    head = ("Name", "Class", "Method", "Norms", "Finds", "Targeted", "Paper")
    rows = [head, ("---",) * len(head)]
    for name, kind in kinds.items():
        goal = "nearest image" if issubclass(kind, AbstractMinimumNormAttack) else "image within eps"
        norms = ", ".join(norms_of(kind))
        rows.append(
            (
                f"`{name}`",
                f"`{kind.__name__}`",
                summary_of(kind),
                norms or "none",
                goal if norms else "any image",
                "yes" if kind.targetable else "no",
                paper_of(kind),
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _normalized(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _skip(point: Any, why: str) -> None:
    warnings.warn(f"the attack {point.name!r} of another package is left out: {why}", CasemateWarning, stacklevel=3)
