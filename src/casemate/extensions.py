"""What installed packages add to casemate, found by their entry points; casemate itself imports none of them."""

from importlib.metadata import EntryPoint, entry_points

ATTACKS = "casemate.attacks"
"""Group of attacks by the names that the command line gives them."""
COMMANDS = "casemate.commands"
"""Group of modules of commands, each with a docstring that is its help and a function `parse` (or one in `options`)."""
PRODUCERS = "casemate.producers"
"""Group of mappings from kinds of tasks to what computes them, so that `casemate store` knows what is current."""
INFO = "casemate.info"
"""Group of functions whose result `casemate info` shows under the entry point's name."""


def extensions(group: str) -> list[EntryPoint]:
    """The entry points of a group, in the order of their names."""
    return sorted(entry_points(group=group), key=lambda each: each.name)
