"""Certified training: losses by hand and written out, gradients, the growth of the radius, and what it buys."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import PGD
from casemate.certification import bound_layers, certify, interval_margins, region_around, take_apart
from casemate.data import split
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.defenses.certified import (
    AbstractCertifiedTraining,
    CROWNIBPTraining,
    IBPTraining,
    MTLIBPTraining,
    SABRTraining,
    balance_loss,
    initialize_for_bounds,
    tightness_loss,
)
from casemate.errors import ModelError, SettingError, ShapeError
from casemate.models import Classifier, create
from casemate.models.accel.optimized_training import optimized_training
from casemate.models.state import frozen
from casemate.norms import Ball
from casemate.training import CrossEntropy, SteppedObjective, TrainConfig, TrainingStep, fit
from casemate.training.state import Weights, snapshot
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images, tiny_model
from oracles import as_installed, generator

TRAIN, VALIDATION = split(tiny_images(240, noise=25), 60, 0)
IMAGES, LABELS = TRAIN[:20].tensors()
ALL: tuple[AbstractCertifiedTraining, ...] = (
    IBPTraining(),
    CROWNIBPTraining(),
    SABRTraining(steps=2),
    MTLIBPTraining(steps=2),
)


def at(objective: AbstractCertifiedTraining, done: float) -> Any:
    """The objective where a share of the training is done."""
    return objective.at_step(TrainingStep(done=done, index=torch.arange(20)))


def plain_network(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> Classifier:
    """Convolutions and ReLUs without anything random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )
        initialize_for_bounds(network)
    return Classifier(network.to(dtype), input_shape=TINY_SHAPE, classes=TINY_CLASSES).train()


def normed_network(seed: int = 0) -> Classifier:
    """With batch normalisation after each layer, as Shi et al. 2021 propose."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 4, 4, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)),
        )
        initialize_for_bounds(network)
    return Classifier(network, input_shape=TINY_SHAPE, classes=TINY_CLASSES).train()


def plain_bounds(
    network: nn.Sequential, lower: Tensor, upper: Tensor, statistics: dict[int, tuple[Tensor, Tensor]] | None = None
) -> tuple[Tensor, Tensor]:
    """Interval bounds before the last layer, written out by splitting weights by their sign."""
    for number, layer in enumerate(list(network)[:-1]):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            positive, negative = layer.weight.clamp(min=0), layer.weight.clamp(max=0)

            def through(values: Tensor, weight: Tensor, layer: nn.Linear | nn.Conv2d = layer) -> Tensor:
                if isinstance(layer, nn.Linear):
                    return F.linear(values, weight)
                return F.conv2d(values, weight, None, layer.stride, layer.padding)

            bias = layer.bias if isinstance(layer, nn.Linear) else layer.bias.view(1, -1, 1, 1)  # type: ignore[union-attr]
            lower, upper = (
                through(lower, positive) + through(upper, negative) + bias,
                through(upper, positive) + through(lower, negative) + bias,
            )
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert statistics is not None
            mean, variance = statistics[number]
            shape = (1, -1, *[1] * (lower.ndim - 2))
            factor = (layer.weight / (variance + layer.eps).sqrt()).view(shape)
            shift = layer.bias.view(shape) - factor * mean.view(shape)
            ends = [factor * each + shift for each in (lower, upper)]
            falls = layer.weight.view(shape) < 0
            lower, upper = torch.where(falls, ends[1], ends[0]), torch.where(falls, ends[0], ends[1])
        else:
            lower, upper = layer(lower), layer(upper)
    return lower, upper


def plain_worst(last: nn.Module, lower: Tensor, upper: Tensor, labels: Tensor) -> Tensor:
    """The worst logits, less the label's: the last layer merged with the differences, class by class."""
    assert isinstance(last, nn.Linear)
    worst = torch.zeros(len(labels), last.out_features, dtype=lower.dtype)
    for row, label in enumerate(labels.tolist()):
        for other in range(last.out_features):
            weight = last.weight[other] - last.weight[label]
            top = torch.where(weight > 0, upper[row], lower[row])
            if other != label:
                worst[row, other] = (weight * top).sum() + last.bias[other] - last.bias[label]
    return worst


def plain_ibp(model: Classifier, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The cross-entropy of the worst logits."""
    network = model.network
    assert isinstance(network, nn.Sequential)
    lower, upper = plain_bounds(network, (images - eps).clamp(min=0), (images + eps).clamp(max=1))
    return F.cross_entropy(plain_worst(network[-1], lower, upper, labels), labels)


def gradients(loss: Tensor, model: Classifier) -> Weights:
    """Of a loss, by the names of the weights."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: torch.zeros(()) if each is None else each for name, each in zip(names, found, strict=True)}


def assert_close(one: Weights, two: Weights, *, rtol: float = 1e-5, atol: float = 1e-8) -> None:
    """The same names, nearly the same values."""
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=rtol, atol=atol), name


# ---------------------------------------------------------------------------------------------------------- the loss


def test_a_loss_by_hand() -> None:
    """One pixel 0.5, eps 0.1; hidden h = relu(2 x), relu(-x + 0.5); logits h1, h2 + 1."""
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        first.bias.copy_(torch.tensor([0.0, 0.5]))
        last.weight.copy_(torch.eye(2))
        last.bias.copy_(torch.tensor([0.0, 1.0]))
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    model = Classifier(network, input_shape=(1, 1, 1), classes=2)
    images, labels = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    # h1 in [0.8, 1.2], h2 in [0, 0.1]: the margin of class 0 is at least 0.8 - 0.1 - 1 = -0.3, the clean one 0
    worst, clean = math.log(1 + math.exp(0.3)), math.log(2)
    loss, logits = IBPTraining(eps=0.1, kappa_end=0.25)(model, images, labels)
    assert loss.item() == pytest.approx(0.25 * clean + 0.75 * worst, rel=1e-5)
    assert torch.allclose(logits, torch.tensor([[1.0, 1.0]]))
    half = at(IBPTraining(eps=0.2, kappa_end=0.25, ramp_end=0.8, regularization=0.0), 0.4)(model, images, labels)[0]
    assert half.item() == pytest.approx(0.625 * clean + 0.375 * worst, rel=1e-5)
    assert IBPTraining(eps=0.1, train_eps_factor=7).validate(model, images, labels)[0].item() == pytest.approx(worst)


def test_ibp_is_the_loss_written_out_and_so_are_its_gradients() -> None:
    model = plain_network()
    loss, logits = IBPTraining(eps=0.07)(model, IMAGES, LABELS)
    expected = plain_ibp(model, IMAGES, LABELS, 0.07)
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(logits, model(IMAGES), atol=1e-6)
    assert_close(gradients(loss, model), gradients(expected, model), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        IBPTraining(eps=0.05, kappa_end=0.3),
        at(IBPTraining(eps=0.1), 0.2),
        at(CROWNIBPTraining(eps=0.05, beta_end=0.5), 0.3),
    ],
)
def test_gradients_are_those_of_finite_differences(objective: Any) -> None:
    model, images = plain_network(dtype=torch.float64), IMAGES.double()
    loss, _ = objective(model, images, LABELS)
    found = gradients(loss, model)
    random = generator(3)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                values.append(objective(model, images, LABELS)[0].item())
                parameter.add_(direction, alpha=-step)
        slope = (values[0] - values[1]) / 2e-6
        assert slope == pytest.approx((found[name] * direction).sum().item(), rel=1e-3, abs=1e-6), name


def test_crown_ibp_mixes_both_margins() -> None:
    model = plain_network()
    ibp = IBPTraining(eps=0.05)(model, IMAGES, LABELS)[0]
    assert torch.allclose(CROWNIBPTraining(eps=0.05)(model, IMAGES, LABELS)[0], ibp)
    losses = [CROWNIBPTraining(eps=0.05, beta_end=beta)(model, IMAGES, LABELS)[0].item() for beta in (0.0, 0.5, 1.0)]
    assert losses[0] > losses[1] > losses[2]  # on a network that is not trained for intervals linear bounds are tighter


def test_sabr_with_the_whole_ball_is_ibp() -> None:
    model = plain_network()
    torch.manual_seed(0)
    loss = SABRTraining(eps=0.05, tau=1.0, steps=2)(model, IMAGES, LABELS)[0]
    assert torch.equal(loss, IBPTraining(eps=0.05)(model, IMAGES, LABELS)[0])


def test_sabr_bounds_a_small_box_round_an_adversarial_image_inside_the_ball() -> None:
    model = plain_network()
    objective = SABRTraining(eps=0.2, tau=0.25, steps=3)
    torch.manual_seed(1)
    loss = objective(model, IMAGES, LABELS)[0]
    torch.manual_seed(1)
    found = AdversarialTraining(eps=0.2, steps=3).adversarial(model, IMAGES, LABELS)[0]
    low, high = (IMAGES - 0.2).clamp(min=0), (IMAGES + 0.2).clamp(max=1)
    centre = found.clamp(low + 0.05, high - 0.05)
    assert (centre - IMAGES).abs().max() > 0.149
    assert centre.amin() > 0.049  # at black pixels too the whole box lies within the bounds
    assert centre.amax() < 0.951
    assert torch.allclose(loss, plain_ibp(model, centre, LABELS, 0.05), rtol=1e-5)
    assert loss < IBPTraining(eps=0.2)(model, IMAGES, LABELS)[0]
    assert loss > F.cross_entropy(model(centre), LABELS)


@pytest.mark.parametrize("tau", [0.4, 0.8])
def test_no_box_of_sabr_leaves_the_ball_or_the_bounds(tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At black and white pixels half the ball is left, of which a box of more than half the ball covers all."""
    model = plain_network()
    images = torch.tensor([0.0, 0.02, 0.5, 0.99, 1.0]).repeat(13)[:64].view(1, 1, 8, 8)
    low, high = (images - 0.1).clamp(min=0), (images + 0.1).clamp(max=1)
    seen = []

    def watched(graph: Any, region: Any, **options: Any) -> Any:
        seen.append(region.box)
        return bound_layers(graph, region, **options)

    monkeypatch.setattr("casemate.defenses.certified.bound_layers", watched)
    for seed in range(5):
        torch.manual_seed(seed)
        SABRTraining(eps=0.1, tau=tau, steps=2)(model, images, LABELS[:1])
    for box in seen:
        assert (box.lower >= low - 1e-7).all()
        assert (box.upper <= high + 1e-7).all()
        assert (box.upper - box.lower >= (high - low).clamp(max=2 * tau * 0.1) - 1e-6).all()


def test_mtl_ibp_lies_between_adversarial_training_and_ibp() -> None:
    model = plain_network()

    def loss(objective: Any) -> float:
        torch.manual_seed(2)
        return objective(model, IMAGES, LABELS)[0].item()

    adversarial = loss(AdversarialTraining(eps=0.1, steps=3))
    ibp = loss(IBPTraining(eps=0.1))
    assert loss(MTLIBPTraining(eps=0.1, alpha=1.0, steps=3)) == pytest.approx(ibp, rel=1e-6)
    assert loss(MTLIBPTraining(eps=0.1, alpha=0.0, steps=3)) == pytest.approx(adversarial, rel=1e-5)
    mixed = loss(MTLIBPTraining(eps=0.1, alpha=0.3, steps=3))
    assert mixed == pytest.approx(0.7 * adversarial + 0.3 * ibp, rel=1e-5)


@pytest.mark.parametrize("objective", ALL)
def test_before_the_radius_grows_the_loss_is_the_clean_one(objective: AbstractCertifiedTraining) -> None:
    model = plain_network()
    late = type(objective)(ramp_start=0.3, regularization=0.0)
    expected = F.cross_entropy(model(IMAGES), LABELS)
    for done in (0.0, 0.3):
        assert torch.allclose(at(late, done)(model, IMAGES, LABELS)[0], expected)
    assert at(late, 0.4)(model, IMAGES, LABELS)[0] > expected


def test_the_radius_grows_from_the_start_to_the_end_of_the_ramp() -> None:
    model = plain_network()
    objective = IBPTraining(eps=0.1, ramp_start=0.2, ramp_end=0.6, train_eps_factor=1.5, regularization=0.0)
    for done, ramp in ((0.2, 0.0), (0.3, 0.25), (0.5, 0.75), (0.6, 1.0), (0.9, 1.0)):
        bound = plain_ibp(model, IMAGES, LABELS, 0.15 * ramp)
        clean = F.cross_entropy(model(IMAGES), LABELS)
        found = at(objective, done)(model, IMAGES, LABELS)[0]
        assert torch.allclose(found, (1 - ramp) * clean + ramp * bound, rtol=1e-5), done
    sudden = IBPTraining(eps=0.1, ramp_start=0.5, ramp_end=0.5, regularization=0.0)
    for done, eps in ((0.49, 0.0), (0.5, 0.1)):
        assert torch.allclose(at(sudden, done)(model, IMAGES, LABELS)[0], plain_ibp(model, IMAGES, LABELS, eps))


@pytest.mark.parametrize("objective", ALL)
def test_validation_is_the_loss_of_the_whole_ball_whatever_the_objective(objective: AbstractCertifiedTraining) -> None:
    model = plain_network().eval()
    expected = plain_ibp(model, IMAGES, LABELS, 0.1)
    for each in (objective, at(objective, 0.1)):
        loss, logits = each.validate(model, IMAGES, LABELS)
        assert torch.allclose(loss, expected, rtol=1e-5)
        assert not loss.requires_grad
        assert torch.allclose(logits, model(IMAGES), atol=1e-6)
    assert objective.ball == Ball(eps=0.1)
    assert isinstance(objective, SteppedObjective)


# -------------------------------------------------------------------------------------------------- the regularisers


def test_regularisers_written_out() -> None:
    model = plain_network()
    graph = take_apart(model, IMAGES).graph
    bounds = bound_layers(graph, region_around(IMAGES, Ball(eps=0.1), (0, 1)))
    network = model.network
    assert isinstance(network, nn.Sequential)
    box = (IMAGES - 0.1).clamp(min=0), (IMAGES + 0.1).clamp(max=1)
    first = (box[1] - box[0]).mean()
    tightness = balance = 0.0
    for place in (1, 4):
        lower, upper = plain_bounds(nn.Sequential(*list(network)[:place], nn.Identity()), *box)
        tightness += max(0.0, 0.5 - (first / (upper - lower).mean()).item()) / 0.5 / 2
        middle = (lower + upper) / 2
        spread = (middle - middle.mean()).square()
        active, inactive = lower > 0, upper < 0
        for one, other in (
            (middle[active].sum(), -middle[inactive].sum()),
            (spread[active].sum(), spread[inactive].sum()),
        ):
            ratio = (one / other).item()
            balance += max(0.0, 0.5 - min(ratio, 1 / ratio)) / 0.5 / 2
    assert tightness_loss(graph, bounds).item() == pytest.approx(tightness, rel=1e-4)
    assert balance_loss(graph, bounds).item() == pytest.approx(balance, rel=1e-4)
    assert tightness > 0
    assert balance > 0
    weighted = at(IBPTraining(eps=0.2, regularization=0.8), 0.25)(model, IMAGES, LABELS)[0]
    plain = at(IBPTraining(eps=0.2, regularization=0.0), 0.25)(model, IMAGES, LABELS)[0]
    assert (weighted - plain).item() == pytest.approx(0.8 * 0.5 * (tightness + balance), rel=1e-3)


def test_the_regularisers_are_finite_without_a_width_and_with_dead_relus() -> None:
    model = plain_network()
    with torch.no_grad():
        model.network[0].bias.fill_(-100.0)  # type: ignore[index]
    for done in (0.0, 0.2):
        loss, _ = at(IBPTraining(), done)(model, IMAGES, LABELS)
        assert torch.isfinite(loss)
        assert all(each.isfinite().all() for each in gradients(loss, model).values())


def test_initialisation_keeps_the_width_of_intervals() -> None:
    """Section 4.1 of Shi et al. 2021: in the mean, a wide layer and its ReLU leave the width as it is."""

    def growth(prepare: Callable[[nn.Module], None]) -> float:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), *[layer for _ in range(5) for layer in (nn.Linear(64, 64), nn.ReLU())])
        network.append(nn.Linear(64, 3))
        prepare(network)
        model = Classifier(network, input_shape=TINY_SHAPE, classes=3)
        graph = take_apart(model, IMAGES).graph
        intervals = bound_layers(graph, region_around(0 * IMAGES + 0.5, Ball(eps=1e-4), (0, 1))).intervals
        return (intervals[-2].radius.mean() / intervals[0].radius.mean()).item()

    assert 0.3 < growth(initialize_for_bounds) < 3
    assert growth(lambda _: None) > 30


def test_initialisation_draws_what_the_paper_states() -> None:
    model = create("paper-cnn", input_shape=(1, 28, 28), classes=TINY_CLASSES)
    torch.manual_seed(0)
    initialize_for_bounds(model)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            expected = math.sqrt(2 * math.pi) / layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert layer.bias is not None
            assert not layer.bias.any()
            assert layer.weight.requires_grad
    with pytest.raises(ModelError, match="without dense layers"):
        initialize_for_bounds(nn.Flatten())


# ---------------------------------------------------------------------------------------------- batch normalisation


def test_batch_norm_takes_the_statistics_of_the_clean_images() -> None:
    model, twin = normed_network(), normed_network()
    network = model.network
    assert isinstance(network, nn.Sequential)
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([1.0, -1.0, 0.5, -0.5]))  # type: ignore[union-attr]
    twin.load_state_dict(model.state_dict())
    loss, logits = IBPTraining(eps=0.05)(model, IMAGES, LABELS)

    statistics: dict[int, tuple[Tensor, Tensor]] = {}
    values = IMAGES
    clean = twin.network
    assert isinstance(clean, nn.Sequential)
    for number, layer in enumerate(clean):
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            rows = values.transpose(0, 1).flatten(1)
            statistics[number] = rows.mean(1), rows.var(1, correction=0)
        values = layer(values)
    lower, upper = plain_bounds(clean, (IMAGES - 0.05).clamp(min=0), (IMAGES + 0.05).clamp(max=1), statistics)
    expected = F.cross_entropy(plain_worst(clean[-1], lower, upper, LABELS), LABELS)
    assert torch.allclose(loss, expected, rtol=1e-4)
    assert torch.allclose(logits, values, atol=1e-5)
    for (name, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(buffer.float(), other.float(), rtol=1e-5), name  # updated once
    gradient, plain = gradients(loss, model), gradients(expected, twin)
    for name in gradient:
        assert torch.allclose(gradient[name], plain[name], rtol=1e-2, atol=1e-4), name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet-14", "strided-cnn", "pixelwise-cnn", "paper-cnn", "paper-student"])
def test_bounds_contain_the_outputs_in_both_modes(name: str, training: bool) -> None:
    """In training mode with the statistics of the clean images and the same dropout: the operations' own outputs."""
    model = create(name, input_shape=TINY_SHAPE, classes=TINY_CLASSES).train(training)
    torch.manual_seed(0)
    with as_installed():  # residual blocks are annotated with tensors, and are traced with others
        apart = take_apart(model, IMAGES)
    region = region_around(IMAGES, Ball(eps=0.01), (0, 1))
    margins = interval_margins(apart.graph, bound_layers(apart.graph, region), LABELS)
    if not training:
        assert torch.allclose(apart.logits, model(IMAGES), atol=1e-5)
    for seed in range(10):
        delta = 0.01 * (2 * torch.randint(2, IMAGES.shape, generator=generator(seed)) - 1)
        logits = apart.graph.logits((IMAGES + delta).clamp(0, 1))
        own = logits.gather(1, LABELS.unsqueeze(1))
        others = logits.scatter(1, LABELS.unsqueeze(1), -math.inf).amax(1)
        assert (margins.amin(1) <= own[:, 0] - others).all()


def test_dropout_is_the_same_for_images_and_bounds() -> None:
    model = tiny_model().train()
    torch.manual_seed(5)
    apart = take_apart(model, IMAGES)
    torch.manual_seed(5)
    assert torch.allclose(apart.logits, model(IMAGES), atol=1e-5)
    point = bound_layers(apart.graph, region_around(IMAGES, Ball(eps=0), (0, 1))).intervals[-1]
    assert torch.allclose(point.centre, apart.logits, atol=1e-5)


def test_the_layers_that_training_puts_in_count_too() -> None:
    model = create("paper-cnn", input_shape=TINY_SHAPE, classes=TINY_CLASSES)
    with frozen(model):
        model.examine(IMAGES)
        expected = interval_margins(
            take_apart(model, IMAGES).graph,
            bound_layers(take_apart(model, IMAGES).graph, region_around(IMAGES, Ball(eps=0.01), (0, 1))),
            LABELS,
        )
    with optimized_training(model, IMAGES):
        assert {type(each).__name__ for each in model.modules()} >= {"HashDropout", "ReLUMaxPool2d"}
        with frozen(model):
            graph = take_apart(model, IMAGES).graph
            bounds = bound_layers(graph, region_around(IMAGES, Ball(eps=0.01), (0, 1)))
            assert torch.allclose(interval_margins(graph, bounds, LABELS), expected, rtol=1e-4)
        loss, _ = IBPTraining(eps=0.01)(model.train(), IMAGES, LABELS)
        assert all(each.isfinite().all() for each in gradients(loss, model).values())


# ------------------------------------------------------------------------------------------------ what training buys

SETTINGS = TrainConfig(epochs=8, batch_size=30, learning_rate=0.01, seed=3)


@pytest.mark.parametrize("objective", ALL)
def test_a_short_training_certifies_more_than_ordinary_training(objective: AbstractCertifiedTraining) -> None:
    images, labels = VALIDATION.tensors()
    certified = {}
    for name, each in (("plain", CrossEntropy()), ("certified", type(objective)(**vars(objective) | {"eps": 0.08}))):
        model = normed_network()
        done = fit(model, TRAIN, VALIDATION, SETTINGS, objective=each)
        found = certify(done.model, images, labels, eps=0.08, method="crown-ibp")
        certified[name] = found.certified_accuracy.value
        fooled = PGD(eps=0.08, steps=10)(done.model, images, labels).success
        assert not (fooled & found.certified).any()
        assert found.clean_accuracy.value > 0.9
    assert certified["certified"] > certified["plain"] + 0.3


def test_a_training_is_a_function_of_its_seed() -> None:
    objective = SABRTraining(eps=0.05, steps=1)
    short = TrainConfig(epochs=1, batch_size=60, seed=1)
    one, two = (snapshot(fit(tiny_model(), TRAIN, VALIDATION, short, objective=objective).model) for _ in range(2))
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (IBPTraining, {"eps": -1}, "eps"),
        (IBPTraining, {"ramp_start": 0.6, "ramp_end": 0.5}, "expected an end at or after the start"),
        (IBPTraining, {"ramp_end": 1.5}, "ramp_end = 1.5"),
        (IBPTraining, {"kappa_end": 2}, "kappa_end = 2"),
        (IBPTraining, {"regularization": -1}, "regularization = -1"),
        (IBPTraining, {"train_eps_factor": 0}, "train_eps_factor = 0"),
        (CROWNIBPTraining, {"beta_end": -0.1}, "beta_end"),
        (SABRTraining, {"tau": 0}, "tau = 0"),
        (SABRTraining, {"steps": 0}, "steps = 0"),
        (MTLIBPTraining, {"alpha": 1.1}, "alpha = 1.1"),
        (MTLIBPTraining, {"step_size": "much"}, "step_size"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(kind: type[Any], settings: dict[str, Any], message: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=message):
        kind(**settings)


def test_a_network_without_bounds_is_refused_with_its_layer() -> None:
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(64, 3)), input_shape=TINY_SHAPE, classes=3)
    with pytest.raises(ModelError, match=r"network\.1 \(Tanh\)"):
        IBPTraining()(model, IMAGES, LABELS)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:5], r"labels of type torch.int64 and shape \(5,\) for 20 images; expected one int64"),
        (torch.full((20,), 5), "labels from 5 to 5; with 3 classes they run from 0 to 2"),
        (LABELS - 3, "they run from 0 to 2"),
        (LABELS.float(), "labels of type torch.float32"),
    ],
    ids=["too few", "too large", "negative", "fractions"],
)
def test_labels_that_do_not_fit_are_refused(objective: AbstractCertifiedTraining, labels: Tensor, message: str) -> None:
    with as_installed(), pytest.raises(ShapeError, match=message):
        objective(plain_network(), IMAGES, labels)


def test_a_step_is_a_share_of_the_training() -> None:
    for done in (-1.0, math.nan, 1.5):
        with pytest.raises(SettingError, match="done = "):
            TrainingStep(done=done, index=torch.arange(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("objective", ALL, ids=lambda each: type(each).__name__)
def test_batch_normalisation_of_another_type_than_the_images_trains(
    objective: AbstractCertifiedTraining, dtype: torch.dtype
) -> None:
    model = tiny_model()
    model.network.to(dtype)
    found = fit(model, TRAIN[:40], VALIDATION[:20], TrainConfig(epochs=1), objective=objective)
    assert math.isfinite(found.history[0]["loss"])
    layer = next(each for each in model.modules() if isinstance(each, nn.BatchNorm2d))
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == dtype
    assert layer.running_mean.abs().max() > 0
