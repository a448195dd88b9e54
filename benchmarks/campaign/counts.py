"""What faults did, counted: a trial is one fault, and a row of the table adds up the trials of one kind."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

_MOST_EXAMPLES = 20
"""Failed trials of a row that are kept in words."""


@final
@dataclass
class Trial:
    """One fault, and what it did."""

    what: str
    """The fault in words, such as the command and the moment of a kill."""
    lost: list[str] = field(default_factory=list)
    """What was lost or wrong, in words: results, finished work, a file that is not whole, a damage nobody noticed."""
    strays: list[str] = field(default_factory=list)
    """Files that were written outside the folders that the command was given."""
    hung: bool = False
    traceback: bool = False
    ended: str = ""
    """How it ended, in a few words, where there are several good ways."""

    @property
    def is_bad(self) -> bool:
        """Whether the fault did any harm."""
        return bool(self.lost or self.strays or self.hung or self.traceback)


@final
@dataclass
class Counts:
    """A row of the table: what was tried, how often, and what it did."""

    title: str
    """What was tried."""
    means: str = ""
    """By which means, where the machine decides it."""
    tried: int = 0
    lost: int = 0
    hung: int = 0
    tracebacks: int = 0
    strays: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    """How the trials ended, where there are several good ways."""
    numbers: dict[str, float] = field(default_factory=dict)
    """What was measured besides."""
    examples: list[str] = field(default_factory=list)
    """The first trials that went wrong, in words."""

    def add(self, trial: Trial) -> None:
        """Count a trial."""
        self.tried += 1
        self.lost += bool(trial.lost)
        self.hung += trial.hung
        self.tracebacks += trial.traceback
        self.strays += bool(trial.strays)
        if trial.ended:
            self.ended[trial.ended] += 1
        if trial.is_bad and len(self.examples) < _MOST_EXAMPLES:
            harm = [*trial.lost, *(f"stray {each}" for each in trial.strays)]
            harm += ["hung"] * trial.hung + ["traceback"] * trial.traceback
            self.examples.append(f"{trial.what}: {'; '.join(harm)}")

    @property
    def harm(self) -> int:
        """How many trials did harm, each kind counted by itself."""
        return self.lost + self.hung + self.tracebacks + self.strays

    def as_json(self) -> dict[str, Any]:
        """The row for reliability.json."""
        return {**vars(self), "ended": dict(self.ended.most_common())}


def counts_of(content: Mapping[str, Any]) -> Counts:
    """The row that `as_json` wrote."""
    return Counts(**{**content, "ended": Counter(content["ended"])})
