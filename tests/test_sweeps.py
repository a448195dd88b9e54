"""Sweeps against the attacks run one by one, and what holds of `worst` and `last` by construction.

The networks are in float64, so that the rounding of differently composed batches cannot flip a comparison.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import (
    BIM,
    FGSM,
    MIFGSM,
    PGD,
    AbstractGradientAttack,
    Passes,
    Status,
    Sweep,
    frozen,
    sweep_eps,
    sweep_steps,
)
from casemate.attacks.base import with_eps
from casemate.errors import CasemateWarning, SettingError, ShapeError
from casemate.models import freeze
from casemate.norms import Norm
from oracles import Counting, as_installed, classifier, distance, small_task
from test_attacks import Trouble

EPS = [0.0, 0.01, 0.03, 0.06, 0.1, 0.2]
STEPS = [0, 1, 2, 5, 9]

OVER_EPS: dict[str, AbstractGradientAttack] = {
    "fgsm": FGSM(eps=0.5),
    "fgsm-l2": FGSM(eps=0.5, norm="l2"),
    "fgsm-torch-ce": FGSM(eps=0.5, loss="torch-ce"),
    "bim": BIM(eps=0.5, steps=5),
    "bim-l1": BIM(eps=0.5, steps=5, norm="l1"),
    "bim-fixed-step": BIM(eps=0.5, steps=5, step_size=0.02),
    "bim-range": BIM(eps=0.5, steps=5, clip="range"),
    "pgd": PGD(eps=0.5, steps=4),
    "pgd-restarts": PGD(eps=0.5, steps=2, restarts=3),
    "pgd-still": PGD(eps=0.5, steps=4, random_start=False),
    "mifgsm": MIFGSM(eps=0.5, steps=4),
}
OVER_STEPS: dict[str, AbstractGradientAttack] = {
    "bim": BIM(eps=0.1),
    "bim-small-step": BIM(eps=0.05, step_size=1 / 255),
    "bim-range": BIM(eps=0.1, clip="range"),
    "bim-l2": BIM(eps=0.6, norm="l2"),
    "bim-l1-range": BIM(eps=2.0, norm="l1", clip="range"),
    "pgd": PGD(eps=0.1),  # its step depends on the number of steps
    "pgd-fixed-step": PGD(eps=0.1, step_size=0.02),
    "mifgsm": MIFGSM(eps=0.1),
    "mifgsm-fixed-step": MIFGSM(eps=0.1, step_size=0.02),
}


def assert_column_is(sweep: Sweep, column: int, attack: AbstractGradientAttack, images: Tensor, labels: Tensor) -> None:
    """The `last` column is what the attack gives when run by itself, as other tools run it."""
    alone = replace(attack, keep="last")(MODEL, images, labels, seed=3, index=torch.arange(40, 40 + len(labels)))  # type: ignore[call-arg]
    assert sweep.last is not None
    assert torch.equal(sweep.last.right[:, column], ~alone.success)
    assert torch.equal(sweep.last.prediction[:, column], alone.prediction)
    assert torch.equal(sweep.last.status[:, column], alone.status)
    assert torch.allclose(sweep.last.loss[:, column], alone.loss, rtol=1e-9)
    assert torch.allclose(sweep.last.norm[:, column], alone.norm, rtol=1e-5, atol=1e-9)


TASK = small_task(6, count=40)
MODEL = TASK.model


# -------------------------------------------------------------------------------------------------------- over eps


@pytest.mark.parametrize("attack", OVER_EPS.values(), ids=OVER_EPS.keys())
def test_every_column_over_eps_is_the_attack_run_by_itself(attack: AbstractGradientAttack) -> None:
    sweep = sweep_eps(attack, MODEL, TASK.images, TASK.labels, EPS, seed=3, first_index=40)
    assert sweep.values == tuple(EPS)
    for column, eps in enumerate(EPS):
        assert_column_is(sweep, column, replace(attack, eps=eps), TASK.images, TASK.labels)  # type: ignore[call-arg]
    assert sweep.last is not None
    assert 0 < sweep.last.right[:, 1:].double().mean() < 1


@pytest.mark.parametrize("attack", OVER_EPS.values(), ids=OVER_EPS.keys())
def test_worst_falls_with_eps_and_is_never_above_last(attack: AbstractGradientAttack) -> None:
    sweep = sweep_eps(attack, MODEL, TASK.images, TASK.labels, EPS)
    assert sweep.last is not None
    assert (sweep.worst[:, 1:] <= sweep.worst[:, :-1]).all()
    assert (sweep.worst <= sweep.last.right).all()
    right = MODEL(TASK.images).argmax(1) == TASK.labels
    assert torch.equal(sweep.worst[:, 0], right)
    assert torch.equal(sweep.last.right[:, 0], right)


@pytest.mark.parametrize("attack", OVER_EPS.values(), ids=OVER_EPS.keys())
def test_worst_is_whatever_failed_at_any_iterate_of_this_or_a_smaller_eps(attack: AbstractGradientAttack) -> None:
    """Written out with the attack's own `worst` runs: the first fooling iterate of a run ends it there."""
    sweep = sweep_eps(attack, MODEL, TASK.images, TASK.labels, EPS, seed=3)
    standing = MODEL(TASK.images).argmax(1) == TASK.labels
    for column, eps in enumerate(EPS):
        alone = replace(attack, eps=eps, keep="first_success")(MODEL, TASK.images, TASK.labels, seed=3)  # type: ignore[call-arg]
        standing = standing & ~alone.success
        assert torch.equal(sweep.worst[:, column], standing)


@pytest.mark.parametrize("attack", OVER_EPS.values(), ids=OVER_EPS.keys())
def test_only_worst_gives_the_same_worst_for_less(attack: AbstractGradientAttack) -> None:
    """The same, example by example, for every attack, not only on average and not only for FGSM.

    An example that leaves early is one that `worst` has lost already. Up to its first fooling iterate its path does
    not depend on the others or on `keep`: the gradient is its own, its random numbers are keyed by its number, and
    a restart happens where the last iterate of the run before did not fool, which is so in both modes as long as no
    iterate fooled. So the paths can part only after the verdict. (In float32 a batch of another size may round
    otherwise; that is all that could differ.)
    """
    full = sweep_eps(attack, MODEL, TASK.images, TASK.labels, EPS)
    less = sweep_eps(attack, MODEL, TASK.images, TASK.labels, EPS, only_worst=True)
    assert torch.equal(full.worst, less.worst)
    assert less.last is None
    assert less.passes.forward < full.passes.forward
    assert less.passes.backward <= full.passes.backward


class Rough(nn.Module):
    """Another model altogether: it takes some images for fooled from the start, others never."""

    def forward(self, images: Tensor) -> Tensor:
        """As the model, with classes exchanged for the brighter half of the images."""
        logits = MODEL.network(images)
        return torch.where((images.mean((1, 2, 3)) > 0.5).unsqueeze(1), logits.roll(1, 1), logits)


class Stuck(nn.Module):
    """The model without a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        """Its logits, of which nothing is known how they came about."""
        return MODEL.network(images).detach()


def test_where_a_low_precision_copy_has_no_gradient_the_exact_one_is_followed() -> None:
    attack = OVER_EPS["bim"]
    with frozen(MODEL):
        exact = freeze(MODEL, TASK.images)
        both = replace(exact, low_precision=classifier(Stuck(), classes=4))
        worst = [
            sweep_eps(attack, each, TASK.images, TASK.labels, EPS, only_worst=True).worst for each in (both, exact)
        ]
    assert torch.equal(*worst)


def test_a_warm_start_goes_on_where_the_exact_copy_ended() -> None:
    """Not at what only the one in low precision took for fooled, where it would stay."""
    attack = BIM(eps=0.5, steps=1, step_size=0.01)
    values = [0.01 * step for step in range(1, 21)]
    with frozen(MODEL):
        exact = freeze(MODEL, TASK.images)
        both = replace(exact, low_precision=classifier(Rough(), classes=4))
        worst = [
            sweep_eps(attack, each, TASK.images, TASK.labels, values, only_worst=True, warm_start=True).worst
            for each in (both, exact)
        ]
    bright = TASK.images.mean((1, 2, 3)) > 0.5
    assert torch.equal(worst[0][bright], worst[1][bright])


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd-restarts"])
def test_what_only_a_low_precision_copy_is_fooled_by_is_attacked_again(name: str) -> None:
    attack = OVER_EPS[name]
    with frozen(MODEL):
        exact = freeze(MODEL, TASK.images)
        both = replace(exact, low_precision=classifier(Rough(), classes=4))
        worst = sweep_eps(attack, both, TASK.images, TASK.labels, EPS, only_worst=True)
        expected = sweep_eps(attack, exact, TASK.images, TASK.labels, EPS, only_worst=True)
        assert torch.equal(worst.worst[:, 0], expected.worst[:, 0])
        bright = TASK.images.mean((1, 2, 3)) > 0.5
        assert bright.any()
        assert torch.equal(worst.worst[bright], expected.worst[bright])
        assert worst.passes.forward > expected.passes.forward
        last = [sweep_eps(attack, each, TASK.images, TASK.labels, EPS).last for each in (both, exact)]
    assert last[0] is not None
    assert last[1] is not None
    assert torch.equal(last[0].loss, last[1].loss)  # complete runs keep to the exact copy


@pytest.mark.parametrize("only_worst", [False, True])
def test_a_warm_start_goes_on_where_the_smaller_eps_ended(only_worst: bool) -> None:
    """With one step of a fixed length at each eps, the ends lie one, two, three steps away instead of one."""
    attack = BIM(eps=0.5, steps=1, step_size=0.01)
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double().requires_grad_(False), classes=4)
    images = 0.5 + TASK.images / 10
    labels = model(images).argmax(1)
    cold, warm = (
        sweep_eps(attack, model, images, labels, [0.01, 0.02, 0.03], only_worst=only_worst, warm_start=warm)
        for warm in (False, True)
    )
    assert (cold.worst | ~warm.worst).all()
    if cold.last is not None and warm.last is not None:
        assert torch.allclose(cold.last.norm, torch.full((40, 3), 0.01), atol=1e-6)
        assert torch.allclose(warm.last.norm, torch.tensor([0.01, 0.02, 0.03]).expand(40, 3), atol=1e-6)
    else:
        assert (cold.last, warm.last) == (None, None)
    assert cold.passes.backward == 40  # the clean gradient serves every eps
    assert warm.passes.backward > 40


@pytest.mark.parametrize("attack", OVER_EPS.values(), ids=OVER_EPS.keys())
def test_a_warm_start_stays_inside_and_first_is_the_same(attack: AbstractGradientAttack) -> None:
    cold = sweep_eps(attack, MODEL, TASK.images, TASK.labels, EPS)
    warm = sweep_eps(attack, MODEL, TASK.images, TASK.labels, EPS, warm_start=True)
    assert warm.last is not None
    assert torch.equal(warm.worst[:, :2], cold.worst[:, :2])
    radii = [with_eps(attack, eps).loop().ball.eps if eps else 0.0 for eps in EPS]
    assert (warm.last.norm <= torch.tensor(radii) + 1e-5).all()
    assert (warm.worst[:, 1:] <= warm.worst[:, :-1]).all()


def test_the_clean_gradient_is_computed_once_for_all_eps() -> None:
    sweep = sweep_eps(FGSM(eps=0.5), MODEL, TASK.images, TASK.labels, EPS)
    assert sweep.passes == Passes(forward=40 * 6, backward=40)
    sweep = sweep_eps(BIM(eps=0.5, steps=5), MODEL, TASK.images, TASK.labels, EPS)
    assert sweep.passes == Passes(forward=40 * (1 + 5 * (4 + 1)), backward=40 * (1 + 5 * 4))


def test_bim_with_clip_range_is_reported_with_the_radius_that_it_reaches() -> None:
    sweep = sweep_eps(OVER_EPS["bim-range"], MODEL, TASK.images, TASK.labels, EPS)
    assert sweep.last is not None
    assert sweep.last.norm[:, -1].max().item() == pytest.approx(5 * 0.2 / 4)


def test_to_clip_range_eps_is_only_the_default_step() -> None:
    """With a step of its own, nothing depends on eps: the curve is level."""
    sweep = sweep_eps(BIM(eps=0.5, steps=5, step_size=0.02, clip="range"), MODEL, TASK.images, TASK.labels, EPS)
    assert sweep.last is not None
    assert (sweep.last.norm[:, 1:] == sweep.last.norm[:, 1:2]).all()
    assert (sweep.last.right[:, 1:] == sweep.last.right[:, 1:2]).all()


# -------------------------------------------------------------------------------------------------- over iterations


@pytest.mark.parametrize("attack", OVER_STEPS.values(), ids=OVER_STEPS.keys())
def test_every_column_over_iterations_is_the_attack_run_by_itself(attack: AbstractGradientAttack) -> None:
    sweep = sweep_steps(attack, MODEL, TASK.images, TASK.labels, STEPS, seed=3, first_index=40)
    assert sweep.values == tuple(STEPS)
    for column, steps in enumerate(STEPS):
        if steps:
            assert_column_is(sweep, column, replace(attack, steps=steps), TASK.images, TASK.labels)  # type: ignore[call-arg]
    assert sweep.last is not None
    clean = MODEL(TASK.images)
    assert torch.equal(sweep.last.right[:, 0], clean.argmax(1) == TASK.labels)
    assert sweep.last.norm[:, 0].eq(0).all()


@pytest.mark.parametrize("attack", OVER_STEPS.values(), ids=OVER_STEPS.keys())
def test_worst_over_iterations(attack: AbstractGradientAttack) -> None:
    """Falls, is never above `last`, and is what the attack's own `worst` runs of these lengths have fooled."""
    sweep = sweep_steps(attack, MODEL, TASK.images, TASK.labels, STEPS, seed=3)
    assert sweep.last is not None
    assert (sweep.worst[:, 1:] <= sweep.worst[:, :-1]).all()
    assert (sweep.worst <= sweep.last.right).all()
    standing = MODEL(TASK.images).argmax(1) == TASK.labels
    for column, steps in enumerate(STEPS):
        if steps:
            alone = replace(attack, steps=steps, keep="first_success")(MODEL, TASK.images, TASK.labels, seed=3)  # type: ignore[call-arg]
            standing = standing & ~alone.success
        assert torch.equal(sweep.worst[:, column], standing)


def test_one_run_serves_all_numbers_of_iterations_unless_the_step_depends_on_them() -> None:
    counting = Counting(MODEL.network)
    model = classifier(counting, classes=4)
    sweep = sweep_steps(BIM(eps=0.1), model, TASK.images, TASK.labels, STEPS)
    assert sweep.passes == Passes(forward=40 * (9 + 1), backward=40 * 9)
    assert sweep.passes == Passes(counting.forwards, counting.backwards)
    counting.restart()
    sweep = sweep_steps(MIFGSM(eps=0.1), model, TASK.images, TASK.labels, STEPS)
    assert sweep.passes == Passes(forward=40 * (1 + 1 + 2 + 5 + 9), backward=40 * (1 + 0 + 1 + 4 + 8))
    assert sweep.passes == Passes(counting.forwards, counting.backwards)


@pytest.mark.parametrize("attack", OVER_EPS.values(), ids=OVER_EPS.keys())
@pytest.mark.parametrize("only_worst", [False, True])
def test_the_passes_of_a_sweep_are_what_the_network_sees(attack: AbstractGradientAttack, only_worst: bool) -> None:
    counting = Counting(MODEL.network)
    model = classifier(counting, classes=4)
    sweep = sweep_eps(attack, model, TASK.images, TASK.labels, EPS, only_worst=only_worst)
    assert sweep.passes == Passes(counting.forwards, counting.backwards)


# ------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("sweep", [sweep_eps, sweep_steps])
def test_a_batch_is_as_good_as_its_parts(sweep: Callable[..., Sweep]) -> None:
    attack = PGD(eps=0.1, steps=3, step_size=0.03)
    values = EPS if sweep is sweep_eps else STEPS
    whole = sweep(attack, MODEL, TASK.images, TASK.labels, values)
    parts = [
        sweep(attack, MODEL, TASK.images[part], TASK.labels[part], values, first_index=part.start)
        for part in (slice(0, 13), slice(13, 40))
    ]
    assert torch.equal(whole.worst, torch.cat([part.worst for part in parts]))
    assert whole.last is not None
    losses = [part.last.loss for part in parts if part.last is not None]
    assert torch.allclose(whole.last.loss, torch.cat(losses), rtol=1e-9)


EDGE: dict[Norm, float] = {"linf": 0.2, "l2": 1.0}


@pytest.mark.parametrize("norm", EDGE)
def test_numbers_that_are_not_finite_are_in_a_sweep_what_they_are_in_an_attack(norm: Norm) -> None:
    """Also at a number of iterations that lies before the trouble, and at one that lies after it."""
    model = classifier(Trouble(MODEL.network), classes=4)
    images = TASK.images.clone()
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 0.9, 0.36
    images[:10, 0, 0, 0] = 0.5
    attack = BIM(eps=EDGE[norm], norm=norm, step_size=EDGE[norm] / 6, keep="last")
    with pytest.warns(CasemateWarning, match="of 40 images BIM met logits or gradients that are not finite"):
        sweep = sweep_steps(attack, model, images, TASK.labels, STEPS)
    assert sweep.last is not None
    for column, steps in enumerate(STEPS):
        if steps:
            with pytest.warns(CasemateWarning, match="of 40 images BIM met logits or gradients that are not finite"):
                alone = replace(attack, steps=steps)(model, images, TASK.labels)
            assert torch.equal(sweep.last.status[:, column], alone.status)
            assert torch.equal(sweep.last.prediction[:, column], alone.prediction)
            assert torch.allclose(sweep.last.loss[:, column], alone.loss, rtol=1e-9)
            assert torch.allclose(sweep.last.norm[:, column], alone.norm, rtol=1e-5, atol=1e-9)
    trouble = (sweep.last.status == Status.NON_FINITE).sum(0)
    assert trouble[0] == 0
    assert 0 < trouble[1] < trouble[4]


@pytest.mark.parametrize("values", [[], [0.1, 0.05], [0.1, 0.1], [0.0, 0.2, 0.1], [-0.1, 0.1], [0.1, float("inf")]])
def test_values_of_eps_that_do_not_ascend_from_zero_are_refused(values: list[float]) -> None:
    with pytest.raises(SettingError):
        sweep_eps(FGSM(eps=0.1), MODEL, TASK.images, TASK.labels, values)


@pytest.mark.parametrize("values", [[], [5, 1], [3, 3], [-1, 2]])
def test_numbers_of_iterations_that_do_not_ascend_from_zero_are_refused(values: list[int]) -> None:
    with pytest.raises(SettingError):
        sweep_steps(BIM(eps=0.1), MODEL, TASK.images, TASK.labels, values)


def test_only_zero() -> None:
    """The clean images alone make a curve, over iterations too, and of an attack of one step."""
    for sweep in (
        sweep_eps(FGSM(eps=0.1), MODEL, TASK.images, TASK.labels, [0.0]),
        sweep_steps(FGSM(eps=0.1), MODEL, TASK.images, TASK.labels, [0]),
        sweep_eps(FGSM(eps=0.1), MODEL, TASK.images, TASK.labels, [0.0], only_worst=True),
    ):
        assert sweep.worst.shape == (40, 1)
        assert sweep.passes == Passes(forward=40, backward=40)


def test_sweeps_over_iterations_that_mean_nothing_are_refused() -> None:
    with pytest.raises(SettingError, match="FGSM has a single step"):
        sweep_steps(FGSM(eps=0.1), MODEL, TASK.images, TASK.labels, [1, 2])
    with pytest.raises(SettingError, match="restarts"):
        sweep_steps(PGD(eps=0.1, restarts=2), MODEL, TASK.images, TASK.labels, [1, 2])


def test_a_sweep_refuses_what_an_attack_refuses_and_leaves_the_model_as_it_was() -> None:
    MODEL.train()
    with as_installed(), pytest.raises(ShapeError):
        sweep_eps(FGSM(eps=0.1), MODEL, 255 * TASK.images, TASK.labels, EPS)
    assert MODEL.training
    sweep_steps(BIM(eps=0.1), MODEL, TASK.images, TASK.labels, STEPS)
    assert MODEL.training
    assert all(parameter.requires_grad for parameter in MODEL.parameters())
    MODEL.eval()


def test_no_perturbation_of_a_sweep_is_larger_than_its_eps() -> None:
    for norm in ("linf", "l2", "l1"):
        sweep = sweep_eps(PGD(eps=0.5, steps=2, norm=norm), MODEL, TASK.images, TASK.labels, EPS)  # type: ignore[arg-type]
        assert sweep.last is not None
        assert (sweep.last.norm <= torch.tensor(EPS) + 1e-6).all()
    alone = FGSM(eps=0.2, keep="last")(MODEL, TASK.images, TASK.labels)
    assert distance(alone.adversarial, TASK.images, "linf").max() == pytest.approx(0.2)
