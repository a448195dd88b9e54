"""Properties that every attack of the registry has, whatever it does; a new attack is tested with no edit here."""

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch

from casemate.attacks import AbstractAttack, AttackResult, Status
from casemate.attacks.registry import library_attack_types, norms_of
from casemate.errors import SettingError
from casemate.models import Classifier
from casemate.norms import norm_of
from conftest import tiny_images, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*found nothing that fools:casemate.errors.CasemateWarning")
ATTACKS = library_attack_types()
IMAGES = tiny_images(8)
EPS, EPS_IN_L0 = 0.2, 5.0
FEW = 6
"""Most of anything that an attack counts: steps, restarts, queries, classes."""


def quick(kind: type[AbstractAttack], **chosen: Any) -> AbstractAttack:
    """The attack with few of everything, or with more where it takes no fewer."""
    counts = {each.name: each.default for each in fields(kind) if type(each.default) is int}
    eps = EPS_IN_L0 if norms_of(kind) == ("l0",) else EPS
    radius = {"eps": eps} if "eps" in {each.name for each in fields(kind)} else {}

    def built(most: int) -> AbstractAttack:
        return kind(**{name: min(count, most) for name, count in counts.items()}, **(radius | chosen))

    try:
        return built(FEW)
    except SettingError:
        return built(20 * FEW)


def run(attack: AbstractAttack, model: Classifier, **options: Any) -> AttackResult:
    """The attack on the tiny images."""
    images, labels = IMAGES.tensors()
    return attack(model, images, labels, **options)


@pytest.fixture
def model() -> Classifier:
    """A network with batch normalisation and dropout, in training mode."""
    return tiny_model().train()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_images_are_in_the_ball_and_the_bounds_and_fool_as_claimed(name: str, model: Classifier) -> None:
    attack = quick(ATTACKS[name])
    images, labels = IMAGES.tensors()
    found = run(attack, model)
    assert found.adversarial.shape == images.shape
    assert found.adversarial.dtype == images.dtype
    ball = attack.ball()
    length = norm_of(found.adversarial.double() - images.double(), ball.norm)
    assert (length <= ball.eps * (1 + 1e-5) + 1e-6).all()
    assert torch.allclose(length.float(), found.norm, atol=1e-6)
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    with torch.no_grad():
        seen = copy.deepcopy(model).eval()(found.adversarial).argmax(1)
    assert torch.equal(seen, found.prediction)
    assert torch.equal(found.success, seen != labels)
    assert torch.equal(found.success, found.status == Status.SUCCESS)
    assert found.attack["name"] == ATTACKS[name].__name__


@pytest.mark.parametrize("name", ATTACKS)
def test_the_default_type_of_pytorch_changes_no_bit(name: str, model: Classifier) -> None:
    before = run(quick(ATTACKS[name]), model)
    torch.set_default_dtype(torch.float64)
    try:
        after = run(quick(ATTACKS[name]), model)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before.adversarial, after.adversarial)


@pytest.mark.parametrize("name", ATTACKS)
def test_model_images_and_random_numbers_are_left_as_they_were(name: str, model: Classifier) -> None:
    images, labels = IMAGES.tensors()
    before = copy.deepcopy(model.state_dict()), images.clone(), labels.clone(), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    quick(ATTACKS[name])(model, images, labels)
    assert all(torch.equal(tensor, before[0][key]) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(images, before[1])
    assert torch.equal(labels, before[2])
    assert torch.equal(torch.get_rng_state(), before[3])


@pytest.mark.parametrize(
    "name", [name for name, kind in ATTACKS.items() if "eps" in {each.name for each in fields(kind)}]
)
def test_eps_zero_is_the_identity(name: str, model: Classifier) -> None:
    images, _ = IMAGES.tensors()
    assert torch.equal(run(quick(ATTACKS[name], eps=0.0), model).adversarial, images)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_found_does_not_depend_on_the_company(name: str, model: Classifier) -> None:
    """Draws are per image, so that the second half alone gets what it gets among all."""
    attack, half = quick(ATTACKS[name]), len(IMAGES) // 2
    images, labels = IMAGES.tensors()
    whole = run(attack, model, seed=5)
    index = torch.arange(half, len(IMAGES))
    part = attack(model, images[half:], labels[half:], seed=5, index=index)
    assert torch.equal(part.success, whole.success[half:])
    assert torch.allclose(part.adversarial, whole.adversarial[half:], atol=1e-4)


@pytest.mark.parametrize("name", [name for name, kind in ATTACKS.items() if kind.targetable])
def test_a_target_is_reached_as_claimed(name: str, model: Classifier) -> None:
    _, labels = IMAGES.tensors()
    targets = (labels + 1) % 3
    found = run(quick(ATTACKS[name]), model, targets=targets)
    assert torch.equal(found.success, found.prediction == targets)
