"""How annotations are checked while the tests run: an int passes for a float, as type checkers have it (PEP 484).

To import this module changes how jaxtyping decorates the functions of modules that are imported after it.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, config

checked = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
"""The decorator that jaxtyping puts on every function of casemate."""
_CALLS = 3
"""Calls of a function that are checked in each test."""
_tests = 0
"""Number of tests so far."""


def _cheaper(decorator: Callable[..., Any]) -> Callable[..., Any]:
    """The decorator of jaxtyping, but cheaper by a factor of two to a hundred, which the tests notice.

    Functions inside others are left alone, since they would be decorated anew at every call of the outer one. Where no
    annotation has a shape, beartype does without jaxtyping. Where one has, parameters and result are checked together:
    jaxtyping checks the parameters alone as well, for errors that say which of the two was wrong. An attack calls the
    same functions with the same shapes at every step, so each is checked in the first calls of a test.
    """

    def decorate(*given: Any, **options: Any) -> Callable[..., Any]:
        if sys._getframe(1).f_code.co_flags & inspect.CO_OPTIMIZED:  # inside a function
            return lambda function: function
        whole = decorator(*given, **options)

        def decorated(function: Any) -> Any:
            if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
                return whole(function)
            annotations = function.__annotations__.values()
            if any(isinstance(each, str) for each in annotations):  # of what only type checkers import
                return whole(function)
            strict = checked(function)
            shaped = any(map(_is_of_arrays, annotations))
            return _at_first(function, decorator(typechecker=None)(strict) if shaped else strict)

        return decorated

    return decorate


def _is_of_arrays(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(map(_is_of_arrays, get_args(annotation)))


def _at_first(function: Callable[..., Any], strict: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which is `strict` in its first calls of a test, unless checks are disabled."""
    test, calls = -1, 0

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        nonlocal test, calls
        if test != _tests:
            test, calls = _tests, 0
        calls += 1
        return (function if calls > _CALLS or config.jaxtyping_disable else strict)(*given, **named)

    return called


def next_test() -> None:
    """Check the first calls of every function again."""
    global _tests
    _tests += 1


jaxtyping.jaxtyped = _cheaper(jaxtyping.jaxtyped)
