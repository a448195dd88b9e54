"""The time of a hardening before it starts: a training step and a validation are timed on a few images."""

from collections.abc import Mapping

from casemate.evaluation import seconds_at_most
from casemate.hardening.plan import HardeningPlan
from casemate.hardening.subject import trainable_copy
from casemate.models import preserve_state
from casemate.training import step_seconds, validation_seconds

_FEW = 64
"""Number of images that a training step is timed on, at most."""


def hardening_seconds(plan: HardeningPlan) -> Mapping[str, float]:
    """Estimated seconds of each step by name: fine-tuning by model, and all evaluations, the latter at most.

    What is learned by the trainings is not used, and PyTorch's random state is restored.
    """
    parts, epochs = plan.parts, plan.settings.epochs
    few = parts.train[: min(_FEW, plan.settings.batch_size)]
    found: dict[str, float] = {}
    with preserve_state(plan.model, seed=0):
        for name, recipe in plan.trainings.items():
            model, objective = trainable_copy(plan.model), plan.selected(recipe.objective)
            images = len(parts.train) * (1 + len(recipe.extra))
            step, check = step_seconds(model, objective, few), validation_seconds(model, objective, few)
            settings = plan.settings_of(name)
            averaged = settings.ema is not None or settings.swa_start is not None
            checks = 1 + settings.guard * (1 + averaged)  # the guard attacks an average and the weights themselves
            found[name] = epochs * (step * images + checks * check * len(parts.validation))
        most = seconds_at_most(plan.model, parts.test, [plan.eps], norm=plan.norm)[plan.budget]
    found["evaluations, at most"] = most * (1 + len(plan.trainings))
    return found
