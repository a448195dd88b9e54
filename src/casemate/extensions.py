"""Plugins: attacks, commands and more that other installed packages add to casemate through entry points."""

from importlib.metadata import EntryPoint, entry_points

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
