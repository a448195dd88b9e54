"""Broken attacks must fail the checks. What kills a mutant here is what `test_attacks.py` runs on the real ones.

Each mutant is one plausible mistake, patched into the library; every check that is named for it must raise
`AssertionError`. The first test holds the checks to pass on the library as it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from casemate.attacks import BIM, FGSM, MIFGSM, PGD, AbstractGradientAttack, Criterion, RunResult, base, verify
from casemate.losses import LOSSES
from casemate.models import Classifier
from casemate.norms import Ball, Bounds
from oracles import (
    check_approaches_target,
    check_beats_chance,
    check_claims,
    check_inside,
    check_nothing_at_zero,
    check_reaches_optimum,
    linear_problem,
    small_task,
)
from test_attacks import saturated

Check = Callable[[], None]

# ------------------------------------------------------------------------------------------------------ the checks

REAL: dict[str, AbstractGradientAttack] = {
    "fgsm": FGSM(eps=0.1, keep="last"),
    "bim": BIM(eps=0.1, keep="last"),
    "pgd": PGD(eps=0.1, keep="last"),
    "mifgsm": MIFGSM(eps=0.1, keep="last"),
}


def optimum(attack: AbstractGradientAttack) -> Check:
    """The closed form on a linear classifier."""
    return lambda: check_reaches_optimum(attack, linear_problem(0), norm="linf", eps=0.1)


def beats_chance(attack: AbstractGradientAttack) -> Check:
    """Against random corners on a small network."""
    return lambda: check_beats_chance(attack, small_task(scale=2.0))


def target(attack: AbstractGradientAttack) -> Check:
    """A targeted attack."""
    return lambda: check_approaches_target(attack, small_task(scale=3.0))


def inside(attack: AbstractGradientAttack) -> Check:
    """Ball, bounds and the claimed norm."""

    def check() -> None:
        task = small_task()
        check_inside(attack, attack(task.model, task.images, task.labels), task.images)

    return check


def claims(attack: AbstractGradientAttack) -> Check:
    """Predictions, success and loss."""

    def check() -> None:
        task = small_task()
        check_claims(attack(task.model, task.images, task.labels), task)

    return check


def zero(kind: type[FGSM] | type[BIM] | type[PGD] | type[MIFGSM]) -> Check:
    """Nothing at eps 0."""
    return lambda: check_nothing_at_zero(lambda eps: kind(eps=eps, keep="last"), small_task())


def sure() -> None:
    """The closed form where only the stable gradient is left."""
    check_reaches_optimum(FGSM(eps=0.2, keep="last"), saturated(40), norm="linf", eps=0.2)


def in_norm(norm: str) -> Check:
    """The closed form in another norm, where no bound is met."""
    problem = linear_problem(1, low=0.35, high=0.65, gap=0.5)
    attack = FGSM(eps=0.2, norm=norm, keep="last")  # type: ignore[arg-type]
    return lambda: check_reaches_optimum(attack, problem, norm=norm, eps=0.2)  # type: ignore[arg-type]


STRENGTH = {
    **{f"optimum-{name}": optimum(attack) for name, attack in REAL.items()},
    **{f"chance-{name}": beats_chance(attack) for name, attack in REAL.items()},
    **{f"target-{name}": target(attack) for name, attack in REAL.items()},
    "optimum-l2": in_norm("l2"),
    "optimum-l1": in_norm("l1"),
}
OTHERS = {
    **{f"inside-{name}": inside(attack) for name, attack in REAL.items()},
    **{f"claims-{name}": claims(attack) for name, attack in REAL.items()},
    **{f"zero-{kind.__name__}": zero(kind) for kind in (FGSM, BIM, PGD, MIFGSM)},
    "sure": sure,
}
ALL = STRENGTH | OTHERS


@pytest.mark.parametrize("name", ALL)
def test_every_check_passes_on_the_library_as_it_is(name: str) -> None:
    ALL[name]()


# ------------------------------------------------------------------------------------------------------ the mutants


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """A patch that is undone before anything else runs."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


ASCENT = Ball.steepest_step


def no_step(self: Ball, gradient: Tensor, images: Tensor, bounds: Bounds) -> Tensor:
    """A null attack."""
    return torch.zeros_like(gradient)


def downhill(self: Ball, gradient: Tensor, images: Tensor, bounds: Bounds) -> Tensor:
    """The wrong sign."""
    return -ASCENT(self, gradient, images, bounds)


def half_a_step(self: Ball, gradient: Tensor, images: Tensor, bounds: Bounds) -> Tensor:
    """Steps of half the length."""
    return ASCENT(self, gradient, images, bounds) / 2


def blind(self: Ball, gradient: Tensor, images: Tensor, bounds: Bounds) -> Tensor:
    """Steps that do not look at the gradient."""
    return torch.ones_like(gradient)


def sign_in_every_norm(self: Ball, gradient: Tensor, images: Tensor, bounds: Bounds) -> Tensor:
    """The Linf step, whatever the norm, at the right length: strong, but not the strongest."""
    step = gradient.sign().flatten(1)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[self.norm]
    return (step / step.norm(p=order, dim=1, keepdim=True)).view_as(gradient)


@pytest.mark.parametrize("name", STRENGTH)
@pytest.mark.parametrize("ascent", [no_step, downhill])
def test_a_null_attack_and_a_wrong_sign_fail_every_check_of_strength(
    name: str, ascent: Callable[..., Tensor], patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(Ball, "steepest_step", ascent)
    with pytest.raises(AssertionError):
        STRENGTH[name]()


RISING = Criterion.objective


@pytest.mark.parametrize("name", STRENGTH)
def test_descending_the_loss_fails_every_check_of_strength(name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Criterion, "objective", lambda self, loss, logits: -RISING(self, loss, logits))
    with pytest.raises(AssertionError):
        STRENGTH[name]()


@pytest.mark.parametrize("name", STRENGTH)
def test_handing_the_clean_images_back_fails_every_check_of_strength(name: str, patch: pytest.MonkeyPatch) -> None:
    run = AbstractGradientAttack.run

    def idle(self: AbstractGradientAttack, model: Classifier, clean: Tensor, *rest: object) -> RunResult:
        return replace(run(self, model, clean, *rest), images=clean)  # type: ignore[arg-type]

    patch.setattr(AbstractGradientAttack, "run", idle)
    with pytest.raises(AssertionError):
        STRENGTH[name]()


@pytest.mark.parametrize("name", [name for name in STRENGTH if name.startswith("target")])
def test_a_target_that_is_avoided_fails(name: str, patch: pytest.MonkeyPatch) -> None:
    """`targeted` forgotten: the loss of the target is raised, as if it were the label."""
    patch.setattr(Criterion, "objective", lambda self, loss, logits: loss(logits, self.classes))
    with pytest.raises(AssertionError):
        STRENGTH[name]()


@pytest.mark.parametrize("name", ["optimum-fgsm", "optimum-mifgsm", "optimum-l2", "optimum-l1"])
def test_half_a_step_fails_where_the_steps_just_reach_the_edge(name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ball, "steepest_step", half_a_step)
    with pytest.raises(AssertionError, match="missed the optimum"):
        STRENGTH[name]()


@pytest.mark.parametrize("name", [name for name in STRENGTH if name.startswith(("optimum", "chance"))])
def test_a_step_that_does_not_look_at_the_gradient_fails(name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ball, "steepest_step", blind)
    with pytest.raises(AssertionError):
        STRENGTH[name]()


@pytest.mark.parametrize("name", ["optimum-l2", "optimum-l1"])
def test_the_step_of_another_norm_fails(name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ball, "steepest_step", sign_in_every_norm)
    with pytest.raises(AssertionError, match="missed the optimum"):
        STRENGTH[name]()


@pytest.mark.filterwarnings("ignore:.* had no gradient to follow:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("name", ["prob-ce", "torch-ce"])
def test_a_loss_whose_gradient_vanishes_fails_where_the_network_is_sure(name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(LOSSES, "ce", LOSSES[name])  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="missed the optimum"):
        sure()


# ---------------------------------------------------------------------- the ball: two locks, and a check that sees both


def test_a_projection_that_is_skipped_is_caught_by_the_verification(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ball, "project", lambda self, images, clean, bounds: images)
    with pytest.raises(RuntimeError, match="outside the ball"):
        inside(REAL["bim"])()


@pytest.mark.parametrize("name", ["inside-bim", "inside-pgd", "zero-PGD", "optimum-bim", "optimum-pgd"])
def test_without_projection_and_verification_the_checks_fail(name: str, patch: pytest.MonkeyPatch) -> None:
    """The verification is fooled by norms that are always small; the checks compute their own."""
    patch.setattr(Ball, "project", lambda self, images, clean, bounds: images.clamp(*bounds))
    patch.setattr(Ball, "sample", lambda self, clean, bounds, *rest, mask=None: (clean + 0.3).clamp(*bounds))
    patch.setattr(verify, "norm_of", lambda delta, norm: torch.zeros(len(delta)))
    with pytest.raises(AssertionError):
        ALL[name]()


@pytest.mark.parametrize("name", ["inside-fgsm", "inside-bim", "optimum-fgsm", "optimum-bim"])
def test_bounds_that_are_forgotten_fail(name: str, patch: pytest.MonkeyPatch) -> None:
    """And so does the verification, unless it forgets them too."""
    project = Ball.project
    patch.setattr(Ball, "project", lambda self, images, clean, bounds: project(self, images, clean, (-9.0, 9.0)))
    with pytest.raises(RuntimeError, match="outside"):
        ALL[name]()
    found = verify.verify_candidates

    def careless(
        model: Classifier, candidates: Tensor, clean: Tensor, ball: Ball, bounds: Bounds, finite: Tensor, **options: Any
    ) -> verify.Verified:
        del bounds
        return found(model, candidates, clean, ball, (-9.0, 9.0), finite, **options)

    patch.setattr(base, "verify_candidates", careless)
    with pytest.raises(AssertionError):
        ALL[name]()


@pytest.mark.parametrize("name", ["optimum-fgsm", "optimum-bim"])
def test_a_ball_that_is_a_little_too_large_fails(name: str, patch: pytest.MonkeyPatch) -> None:
    """By one per cent."""
    loop = {kind: kind.loop for kind in (FGSM, BIM)}

    def larger(self: FGSM | BIM) -> object:
        made = loop[type(self)](self)  # type: ignore[index]
        return replace(made, ball=replace(made.ball, eps=1.01 * made.ball.eps), step_size=1.01 * made.step_size)

    for kind in loop:
        patch.setattr(kind, "loop", larger)
    with pytest.raises(AssertionError, match="further than the ball allows"):
        ALL[name]()


# -------------------------------------------------------------------------------------------------------- the claims


@pytest.mark.parametrize("name", [name for name in OTHERS if name.startswith("claims")])
def test_claims_that_were_not_checked_again_fail(name: str, patch: pytest.MonkeyPatch) -> None:
    """The predictions of the clean images, reported for the adversarial ones."""
    found = verify.verify_candidates

    def trusting(
        model: Classifier, candidates: Tensor, clean: Tensor, ball: Ball, bounds: Bounds, finite: Tensor, **options: Any
    ) -> verify.Verified:
        return replace(found(model, candidates, clean, ball, bounds, finite, **options), logits=model(clean).detach())

    patch.setattr(base, "verify_candidates", trusting)
    with pytest.raises(AssertionError):
        OTHERS[name]()
