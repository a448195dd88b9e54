"""Plugins: attacks, commands and more that other installed packages add to casemate through entry points."""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from casemate.errors import CasemateError

ATTACKS = "casemate.attacks"
"""Entry-point group of attack classes that packages add, by their names on the command line."""
COMMANDS = "casemate.commands"
"""Entry-point group of modules with further commands: the module's docstring is the help, and the module or its
submodule `options` has a function `parse`."""
PRODUCERS = "casemate.producers"
"""Entry-point group of mappings from a task's kind to the function that computes it; `casemate store` uses them to see
which stored results are current."""
INFO = "casemate.info"
"""Entry-point group of functions whose results `casemate info` shows under the entry points' names."""


def extensions(group: str) -> list[EntryPoint]:
    """The entry points that installed packages declare in a group such as `ATTACKS`, by name; none is imported."""
    found = entry_points(group=group)
    # programs that import the backport `importlib_metadata`, as MLflow does, get its objects here
    own = [each if isinstance(each, EntryPoint) else EntryPoint(each.name, each.value, each.group) for each in found]
    return sorted(own, key=lambda each: each.name)


def load_extension(point: EntryPoint, module: str | None = None) -> Any:
    """Import and return the object that an entry point names, or, if given, the module called `module` instead.

    Raises `CasemateError` if it cannot be imported, whatever the import raises; it names package, module and error.
    """
    try:
        return point.load() if module is None else import_module(module)
    except Exception as error:
        package = "another package" if point.dist is None else f"the package {point.dist.name}"
        raise CasemateError(
            f"{point.name!r} of {package} cannot be loaded: importing {module or point.value} raised "
            f"{type(error).__name__}: {error}. Update that package, or uninstall it"
        ) from error
