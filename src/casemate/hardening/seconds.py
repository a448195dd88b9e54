"""The time of a hardening before it starts: a training step and a validation are timed on a few images."""

from collections.abc import Mapping

from casemate.evaluation import seconds_at_most
from casemate.hardening.plan import HardeningPlan
from casemate.hardening.subject import trainable_copy
from casemate.models import preserve_state
from casemate.training import training_seconds


def hardening_seconds(plan: HardeningPlan) -> Mapping[str, float]:
    """Estimated seconds of each step by name: fine-tuning by model, and all evaluations, the latter at most.

    What is learned by the trainings is not used, and PyTorch's random state is restored.
    """
    parts = plan.parts
    found: dict[str, float] = {}
    with preserve_state(plan.model, seed=0):
        for name, recipe in plan.trainings.items():
            model, objective = trainable_copy(plan.model), plan.selected(recipe.objective)
            found[name] = training_seconds(
                model,
                objective,
                plan.settings_of(name),
                parts.train_of(recipe.objective),
                parts.validation,
                copies=len(recipe.extra),
            )
        most = seconds_at_most(plan.model, parts.test, [plan.eps], norm=plan.norm)[plan.budget]
    found["evaluations, at most"] = most * (1 + len(plan.trainings))
    return found
