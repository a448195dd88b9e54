"""What `casemate compare` prints: both models, their accuracies and the differences, classes, and changed images."""

from collections import Counter
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from casemate.cli.shared import console
from casemate.documents import COMPARISON
from casemate.evaluation.comparison import Paired, Regression
from casemate.report.comparison import ChangedImage, FinishedComparison

_ALL_CLASSES = 20
"""Up to this number of classes, all are listed; of more, only the ten that lost most."""
_SHOWN = 10
"""The most images that are listed one by one, and the most classes of many."""
_SIDE = 20
"""Columns of the picture on each side of zero."""
_SCALES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Differences that the picture can have at its ends."""


def show(found: FinishedComparison, gate: Regression | None, *, as_json: bool) -> None:
    """Print a comparison, and the decision `gate` with it as JSON."""
    if as_json:
        console.show_json(found.as_json(gate), COMPARISON)
        return
    console.show(_models(found), _setting(found), *_accuracies(found), *_classes(found), *_images(found))
    console.show(*console.note_lines(found.notes), f"[bold]{escape(found.conclusion)}[/]")


def _models(found: FinishedComparison) -> Table:
    """A row for each of the two: name, folder, weights and verdict at the largest shared eps."""
    made = console.new_table("", "model", "weights", "evaluation", "verdict")
    eps = found.at[-1].eps or 0.0
    for name, each in (("A", found.a), ("B", found.b)):
        made.add_row(
            f"[bold]{name}[/]",
            escape(each.result.model),
            each.result.fingerprint[:8],
            escape(str(each.folder)),
            escape(each.verdict(eps).word),
        )
    return made


def _setting(found: FinishedComparison) -> str:
    number, result = found.a.result.verdict.number, found.a.result
    return escape(
        f"The same {found.n:,} images ({result.data}), {number.norm}, budget {number.budget}, seed {result.seed}. "
        "Ranges are 95 % intervals, differences in percentage points."
    )


def _accuracies(found: FinishedComparison) -> list[Table]:
    """A table with a row for each accuracy: both, the paired difference and its p-value; then pictures of those."""
    compared = found.compared()
    numbers = console.new_table("", *console.right_aligned("A", "B", "B minus A", "p"))
    for name, each in compared.items():
        cells = (f"{each.first}", f"{each.second}", f"[{_colour(each)}]{_points(each)}[/]", f"{each.p_value:.2g}")
        numbers.add_row(escape(name), *cells)
    scale = _scale(list(compared.values()))
    ends = f"{100 * scale:g}"
    pictures = console.new_table("B minus A", f"{f'-{ends}':<{_SIDE}}0{f'+{ends}':>{_SIDE}}")
    for name, each in compared.items():
        pictures.add_row(escape(name), f"[{_colour(each)}]{picture_of(each, scale)}[/]")
    return [numbers, pictures]


def picture_of(each: Paired, scale: float) -> str:
    """A difference and its interval as a line of characters, from -`scale` to +`scale`, with zero in the middle."""

    def column(value: float) -> int:
        return round(_SIDE + _SIDE * max(-1.0, min(1.0, value / scale)))

    difference = each.difference
    cells = [" "] * (2 * _SIDE + 1)
    for place in range(column(difference.low), column(difference.high) + 1):
        cells[place] = "─"
    cells[_SIDE] = "│" if cells[_SIDE] == " " else "┼"
    cells[column(difference.value)] = "●"
    return "".join(cells)


def _scale(compared: Sequence[Paired]) -> float:
    """The smallest of `_SCALES` that holds every interval."""
    most = max(abs(end) for each in compared for end in (each.difference.low, each.difference.high))
    return next((each for each in _SCALES if most <= each), _SCALES[-1])


def _classes(found: FinishedComparison) -> list[Table | str]:
    """A title and a table of the robust accuracy by class; of many classes the ten that lost most."""
    rows = found.per_class
    shown = rows if len(rows) <= _ALL_CLASSES else rows[:_SHOWN]
    which = "" if len(shown) == len(rows) else f", the {len(shown)} of {len(rows)} that lost most"
    made = console.new_table("class", *console.right_aligned("A", "B", "B minus A", "n"))
    for each in shown:
        paired = each.robust
        made.add_row(
            escape(each.name), f"{paired.first}", f"{paired.second}", _points(paired), f"{paired.difference.n:,}"
        )
    return [f"[bold]Robust accuracy by class[/] at eps {_eps(found)}{which}", made]


def _images(found: FinishedComparison) -> list[Table | str]:
    """The number of images that got worse and better, and a table of the first that got worse."""
    worse, better = found.worse, found.better
    lines: list[Table | str] = [
        f"[bold]Images[/] at eps {_eps(found)}: {len(worse):,} got worse (correct under attack with A only), "
        f"{len(better):,} got better (with B only)."
    ]
    if not worse:
        return lines
    attacks = Counter(each.attack or "no attack needed" for each in worse)
    lines.append(escape(f"First fooled in B by: {', '.join(f'{name} {n}' for name, n in attacks.most_common())}."))
    made = console.new_table(*console.right_aligned("image"), "class", "B predicts", "fooled by")
    for each in worse[:_SHOWN]:
        made.add_row(str(each.place), escape(each.label), escape(each.prediction), _fooled_by(each))
    lines.append(made)
    if len(worse) > _SHOWN:
        lines.append(f"[dim]and {len(worse) - _SHOWN:,} more; --json lists all. Images count from 0.[/]")
    return lines


def _fooled_by(each: ChangedImage) -> str:
    return "[dim]misclassified without an attack[/]" if each.attack is None else escape(each.attack)


def _eps(found: FinishedComparison) -> str:
    return escape(found.a.verdict(found.at[-1].eps or 0.0).number.shown_eps)


def _points(each: Paired) -> str:
    """A difference in percentage points with its interval."""
    value, low, high = (100 * end for end in (each.difference.value, each.difference.low, each.difference.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _colour(each: Paired) -> str:
    if not each.is_significant:
        return "default"
    return "green" if each.difference.value > 0 else "red"
