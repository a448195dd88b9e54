"""Expectation over transformation: attacks with averaged gradients, on models that answer at random."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import (
    BIM,
    EOT,
    FGSM,
    MIFGSM,
    PGD,
    AbstractGradientAttack,
    AttackResult,
    Misclassification,
    Sweep,
    frozen,
    input_gradient,
    sweep_eps,
    sweep_steps,
    with_eps,
)
from casemate.attacks.gradient import with_steps
from casemate.errors import SettingError
from casemate.models import Classifier
from oracles import (
    Linear,
    Tally,
    as_installed,
    check_claims,
    check_inside,
    classifier,
    linear_problem,
    small_task,
)

TASK = small_task(2, count=20)

STILL: dict[str, AbstractGradientAttack] = {
    "fgsm": FGSM(eps=0.1),
    "fgsm-last": FGSM(eps=0.1, keep="last"),
    "fgsm-l2": FGSM(eps=0.5, norm="l2", keep="last"),
    "fgsm-margin": FGSM(eps=0.1, loss="margin", keep="last"),
    "bim": BIM(eps=0.1, steps=4),
    "bim-last": BIM(eps=0.1, steps=4, keep="last"),
    "bim-l1": BIM(eps=2.0, steps=4, norm="l1"),
    "bim-range": BIM(eps=0.05, steps=4, clip="range"),
    "mifgsm": MIFGSM(eps=0.1, steps=4, keep="last"),
    "pgd-still": PGD(eps=0.1, steps=4, random_start=False),
}
RANDOM: dict[str, AbstractGradientAttack] = {
    "pgd": PGD(eps=0.1, steps=4, keep="last"),
    "pgd-restarts": PGD(eps=0.1, steps=2, restarts=3),
}


def run(attack: AbstractGradientAttack, model: Classifier = TASK.model, **options: Any) -> AttackResult:
    """The attack on the images of TASK."""
    return attack(model, TASK.images, TASK.labels, **options)


def assert_same(one: AttackResult, two: AttackResult) -> None:
    """Bit for bit, but for the record."""
    for name in ("adversarial", "prediction", "success", "status", "loss", "norm"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert one.passes == two.passes


# ---------------------------------------------------------------------------------------- on a model that is certain


@pytest.mark.parametrize("attack", STILL.values(), ids=STILL.keys())
@pytest.mark.parametrize("targeted", [False, True])
def test_one_draw_is_the_attack_itself(attack: AbstractGradientAttack, targeted: bool) -> None:
    targets = (TASK.labels + 1) % 4 if targeted else None
    once = EOT(attack=attack, eot_samples=1)
    assert_same(run(once, targets=targets, seed=3), run(attack, targets=targets, seed=3))
    assert once.ball() == attack.ball()


@pytest.mark.parametrize("attack", RANDOM.values(), ids=RANDOM.keys())
def test_one_draw_is_the_attack_itself_from_random_starts_too(attack: AbstractGradientAttack) -> None:
    assert_same(run(EOT(attack=attack, eot_samples=1), seed=3), run(attack, seed=3))


@pytest.mark.parametrize("attack", STILL.values(), ids=STILL.keys())
@pytest.mark.parametrize("draws", [2, 5])
def test_averaging_changes_nothing_where_all_draws_are_alike(attack: AbstractGradientAttack, draws: int) -> None:
    found, expected = run(EOT(attack=attack, eot_samples=draws)), run(attack)
    assert torch.allclose(found.adversarial, expected.adversarial, rtol=0, atol=1e-12)
    assert torch.equal(found.status, expected.status)
    assert torch.equal(found.prediction, expected.prediction)


@pytest.mark.parametrize("attack", RANDOM.values(), ids=RANDOM.keys())
def test_from_random_starts_the_number_of_draws_changes_nothing_either(attack: AbstractGradientAttack) -> None:
    few, many = run(EOT(attack=attack, eot_samples=1), seed=3), run(EOT(attack=attack, eot_samples=4), seed=3)
    assert torch.allclose(few.adversarial, many.adversarial, rtol=0, atol=1e-12)
    assert torch.equal(few.status, many.status)
    assert not torch.equal(few.adversarial, run(EOT(attack=attack, eot_samples=4), seed=4).adversarial)


# ---------------------------------------------------------------------------------------- on a model that is not


class Noisy(nn.Module):
    """A linear classifier whose weights are other ones for every image and pass: W + std * N."""

    def __init__(self, layer: nn.Linear, std: float) -> None:
        super().__init__()
        self.layer = layer
        self.std = std
        self.tally = Tally()

    def forward(self, images: Tensor) -> Tensor:
        """Classify with noisy weights; counts the images, there and back."""
        flat = images.flatten(1)
        noise = self.std * torch.randn(len(flat), *self.layer.weight.shape)
        logits = self.layer(flat) + (noise @ flat.unsqueeze(2)).squeeze(2)
        self.tally.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.tally.backwards += len(gradient)


def noisy(problem: Linear, std: float) -> Classifier:
    """The problem's classifier with noise on its weights."""
    layer = problem.model.network[1]  # type: ignore[index]
    assert isinstance(layer, nn.Linear)
    return classifier(Noisy(layer, std))


def counted(std: float) -> tuple[Classifier, Tally]:
    """PROBLEM's classifier with noise on its weights, examined already, and the count of what it is asked from now."""
    model = noisy(PROBLEM, std)
    model.examine(IMAGES)
    assert isinstance(model.network, Noisy)
    model.network.tally = Tally()
    return model, model.network.tally


PROBLEM = linear_problem(4, count=40)
"""Its weights are standard normal numbers, so noise of deviation 3 is three times as large."""
IMAGES, LABELS = PROBLEM.images.detach(), PROBLEM.labels


def errors(draws: int) -> tuple[Tensor, Tensor]:
    """Distance of each image's gradient from the noiseless one, and of its logits, `(n,)` each."""
    criterion = Misclassification(LABELS)
    with frozen(PROBLEM.model):
        logits, gradient = input_gradient(PROBLEM.model, IMAGES, criterion, "margin")
        torch.manual_seed(draws)
        found, averaged = input_gradient(noisy(PROBLEM, 3.0), IMAGES, criterion, "margin", draws)
    return (averaged - gradient).flatten(1).norm(dim=1), (found - logits).norm(dim=1)


def test_averaged_gradients_approach_those_without_noise() -> None:
    """The margin is linear in the weights, so its gradient's mean is the noiseless one: error falls as 1 / sqrt."""
    one, many = errors(1), errors(64)
    for single, averaged in zip(one, many, strict=True):  # of the gradient, and of the logits
        assert float(averaged.mean()) == pytest.approx(float(single.mean()) / 8, rel=0.25)
    assert (many[0] < one[0]).all()


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_an_attack_with_averaged_gradients_is_nearly_as_strong_as_on_the_noiseless_model(loss: Any) -> None:
    attack, model = FGSM(eps=0.1, loss=loss, keep="last"), noisy(PROBLEM, 3.0)
    best = PROBLEM.margin(attack(PROBLEM.model, IMAGES, LABELS).adversarial).detach()
    clean = PROBLEM.margin(IMAGES).detach()
    achieved = {}
    for draws in (1, 64):
        torch.manual_seed(0)
        found = EOT(attack=attack, eot_samples=draws)(model, IMAGES, LABELS)
        reached = PROBLEM.margin(found.adversarial).detach()
        achieved[draws] = float(((clean - reached) / (clean - best)).mean())
    assert achieved[1] < 0.5
    assert achieved[64] > 0.85 if loss == "margin" else achieved[64] > achieved[1] + 0.2


def test_what_is_handed_back_is_inside_and_classified_once() -> None:
    model = noisy(PROBLEM, 1.0)
    attack = EOT(attack=BIM(eps=0.1, steps=3), eot_samples=4)
    torch.manual_seed(1)
    result = attack(model, IMAGES, LABELS)
    check_inside(attack, result, IMAGES)
    calm = run(EOT(attack=BIM(eps=0.1, steps=3), eot_samples=4))
    check_claims(calm, TASK)


@pytest.mark.parametrize("draws", [1, 2, 7])
@pytest.mark.parametrize(
    "attack",
    [
        FGSM(eps=0.1),
        FGSM(eps=0.1, keep="last"),
        BIM(eps=0.1, steps=3),
        MIFGSM(eps=0.1, steps=3, keep="last"),
        PGD(eps=0.1, steps=2, restarts=2),
    ],
    ids=lambda attack: f"{type(attack).__name__}-{attack.keep}",
)
def test_passes_are_what_the_network_sees(attack: AbstractGradientAttack, draws: int) -> None:
    model, tally = counted(2.0)
    result = EOT(attack=attack, eot_samples=draws)(model, IMAGES, LABELS, batch_size=16)
    assert (result.passes.forward, result.passes.backward) == (tally.forwards, tally.backwards)


@pytest.mark.filterwarnings("ignore:eps 1e-06 in linf:casemate.errors.CasemateWarning")
def test_passes_by_hand() -> None:
    """20 images, 4 of them misclassified: those leave `worst` after the first look."""
    assert int((TASK.model(TASK.images).argmax(1) != TASK.labels).sum()) == 4
    last = run(EOT(attack=BIM(eps=1e-6, steps=3, keep="last"), eot_samples=5)).passes
    assert (last.forward, last.backward) == (20 * 3 * 5 + 20, 20 * 3 * 5)
    worst = run(EOT(attack=BIM(eps=1e-6, steps=3), eot_samples=5)).passes
    assert (worst.forward, worst.backward) == ((20 + 16 + 16) * 5 + 20, (20 + 16 + 16) * 5)


# --------------------------------------------------------------------------------------------------------- settings


def test_the_inner_attack_gets_the_eps_and_the_steps() -> None:
    attack = EOT(attack=BIM(eps=0.1, steps=10), eot_samples=3)
    assert with_eps(attack, 0.2) == EOT(attack=BIM(eps=0.2, steps=10), eot_samples=3)
    assert with_eps(attack, 0.2).loop() == replace(BIM(eps=0.2).loop(), eot_samples=3)
    assert with_steps(attack, 4) == EOT(attack=BIM(eps=0.1, steps=4), eot_samples=3)
    assert attack.loop() == replace(BIM(eps=0.1).loop(), eot_samples=3)
    assert EOT(attack=BIM(eps=0.1)).loop().eot_samples == 20
    with pytest.raises(SettingError, match="FGSM has a single step"):
        with_steps(EOT(attack=FGSM(eps=0.1)), 4)
    with pytest.raises(SettingError, match="eps = -1"):
        with_eps(attack, -1.0)


def test_the_record_holds_that_of_the_inner_attack() -> None:
    attack = EOT(attack=FGSM(eps=0.1, loss="margin"), eot_samples=3)
    inner = {"name": "FGSM", "eps": 0.1, "norm": "linf", "loss": "margin", "keep": "first_success"}
    assert attack.record() == {"name": "EOT", "attack": inner, "eot_samples": 3}
    assert run(attack).attack == attack.record()
    assert attack.record()["attack"] == attack.attack.record()


@pytest.mark.parametrize("draws", [0, -3])
def test_fewer_draws_than_one_are_refused(draws: int) -> None:
    with as_installed(), pytest.raises(SettingError, match=f"eot_samples = {draws}; expected at least 1"):
        EOT(attack=FGSM(eps=0.1), eot_samples=draws)


# ----------------------------------------------------------------------------------------------------------- sweeps

EPS = [0.0, 0.02, 0.1, 0.3]


@pytest.mark.parametrize("attack", [STILL["fgsm"], STILL["bim"], STILL["mifgsm"], RANDOM["pgd-restarts"]], ids=str)
def test_every_column_over_eps_is_the_attack_run_by_itself(attack: AbstractGradientAttack) -> None:
    averaged = EOT(attack=attack, eot_samples=3)
    sweep = sweep_eps(averaged, TASK.model, TASK.images, TASK.labels, EPS, seed=3)
    assert sweep.last is not None
    for column, eps in enumerate(EPS):
        inner = replace(attack, eps=eps, keep="last")  # type: ignore[call-arg]
        alone = run(EOT(attack=inner, eot_samples=3), seed=3)
        assert torch.equal(sweep.last.right[:, column], ~alone.success)
        assert torch.allclose(sweep.last.loss[:, column], alone.loss, rtol=1e-9)
    less = sweep_eps(averaged, TASK.model, TASK.images, TASK.labels, EPS, seed=3, only_worst=True)
    assert torch.equal(less.worst, sweep.worst)
    assert 0 < sweep.worst[:, -1].sum() + 1 < sweep.worst[:, 0].sum()


@pytest.mark.parametrize("attack", [STILL["bim"], STILL["mifgsm"], RANDOM["pgd"]], ids=str)
def test_every_column_over_steps_is_the_attack_run_by_itself(attack: AbstractGradientAttack) -> None:
    sweep = sweep_steps(EOT(attack=attack, eot_samples=3), TASK.model, TASK.images, TASK.labels, [0, 1, 2, 5], seed=3)
    assert sweep.last is not None
    for column, steps in enumerate([1, 2, 5], start=1):
        inner = replace(attack, steps=steps, keep="last")  # type: ignore[call-arg]
        alone = run(EOT(attack=inner, eot_samples=3), seed=3)
        assert torch.equal(sweep.last.right[:, column], ~alone.success)
        assert torch.allclose(sweep.last.loss[:, column], alone.loss, rtol=1e-9)


def test_over_steps_an_attack_of_one_step_is_refused() -> None:
    with pytest.raises(SettingError, match="FGSM has a single step"):
        sweep_steps(EOT(attack=FGSM(eps=0.1)), TASK.model, TASK.images, TASK.labels, [1, 2])


@pytest.mark.parametrize("only_worst", [False, True])
def test_sweeps_on_a_noisy_model_count_their_passes_and_fall_with_eps(only_worst: bool) -> None:
    model, tally = counted(0.5)
    attack = EOT(attack=BIM(eps=0.1, steps=3), eot_samples=4)
    torch.manual_seed(0)
    sweep = sweep_eps(attack, model, IMAGES, LABELS, EPS, only_worst=only_worst)
    assert (sweep.passes.forward, sweep.passes.backward) == (tally.forwards, tally.backwards)
    assert (sweep.worst[:, 1:] <= sweep.worst[:, :-1]).all()
    assert sweep.worst[:, -1].sum() < sweep.worst[:, 0].sum()
    if not only_worst:
        assert sweep.passes.backward == 40 * 4 * (1 + 3 * 2)
        assert sweep.passes.forward == 40 * 4 * (1 + 3 * 2) + 40 * 4  # of every point one answer, also of the clean one


def test_sweeps_over_steps_on_a_noisy_model_count_their_passes() -> None:
    model, tally = counted(0.5)
    attack = EOT(attack=BIM(eps=0.1), eot_samples=4)
    sweep = sweep_steps(attack, model, IMAGES, LABELS, [0, 1, 3])
    assert (sweep.passes.forward, sweep.passes.backward) == (tally.forwards, tally.backwards)
    assert sweep.passes.backward == 40 * 4 * 3
    assert (sweep.worst[:, 1:] <= sweep.worst[:, :-1]).all()


# Points are what a user would meet, one answer each, not the mean of the draws that the gradient takes. The noise is
# such that one answer is right for hardly more than half of the images, the mean of 100 for most of them.

MANY = linear_problem(5, count=200, gap=6.0)


def shares(sweep: Sweep) -> list[float]:
    """The share that is right at each point."""
    assert sweep.last is not None
    return sweep.last.right.double().mean(0).tolist()


@pytest.fixture(scope="module")
def one_answer() -> float:
    """How often one answer is right about the clean images, from 20 of each."""
    model = noisy(MANY, 3.0)
    torch.manual_seed(0)
    with torch.no_grad():
        answers = torch.stack([model(MANY.images) for _ in range(100)])
    found = float((answers[:20].argmax(2) == MANY.labels).double().mean())
    averaged = float((answers.mean(0).argmax(1) == MANY.labels).double().mean())
    assert found < 0.65
    assert averaged > 0.85  # so that the tests below can tell the two apart
    return found


STANDSTILL = EOT(attack=BIM(eps=1e-9, step_size=1e-9), eot_samples=100)
"""Nothing moves, so all points of a sweep are the same."""


@pytest.mark.filterwarnings("ignore:eps 1e-09 in linf:casemate.errors.CasemateWarning")
def test_every_point_over_eps_is_one_answer(one_answer: float) -> None:
    torch.manual_seed(1)
    sweep = sweep_eps(with_steps(STANDSTILL, 1), noisy(MANY, 3.0), MANY.images.detach(), MANY.labels, [0.0, 1e-9])
    assert shares(sweep) == pytest.approx([one_answer] * 2, abs=0.1)


@pytest.mark.filterwarnings("ignore:eps 1e-09 in linf:casemate.errors.CasemateWarning")
def test_every_point_over_steps_is_one_answer(one_answer: float) -> None:
    torch.manual_seed(1)
    sweep = sweep_steps(STANDSTILL, noisy(MANY, 3.0), MANY.images.detach(), MANY.labels, [0, 1, 2, 3])
    assert shares(sweep) == pytest.approx([one_answer] * 4, abs=0.1)


def test_the_clean_point_is_one_answer_also_where_only_the_worst_is_asked_for(one_answer: float) -> None:
    torch.manual_seed(1)
    model, images = noisy(MANY, 3.0), MANY.images.detach()
    sweep = sweep_eps(with_steps(STANDSTILL, 1), model, images, MANY.labels, [0.0], only_worst=True)
    assert float(sweep.worst[:, 0].double().mean()) == pytest.approx(one_answer, abs=0.1)
