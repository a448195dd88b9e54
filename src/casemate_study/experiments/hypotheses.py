"""Descriptions of the hypotheses on why the paper's accuracy of E1 (undefended) under FGSM differs from E2's.

The paper states 63.6 % at eps 0.1 (section 4.1.1). Each hypothesis changes one condition of E2's measure; the two that
raise the accuracy most are also tried together. All are measured on E1's final weights and after each kept epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from casemate.engine import Task
from casemate.timing import FORWARD_COST, GRADIENT_COST
from casemate_study.experiments.specs import LOSSES, Setup, Source, measured_config

PREFIX = "E2/hypotheses"
"""The name of the task on E1's final weights; those on the weights of a kept epoch are "E2/hypotheses/epoch-010"."""
MEAN_OF = 1000
"""Images per batch in the hypothesis that attacks the mean loss of a batch."""
E2_CONDITIONS: Mapping[str, Any] = {
    "images": "test",
    "label": "true",
    "mean_of": None,
    "eps": 0.1,
    "clip": True,
    "counted": "all",
}
"""The conditions of E2's measure, as `casemate_study.tasks.hypotheses.Conditions` describes them."""


@final
@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One hypothesis: its title in the report, and the condition of E2's measure that it changes."""

    title: str
    change: Mapping[str, Any]


UNCHANGED = "none"
"""The name of the hypothesis that changes nothing: E2's own measure, with which the others are compared."""
HYPOTHESES: Mapping[str, Hypothesis] = {
    UNCHANGED: Hypothesis(title="as in E2", change={}),
    "training-images": Hypothesis(title="images of the training split", change={"images": "training"}),
    "predicted-label": Hypothesis(
        title="the loss of the predicted class, not of the true one", change={"label": "predicted"}
    ),
    "batch-mean": Hypothesis(
        title=f"gradient of the mean loss of {MEAN_OF:,} images, denormals flushed to zero", change={"mean_of": MEAN_OF}
    ),
    "scaled-images": Hypothesis(title="eps 0.1 on images scaled to [-1, 1], which is 0.05 here", change={"eps": 0.05}),
    "correct-only": Hypothesis(
        title="accuracy among images classified correctly without an attack", change={"counted": "correct"}
    ),
    "not-clipped": Hypothesis(title="pixels not clipped to [0, 1]", change={"clip": False}),
}
"""By name. Each changes a different condition, so that any two can be combined."""


def hypotheses_task(setup: Setup, name: str, source: Source) -> Task:
    """Describe the task that tries every hypothesis on one set of weights, with FGSM ascending each of `LOSSES`."""
    scale = setup.scale
    images = setup.images(scale.bim_images)
    attacks = len(HYPOTHESES)  # "correct-only" needs no attack of its own, the combination needs one
    return Task(
        name=name,
        kind="hypotheses",
        config={
            **measured_config(setup, source, scale.bim_images),
            "train_images": scale.train_images,
            "validation_images": scale.validation_images,
            "losses": list(LOSSES),
            "conditions": dict(E2_CONDITIONS),
            "hypotheses": {name: dict(each.change) for name, each in HYPOTHESES.items()},
            "unchanged": UNCHANGED,
            "mean_of": MEAN_OF,
        },
        needs={"model": source.task},
        work=images * len(LOSSES) * ((attacks + 2) * GRADIENT_COST + attacks * FORWARD_COST),
    )


def hypotheses_tasks(setup: Setup, source: Source) -> list[Task]:
    """Describe the tasks that try the hypotheses on E1: on its final weights (`source`), and after each kept epoch but
    the last, whose weights are the final ones. Empty if the scale omits them.
    """
    if not setup.scale.hypotheses:
        return []
    epochs = [f"epoch-{epoch:03d}" for epoch in setup.scale.kept_epochs if epoch != setup.scale.epochs]
    return [
        hypotheses_task(setup, PREFIX, source),
        *(hypotheses_task(setup, f"{PREFIX}/{each}", replace(source, weights=each)) for each in epochs),
    ]
