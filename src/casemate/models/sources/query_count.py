"""How many images a black box was called with, against the budget of queries."""

from typing import Any, final

from casemate.errors import ModelError


@final
class QueryCount:
    """Number of images that a black box was called with, by all copies of the model together."""

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        """The largest number allowed; None for any."""
        self.used = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "QueryCount":
        """The same object, so that copies of a model count together."""
        return self

    def __reduce__(self) -> str:
        raise ModelError("a black box counts its calls in one process; leave out --engine and --workers (engine=)")

    def add(self, count: int) -> None:
        """Count `count` more images. Raises `ModelError`, and counts nothing, if that exceeds the budget."""
        if self.budget is not None and self.used + count > self.budget:
            raise ModelError(
                f"the budget of {self.budget:,} queries does not suffice: {self.used:,} are used, and {count:,} more "
                "are needed now; raise --queries, or give fewer --images or an attack with fewer queries"
            )
        self.used += count
