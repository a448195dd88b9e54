"""Figures that compare several models under the same attack: the paper's figures 15 and 16, and its 17 with more
models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from typing import final

from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate.report import MARKERS, PUBLISHED, Figure, canvas, finished, palette, percent_axis, plain_ticks
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.report.comparison import sizes_in_words
from casemate_study.report.curves import CURVE_COLUMNS, MODEL_COLOURS, curve_rows, draw_estimates, seed_of
from casemate_study.results.models import ModelResults

Models = Mapping[str, ModelResults]

# Okabe and Ito's palette
_COLOURS = (palette.INK, palette.BLUE, palette.VERMILLION, palette.GREEN, palette.PURPLE, palette.ORANGE, palette.SKY)
_MEASURES = {"fgsm": "FGSM", "ball": "BIM, clip ball", "range": "BIM, clip range"}


@final
@dataclass(frozen=True)
class _Column:
    """One column of a figure: an attack ("fgsm", "ball" or "range"), the loss it ascends, and the column's title."""

    measure: str
    loss: str
    title: str


def _compared(
    models: Sequence[ModelResults],
    columns: Sequence[_Column],
    name: str,
    title: str,
    words: str,
    *,
    at: float = 0.1,
    marks: Mapping[str, tuple[float, paper.Statement]] | None = None,
) -> Figure | None:
    """A figure with one line per model: mean loss above, accuracy of the last iterate below, one column of panels per
    attack.

    `name`, `title` and `words` are the file name, title and start of the caption; `at` is the eps of the accuracies in
    the alternative text; `marks` are numbers of the paper to draw, as attack: (eps, number). None if fewer than two
    models have curves.
    """
    there = [column for column in columns if any(each.curve(column.measure, column.loss) for each in models)]
    drawn = [each for each in models if any(each.curve(column.measure, column.loss) for column in there)]
    if not there or len(drawn) < 2:
        return None
    drawing, axes = canvas(2, len(there), 3.7 * len(there), 7.4)
    rows = []
    sizes: dict[str, list[Estimate]] = {}
    for number, column in enumerate(there):
        for (model, look), marker in zip(_looks(drawn), cycle(MARKERS[loss] for loss in LOSSES), strict=False):
            curve = model.curve(column.measure, column.loss)
            if curve is None:
                continue
            attack = _MEASURES[column.measure]
            sizes.setdefault(attack, []).append(curve.points[0].last)
            x = [point.at for point in curve.points]
            style = {**look, "marker": marker, "markersize": 3.5, "linewidth": 1.3}
            losses, lasts = [point.loss for point in curve.points], [point.last for point in curve.points]
            draw_estimates(axes[0, number], x, losses, percent=False, label=model.title, **style)
            draw_estimates(axes[1, number], x, lasts, percent=True, **style)
            rows += [(attack, *row) for row in curve_rows(model.title, column.loss, curve.points)]
        axes[0, number].set_title(column.title)
        axes[0, number].set_ylabel("mean cross-entropy")
        axes[0, number].set_yscale("symlog", linthresh=1)
        axes[0, number].set_ylim(bottom=0)
        plain_ticks(axes[0, number].yaxis, axes[0, number].get_ylim()[1])
        percent_axis(axes[1, number])
        axes[1, number].set_xlabel("eps")
        if marks and column.measure in marks:
            eps, statement = marks[column.measure]
            axes[1, number].plot([eps], [100 * statement.value], **PUBLISHED)
            # beside it: a star in a legend would look like a second number of the paper
            beside = {"xytext": (-9, 0), "textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 8}
            axes[1, number].annotate("the paper", (eps, 100 * statement.value), **beside)
    drawing.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2 if len(there) < 3 else 3,
        fontsize=8.5,
    )
    found = [
        f"{model.title} {percent(left.value)}"
        for model in drawn
        if (left := model.accuracy_under(there[0].measure, at, there[0].loss)) is not None
    ]
    counts = [f"{sizes_in_words(each)} under {attack}" for attack, each in sizes.items()]
    seed = seed_of(drawn[0].artifacts, f"{drawn[0].model.name}/")
    return finished(
        drawing,
        name,
        title=title,
        caption=f"{words} Mean loss above (linear to 1, then logarithmic), accuracy of the last iterate below. "
        f"n = {'; '.join(counts)}; seed {seed}; bands: 95 % intervals.",
        alt=f"Accuracy under {there[0].title} at eps {at:g}: {', '.join(found)}.",
        columns=("attack", *CURVE_COLUMNS),
        rows=rows,
    )


def _looks(models: Sequence[ModelResults]) -> Iterator[tuple[ModelResults, dict[str, str]]]:
    """Each model with the colour of its line and whether it is dashed: the colour that it has in all figures
    (`MODEL_COLOURS`), else the next free one, and beyond the last free one all colours with dashes.
    """
    taken = {MODEL_COLOURS.get(each.model.name) for each in models}
    free = [{"color": colour, "linestyle": "-"} for colour in _COLOURS if colour not in taken]
    others = chain(free, cycle({"color": colour, "linestyle": "--"} for colour in _COLOURS))
    for each in models:
        colour = MODEL_COLOURS.get(each.model.name)
        yield each, next(others) if colour is None else {"color": colour, "linestyle": "-"}


def _picked(models: Models, names: Sequence[str]) -> list[ModelResults]:
    return [models[name] for name in names if name in models]


def _losses(measure: str) -> list[_Column]:
    return [_Column(measure, loss, f"{_MEASURES[measure]}, {TITLES[loss]}") for loss in LOSSES]


def _attacks(loss: str) -> list[_Column]:
    return [_Column(measure, loss, words) for measure, words in _MEASURES.items()]


def defenses_figure(models: Models) -> Figure | None:
    """The paper's figure 15 with E8 added: E1 (undefended), E5 (augmentation) and E6 to E8 (adversarial regularisation)
    under FGSM. None if fewer than two are measured.
    """
    return _compared(
        _picked(models, ("E1", "E5", "E6", "E7", "E8")),
        _losses("fgsm"),
        "figure-15",
        "The original model and three defences under FGSM",
        "One column per loss that the attack ascends. The paper states 70 % for adversarial regularisation at 0.2; its "
        "figure has no E8.",
        marks={"fgsm": (0.2, paper.ADVERSARIAL_AT_02)},
    )


def regularised_bim_figure(models: Models) -> Figure | None:
    """A figure of E1 (undefended) and E6 (adversarial regularisation) under FGSM, and BIM with both clippings; the
    paper compares them in words (section 4.2.2). None if not both are measured.
    """
    return _compared(
        _picked(models, ("E1", "E6")),
        [
            _Column("fgsm", "ce", "FGSM"),
            _Column("ball", "ce", "BIM, clip ball"),
            _Column("range", "ce", "BIM, clip range"),
        ],
        "bim-adversarial",
        "Original and adversarially regularised model under FGSM and BIM",
        "All ascend the stable cross-entropy. The paper reports that under BIM the original is the better one, without "
        "numbers.",
    )


def distillation_figure(models: Models, loss: str, name: str) -> Figure | None:
    """The paper's figure 16: E1, the teacher at temperature 1, E9's teachers, and all students (E9, E10) under FGSM and
    BIM with both clippings, ascending `loss`.

    `name` is the figure's file name. None if fewer than two are measured.
    """
    distilled = [each for key, each in models.items() if key.startswith(("E9-", "E10-"))]
    return _compared(
        [*_picked(models, ("E1",)), *distilled],
        _attacks(loss),
        name,
        f"Teacher and students, attacks ascending {TITLES[loss]}",
        "E1 is the teacher at T = 1; all predict at temperature 1.",
    )


def early_stopping_figure(models: Models) -> Figure | None:
    """The paper's figure 17 with more models: E1 (trained to the end) and models that do not over-fit (E11 stopped
    early, E1+, E12, E13) under FGSM. None if fewer than two are measured.
    """
    decayed = [name for name in models if name.startswith("E12-")]
    return _compared(
        _picked(models, ("E1", "E11", "E1+", *decayed, "E13-regularised", "E13-mix", "E13-resnet")),
        _losses("fgsm"),
        "figure-17-extended",
        "The over-fitted model, and models that do not over-fit, under FGSM",
        "The paper's figure 17 with the later models added; one column per loss that the attack ascends.",
    )
