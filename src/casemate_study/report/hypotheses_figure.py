"""The figure of the hypotheses on why the paper's accuracy of E1 under FGSM is not ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate.report import Figure, canvas, finished, palette, percent_axis
from casemate_study.experiments.hypotheses import E2_CONDITIONS, HYPOTHESES
from casemate_study.experiments.specs import LOSSES
from casemate_study.results.hypotheses import WANTED, Trial, hypotheses_after_epochs, numbered, trials_of
from casemate_study.results.stored import Artifacts

_LINES: Mapping[str, str | None] = {
    **{numbered(name): name for name in HYPOTHESES},
    "the two that raise it most with this loss, combined": None,
}
"""The hypothesis of each line by its label; None for the combination of two."""
_STYLES: Sequence[Mapping[str, Any]] = (
    {"color": palette.BLUE, "linewidth": 2.4},
    {"color": palette.ORANGE},
    {"color": palette.SKY},
    {"color": palette.GREEN, "linestyle": "--"},  # often the same as the first
    {"color": palette.PURPLE},
    {"color": palette.GREY},
    {"color": palette.VERMILLION},
    {"color": palette.INK, "linewidth": 2.0},
)
"""How each line of `_LINES` is drawn."""


def hypotheses_figure(artifacts: Artifacts) -> Figure | None:
    """A figure of E1's accuracy under FGSM after several numbers of epochs with the change of each hypothesis, one
    panel per loss ascended, and the paper's number. None if they are not tried after at least two numbers of epochs.
    """
    tried = hypotheses_after_epochs(artifacts)
    by_epoch = {epoch: list(trials_of(found, epoch)) for epoch, found in tried.items()}
    if len(by_epoch) < 2:
        return None
    drawing, axes = canvas(1, len(LOSSES), 3.3 * len(LOSSES), 4.4)
    rows: list[tuple[object, ...]] = []
    for place, loss in zip(axes[0], LOSSES, strict=True):
        for (label, name), style in zip(_LINES.items(), _STYLES, strict=True):
            line = [trial for trials in by_epoch.values() for trial in trials if _is_on(trial, name, loss)]
            place.plot(
                [each.epoch for each in line], [100 * each.accuracy.value for each in line], label=label, **style
            )
            rows += [(each.epoch, TITLES[loss], each.title, *_values(each.accuracy)) for each in line]
        place.axhline(100 * WANTED, color=palette.SOFT, linestyle=":", linewidth=1.2, label="the paper")
        place.set_title(f"ascending {TITLES[loss]}", fontsize=9)
        place.set_xlabel("epochs trained")
        percent_axis(place)
    drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    every = (trial for trials in by_epoch.values() for trial in trials)
    nearest = min(every, key=lambda each: abs(each.accuracy.value - WANTED))
    return finished(
        drawing,
        "hypotheses",
        title="Hypotheses on the paper's accuracy under FGSM",
        caption=f"Accuracy of E1 at the last iterate of FGSM at eps {E2_CONDITIONS['eps']:g} with one condition of "
        "E2's measure changed, or the two that raise it most together, after more and more epochs of training. Dotted: "
        f"the paper's {percent(WANTED)}. The intervals are in the table of numbers.",
        alt=f"The nearest to the paper's {percent(WANTED)} of all these measures is {nearest}.",
        columns=("epoch", "loss ascended", "what is changed", "n", "value", "low", "high"),
        rows=rows,
    )


def _is_on(trial: Trial, name: str | None, loss: str) -> bool:
    """Whether a trial belongs to the line of this hypothesis (None: to that of the combinations) and of this loss."""
    return trial.loss == loss and (len(trial.hypotheses) > 1 if name is None else trial.hypotheses == (name,))


def _values(estimate: Estimate) -> tuple[float, ...]:
    return (estimate.n, estimate.value, estimate.low, estimate.high)
