"""How many positions are left of an image that a network halves several times."""

from casemate.errors import SettingError


def halved_positions(shape: tuple[int, int, int], times: int, name: str) -> int:
    """Number of positions left after halving height and width `times` times, rounding down; `SettingError` if none."""
    _, height, width = shape
    positions = (height >> times) * (width >> times)
    if positions == 0:
        side = 1 << times
        raise SettingError(
            f"{name} halves its images {times} times; {height} x {width} is too small, use {side} x {side} or more"
        )
    return positions
