"""The page of a comparison: two finished evaluations side by side, paired by image."""

from collections import Counter
from pathlib import Path
from typing import Any

from casemate.documents import COMPARISON, document
from casemate.errors import RecordError, SettingError
from casemate.evaluation.comparison import Regression
from casemate.evaluation.intervals import percent
from casemate.files import filling, read_json, write_json, write_text
from casemate.norms import format_eps
from casemate.report import palette
from casemate.report.charts import Figure, canvas, estimate_line, finished, legend_below, percent_axis, styled
from casemate.report.comparison import FinishedComparison
from casemate.report.folder import COMPARISON_FILE, FILES, SUMMARY
from casemate.report.page import template_environment

_REPORT = "report.html"
_ROWS = ("model", "fingerprint")
"""What tells the comparison of one pair from that of another, for each of the two."""


def expect_own_folder(folder: Path, found: FinishedComparison | None = None) -> None:
    """Raise `SettingError` if `folder` holds the results of another command, or the comparison of another pair.

    Until the comparison is `found`, only the former is looked for.
    """
    path = folder / COMPARISON_FILE
    if not path.exists():
        if others := [name for name in (*FILES, SUMMARY) if (folder / name).exists()]:
            raise SettingError(
                f"{folder} holds {', '.join(others)} of another command, and a comparison would be written over it; "
                "choose another folder, or replace it by --overwrite"
            )
        return
    if found is None:
        return
    before, now = read_json(path, RecordError), found.as_json()
    if any(before.get(side, {}).get(each) != now[side][each] for side in ("a", "b") for each in _ROWS):
        raise SettingError(
            f"{folder} holds the comparison of {before.get('a', {}).get('model')} and "
            f"{before.get('b', {}).get('model')}; choose another folder, or replace it by --overwrite"
        )


def write_comparison(folder: Path, found: FinishedComparison, gate: Regression | None) -> Path:
    """Write comparison.json and report.html into `folder`, both or none; return the path of report.html."""
    with filling(folder, [COMPARISON_FILE, _REPORT], COMPARISON_FILE) as temporary:
        write_json(temporary / COMPARISON_FILE, document(COMPARISON, found.as_json(gate)))
        write_text(temporary / _REPORT, _page(found, gate))
    return folder / _REPORT


def _page(found: FinishedComparison, gate: Regression | None) -> str:
    with styled():
        figure = accuracies_of_both(found)
    eps = found.at[-1].eps or 0.0
    return (
        template_environment()
        .get_template("comparison.html.j2")
        .render(
            found=found,
            gate=gate,
            colour=_colour(found),
            eps=found.a.verdict(eps).number.shown_eps,
            sides=[(name, each, each.verdict(eps)) for name, each in (("A", found.a), ("B", found.b))],
            rows=found.compared().items(),
            classes=found.per_class,
            attacks=Counter(each.attack or "no attack needed" for each in found.worse).most_common(),
            figure=figure,
        )
    )


def _colour(found: FinishedComparison) -> str:
    """Of the conclusion: green or red where B is better or worse beyond chance, yellow where that is not shown."""
    robust = found.at[-1].robust
    if not found.trusted or not robust.is_significant:
        return "yellow"
    return "green" if robust.difference.value > 0 else "red"


def accuracies_of_both(found: FinishedComparison) -> Figure:
    """A chart of both models' accuracy under attack against eps, each with its 95 % interval."""
    values = [0.0, *(float(each.eps or 0.0) for each in found.at)]
    pairs = [found.clean, *(each.robust for each in found.at)]
    drawing, axes = canvas(1, 1, 5.4, 3.6)
    place = axes[0, 0]
    a: dict[str, Any] = {"color": palette.GREY, "marker": "s", "linestyle": "--", "label": "A"}
    b: dict[str, Any] = {"color": palette.BLUE, "marker": "o", "linewidth": 2.2, "label": "B"}
    estimate_line(place, values, [each.first for each in pairs], percent=True, **a)
    estimate_line(place, values, [each.second for each in pairs], percent=True, **b)
    place.set_xlabel(f"eps ({found.at[-1].norm})")
    percent_axis(place)
    legend_below(place, pad=4.5, ncols=2)
    rows = [
        (eps, name, each.value, each.low, each.high)
        for eps, pair in zip(values, pairs, strict=True)
        for name, each in (("A", pair.first), ("B", pair.second))
    ]
    return finished(
        drawing,
        "both",
        title="Accuracy of both against the size of the change",
        caption=f"Share of the same {found.n:,} images that are classified correctly under every attack, at this and "
        "every smaller eps; bands are 95 % intervals of each alone. Whether they differ is decided by pairs.",
        alt="; ".join(f"{name}, eps {format_eps(eps)}: {percent(value)}" for eps, name, value, *_ in rows) + ".",
        columns=("eps", "model", "accuracy", "low", "high"),
        rows=rows,
    )
