"""Several models as one: the averages, what the members must agree in, and that they are left as they were."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from casemate import evaluate
from casemate.attacks import MIFGSM, PGD, InputDiversity, ScaledCopies, Transfer, Transferable, input_gradient
from casemate.attacks.criterion import Misclassification
from casemate.errors import CasemateError, ModelError, SettingError, ShapeError
from casemate.models import Classifier, ensemble
from oracles import SHAPE, as_installed, check_claims, check_inside, generator, network, small_task

NAMES = ("a", "b", "c", "d")
IMAGES = torch.rand(20, *SHAPE, dtype=torch.float64, generator=generator(3))


def member(seed: int, **settings: Any) -> Classifier:
    """A model of four classes, in evaluation mode."""
    return Classifier(network(seed), **{"input_shape": SHAPE, "classes": NAMES} | settings).eval()


def members() -> list[Classifier]:
    """Three, each with another normalisation."""
    return [member(0), member(1, mean=0.5, std=0.25), member(2, mean=(0.1,), std=(2.0,))]


@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_logits_and_probabilities_are_averaged(weights: list[float] | None) -> None:
    models = members()
    each = torch.stack([model(IMAGES) for model in models])
    shares = torch.tensor(weights or [1.0, 1, 1], dtype=torch.float64)
    shares = (shares / shares.sum()).view(-1, 1, 1)
    assert torch.allclose(ensemble(models, weights=weights).eval()(IMAGES), (shares * each).sum(0))
    found = ensemble(models, weights=weights, average="probabilities").eval()(IMAGES)
    assert torch.allclose(found.exp(), (shares * each.softmax(2)).sum(0))
    assert torch.allclose(found.exp().sum(1), torch.ones(20, dtype=torch.float64))


def test_its_gradient_is_that_of_the_mean() -> None:
    models = members()
    labels = models[0](IMAGES).argmax(1)
    leaf = IMAGES.clone().requires_grad_(True)
    scaled = leaf, (leaf - 0.5) / 0.25, (leaf - 0.1) / 2
    each = [model.network(images) for model, images in zip(models, scaled, strict=True)]
    nn.functional.cross_entropy(torch.stack(each).mean(0), labels, reduction="sum").backward()
    _, gradient = input_gradient(ensemble(models), IMAGES, Misclassification(labels), "ce")
    assert leaf.grad is not None
    assert torch.allclose(gradient, leaf.grad, atol=1e-5)


def test_one_member_is_the_model_itself() -> None:
    model = member(1, mean=0.5, std=0.25)
    assert torch.allclose(ensemble([model])(IMAGES), model(IMAGES))
    assert torch.allclose(ensemble([model], average="probabilities")(IMAGES), model(IMAGES).log_softmax(1))


def test_confident_members_do_not_overflow() -> None:
    sure = member(0)
    with torch.no_grad():
        for parameter in sure.network[-1].parameters():  # type: ignore[index]
            parameter.mul_(1e6)
    leaf = IMAGES.clone().requires_grad_(True)
    logits = ensemble([sure, member(1)], average="probabilities")(leaf)
    (gradient,) = torch.autograd.grad(logits.sum(), leaf)
    assert logits.isfinite().all()
    assert gradient.isfinite().all()


def test_members_that_end_in_a_softmax_give_their_logits() -> None:
    inner, other = member(0), member(1)
    ended = Classifier(nn.Sequential(inner.network, nn.Softmax(1)), input_shape=SHAPE, classes=NAMES).eval()
    assert torch.allclose(ensemble([ended, other])(IMAGES), ensemble([inner, other])(IMAGES))


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_it_is_attacked_and_judged_as_one_model(average: Any) -> None:
    task = small_task(2)
    others = [member(seed, classes=task.model.classes) for seed in (1, 2)]
    model = ensemble([task.model, *others], average=average)
    with torch.no_grad():
        labels = model(task.images).argmax(1)
    attack = PGD(eps=0.1, steps=5)
    found = attack(model, task.images, labels)
    assert found.success.any()
    check_inside(attack, found, task.images)
    with torch.no_grad():
        assert torch.equal(found.prediction, model(found.adversarial).argmax(1))
    judged = evaluate(model, task.images.float(), labels, eps=0.1, attacks=[attack])
    assert judged.clean.accuracy.value == 1


def test_it_is_a_substitute_and_its_images_fool_a_third_model_more() -> None:
    task = small_task(1, count=60, scale=10.0)

    def noisy(seed: int) -> Classifier:
        twin = network(0)
        twin.load_state_dict(task.model.network.state_dict())
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter += (
                    0.4 * parameter.std() * torch.randn(parameter.shape, generator=generator(seed)).to(parameter)
                )
        return Classifier(twin, input_shape=SHAPE, classes=task.model.classes).eval()

    attack = Transferable(attack=MIFGSM(eps=0.15), parts=(InputDiversity(), ScaledCopies(copies=2)))
    twins = [noisy(seed) for seed in (1, 2, 3)]
    alone = [Transfer(attack=attack, substitute=each)(task.model, task.images, task.labels) for each in twins]
    together = Transfer(attack=attack, substitute=ensemble(twins))(task.model, task.images, task.labels)
    check_claims(together, task)
    assert together.success.sum() > sum(each.success.sum() for each in alone) / 3
    assert together.attack["substitute"]["network"] == "EnsembleNetwork"
    others = [ensemble(twins), ensemble(twins, weights=[1, 1, 2]), ensemble(twins, average="probabilities")]
    records = [Transfer(attack=attack, substitute=each).record()["substitute"]["sha256"] for each in others]
    assert records[0] == together.attack["substitute"]["sha256"]
    assert len(set(records)) == 3


def test_members_are_left_as_they_were() -> None:
    layers = [nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1), network(seed, dtype=torch.float32)) for seed in (0, 1)]
    models = [Classifier(each, input_shape=SHAPE, classes=NAMES) for each in layers]
    models[1].eval()
    modes = [module.training for model in models for module in model.modules()]
    before = [tensor.clone() for model in models for tensor in model.state_dict().values()]
    made = ensemble(models)
    images, labels = IMAGES.float(), torch.arange(20) % 4
    PGD(eps=0.1, steps=2)(made, images, labels)
    Transfer(attack=PGD(eps=0.1, steps=2), substitute=made)(models[0], images, labels)
    assert modes == [module.training for model in models for module in model.modules()]
    now = [tensor for model in models for tensor in model.state_dict().values()]
    assert all(map(torch.equal, before, now))
    assert all(parameter.requires_grad for model in models for parameter in model.parameters())
    assert made.training
    assert not ensemble([models[1]]).training


def test_what_is_not_known_is_taken_from_the_others_or_the_first_call() -> None:
    unknown = Classifier(network(3)).eval()
    model = ensemble([unknown, member(0)])
    assert (model.input_shape, model.classes) == (SHAPE, NAMES)
    both = ensemble([network(3).eval(), network(4).eval()])
    both(IMAGES)
    assert (both.input_shape, both.classes) == (SHAPE, ("0", "1", "2", "3"))
    numbered = Classifier(network(1), input_shape=SHAPE, classes=4)
    assert ensemble([numbered, member(0)]).classes == NAMES


class Three(nn.Module):
    """A network of three classes."""

    def forward(self, images: Tensor) -> Tensor:
        """Three pixels."""
        return images.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: ensemble([]), ModelError, "an ensemble of no models"),
        (lambda: ensemble(cast(Any, [member(0), "x"])), ModelError, "the model is"),
        (lambda: ensemble([member(0), member(1, bounds=(0, 255))]), ShapeError, r"different bounds: \(0.0, 1.0\) and"),
        (lambda: ensemble([member(0), member(1, input_shape=(1, 6, 7))]), ShapeError, "different shape of images"),
        (lambda: ensemble([member(0), member(1, classes=5)]), ShapeError, "different classes: a, b, c, d and 0, 1, 2"),
        (lambda: ensemble([member(0), member(1, classes=NAMES[::-1])]), ShapeError, "in the same order"),
        (lambda: ensemble([network(0), Three()])(IMAGES), CasemateError, r"with \[3, 4\] classes; expected as many"),
        (lambda: ensemble(members(), weights=[1, 2]), SettingError, "2 weights for 3 models"),
        (lambda: ensemble(members(), weights=[1, 0, 2]), SettingError, "weights = 0; expected positive"),
        (
            lambda: ensemble(members(), average=cast(Any, "votes")),
            SettingError,
            "average = 'votes'; expected logits",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(make: Callable[[], object], kind: type[Exception], words: str) -> None:
    with as_installed(), pytest.raises(kind, match=words):
        make()


def test_models_on_several_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = member(0), member(1)
    devices = {id(here): torch.device("cpu"), id(elsewhere): torch.device("cuda:1")}
    monkeypatch.setattr(Classifier, "device", property(lambda self: devices[id(self)]))
    with pytest.raises(ModelError, match="the models are on cpu and cuda:1; move them to one device"):
        ensemble([here, elsewhere])
