"""Transfer: images of a substitute for the model under attack, and what the substitute must not decide."""

import json
import math
from dataclasses import dataclass, field, replace
from typing import final

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import (
    BIM,
    FGSM,
    PGD,
    AbstractAttack,
    AbstractMinimumNormAttack,
    Passes,
    RunResult,
    Status,
    with_eps,
)
from casemate.attacks.criterion import Criterion
from casemate.attacks.restarts import Restarts
from casemate.attacks.transfer import Transfer
from casemate.errors import CasemateWarning, SettingError, ShapeError
from casemate.models import Classifier
from casemate.norms import Norm
from casemate.progress import Advance
from casemate.rng import Streams
from oracles import (
    PIXELS,
    SHAPE,
    Counting,
    as_installed,
    check_claims,
    check_inside,
    check_nothing_at_zero,
    check_reaches_optimum,
    classifier,
    generator,
    linear_problem,
    network,
    room,
    small_task,
)


def like(model: Classifier, noise: float, *, classes: int = 4) -> Classifier:
    """A substitute: the same network with other weights, the farther off the more noise."""
    twin = network(0, classes=classes, scale=1.0)
    twin.load_state_dict(model.network.state_dict())
    random = generator(77)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=random).to(parameter)
    return classifier(twin, classes=classes)


# -------------------------------------------------------------------------------------------------- exact results


@pytest.mark.parametrize("eps", [0.03, 0.2])
def test_a_substitute_with_the_same_slopes_gives_the_optimum(eps: float) -> None:
    problem = linear_problem(0)
    layer = nn.Linear(PIXELS, 2)
    with torch.no_grad():
        layer.weight.copy_(3 * problem.model.network[1].weight)  # type: ignore[index]
        layer.bias.copy_(torch.tensor([100.0, 0.0]))  # so sure of one class that it is wrong about half of the images
    attack = Transfer(attack=FGSM(eps=eps), substitute=classifier(nn.Sequential(nn.Flatten(), layer)))
    check_reaches_optimum(attack, problem, norm="linf", eps=eps)
    check_reaches_optimum(attack, problem, norm="linf", eps=eps, targeted=True)


def test_a_substitute_with_other_slopes_gives_what_those_are_worth() -> None:
    """FGSM on it moves every pixel by eps or to its bound, along its slope; the model's margin falls accordingly."""
    problem, other = linear_problem(0), linear_problem(1)
    attack = Transfer(attack=FGSM(eps=0.1), substitute=other.model)
    found = attack(problem.model, problem.images, problem.labels)
    weight = other.model.network[1].weight.detach().double()  # type: ignore[index]
    slope = weight[problem.labels] - weight[1 - problem.labels]
    step = room(problem.images.detach().flatten(1).double(), slope).clamp(max=0.1)
    expected = problem.margin(problem.images) - (problem.slope * slope.sign() * step).sum(1)
    assert torch.allclose(problem.margin(found.adversarial), expected, atol=1e-4)
    assert 0 < found.success.sum() < 24


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_with_the_model_itself_as_substitute_the_whole_budget_is_used(norm: Norm, targeted: bool) -> None:
    """As with `keep="last"`, whatever the attack says, but on the images that are not wrong already."""
    task = small_task()
    targets = (task.labels + 3) % 4 if targeted else None  # where the labels are wrong that is the prediction
    attack = PGD(eps={"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm], steps=5, norm=norm)
    found = Transfer(attack=attack, substitute=task.model)(task.model, task.images, task.labels, targets=targets)
    whole = replace(attack, keep="last")(task.model, task.images, task.labels, targets=targets)
    before = task.model(task.images).argmax(1)
    fooled = before != task.labels if targets is None else before == targets
    assert fooled.any()
    assert torch.allclose(found.adversarial[~fooled], whole.adversarial[~fooled], rtol=0, atol=1e-9)
    assert torch.equal(found.adversarial[fooled], task.images[fooled])
    assert found.success[fooled].all()
    check_inside(attack, found, task.images)
    check_claims(found, task, targets)


# ------------------------------------------------------------------------------------------------ what it is good for


def test_images_that_had_just_fooled_the_substitute_would_transfer_less() -> None:
    task = small_task(1, count=120, scale=10.0)
    substitute = like(task.model, 0.25)
    attack = BIM(eps=0.2, steps=20, step_size=0.02)
    found = Transfer(attack=attack, substitute=substitute)(task.model, task.images, task.labels)
    early = attack(substitute, task.images, task.labels).adversarial
    before = task.model(task.images).argmax(1) == task.labels
    just = (task.model(early).argmax(1) != task.labels)[before]
    assert found.success[before].sum() > 1.3 * just.sum() > 0
    white = attack(task.model, task.images, task.labels)
    assert white.success.sum() >= found.success.sum()


def test_hidden_gradients_do_not_stop_it() -> None:
    task = small_task(1, count=60, scale=10.0)

    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return task.model.network((15 * images).round() / 15)

    hidden = classifier(Rounded(), classes=4)
    attack = PGD(eps=0.15, steps=10)
    with pytest.warns(CasemateWarning, match="PGD had no gradient to follow on .* of 60 images"):
        alone = attack(hidden, task.images, task.labels)
    assert alone.status[~alone.success].eq(Status.ZERO_GRADIENT).all()
    across = Transfer(attack=attack, substitute=like(task.model, 0.05))(hidden, task.images, task.labels)
    assert across.success.sum() > alone.success.sum() + 15
    assert across.status.ne(Status.ZERO_GRADIENT).all()


# --------------------------------------------------------------------------------------------- who is asked, and how


def test_passes_are_those_through_the_substitute_and_a_look_before_and_after() -> None:
    task = small_task()
    model, substitute = Counting(task.model.network), Counting(network(3, scale=4.0))
    attack = Transfer(attack=BIM(eps=0.1, steps=4), substitute=classifier(substitute, classes=4))
    found = attack(classifier(model, classes=4), task.images, task.labels, batch_size=8)
    assert (model.forwards, model.backwards) == (60, 0)
    assert (substitute.forwards, substitute.backwards) == (25 * 4, 25 * 4)  # five are wrong from the start
    assert (found.passes.forward, found.passes.backward) == (60 + 100, 100)


def test_images_that_the_substitute_is_wrong_about_are_attacked_all_the_same() -> None:
    task = small_task(2)
    substitute = classifier(network(9, scale=4.0), classes=4)
    wrong_there = substitute(task.images).argmax(1) != task.labels
    right = task.model(task.images).argmax(1) == task.labels
    found = Transfer(attack=BIM(eps=0.1), substitute=substitute)(task.model, task.images, task.labels)
    both = wrong_there & right
    assert both.sum() > 5
    assert found.norm[both].gt(0.09).all()


def test_where_the_model_is_wrong_about_everything_the_substitute_is_not_asked() -> None:
    task = small_task()
    substitute = Counting(network(3))
    labels = (task.model(task.images).argmax(1) + 1) % 4
    found = Transfer(attack=BIM(eps=0.1), substitute=classifier(substitute, classes=4))(task.model, task.images, labels)
    assert found.success.all()
    assert substitute.forwards == 0
    assert torch.equal(found.adversarial, task.images)


def test_the_substitute_is_attacked_as_it_answers_and_left_as_it_was() -> None:
    task = small_task(dtype=torch.float32)
    substitute = classifier(nn.Sequential(nn.Dropout(0.5), network(3, dtype=torch.float32)), classes=4)
    substitute.train()
    substitute.network[0].eval()  # type: ignore[index]
    parameters = list(substitute.parameters())
    parameters[0].requires_grad_(False)
    substitute(task.images).sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in parameters]
    modes = [module.training for module in substitute.modules()]
    attack = Transfer(attack=PGD(eps=0.1, steps=3), substitute=substitute)
    found = attack(task.model, task.images, task.labels)
    assert modes == [module.training for module in substitute.modules()]
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    for parameter, gradient in zip(parameters, before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or (parameter.grad is not None and torch.equal(parameter.grad, gradient))
    substitute.network[0].train()  # type: ignore[index]
    again = attack(task.model, task.images, task.labels)
    assert torch.equal(found.adversarial, again.adversarial), "dropout was on"


def test_the_batch_size_does_not_matter() -> None:
    task = small_task()
    attack = Transfer(attack=PGD(eps=0.1, steps=3, restarts=2), substitute=like(task.model, 0.2))
    whole = attack(task.model, task.images, task.labels, seed=4)
    parts = attack(task.model, task.images, task.labels, seed=4, batch_size=7)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-9)
    assert torch.equal(whole.status, parts.status)
    assert whole.passes == parts.passes
    assert not torch.equal(attack(task.model, task.images, task.labels, seed=5).adversarial, whole.adversarial)


def test_it_can_be_run_again_until_the_model_itself_is_fooled() -> None:
    task = small_task(1, count=60, scale=10.0)
    attack = Transfer(attack=PGD(eps=0.2, steps=2), substitute=like(task.model, 0.25))
    once = attack(task.model, task.images, task.labels)
    often = Restarts(attack=attack, restarts=6)(task.model, task.images, task.labels)
    assert (often.success | ~once.success).all()
    assert often.success.sum() > once.success.sum()
    assert torch.equal(often.adversarial[once.success], once.adversarial[once.success])


def test_nothing_happens_at_eps_zero() -> None:
    task = small_task()
    check_nothing_at_zero(lambda eps: Transfer(attack=BIM(eps=eps), substitute=like(task.model, 0.2)), task)


# ---------------------------------------------------------------------------------------------------------- trouble


def test_numbers_of_either_model_that_are_not_finite_are_a_status() -> None:
    class Trouble(nn.Module):
        def __init__(self, inner: nn.Module, row: int) -> None:
            super().__init__()
            self.inner, self.row = inner, row

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) + 0 * (images[:, :1, self.row, 0] - 0.3).log()

    task = small_task(4)
    images = task.images.clone()
    images[:, 0, :2, 0] = 0.9
    images[0::3, 0, 0, 0] = 0.1  # no logits of the model
    images[1::3, 0, 1, 0] = 0.1  # none of the substitute
    model = classifier(Trouble(task.model.network, 0), classes=4)
    labels = torch.where(torch.arange(30) % 3 == 0, task.labels, model(images).argmax(1))
    attack = Transfer(attack=BIM(eps=0.05), substitute=classifier(Trouble(like(task.model, 0.1).network, 1), classes=4))
    with pytest.warns(CasemateWarning, match="on 20 of 30 images .* met logits or gradients that are not finite"):
        found = attack(model, images, labels)
    assert found.status[0::3].eq(Status.NON_FINITE).all()
    assert found.status[1::3].eq(Status.NON_FINITE).all()
    assert found.status[2::3].ne(Status.NON_FINITE).all()
    trouble = torch.arange(30) % 3 != 2
    assert torch.equal(found.adversarial[trouble], images[trouble])
    assert not found.success[trouble].any()


def test_a_substitute_without_a_gradient_says_so() -> None:
    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :4].round()

    task = small_task()
    attack = Transfer(attack=BIM(eps=0.1), substitute=classifier(Rounded(), classes=4))
    with pytest.warns(CasemateWarning, match="had no gradient to follow on 25 of 30 images"):
        found = attack(task.model, task.images, task.labels)
    assert found.success.sum() == 5
    assert found.status[~found.success].eq(Status.ZERO_GRADIENT).all()


def test_models_that_do_not_match_are_refused() -> None:
    task = small_task(dtype=torch.float32)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    names = ("a", "b", "c", "d")
    for substitute, words in (
        (classifier(network(dtype=torch.float32, classes=3), classes=3), "this many classes: 3, the model .* 4"),
        (Classifier(other, input_shape=(1, 6, 7), classes=names), r"images of shape \(1, 6, 7\), the model .*1, 6, 6"),
        (Classifier(other, input_shape=SHAPE, classes=names, bounds=(0, 255)), r"pixels within \(0.0, 255.0\)"),
    ):
        attack = Transfer(attack=BIM(eps=0.1), substitute=substitute)
        with as_installed(), pytest.raises(ShapeError, match=f"the substitute takes {words}"):
            attack(task.model, task.images, task.labels)


# ---------------------------------------------------------------------------------------------- minimum-norm attacks


@final
@dataclass(frozen=True, kw_only=True)
class Halfway(AbstractMinimumNormAttack):
    """Half of the way to grey; remembers the criterion."""

    norm: Norm = "l2"
    confidence: float = 0.0
    asked: list[Criterion] = field(default_factory=list, compare=False)

    def max_passes(self, classes: int) -> Passes:
        """None that count."""
        del classes
        return Passes()

    def run(
        self, model: Classifier, clean: Tensor, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Go there."""
        del model, streams, advance
        self.asked.append(criterion)
        every = torch.ones(len(clean), dtype=torch.bool)
        return RunResult((clean + 0.5) / 2, every, every, Passes())


def test_a_minimum_norm_attack_must_ask_for_confidence() -> None:
    task = small_task()
    for attack in (Halfway(), Restarts(attack=Halfway())):
        with as_installed(), pytest.raises(SettingError, match=r"Halfway ends just across .* confidence > 0"):
            Transfer(attack=attack, substitute=task.model)
    sure = Halfway(confidence=20.0)
    found = Transfer(attack=sure, substitute=like(task.model, 0.1))(task.model, task.images, task.labels)
    assert not sure.asked[0].never
    assert len(sure.asked[0].classes) == 25
    assert torch.allclose(found.adversarial[1], (task.images[1] + 0.5) / 2)
    assert math.isinf(found.distance[~found.success].min())


# -------------------------------------------------------------------------------------------------------- the record


def test_the_record_is_json_and_tells_substitutes_apart() -> None:
    task = small_task()
    attack = PGD(eps=0.1, steps=3)
    substitutes = [like(task.model, 0.1), like(task.model, 0.1), like(task.model, 0.2)]
    records = [Transfer(attack=attack, substitute=each).record() for each in substitutes]
    assert records[0] == records[1]
    assert records[0]["substitute"]["sha256"] != records[2]["substitute"]["sha256"]
    assert json.loads(json.dumps(records[0])) == records[0]
    assert records[0]["name"] == "Transfer"
    assert records[0]["attack"] == attack.record()
    parameters = sum(parameter.numel() for parameter in substitutes[0].parameters())
    assert records[0]["substitute"]["network"] == "Sequential"
    assert records[0]["substitute"]["parameters"] == parameters
    nested = Restarts(attack=Transfer(attack=attack, substitute=substitutes[0]), restarts=2)
    assert nested.record() == {"name": "Restarts", "attack": records[0], "restarts": 2}
    found = nested(task.model, task.images, task.labels)
    assert found.attack == nested.record()
    counted = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(PIXELS), nn.Linear(PIXELS, 4))  # a buffer without dimensions
    assert len(Transfer(attack=attack, substitute=classifier(counted, 4)).record()["substitute"]["sha256"]) == 64


def test_it_takes_another_eps() -> None:
    task = small_task()
    attack: AbstractAttack = Transfer(attack=PGD(eps=0.1), substitute=task.model)
    other = with_eps(attack, 0.2)
    assert other == Transfer(attack=PGD(eps=0.2), substitute=task.model)
    assert other.ball().eps == 0.2
