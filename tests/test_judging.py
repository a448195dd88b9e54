"""Gradient alignment, the worst case over attacks, targeted attacks between all classes, and seeded measures."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import (
    BIM,
    EOT,
    FGSM,
    PGD,
    AbstractAttack,
    AbstractGradientAttack,
    Criterion,
    Misclassification,
    Passes,
    RunResult,
    input_gradient,
)
from casemate.data import LabelledImages
from casemate.defenses import StochasticAffine, preprocessed
from casemate.engine.store import Artifact
from casemate.engine.task import Context
from casemate.evaluation import Targeted, eps_curve, gradient_alignment, share, targeted_matrix, worst_case
from casemate.models import Classifier, ModelMetadata, create, save
from casemate.norms import Ball
from casemate.progress import NULL_OBSERVER, Advance
from casemate.rng import Streams
from casemate_study.tasks.inputs import attack_of, classifier_for, with_seeded_randomness
from conftest import TINY_CLASSES, TINY_SHAPE, Listener, tiny_images, tiny_model
from oracles import (
    EXAMINED,
    PIXELS,
    SHAPE,
    Linear,
    Tally,
    classifier,
    generator,
    linear_problem,
    network,
    room,
    steepest_descent,
)


def stored(images: Tensor, labels: Tensor) -> LabelledImages:
    """Images in [0, 1], rounded to bytes."""
    return LabelledImages(pixels=(images.detach() * 255).round().to(torch.uint8), labels=labels)


def random_images(count: int, classes: int, seed: int = 0) -> LabelledImages:
    """Random bytes with random labels."""
    random = generator(seed)
    return LabelledImages(
        pixels=torch.randint(256, (count, *SHAPE), generator=random, dtype=torch.uint8),
        labels=torch.randint(classes, (count,), generator=random),
    )


class Everything(nn.Module):
    """Remembers all that it is asked about, the images of its examination first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.tally = Tally()

    def forward(self, images: Tensor) -> Tensor:
        """Remember and pass on."""
        self.tally.seen.append(images.detach().clone())
        return self.inner(images)


# ----------------------------------------------------------------------------------------------- gradient alignment


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("radius", [0.0, 0.1, 0.5])
def test_the_gradient_of_a_linear_classifier_is_the_same_everywhere(scale: float, radius: float) -> None:
    """However sure it is: with two classes the stable cross-entropy keeps the direction of the logits' difference."""
    problem = linear_problem(0, scale=scale)
    found = gradient_alignment(problem.model, stored(problem.images, problem.labels), radius)
    assert found.shape == (24,)
    np.testing.assert_allclose(found, 1, rtol=0, atol=1e-6)


def curved(seed: int = 0) -> Classifier:
    """A float32 network whose gradients turn."""
    return classifier(network(seed, dtype=torch.float32, scale=8.0), classes=4)


@pytest.mark.parametrize("radius", [0.1, 0.4])
def test_the_cosine_is_that_of_the_gradients_at_the_image_and_at_a_point_in_the_ball(radius: float) -> None:
    images = random_images(12, 4)
    model = curved()
    looking = Everything(model.network)
    found = gradient_alignment(classifier(looking, classes=4), images, radius)
    assert len(looking.tally.seen) == EXAMINED + 2
    here, near = (seen.double() for seen in looking.tally.seen[EXAMINED:])
    torch.testing.assert_close(here, images.tensors()[0].double(), rtol=0, atol=1e-7)
    assert (near - here).abs().max() <= radius + 1e-6
    assert (near - here).flatten(1).abs().amax(1).min() > 0.8 * radius
    assert near.min() >= 0
    assert near.max() <= 1
    exact = network(0, scale=8.0)  # in float64, with PyTorch's own cross-entropy
    ways = []
    for place in (here, near):
        place = place.requires_grad_(True)
        loss = nn.functional.cross_entropy(exact(place), images.labels, reduction="sum")
        ways.append(torch.autograd.grad(loss, place)[0].flatten(1).numpy())
    cosine = (ways[0] * ways[1]).sum(1) / np.linalg.norm(ways[0], axis=1) / np.linalg.norm(ways[1], axis=1)
    np.testing.assert_allclose(found, cosine, rtol=0, atol=1e-4)
    assert cosine.min() < 0.97


def test_nearer_gradients_are_more_alike() -> None:
    images = random_images(30, 4)
    means = [gradient_alignment(curved(), images, radius).mean() for radius in (1e-4, 0.1, 0.5)]
    assert means[0] > 0.9999
    assert means[0] > means[1] > means[2]
    assert means[2] < 0.8


class Deaf(nn.Module):
    """Answers to the first pixel only where that is bright, else always the same."""

    def forward(self, images: Tensor) -> Tensor:
        """Two logits."""
        level = (images[:, 0, 0, 0] - 0.5).clamp(min=0)
        return torch.stack([level, 1 - level], 1)


def test_where_a_gradient_vanishes_there_is_no_angle() -> None:
    images = random_images(9, 2)
    images.pixels[:, 0, 0, 0] = torch.tensor([0, 10, 20, 30, 250, 255, 240, 230, 220], dtype=torch.uint8)
    found = gradient_alignment(classifier(Deaf()), images, 0.1)
    assert np.isnan(found[:4]).all()
    np.testing.assert_allclose(found[4:], 1, atol=1e-6)
    images.pixels[:, 0, 0, 0] = 128  # a gradient at the image, and near it only for some
    found = gradient_alignment(classifier(Deaf()), images, 0.1)
    assert 0 < np.isnan(found).sum() < 9


def test_a_gradient_that_is_nearly_nothing_has_an_angle() -> None:
    """Its squares are zero in float32."""
    layer = nn.Linear(PIXELS, 2)
    with torch.no_grad():
        layer.weight.copy_(1e-25 * torch.randn(2, PIXELS, generator=generator(0)))
    found = gradient_alignment(classifier(nn.Sequential(nn.Flatten(), layer)), random_images(5, 2), 0.1)
    np.testing.assert_allclose(found, 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 29])
def test_alignment_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    images = random_images(30, 4)
    whole = gradient_alignment(curved(), images, 0.2, seed=4)
    np.testing.assert_allclose(
        gradient_alignment(curved(), images, 0.2, seed=4, batch_size=batch_size), whole, rtol=0, atol=1e-4
    )
    assert np.abs(gradient_alignment(curved(), images, 0.2, seed=5) - whole).max() > 0.01


def test_alignment_leaves_the_model_as_it_was_and_tells_how_far_it_is(listener: Listener) -> None:
    model = tiny_model().train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one = gradient_alignment(model, tiny_images(20), 0.1, batch_size=8, observer=listener)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert (listener.done, listener.total) == (20, 20)
    np.testing.assert_array_equal(one, gradient_alignment(model.eval(), tiny_images(20), 0.1, batch_size=8))


# -------------------------------------------------------------------------------------------------- the worst case

EPS = [0.0, 0.01, 0.03, 0.1]


@pytest.fixture(scope="module")
def rough() -> tuple[Classifier, LabelledImages]:
    """A network whose loss has many hills, so that attacks disagree; it is right about four images in five."""
    model = classifier(network(1, dtype=torch.float32, scale=100.0), classes=4)
    images = random_images(60, 4)
    labels = model(images.tensors()[0]).argmax(1)
    labels[::5] = (labels[::5] + 1) % 4
    return model, replace(images, labels=labels)


ATTACKS: dict[str, AbstractGradientAttack] = {
    "fgsm": FGSM(eps=0.5),
    "fgsm margin": FGSM(eps=0.5, loss="margin"),
    "bim l2": BIM(eps=0.5, steps=3, norm="l2"),
    "pgd": PGD(eps=0.5, steps=3),
}


def test_the_worst_case_is_what_withstood_every_attack(rough: tuple[Classifier, LabelledImages]) -> None:
    model, images = rough
    found = worst_case(model, ATTACKS, images, EPS, seed=3)
    assert found.values == tuple(EPS)
    assert list(found.each) == list(ATTACKS)
    passes = Passes()
    by_hand = np.ones((60, 4), dtype=bool)
    for name, attack in ATTACKS.items():
        curve = eps_curve(model, attack, images, EPS, only_worst=True, seed=3)
        np.testing.assert_array_equal(found.each[name], curve.worst)
        by_hand &= curve.worst
        passes.add(curve.passes)
    np.testing.assert_array_equal(found.every, by_hand)
    assert found.passes == passes
    right = (model(images.tensors()[0]).argmax(1) == images.labels).numpy()
    assert right.sum() == 48
    np.testing.assert_array_equal(found.every[:, 0], right)
    assert (found.every[:, 1:] <= found.every[:, :-1]).all()
    assert found.every.sum(0)[-1] < found.every.sum(0)[0]
    # the attacks complement each other: together they fool more than any one of them
    assert all(found.every.sum() < each.sum() for each in found.each.values())


def test_the_worst_case_of_one_attack_is_that_attack(rough: tuple[Classifier, LabelledImages]) -> None:
    model, images = rough
    found = worst_case(model, {"pgd": ATTACKS["pgd"]}, images, EPS, seed=3)
    np.testing.assert_array_equal(found.every, found.each["pgd"])
    other = worst_case(model, {"pgd": ATTACKS["pgd"]}, images, EPS, seed=4)
    assert (found.every != other.every).any()  # the seed reaches the attacks


def test_more_attacks_never_leave_more_standing(rough: tuple[Classifier, LabelledImages]) -> None:
    model, images = rough
    previous = np.ones((60, 4), dtype=bool)
    for count in range(1, 5):
        found = worst_case(model, dict(list(ATTACKS.items())[:count]), images, EPS, seed=3)
        assert (found.every <= previous).all()
        previous = found.every


def test_the_worst_case_tells_how_far_it_is(rough: tuple[Classifier, LabelledImages], listener: Listener) -> None:
    model, images = rough
    worst_case(model, {"fgsm": ATTACKS["fgsm"], "pgd": ATTACKS["pgd"]}, images[:5], EPS, observer=listener)
    assert listener.titles == ["Worst case", "FGSM over eps", "PGD over eps"]
    assert (listener.done, listener.total) == (2 + 2 * 5, 2 + 2 * 5)
    assert {"fgsm", "pgd"} <= set(listener.notes)


# ------------------------------------------------------------------------------------------------ targeted attacks


class MinimumNormSearch(nn.Module):
    """Scores each class by minus the squared distance to its prototype."""

    def __init__(self, prototypes: Tensor) -> None:
        super().__init__()
        self.register_buffer("prototypes", prototypes)

    def forward(self, images: Tensor) -> Tensor:
        """One score per prototype."""
        prototypes = self.get_buffer("prototypes")
        return -(images.flatten(1).unsqueeze(1) - prototypes).square().sum(2)


PROTOTYPES = torch.rand(4, PIXELS, generator=generator(11))


@pytest.fixture(scope="module")
def near() -> tuple[Classifier, LabelledImages]:
    """Noisy prototypes, all recognised, of which every fourth is then labelled as another class."""
    random = generator(12)
    labels = torch.arange(32) % 4
    images = (PROTOTYPES[labels] + 0.15 * torch.randn(32, PIXELS, generator=random)).clamp(0, 1)
    model = classifier(MinimumNormSearch(PROTOTYPES), classes=4)
    assert torch.equal(model(images.view(-1, *SHAPE)).argmax(1), labels)
    labels[4::5] = (labels[4::5] + 1) % 4
    return model, stored(images.view(-1, *SHAPE), labels)


def right_of(model: Classifier, images: LabelledImages) -> Tensor:
    """Which images the model classifies as labelled."""
    with torch.no_grad():
        return model(images.tensors()[0]).argmax(1) == images.labels


STRONG = BIM(eps=1.0, steps=30, step_size=0.1)


def test_with_all_of_the_pixels_range_every_class_can_be_reached(near: tuple[Classifier, LabelledImages]) -> None:
    model, images = near
    found = targeted_matrix(model, STRONG, images)
    right = right_of(model, images)
    assert 20 < right.sum() < 32
    assert found.classes == model.classes
    np.testing.assert_array_equal(found.labels, images.labels[right].numpy())
    own = np.arange(4) == found.labels[:, None]
    np.testing.assert_array_equal(found.reached, ~own)


def test_with_eps_zero_no_class_is_reached(near: tuple[Classifier, LabelledImages]) -> None:
    model, images = near
    found = targeted_matrix(model, replace(STRONG, eps=0.0), images)
    assert not found.reached.any()
    assert found.reached.shape == (int(right_of(model, images).sum()), 4)


@pytest.mark.parametrize("batch_size", [5, 256])
def test_every_cell_is_the_attack_towards_that_class(near: tuple[Classifier, LabelledImages], batch_size: int) -> None:
    model, images = near
    attack = BIM(eps=0.2, steps=5)
    found = targeted_matrix(model, attack, images, batch_size=batch_size)
    chosen = images[right_of(model, images)]
    pixels, labels = chosen.tensors()
    passes = Passes()
    for target in range(4):
        others = labels != target
        result = attack(model, pixels[others], labels[others], targets=torch.full_like(labels[others], target))
        np.testing.assert_array_equal(found.reached[others.numpy(), target], result.success.numpy())
        assert not found.reached[~others.numpy(), target].any()
        passes.add(result.passes)
    assert found.passes == passes
    assert 0 < found.reached.sum() < 3 * len(labels)


def test_only_images_that_are_classified_correctly_are_attacked(near: tuple[Classifier, LabelledImages]) -> None:
    model, images = near
    right = right_of(model, images)
    looking = Everything(model.network)
    targeted_matrix(classifier(looking, classes=4), FGSM(eps=0.0, keep="last"), images)
    first, *later = looking.tally.seen[EXAMINED:]
    asked = torch.cat(later)
    assert len(first) == 32  # the look at all of them
    assert len(asked) == 2 * 3 * int(right.sum())  # a step and a look again, towards three classes
    wrong = images.tensors()[0][~right]
    assert not (asked.unsqueeze(1) == wrong.unsqueeze(0)).flatten(2).all(2).any()


def test_rates_are_counts_over_the_images_of_a_class(near: tuple[Classifier, LabelledImages]) -> None:
    model, images = near
    found = targeted_matrix(model, BIM(eps=0.2, steps=5), images)
    values = set()
    for source in range(4):
        for target in range(4):
            hits = [
                bool(row[target]) for row, label in zip(found.reached, found.labels, strict=True) if label == source
            ]
            rate = found.rate(source, target)
            assert rate is not None
            assert (rate.value, rate.n) == (sum(hits) / len(hits), len(hits))
            assert rate == share(np.array(hits))
            values.add(rate.value)
    assert all(found.rate(source, source).value == 0 for source in range(4))  # type: ignore[union-attr]
    assert len(values) > 3


def test_rates_by_hand() -> None:
    reached = np.array([[0, 1, 1], [0, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0]], dtype=bool)
    found = Targeted(classes=("a", "b", "c"), labels=np.array([0, 0, 0, 0, 1]), reached=reached, passes=Passes())
    rates = [[found.rate(i, j) for j in range(3)] for i in range(3)]
    assert [[None if rate is None else (rate.value, rate.n) for rate in row] for row in rates] == [
        [(0.0, 4), (0.75, 4), (0.5, 4)],
        [(1.0, 1), (0.0, 1), (0.0, 1)],
        [None, None, None],
    ]


def test_no_image_that_is_classified_correctly_leaves_nothing_to_attack(
    near: tuple[Classifier, LabelledImages],
) -> None:
    model, images = near
    wrong = images[~right_of(model, images)]
    found = targeted_matrix(model, STRONG, wrong)
    assert (found.labels.shape, found.reached.shape) == ((0,), (0, 4))
    assert found.passes == Passes()
    assert found.rate(0, 1) is None


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1])
def test_with_two_classes_the_other_is_reached_where_a_linear_margin_can_be_overcome(eps: float) -> None:
    """The closed form: the margin, and by how much it can fall at most."""
    problem: Linear = linear_problem(6, count=40, gap=6.0)
    images = stored(problem.images, problem.labels)
    images = images[right_of(problem.model, images)]
    found = targeted_matrix(problem.model, FGSM(eps=eps), images)
    pixels, labels = images.tensors()
    slope = problem.slope[[int((problem.labels == label).nonzero()[0]) for label in labels]]
    fall = steepest_descent(slope, room(pixels.flatten(1).double(), slope), "linf", eps)
    with torch.no_grad():
        logits = problem.model(pixels).double()
    margin = logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]
    expected = (margin < fall).numpy()
    assert ((margin - fall).abs() > 1e-4).all()
    assert 0 < expected.sum() < 40
    rows = np.arange(len(labels))
    np.testing.assert_array_equal(found.reached[rows, 1 - labels.numpy()], expected)
    assert not found.reached[rows, labels.numpy()].any()
    for source in (0, 1):
        rate = found.rate(source, 1 - source)
        assert rate is not None
        assert rate.value == expected[labels.numpy() == source].mean()


def test_targeted_attacks_tell_how_far_they_are(near: tuple[Classifier, LabelledImages], listener: Listener) -> None:
    model, images = near
    targeted_matrix(model, FGSM(eps=0.1), images, batch_size=10, observer=listener)
    assert listener.titles == ["Targeted attacks"]
    assert (listener.done, listener.total) == (32, 32)


@dataclass(frozen=True, kw_only=True)
class Keyed(AbstractAttack):
    """Attacks nothing, and notes under which number each image is asked to draw, by its bytes and its target."""

    notes: dict[tuple[bytes, int], int]

    def ball(self) -> Ball:
        """Nothing moves."""
        return Ball(eps=0.0)

    def max_passes(self, classes: int) -> Passes:
        """None that count."""
        del classes
        return Passes()

    def run(
        self, model: Classifier, clean: Tensor, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Note, and hand the images back."""
        del model, advance
        for image, target, number in zip(clean, criterion.classes.tolist(), streams.index.tolist(), strict=True):
            self.notes[image.contiguous().numpy().tobytes(), target] = number
        every = torch.ones(len(clean), dtype=torch.bool)
        return RunResult(clean, every, every, Passes())


@pytest.mark.parametrize("batch_size", [5, 12])
def test_what_an_image_draws_does_not_depend_on_the_batch_size(
    near: tuple[Classifier, LabelledImages], batch_size: int
) -> None:
    model, images = near
    whole, parts = Keyed(notes={}), Keyed(notes={})
    targeted_matrix(model, whole, images)
    targeted_matrix(model, parts, images, batch_size=batch_size)
    assert len(whole.notes) == 3 * int(right_of(model, images).sum())
    assert whole.notes == parts.notes


# ------------------------------------------------------------------------------- what the study's measures start from

CONTEXT = Context(device="cpu", observer=NULL_OBSERVER)


def measured(produce: Callable[..., dict[str, Any]], seed: int) -> dict[str, Any]:
    """A producer's result."""
    return produce({"seed": seed}, {}, Path("nowhere"), Path("nowhere"), CONTEXT)


def at_random(config: dict[str, Any], needs: object, folder: Path, working: Path, context: Context) -> dict[str, Any]:
    """Measures a classifier that moves its images at random; what it is given besides the seed is of no matter."""
    del config, needs, folder, working, context
    model = preprocessed(tiny_model(2).eval(), StochasticAffine())
    images, labels = tiny_images(6).tensors()
    _, gradient = input_gradient(model, images, Misclassification(labels), "ce", eot_samples=2)
    return {"logits": model(images).tolist(), "gradient": gradient.tolist()}


def test_a_measure_that_is_seeded_is_the_same_each_time() -> None:
    produce = with_seeded_randomness(at_random)
    torch.manual_seed(1)
    first = measured(produce, 3)
    torch.manual_seed(2)
    assert measured(produce, 3) == first
    assert measured(produce, 4) != first
    assert measured(at_random, 3) != measured(at_random, 3)
    assert produce.__doc__ == at_random.__doc__


def test_a_measure_that_is_seeded_leaves_the_caller_s_random_numbers_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    measured(with_seeded_randomness(at_random), 3)
    assert torch.equal(torch.get_rng_state(), state)

    def fails(config: dict[str, Any], needs: object, folder: Path, working: Path, context: Context) -> dict[str, Any]:
        torch.rand(5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measured(with_seeded_randomness(fails), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_attack_is_made_from_its_configuration() -> None:
    assert attack_of({"name": "bim", "eps": 0.1, "steps": 7}) == BIM(eps=0.1, steps=7)
    assert attack_of({"name": "pgd", "eps": 0.1, "restarts": 2, "eot_samples": 5}) == EOT(
        attack=PGD(eps=0.1, restarts=2), eot_samples=5
    )


@dataclass(frozen=True)
class Asked:
    """The saved model, and a function that makes what a configuration asks for of it."""

    model: Classifier
    of: Callable[..., Classifier]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """A saved network with noise layers."""
    model = create("paper-cnn-noise", input_shape=TINY_SHAPE, classes=TINY_CLASSES).eval()
    save(model, tmp_path / "best.safetensors", ModelMetadata(architecture="paper-cnn-noise", dataset="tiny"))
    needs = {"model": Artifact("key", tmp_path, {})}

    def of(inference: str | None, divide: float | None) -> Classifier:
        return classifier_for({"weights": "best", "inference": inference, "divide": divide}, needs, CONTEXT)

    return Asked(model, of)


def test_a_model_is_made_from_its_configuration(asked: Asked) -> None:
    images, _ = tiny_images(5).tensors()
    calm = asked.model(images).detach()
    torch.testing.assert_close(asked.of(None, None)(images), calm)
    torch.testing.assert_close(asked.of(None, 20.0)(images), calm / 20)
    for inference in ("noise", "stochastic-affine"):
        model = asked.of(inference, None)
        assert not torch.equal(model(images), model(images))
        torch.manual_seed(0)
        whole = model(images).detach()
        torch.manual_seed(0)
        torch.testing.assert_close(asked.of(inference, 20.0)(images), whole / 20)
        assert not torch.allclose(whole, calm, atol=1e-3)
