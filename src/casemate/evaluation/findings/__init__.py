"""The checks of an evaluation: reasons not to trust its number, by name, in the order in which they are reported."""

from collections.abc import Mapping, Sequence

from casemate.attacks import Passes
from casemate.evaluation.findings import agreement, gradients, inputs, randomness
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

CHEAP = Passes(forward=80_000, backward=52_000)
"""Upper bound of the passes of single images in all checks that every evaluation runs, with a full sample; one forward
pass of every image of the evaluation comes on top."""
EXPENSIVE = Passes(forward=1_950_000)
"""Upper bound of the passes of single images in the checks that only a thorough evaluation runs, with a full sample."""


def run_checks(context: CheckContext, own: Sequence[Check] = (), *, thorough: bool = False) -> list[Checked]:
    """Run all checks, and return their results in the order of `CHECKS`, then those of the caller's `own`.

    Checks that take minutes are run only if `thorough`; else their result is "not run".
    """
    found: list[Checked] = []
    with context.observer.work("Checking the evaluation", len(CHECKS) + len(own)) as advance:
        for check in (*CHECKS.values(), *own):
            dropped = check.thorough and not thorough
            found.append(check.skipped("it runs only with --thorough: it takes minutes") if dropped else check(context))
            advance(1, check.title)
    return found
