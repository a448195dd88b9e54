"""What a continuous integration server is shown of a command: named checks, each of which passed or did not.

`junit` and `sarif` write a `CiRun` as a file. It is made from an evaluation by `evaluation`, from the check of a record
by `verification`, from a comparison by `comparison`, and from an error by `failed_run`; any other command can make
its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

State = Literal["passed", "failed", "error", "skipped"]
Level = Literal["error", "warning", "note"]


@final
@dataclass(frozen=True, kw_only=True)
class CiRule:
    """A kind of problem that checks can report, with its explanation."""

    name: str
    """Its stable identifier, such as "zero-gradient": servers keep the history of a problem under it."""
    title: str
    """The problem in a few words: servers show it as the headline of what they report."""
    help: str
    """What the problem means, and what to do."""


@final
@dataclass(frozen=True, kw_only=True)
class CiCheck:
    """One check of a run, and how it ended."""

    name: str
    """What is checked, in words that stay the same from run to run."""
    rule: CiRule
    """The problem that is there if the check did not pass."""
    state: State
    message: str = ""
    """What was found; "" if there is nothing to say."""
    seconds: float | None = None
    """How long it took, if that was measured."""
    level: Level | None = None
    """How grave what was found is: by default an error if the check failed or could not be made, else nothing worth
    reporting."""
    identity: str = ""
    """What distinguishes it from other checks of the same rule and model, such as "linf 0.1". It must not contain
    measured numbers, since a problem that recurs is recognised by it."""

    @property
    def reported(self) -> Level | None:
        """How grave what was found is; None if it is not reported as a problem."""
        return self.level or ("error" if self.state in ("failed", "error") else None)


@final
@dataclass(frozen=True, kw_only=True)
class CiRun:
    """A run of a command, with its checks in the order in which they are shown."""

    command: str
    """The command, such as "casemate evaluate"."""
    subject: str
    """What it was about: the model, as the user named it."""
    file: Path | None
    """The file that problems are shown at: the model's, or that of the code that builds it; None if there is none."""
    checks: tuple[CiCheck, ...]
    exit_code: int
    seconds: float | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    """Further facts, by name, such as the data set."""

    @property
    def title(self) -> str:
        """Command and subject in one line."""
        return f"{self.command} {self.subject}".strip()

    @property
    def errors(self) -> tuple[CiCheck, ...]:
        """The checks that could not be made."""
        return tuple(each for each in self.checks if each.state == "error")


RUN_FAILED = CiRule(
    name="run-failed",
    title="The command ended in an error",
    help=(
        "The command ended in an error before it had a result, so nothing is known about the model. The message says "
        "what was seen, what was expected and what to do."
    ),
)


def failed_run(command: str, subject: str, file: Path | None, message: str, *, exit_code: int) -> CiRun:
    """The run of a command that ended in an error: one check, that it runs to its end, with the error's message."""
    check = CiCheck(name="the command runs to its end", rule=RUN_FAILED, state="error", message=message)
    return CiRun(command=command, subject=subject, file=file, checks=(check,), exit_code=exit_code)
