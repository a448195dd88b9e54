"""How long an evaluation took, where a part of it was computed in an earlier run."""

from casemate.timing import duration


def seconds_in_words(all_seconds: float, run_seconds: float) -> str:
    """How long a result took, and how much of it in this run, if the rest was in the store already."""
    took, now = duration(all_seconds), duration(run_seconds)
    return took if now == took else f"{took}, of which {now} in this run and the rest before, for pieces in the store"
