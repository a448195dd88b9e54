"""The place of this process among those that `torchrun` started, from its environment variables.

`torchrun --nproc-per-node 2 -m casemate train` starts the same command several times, and sets variables by which each
process knows its number. A launcher that sets the same variables is treated alike.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, final

from casemate.errors import SettingError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets in each process; without one of them a process is alone."""
Error = TypeVar("Error", bound=Exception)
_shared: list[Exception] = []
"""The last error that all processes of the group raised."""


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a process in its group; with the defaults it is alone."""

    rank: int = 0
    """Its number, from 0, in the group."""
    count: int = 1
    """Number of processes in the group, on all machines."""
    local_rank: int = 0
    """Its number, from 0, among the processes of the group on its machine."""

    @property
    def is_first(self) -> bool:
        """Whether it is the process that prints results and writes files."""
        return self.rank == 0

    @property
    def shows_errors(self) -> bool:
        """Whether it prints the errors that all processes raise: one process of each machine does."""
        return self.local_rank == 0


def place(variables: Mapping[str, str] | None = None) -> Place:
    """The place of this process, from its environment (or the given `variables`).

    Raises `SettingError` for values that torchrun would not set.
    """
    found = os.environ if variables is None else variables
    if any(name not in found for name in VARIABLES):
        return Place()
    rank, count, local_rank = (_number(name, found[name]) for name in VARIABLES[:3])
    if not (local_rank <= rank < count):
        raise SettingError(
            f"RANK = {rank}, WORLD_SIZE = {count}, LOCAL_RANK = {local_rank}; expected LOCAL_RANK <= RANK < "
            "WORLD_SIZE, as torchrun sets them"
        )
    return Place(rank=rank, count=count, local_rank=local_rank)


def refuse_several(what: str, instead: str) -> None:
    """Raise `SettingError` if torchrun started several processes, each of which would do the whole of `what`.

    `instead` says what to type.
    """
    count = place().count
    if count > 1:
        raise SettingError(
            f"torchrun started {count} processes, each of which would do the whole of {what}: only training shares its "
            f"work among processes. {instead}"
        )


def mark_shared(error: Error) -> Error:
    """The error, noted as one that all processes raise, so that not all of them print it."""
    _shared[:] = [error]
    return error


def is_shared(error: BaseException) -> bool:
    """Whether an error is one that all processes raise."""
    return any(each is error for each in _shared)


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise SettingError(f"{name} = {text!r} in the environment; expected a whole number, as torchrun sets it")
    return int(text)
