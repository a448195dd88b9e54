"""Plugins: attacks, commands and more that other installed packages add to casemate through entry points."""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from casemate.errors import CasemateError

ATTACKS = "casemate.attacks"
"""Group of attack classes, by their names on the command line."""
COMMANDS = "casemate.commands"
"""Group of command modules; the docstring is the help, and the module or its `options` has a function `parse`."""
PRODUCERS = "casemate.producers"
"""Group of mappings from task kind to the function that computes it, for `casemate store` to tell what is current."""
INFO = "casemate.info"
"""Group of functions whose results `casemate info` shows under the entry points' names."""


def extensions(group: str) -> list[EntryPoint]:
    """The entry points of a group, in the order of their names."""
    return sorted(entry_points(group=group), key=lambda each: each.name)


def load_extension(point: EntryPoint, module: str | None = None) -> Any:
    """The object that an entry point names, or another `module` of the same package.

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
