"""Reading stored results: one point of a curve."""

from typing import Any

from casemate.engine import Piece


def point_at(piece: Piece, axis: str, value: float) -> dict[str, Any] | None:
    """The point of a stored curve where `axis` ("eps" or "steps") is `value`, if it was computed."""
    return next((point for point in piece.result["points"] if abs(point[axis] - value) < 1e-9), None)
