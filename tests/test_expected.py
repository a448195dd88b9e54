"""What attacks and checks take at most: the counts are what runs really take on a model that never falls."""

import copy

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import (
    APGD,
    BIM,
    EAD,
    EOT,
    FAB,
    FGSM,
    LBFGS,
    MIFGSM,
    PGD,
    AbstractAttack,
    AutoAttack,
    CarliniWagner,
    CornerNoise,
    DeepFool,
    HopSkipJump,
    InputDiversity,
    Passes,
    Restarts,
    ScaledCopies,
    Spatial,
    Square,
    TargetedAPGD,
    TargetedFAB,
    Transfer,
    Transferable,
    UniformNoise,
    VarianceTuning,
)
from casemate.data import LabelledImages
from casemate.errors import ShapeError
from casemate.evaluation import Checked, Verdict, evaluate, seconds_at_most
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.cost import PassCost, attack_passes, check_passes
from casemate.evaluation.findings import agreement, inputs
from casemate.evaluation.findings.check import Check
from casemate.evaluation.findings.context import CheckContext
from casemate.models import Classifier
from conftest import tiny_images, tiny_model
from oracles import EXAMINED, SHAPE, Tally, classifier

CLASSES = 5
COUNT = 4


class Firm(nn.Module):
    """Always sure of class 0, with gradients all the same; counts what it is asked, but for its examination."""

    def __init__(self, classes: int = CLASSES, *, noise: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(36, classes)
        self.noise, self.passes, self.tally = noise, Passes(), Tally()
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(classes, 36, generator=torch.Generator().manual_seed(1)))
            self.layer.bias.zero_()
            self.layer.bias[0] = 1000

    def forward(self, images: Tensor) -> Tensor:
        """Count, forward and back."""
        self.tally.calls += 1
        count = len(images) if self.tally.calls > EXAMINED else 0
        self.passes.add(Passes(forward=count))
        logits = self.layer(images.flatten(1))
        logits = logits + self.noise * torch.randn_like(logits)
        if logits.requires_grad:
            logits.register_hook(lambda _: self.passes.add(Passes(backward=count)))
        return logits

    def __deepcopy__(self, memo: dict[int, object]) -> "Firm":
        """A copy that counts into the same place."""
        made = Firm(self.layer.out_features, noise=self.noise)
        made.layer, made.passes, made.tally = copy.deepcopy(self.layer, memo), self.passes, self.tally
        return made


def firm(classes: int = CLASSES, *, noise: float = 0.0) -> Classifier:
    """A classifier that never falls."""
    return classifier(Firm(classes, noise=noise), classes)


EXACT: list[AbstractAttack] = [
    FGSM(eps=0.1),
    BIM(eps=0.1, steps=3),
    PGD(eps=0.1, restarts=3, steps=4),
    MIFGSM(eps=0.1, steps=3),
    EOT(attack=PGD(eps=0.1, steps=3), eot_samples=2),
    Transferable(attack=PGD(eps=0.1, steps=3, restarts=2), parts=(ScaledCopies(), VarianceTuning(samples=2))),
    EOT(attack=Transferable(attack=MIFGSM(eps=0.1, steps=3), parts=(VarianceTuning(samples=2),)), eot_samples=2),
    Transferable(attack=FGSM(eps=0.1), parts=(InputDiversity(), VarianceTuning())),
    APGD(eps=0.1, restarts=2, steps=20),
    APGD(eps=0.1, eot_samples=3, steps=7),
    APGD(eps=2, norm="l1", use_larger_eps=True, steps=20),
    TargetedAPGD(eps=0.1, steps=10),
    TargetedAPGD(eps=0.1, steps=10, classes=2, restarts=2),
    Square(eps=0.1, norm="l2", n_queries=50, restarts=2),
    FAB(steps=6, restarts=2),
    TargetedFAB(steps=6, restarts=2),
    TargetedFAB(steps=6, classes=3),
    DeepFool(steps=5),
    DeepFool(steps=5, candidates=3),
    CarliniWagner(steps=20, binary_search_steps=3, abort_early=False),
    CarliniWagner(norm="linf", steps=20, binary_search_steps=3, abort_early=False),
    EAD(steps=20, binary_search_steps=2),
    UniformNoise(eps=0.1, num_samples=9),
    CornerNoise(eps=0.1, num_samples=9),
    Spatial(rotations=3, shifts=2),
    Spatial(num_samples=4),
    Restarts(attack=PGD(eps=0.1, steps=4), restarts=3),
]
LONG = [
    pytest.param(AutoAttack(eps=0.1, norm="l2"), marks=[pytest.mark.integration, pytest.mark.slow], id="AutoAttack"),
    pytest.param(AutoAttack(eps=0.1, version="rand"), marks=pytest.mark.integration, id="AutoAttack-rand"),
]


def _took(attack: AbstractAttack) -> tuple[Passes, Passes]:
    """What an attack takes on four images that never fall, by its own count and by the model's, less a look after."""
    model = firm()
    images = torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0))
    told = attack(model, images, torch.zeros(COUNT, dtype=torch.int64), batch_size=COUNT).passes  # nothing to measure
    assert isinstance(model.network, Firm)
    seen = model.network.passes
    return tuple(Passes(each.forward // COUNT - 1, each.backward // COUNT) for each in (told, seen))  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:.* found nothing that fools on 4 of 4 images:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("attack", [*EXACT, *LONG], ids=lambda each: type(each).__name__)
def test_the_most_passes_are_those_of_a_model_that_never_falls(attack: AbstractAttack) -> None:
    told, seen = _took(attack)
    most = attack.max_passes(CLASSES)
    assert (told.forward, told.backward) == (most.forward, most.backward)
    assert seen.forward == most.forward
    assert seen.backward <= most.backward  # several pass back through one graph


@pytest.mark.integration
@pytest.mark.parametrize(
    "attack",
    [
        Square(eps=0.1, n_queries=50, restarts=2),
        pytest.param(AutoAttack(eps=0.1), marks=pytest.mark.slow, id="AutoAttack"),
    ],
)
def test_queries_that_change_nothing_are_fewer_passes_than_the_most(attack: AbstractAttack) -> None:
    told, seen = _took(attack)
    assert told.forward == seen.forward < attack.max_passes(CLASSES).forward


@pytest.mark.filterwarnings("ignore:.* found nothing that fools on 4 of 4 images:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("attack", [LBFGS(steps=10, binary_search_steps=2), HopSkipJump(n_queries=200, starts=50)])
def test_an_attack_that_may_end_sooner_takes_no_more(attack: AbstractAttack) -> None:
    told, _ = _took(attack)
    most = attack.max_passes(CLASSES)
    assert told.forward <= most.forward
    assert told.backward <= most.backward


def test_the_passes_of_a_transfer_are_those_on_the_substitute() -> None:
    attack = Transfer(attack=PGD(eps=0.1, steps=5), substitute=firm())
    told, _ = _took(attack)
    assert told == attack.max_passes(CLASSES) == Passes(6, 5)


def test_an_attack_within_a_ball_counts_for_every_eps_and_one_without_once() -> None:
    attacks: dict[str, AbstractAttack] = {"pgd": PGD(eps=0.1, steps=4), "deepfool": DeepFool(norm="linf", steps=5)}
    assert attack_passes(attacks, CLASSES, images=10, values=3) == Passes(10 * (3 * 5 + 12), 10 * (3 * 4 + 20))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Passes]:
    """By check, the passes through a `Firm` that it took."""
    found: dict[str, Passes] = {}
    call = Check.__call__

    def counting(self: Check, evidence: CheckContext) -> Checked:
        network = evidence.original_model.network
        assert isinstance(network, Firm)
        before = copy.copy(network.passes)
        result = call(self, evidence)
        found[self.name] = Passes(network.passes.forward - before.forward, network.passes.backward - before.backward)
        assert result.finding is None or not result.finding.failed, result.finding
        return result

    monkeypatch.setattr(Check, "__call__", counting)
    return found


@pytest.mark.integration
def test_the_most_passes_of_the_checks_are_what_they_take(
    counted: dict[str, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On many images of which none falls; the checks that take minutes are counted apart, in small."""
    # of one class, so that no accuracy is above guessing and the verdict would be that the model is untrained
    monkeypatch.setattr(Verdict, "fallen", False)
    # as if every part of a sample showed something, so that the whole is looked at
    monkeypatch.setattr(agreement, "_SCREENED", 128)
    monkeypatch.setattr(inputs, "_SCREENED", {})
    images = torch.rand(600, *SHAPE, generator=torch.Generator().manual_seed(2))
    labels = torch.zeros(600, dtype=torch.int64)
    square: dict[str, AbstractAttack] = {"square": Square(eps=0.1, n_queries=2)}
    evaluate(firm(10), LabelledImages(pixels=images, labels=labels), eps=0.1, attacks=square, substitute=firm(10))
    total = Passes()
    for passes in counted.values():
        total.add(passes)
    most = check_passes(600, thorough=False)
    assert 0.7 * most.forward < total.forward <= most.forward
    assert 0.7 * most.backward < total.backward <= most.backward
    # of 64 images with two kinds of points each, 50 of every kind and some more; noise-10k has 10,000 of them, and
    # decision-based may make 10,000 passes of each of 64 images
    more = counted["noise"].forward / (64 * 2) - 50
    dear = check_passes(600, thorough=True).forward - most.forward
    assert 0 <= more < 5
    assert 0.9 * dear < 64 * 2 * (10_000 + more) + 64 * 10_000 <= dear


@pytest.mark.integration
def test_the_times_are_told_for_every_budget() -> None:
    model, images = tiny_model(), tiny_images(20)
    one = seconds_at_most(model, images, [0.1], norm="linf")
    assert list(one) == ["quick", "autoattack", "standard", "thorough"]
    assert 0 < one["quick"] < one["autoattack"] < one["standard"] < one["thorough"]


def test_the_time_is_that_of_the_passes() -> None:
    assert PassCost(0.5, 2.0).seconds(Passes(4, 3)) == 8.0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("randomised", [True, False])
def test_every_budget_has_attacks_of_one_norm_in_every_norm(norm: str, randomised: bool) -> None:
    for budget in ("quick", "standard", "thorough"):
        attacks = attacks_for(budget, norm, 0.5, randomised=randomised)  # type: ignore[arg-type]
        assert len(attacks) >= 3
        assert {attack.ball().norm for attack in attacks.values()} == {norm}
        assert any(isinstance(attack, Square) for attack in attacks.values())


def test_no_images_have_no_time() -> None:
    with pytest.raises(ShapeError, match="no images"):
        seconds_at_most(tiny_model(), tiny_images(0), [0.1], norm="linf")
