"""The one exception from the rule that nothing implemented is overridden: methods with a default, marked as such."""

from collections.abc import Callable
from typing import Any


def overridable(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a method of an abstract class that subclasses may override; the tests reject any other override."""
    method.__overridable__ = True  # type: ignore[attr-defined]
    return method
