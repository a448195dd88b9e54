"""The option --fail-under: the least accuracy of a command, and what happens where a result is below it."""

from casemate.cli.shared.console import ThresholdNotMet, print_message
from casemate.cli.shared.options import parse_share
from casemate.report.ci.gate import Compared, Gate, GateResult


def least_accuracy(text: str | None, compares: Compared = "lower") -> Gate | None:
    """What --fail-under demands; None if it is not given. Raises `SettingError` if it is not within [0, 1]."""
    return None if text is None else Gate(least=parse_share("fail-under", text), text=text, compares=compares)


def expect_passing(judged: GateResult) -> None:
    """Say that a result passes. Raises `ThresholdNotMet` if it does not."""
    if not judged.passes:
        raise ThresholdNotMet(judged.sentence)
    print_message(judged.sentence, word="passes")
