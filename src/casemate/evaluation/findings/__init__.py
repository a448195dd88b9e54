"""The checks of an evaluation: reasons not to trust its number, by name, in the order in which they are reported."""

from collections.abc import Iterable, Mapping, Sequence

from casemate.attacks import Passes
from casemate.errors import EvaluationError
from casemate.evaluation.findings import agreement, gradients, inputs, one_function, randomness
from casemate.evaluation.findings.check import Check as Check
from casemate.evaluation.findings.context import CheckContext as CheckContext
from casemate.evaluation.findings.finding import Checked as Checked
from casemate.evaluation.findings.finding import Finding as Finding
from casemate.evaluation.findings.finding import Severity as Severity

CHECKS: Mapping[str, Check] = {
    each.name: each
    for each in (
        inputs.training_mode,
        inputs.batch_dependence,
        one_function.memory,
        one_function.way_of_calling,
        inputs.probabilities,
        inputs.non_finite,
        inputs.masked_classes,
        inputs.eps_unit,
        inputs.labels,
        inputs.normalisation,
        inputs.frozen_copy,
        inputs.saturation,
        inputs.sample_size,
        randomness.randomized,
        randomness.stateful_model,
        randomness.fixed_randomness,
        randomness.eot_samples,
        randomness.inference_time_optimization,
        gradients.zero_gradient,
        gradients.precision,
        gradients.finite_differences,
        one_function.jumps,
        agreement.one_step,
        agreement.label_leaking,
        agreement.more_steps,
        agreement.still_rising,
        agreement.best_not_last,
        agreement.larger_eps,
        agreement.unbounded_attack,
        agreement.losses,
        agreement.black_box_stronger,
        agreement.nothing_found,
        agreement.noise,
        agreement.re_checked,
        agreement.transfer,
        agreement.attack_works,
        agreement.noise_10k,
        agreement.decision_based,
    )
}

LEFT_OUT = "the model fell, and this check could only find that it looks more robust than it is"
"""Why a check of which that holds (`Check.only_flattery`) was not run."""
CHEAP = Passes(forward=45_500, backward=25_000)
"""Upper bound of the passes of single images in all checks that every evaluation runs, with a full sample; two forward
passes of every image of the evaluation come on top."""
FIRST = Passes(forward=12_000)
"""The part of `CHEAP` in the checks before the attacks; one of the two forward passes of every image is made there."""
FALLEN = Passes(forward=1_000)
"""Upper bound as `CHEAP` in the checks after the attacks on a model that fell; one pass of every image comes on top.
Passes of one or two images, most of which these checks make, take several times as long per image as others."""
EXPENSIVE = Passes(forward=1_950_000)
"""Upper bound of the passes of single images in the checks that only a thorough evaluation runs, with a full sample."""


def run_first_checks(context: CheckContext, own: Sequence[Check] = ()) -> dict[str, Checked]:
    """Run the checks that need no attack, the caller's `own` among them; return their results by name."""
    chosen = [check for check in (*CHECKS.values(), *own) if check.reads != "attacks"]
    found: dict[str, Checked] = {}
    with context.observer.work("Checking model and images", len(chosen)) as advance:
        for check in chosen:
            found[check.name] = check(context)
            advance(1, check.title)
    return found


def refuse_pointless(checks: Iterable[Checked]) -> None:
    """Raise `EvaluationError` if a check that needs no attack found that the robust accuracy would say nothing."""
    voids = [each.finding for each in checks if each.finding is not None and each.finding.severity is Severity.VOIDS]
    if voids:
        raise EvaluationError(
            f"nothing was attacked, since the robust accuracy would say nothing: "
            f"{'; and '.join(each.sentence for each in voids)}. To attack all the same, and keep "
            f"{'this finding' if len(voids) == 1 else 'these findings'}: --force, or force=True in Python"
        )


def run_checks(
    context: CheckContext,
    first: Mapping[str, Checked],
    own: Sequence[Check] = (),
    *,
    thorough: bool = False,
    fallen: bool = False,
) -> list[Checked]:
    """Run the checks that read the results of the attacks; return the results of all in the order of `CHECKS`, then
    those of the caller's `own`.

    Args:
        first: the results of `run_first_checks`.
        own: the caller's checks.
        thorough: run every check. Without it those that take minutes have the result "not run".
        fallen: whether the model has fallen, without regard to findings. If so, unless `thorough`, the checks that
            could only find that the model looks more robust than it is have the result "not run".
    """
    found: list[Checked] = []
    with context.observer.work("Checking the evaluation", len(CHECKS) + len(own)) as advance:
        for check in (*CHECKS.values(), *own):
            if check.reads == "inputs":
                found.append(first[check.name])
            elif check.thorough and not thorough:
                found.append(
                    check.skipped("it runs only with thorough=True (on the command line --thorough): it takes minutes")
                )
            elif check.only_flattery and fallen and not thorough:
                found.append(check.skipped(LEFT_OUT))
            else:
                found.append(check(context))
            advance(1, check.title)
    return found
