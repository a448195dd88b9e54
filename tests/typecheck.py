"""How annotations are checked while the tests run: an int passes for a float, as type checkers have it (PEP 484)."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
"""The decorator that jaxtyping puts on every function of casemate."""


def checked_once(decorator: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator of jaxtyping, for functions of modules and classes only.

    A function defined inside another would be decorated anew at every call of the outer one, which took two thirds of
    the time of the tests.
    """

    def decorate(*given: Any, **options: Any) -> Callable[..., Any]:
        inside_a_function = sys._getframe(1).f_code.co_flags & inspect.CO_OPTIMIZED
        return (lambda function: function) if inside_a_function else decorator(*given, **options)

    return decorate
