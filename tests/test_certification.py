"""Certificates: against closed forms, the exact optimum by integer programming, random points and attacks."""

import gc
import math
import random
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds as Limits
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from casemate.attacks import PGD
from casemate.certification import (
    Method,
    bound_layers,
    certify,
    interval_margins,
    linear_margins,
    region_around,
    take_apart,
    worst_logits,
)
from casemate.certification.operations import AbstractNonlinearOperation, Interval, MaximumPooling, Rectifier
from casemate.certification.tracing import _traces, calls_of
from casemate.data import LabelledImages
from casemate.errors import DataError, ModelError, SettingError, ShapeError
from casemate.models import Classifier, create
from casemate.models.layers import NoiseLayer
from casemate.norms import Ball, Norm
from casemate.training.state import snapshot
from conftest import Listener
from oracles import as_installed, classifier, distance, generator, linear_problem, room, steepest_descent

SHAPE = (2, 6, 6)
FLOAT32 = torch.finfo(torch.float32).eps


class Odd(nn.Module):
    """Residual, concatenated, with functions, sizes, buffers and constants."""

    middle: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, 3, padding="same", groups=2)
        self.past = nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4 + 36, 3)
        self.register_buffer("middle", torch.tensor([0.4, 0.6]).view(1, 2, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        scaled = (images - self.middle) / 0.5
        inside = F.relu(self.norm(self.one(scaled)))
        inside = F.leaky_relu(self.two(inside) + self.past(scaled), 0.1)
        inside = 1 - inside * 2
        pooled = F.max_pool2d(inside, 3, stride=2, padding=1)
        flat = pooled.view(pooled.size(0), -1)
        return self.head(torch.cat([inside.mean((2, 3)), flat], dim=1)) + 0.1


class Preact(nn.Module):
    """A block that adds what it began with."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.add(images, self.inside(images)).contiguous())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 3)),
    "strides": lambda: nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 5, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10, 3),
    ),
    "even same": lambda: nn.Sequential(
        nn.Conv2d(2, 3, (4, 2), padding="same"),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, padding=1),
        nn.Flatten(),
        nn.Linear(27, 3),
    ),
    "pooled": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
    "odd": Odd,
    "preact": Preact,
    "one logit": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 1)),
}


def model_of(kind: str, seed: int = 0, **options: Any) -> Classifier:
    """A classifier of two-channel images, whose batch norms have statistics of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[kind]()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_(std=0.3)
                layer.running_var.uniform_(0.5, 2)
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
    classes = 2 if kind == "one logit" else 3
    return Classifier(network, input_shape=SHAPE, classes=classes, **options).eval()


def some_images(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Images, many of whose pixels are near the bounds."""
    return (1.4 * torch.rand(count, *shape, generator=generator(seed)) - 0.2).clamp(0, 1)


def points(image: Tensor, ball: Ball, count: int, seed: int = 0) -> Tensor:
    """Random points of a ball within [0, 1], half of them on its edge."""
    random = generator(seed)
    delta = torch.randn(count, *image.shape, generator=random)
    if ball.norm == "linf":
        delta = delta.clamp(-1, 1)
        delta[::2] = delta[::2].sign()
        delta = delta * ball.eps
    else:
        if ball.norm == "l1":
            delta = delta * (torch.rand(delta.shape, generator=random) < 0.1)
        length = delta.flatten(1).norm(p=int(ball.norm[1]), dim=1).clamp(min=1e-9).view(-1, 1, 1, 1)
        share = torch.rand(count, generator=random).view(-1, 1, 1, 1)
        share[::2] = 1
        delta = ball.eps * share * delta / length
    return (image + delta).clamp(0, 1)


# -------------------------------------------------------------------------------------------- bounds contain outputs


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_no_point_of_the_ball_has_a_smaller_margin(kind: str, norm: Norm) -> None:
    """10,000 points evaluated in float32."""
    model = model_of(kind, mean=(0.3, 0.5), std=(0.2, 0.7)) if kind != "odd" else model_of(kind)
    images = some_images(2)
    ball = Ball(eps={"linf": 0.03, "l2": 0.2, "l1": 0.7}[norm], norm=norm)
    labels = model(images).argmax(1)
    found = {
        method: certify(model, images, labels, eps=ball.eps, norm=norm, method=method).margin
        for method in ("interval", "crown-ibp", "crown")
    }
    assert (found["crown-ibp"] >= found["interval"]).all()
    assert (found["crown"] >= found["interval"]).all()
    for number, image in enumerate(images):
        with torch.no_grad():
            logits = model(points(image, ball, 5000, number))
        own = logits[:, labels[number]].clone()
        logits[:, labels[number]] = -math.inf
        worst = (own - logits.amax(1)).min()
        for margin in found.values():
            assert margin[number] <= worst


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_contains_its_values(kind: str) -> None:
    model, images = model_of(kind), some_images(2)
    ball = Ball(eps=0.05)
    graph = take_apart(model, images, dtype=torch.float64).graph
    for tighten in (False, True):
        whole = Ball(eps=ball.reach((0, 1)))
        bounds = bound_layers(graph, region_around(images.double(), whole, (0, 1)), unit=FLOAT32, tighten=tighten)
        for number, image in enumerate(images):
            values = [points(image, ball, 1000).double()]
            for node in graph.nodes:
                values.append(node.operation.value(*(values[place] for place in node.inputs)))
            for value, interval in zip(values, bounds.intervals, strict=True):
                assert (value >= interval.lower[number] - 1e-12).all()
                assert (value <= interval.upper[number] + 1e-12).all()


def test_the_registered_networks_can_be_taken_apart() -> None:
    images = some_images(2, shape=(1, 8, 8))
    for name in (
        "paper-cnn",
        "paper-cnn-noise",
        "paper-student",
        "student-8x3",
        "resnet-14",
        "strided-cnn",
        "pixelwise-cnn",
    ):
        model = create(name, input_shape=(1, 8, 8), classes=("a", "b", "c")).eval()
        labels = model(images).argmax(1)
        with as_installed():  # residual blocks are annotated with tensors, and are traced with others
            assert certify(model, images, labels, eps=0.001, method="interval").clean.all()
            assert torch.allclose(take_apart(model, images).logits, model(images), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("method", ["interval", "crown"])
def test_one_linear_layer_is_bounded_exactly(norm: Norm, method: str) -> None:
    low, high = (0.0, 1.0) if norm == "linf" else (0.4, 0.6)
    problem = linear_problem(3, low=low, high=high)
    eps = {"linf": 0.02, "l2": 0.1, "l1": 0.3}[norm]
    reached = Ball(eps=eps, norm=norm).reach((0, 1))
    rooms = room(problem.images.flatten(1).double(), problem.slope)
    best = problem.margin(problem.images).detach() - steepest_descent(problem.slope, rooms, norm, reached)
    found = certify(problem.model, problem.images, problem.labels, eps=eps, norm=norm, method=method)  # pyright: ignore[reportArgumentType]
    assert (found.margin <= best).all()
    assert torch.allclose(found.margin, best, atol=1e-3)  # the rounding of float32 is taken off
    assert torch.equal(found.certified, found.margin > 0)
    assert 0 < found.certified.sum() < len(best)
    exact = region_around(problem.images.double(), Ball(eps=reached, norm=norm), (0, 1))
    graph = take_apart(problem.model, problem.images, dtype=torch.float64).graph
    bounds = bound_layers(graph, exact)
    for margins in (interval_margins(graph, bounds, problem.labels), linear_margins(graph, bounds, problem.labels)):
        assert torch.allclose(margins[:, 0], best, atol=1e-9)


def smallest_margin(layers: list[nn.Linear], box: tuple[np.ndarray, np.ndarray], label: int, other: int) -> float:
    """The exact minimum over a box of the difference of two logits of a ReLU network: a mixed integer program.

    Variables: the inputs, then of each hidden layer the values before and after the ReLU, and a sign for each.
    """
    sizes = [len(box[0])]
    for layer in layers[:-1]:
        sizes += [layer.out_features] * 3
    starts = np.concatenate([[0], np.cumsum(sizes)])
    count = int(starts[-1])
    low, high = np.full(count, -np.inf), np.full(count, np.inf)
    low[: sizes[0]], high[: sizes[0]] = box
    rows: list[np.ndarray] = []
    lower: list[float] = []
    upper: list[float] = []

    def row(entries: dict[int, float], at_least: float, at_most: float) -> None:
        line = np.zeros(count)
        for place, value in entries.items():
            line[place] += value
        rows.append(line)
        lower.append(at_least)
        upper.append(at_most)

    before = range(sizes[0])
    reach = 50.0
    integral = np.zeros(count)
    for number, layer in enumerate(layers[:-1]):
        weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        z, a, s = (int(starts[1 + 3 * number + k]) for k in range(3))
        for unit in range(layer.out_features):
            entries = {place: -weight[unit, k] for k, place in enumerate(before)} | {z + unit: 1.0}
            row(entries, bias[unit], bias[unit])
            low[a + unit], low[s + unit], high[s + unit], integral[s + unit] = 0, 0, 1, 1
            row({a + unit: 1.0, z + unit: -1.0}, 0, np.inf)
            row({a + unit: 1.0, z + unit: -1.0, s + unit: reach}, -np.inf, reach)
            row({a + unit: 1.0, s + unit: -reach}, -np.inf, 0)
        before = range(a, a + layer.out_features)
    last = layers[-1]
    difference = (last.weight[label] - last.weight[other]).detach().double().numpy()
    cost = np.zeros(count)
    cost[list(before)] = difference
    found = milp(
        cost,
        constraints=LinearConstraint(np.array(rows), np.array(lower), np.array(upper)),  # pyright: ignore[reportArgumentType]
        bounds=Limits(low, high),  # pyright: ignore[reportArgumentType]
        integrality=integral,
        options={"mip_rel_gap": 1e-9},
    )
    assert found.success
    return float(found.fun + (last.bias[label] - last.bias[other]).item())


@pytest.mark.parametrize("seed", range(4))
def test_bounds_contain_the_exact_optimum_of_a_small_network(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)]
    stack = [nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]]
    model = classifier(nn.Sequential(*stack), classes=3, shape=(1, 2, 3))
    images = some_images(3, seed, (1, 2, 3))
    labels = model(images).argmax(1)
    loose, tight = [], []
    graph = take_apart(model, images, dtype=torch.float64).graph
    region = region_around(images.double(), Ball(eps=0.15), (0, 1))
    interval = interval_margins(graph, bound_layers(graph, region), labels)
    crown = linear_margins(graph, bound_layers(graph, region, tighten=True), labels)
    for number, image in enumerate(images.double().flatten(1).numpy()):
        others = [each for each in range(3) if each != labels[number]]
        box = np.clip(image - 0.15, 0, 1), np.clip(image + 0.15, 0, 1)
        for place, other in enumerate(others):
            exact = smallest_margin(layers, box, int(labels[number]), other)
            assert crown[number, place] <= exact + 1e-6
            assert interval[number, place] <= exact + 1e-6
            loose.append(exact - interval[number, place].item())
            tight.append(exact - crown[number, place].item())
    assert np.mean(tight) < 0.5 * np.mean(loose)


def test_crown_of_two_layers_by_hand() -> None:
    """X in [-1, 1] by pixels in [0, 1]; y = relu(x + 0.5) - relu(-x + 0.5), against 0."""
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        first.bias.fill_(0.5)
        last.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        last.bias.zero_()
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
    model = Classifier(network, input_shape=(1, 1, 1), classes=2, mean=0.5, std=0.5).eval()
    images = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    graph = take_apart(model, images, dtype=torch.float64).graph
    region = region_around(images, Ball(eps=0.5), (0, 1))
    bounds = bound_layers(graph, region)
    label = torch.zeros(1, dtype=torch.int64)
    # both inputs lie in [-0.5, 1.5]; intervals: 0 - 1.5
    assert interval_margins(graph, bounds, label).item() == pytest.approx(-1.5)
    # below: relu(z) >= z, as 1.5 > 0.5; above: relu(z) <= 0.75 z + 0.375. So y >= x + 0.5 - 0.75 (0.5 - x) - 0.375
    assert linear_margins(graph, bounds, label).item() == pytest.approx(-1 * 1.75 + 0.5 - 0.75 * 0.5 - 0.375)


def test_crown_is_mostly_tighter_than_intervals() -> None:
    better = []
    for seed in range(10):
        model, images = model_of("dense", seed), some_images(4, seed)
        labels = model(images).argmax(1)
        graph = take_apart(model, images).graph
        region = region_around(images, Ball(eps=0.02), (0, 1))
        loose = interval_margins(graph, bound_layers(graph, region), labels)
        better.append(linear_margins(graph, bound_layers(graph, region, tighten=True), labels) >= loose)
    assert torch.cat(better).float().mean() > 0.95


@pytest.mark.parametrize(
    "operation",
    [
        Rectifier(),
        Rectifier(0.3),
        MaximumPooling((2, 2), (2, 2), (0, 0), (1, 1)),
        MaximumPooling((2, 3), (2, 1), (1, 1), (1, 1)),
        MaximumPooling((2, 2), (1, 1), (0, 0), (2, 1)),
    ],
)
def test_relaxations_lie_on_their_side(operation: AbstractNonlinearOperation) -> None:
    """Below and above each single number of the output, at random points and corners of random boxes."""
    random = generator(2)
    lower = torch.randn(1, 2, 6, 6, generator=random, dtype=torch.float64)
    upper = lower + 0.6 * torch.rand(lower.shape, generator=random) * torch.randint(2, lower.shape, generator=random)
    size = operation.value(lower)[0].numel()
    rows = torch.cat([torch.eye(size), -torch.eye(size)]).double().view(2 * size, *operation.value(lower).shape[1:])
    (before,), constant = operation.before(rows, torch.zeros(2 * size, dtype=torch.int64), [Interval(lower, upper)])
    slack = []
    for _ in range(300):
        share = (1.4 * torch.rand(lower.shape, generator=random, dtype=torch.float64) - 0.2).clamp(0, 1)
        inside = lower + (upper - lower) * share
        below = before.flatten(1) @ inside.flatten() + constant
        slack.append(rows.flatten(1) @ operation.value(inside).flatten() - below)
    assert torch.stack(slack).min() > -1e-12
    # the numbers that are decided are bounded without slack
    assert (torch.stack(slack).amax(0) < 1e-12).float().mean() > 0.3


def test_worst_logits_put_the_margins_where_their_classes_are() -> None:
    labels = torch.tensor([0, 1, 2])
    margins = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expected = torch.tensor([[0.0, -1.0, -2.0], [-3.0, 0.0, -4.0], [-5.0, -6.0, 0.0]])
    assert torch.equal(worst_logits(margins, labels), expected)


# ---------------------------------------------------------------------------------------------------------- rounding


@pytest.mark.filterwarnings("ignore:the network returns other logits")
def test_the_certificate_covers_the_rounding_of_float32() -> None:
    """Large numbers that cancel: the exact network's margin is positive, float32's may not be."""
    layer = nn.Linear(36, 2)
    with torch.no_grad():
        layer.weight.copy_(1e4 * torch.randn(2, 36, generator=generator(0)))
        layer.bias.copy_(-layer.weight.double().sum(1).mul(0.5).float())
    model = classifier(nn.Sequential(nn.Flatten(), layer))
    images = 0.5 + 1e-6 * torch.randn(200, 1, 6, 6, generator=generator(1))
    exact = F.linear(images.flatten(1).double(), layer.weight.double(), layer.bias.double())
    labels = exact.argmax(1)
    rounded = model(images)
    errors = (rounded.double() - exact).abs().amax()
    assert errors > 1e-4
    graph = take_apart(model, images, dtype=torch.float64).graph
    bounds = bound_layers(graph, region_around(images.double(), Ball(eps=0), (0, 1)), unit=FLOAT32)
    assert ((rounded >= bounds.intervals[-1].lower) & (rounded <= bounds.intervals[-1].upper)).all()
    found = certify(model, images, labels, eps=0)
    assert not (found.certified & (rounded.argmax(1) != labels)).any()


def test_float32_stays_within_the_bounds_of_a_point() -> None:
    """At eps = 0 the bounds are the exact network, give or take the rounding: float32 must lie within."""
    for kind in NETWORKS:
        model, images = model_of(kind), some_images(50)
        graph = take_apart(model, images, dtype=torch.float64).graph
        region = region_around(images.double(), Ball(eps=0), (0, 1))
        last = bound_layers(graph, region, unit=FLOAT32).intervals[-1]
        logits = model(images).double()
        assert ((logits >= last.lower) & (logits <= last.upper)).all(), kind
        assert (last.radius < 1e-3).all()


# -------------------------------------------------------------------------------------- certificates and attacks


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_attacks_never_fool_what_is_certified(norm: Norm) -> None:
    model, images = model_of("pooled", 1, mean=0.5, std=0.3), some_images(24, 4)
    labels = model(images).argmax(1)
    small, large = {"linf": (0.005, 0.02), "l2": (0.02, 0.1), "l1": (0.05, 0.3)}[norm]

    def compared(eps: float) -> tuple[Tensor, Tensor]:
        proven = certify(model, images, labels, eps=eps, norm=norm).certified
        fooled = PGD(eps=eps, norm=norm, steps=20, random_start=True)(model, images, labels).success
        assert not (proven & fooled).any()
        return proven, fooled

    assert compared(small)[0].any()
    proven, fooled = compared(large)
    assert not proven.all()
    assert fooled.any()


def test_only_images_inside_the_bounds_count() -> None:
    """A black image cannot be darkened: half of the box is empty."""
    problem = linear_problem(5)
    black = torch.zeros_like(problem.images)
    labels = problem.model(black).argmax(1)
    found = certify(problem.model, black, labels, eps=0.1, method="interval").margin
    weight = problem.model.network[1].weight.detach().double()  # type: ignore[index]
    slope = weight[labels] - weight[1 - labels]
    logits = problem.model(black).double()
    own = logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, 1 - labels.unsqueeze(1))
    assert torch.allclose(found, own[:, 0] + 0.1 * slope.clamp(max=0).sum(1), atol=1e-3)


# --------------------------------------------------------------------------------------------- what it leaves behind


@pytest.mark.parametrize("training", [False, True])
def test_the_model_stays_as_it_is(training: bool) -> None:
    model = model_of("odd").train(training)
    model.network.get_submodule("norm").eval()
    images, labels = some_images(4), torch.zeros(4, dtype=torch.int64)
    before = snapshot(model)
    modes = [each.training for each in model.modules()]
    attributes = [list(vars(each)) for each in model.modules()]
    state = torch.get_rng_state()
    found = certify(model, images, labels, eps=0.01)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [each.training for each in model.modules()]
    assert attributes == [list(vars(each)) for each in model.modules()]
    for name, tensor in snapshot(model).items():
        assert torch.equal(tensor, before[name]), name
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    assert torch.equal(found.margin, certify(model.eval(), images, labels, eps=0.01).margin)


def test_a_model_that_is_gone_leaves_no_trace() -> None:
    model, images = model_of("dense"), some_images(2)
    take_apart(model, images)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_model_is_traced_once_until_its_layers_change() -> None:
    model, images = model_of("pooled"), some_images(2)
    checked: list[Any] = []
    first = calls_of(model, checked.append)
    assert calls_of(model, checked.append) is first
    model.train()
    assert calls_of(model, checked.append) is not first
    model.eval()
    assert calls_of(model, checked.append) is first
    model.network[2] = nn.LeakyReLU(0.1)  # type: ignore[index]
    assert calls_of(model, checked.append) is not first
    assert len(checked) == 4  # three traces; the first one, in use for the second time, once more
    assert torch.allclose(take_apart(model, images).logits, model(images), atol=1e-6)


def test_batch_size_and_type_of_the_images_change_nothing() -> None:
    model, images = model_of("odd"), some_images(7)
    labels = model(images).argmax(1)
    whole = certify(model, images, labels, eps="1/255")
    for other in (
        certify(model, images, labels, eps=1 / 255, batch_size=3),
        certify(model, images.numpy(), labels.numpy(), eps=1 / 255),
        certify(model.network, images, labels.tolist(), eps=1 / 255),
        certify(model, LabelledImages(pixels=images, labels=labels), eps=1 / 255),
        certify(model, DataLoader(TensorDataset(images, labels), batch_size=3), eps=1 / 255),
    ):
        assert torch.allclose(whole.margin, other.margin, rtol=1e-9, atol=1e-12)
        assert other.certified.dtype == torch.bool
    assert whole.margin.dtype == torch.float64
    double = certify(Classifier(model.network.double(), input_shape=SHAPE), images.double(), labels, eps=1 / 255)
    assert torch.allclose(whole.margin, double.margin, atol=1e-4)


def test_progress_and_summary(listener: Listener) -> None:
    model, images = model_of("dense"), some_images(7)
    labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    found = certify(model, images, labels, eps="1/255", method="interval", batch_size=3, observer=listener)
    assert listener.titles == ["Certifying (interval)"]
    assert listener.done == listener.total == 7
    assert not found.clean[0]
    assert not found.certified[0]
    assert found.clean_accuracy.value == pytest.approx(6 / 7)
    assert found.certified_accuracy.value == pytest.approx(found.certified.float().mean().item())
    assert "1/255" in repr(found)
    assert len(found[found.clean].margin) == 6
    assert (found.method, found.norm, found.eps) == ("interval", "linf", 1 / 255)


# ------------------------------------------------------------------------------------------------------ what is refused


class Squares(nn.Module):
    """Squares the images."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * images).flatten(1)[:, :3]


class Branches(nn.Module):
    """Depends on the images in Python code."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


class Counts(nn.Module):
    """Other logits at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(72, 3)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.inside(images.flatten(1)) * self.calls


class Overwrites(nn.Module):
    """Uses what a ReLU has overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(72, 5), nn.Linear(5, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        inside = self.one(images.flatten(1))
        self.relu(inside)
        return self.two(inside)


class Mixes(nn.Module):
    """Could mix images."""

    def forward(self, images: Tensor) -> Tensor:
        return images.view(-1, 3, 2, 2).view(-1, 72)


def dense_after(*layers: nn.Module, features: int = 72) -> nn.Sequential:
    """Layers and a dense one."""
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "sigmoid inside": (dense_after(nn.Sigmoid()), r"network\.0 \(Sigmoid\)"),
    "gelu": (dense_after(nn.GELU()), r"network\.0 \(GELU\)"),
    "padding": (dense_after(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), "padding_mode='reflect'"),
    "slope": (dense_after(nn.LeakyReLU(1.5)), r"negative_slope = 1\.5; expected 0 to 1"),
    "ceil": (dense_after(nn.MaxPool2d(4, ceil_mode=True), features=8), "ceil_mode"),
    "adaptive": (dense_after(nn.AdaptiveAvgPool2d(4), features=32), "expected a size that divides"),
    "no statistics": (dense_after(nn.BatchNorm2d(2, track_running_stats=False)), "no running statistics"),
    "product": (Squares(), "the call of mul: of two tensors"),
    "branch": (Branches(), "cannot be traced"),
    "mixed": (Mixes(), "the call of view: to .* images must stay apart"),
    "overwritten": (Overwrites(), "relu .*inplace=False"),
    "hook": (dense_after(nn.ReLU()), "it has hooks"),
}
REFUSED["hook"][0][0].register_forward_hook(lambda *_: None)  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:the network returns other logits")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bounds_is_named_with_what_has(name: str) -> None:
    network, message = REFUSED[name]
    model = Classifier(network, input_shape=SHAPE)
    with pytest.raises(ModelError, match=message) as caught:
        certify(model, some_images(2), [0, 1], eps=0.1)
    assert "They can be computed for Linear, Conv2d" in str(caught.value)


@pytest.mark.filterwarnings("ignore:the network returns other logits")
def test_a_trace_that_is_not_the_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"other operations .* keeps something between calls"):
        certify(Classifier(Counts(), input_shape=SHAPE, classes=3), some_images(2), [0, 1], eps=0.1)


def test_noise_at_inference_is_refused() -> None:
    model = create("paper-cnn-noise", input_shape=(1, 8, 8), classes=("a", "b"))
    for layer in model.modules():
        if isinstance(layer, NoiseLayer):
            layer.at_inference = True
    with pytest.raises(ModelError, match="adds noise in evaluation mode"):
        take_apart(model.eval(), some_images(2, shape=(1, 8, 8)))


class Overwriting(nn.Module):
    """Writes into a tensor in one of several ways; `again` says whether it uses the same memory once more."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor], again: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(72, 5), nn.Linear(72, 5), nn.Linear(5, 3)
        self._write, self._again = write, again

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        inside = self.one(flat)
        kept = inside if self._again is None else self._again(inside)
        written = self._write(inside, self.two(flat))
        return self.head(written if self._again is None else written + kept)


def _added_to(inside: Tensor, other: Tensor) -> Tensor:
    inside += other
    return inside


def _scaled_in_place(inside: Tensor, other: Tensor) -> Tensor:
    del other
    inside *= 2
    return inside


WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+=": _added_to,
    "*=": _scaled_in_place,
    "add_": lambda inside, other: inside.add_(other),
    "behind torch.reshape": lambda inside, other: torch.reshape(inside, (-1, 5)).add_(other),
    "behind dropout": lambda inside, other: F.dropout(inside, 0.5, False).add_(other),
    "relu by keyword": lambda inside, other: F.relu(input=inside, inplace=True).add(other),
    "relu by place": lambda inside, other: F.relu(inside, True).add(other),
}
SHARED: dict[str, Callable[[Tensor], Tensor]] = {
    "another name": lambda inside: inside,
    "view": lambda inside: inside.view(-1, 5),
    "dropout": lambda inside: F.dropout(inside, 0.5, False),
}


@pytest.mark.parametrize("share", SHARED)
@pytest.mark.parametrize("write", WRITES)
def test_writing_into_memory_that_is_used_again_is_refused(write: str, share: str) -> None:
    torch.manual_seed(0)
    model = Classifier(Overwriting(WRITES[write], SHARED[share]), input_shape=SHAPE, classes=3).eval()
    with pytest.raises(ModelError, match="inplace=False"):
        certify(model, some_images(2), [0, 1], eps=0.01)


@pytest.mark.parametrize("write", [each for each in WRITES if not each.startswith("relu by keyword")])
def test_writing_into_memory_that_nothing_else_uses_is_taken_as_it_is(write: str) -> None:
    torch.manual_seed(0)
    model = Classifier(Overwriting(WRITES[write], None), input_shape=SHAPE, classes=3).eval()
    images = some_images(5)
    assert torch.allclose(take_apart(model, images).logits, model(images), atol=1e-6)


class Drops(nn.Module):
    """Draws in evaluation mode too, as Monte Carlo dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.dropout(images.flatten(1), 0.01))


class AlwaysTraining(nn.Sequential):
    """Layers whose mode cannot be changed."""

    def train(self, mode: bool = True) -> "AlwaysTraining":
        del mode
        return super().train(True)


@pytest.mark.filterwarnings("ignore:the network returns other logits")
@pytest.mark.parametrize(
    "network",
    [
        Drops(),
        dense_after(AlwaysTraining(nn.Dropout(0.01))),
        dense_after(AlwaysTraining(nn.BatchNorm2d(2))),
        dense_after(AlwaysTraining(NoiseLayer(0.001))),
    ],
    ids=["function", "dropout", "batch norm", "noise"],
)
def test_what_draws_in_evaluation_mode_is_refused(network: nn.Module) -> None:
    with pytest.raises(ModelError, match="although the model is in evaluation mode"):
        certify(Classifier(network, input_shape=SHAPE, classes=3), some_images(4), [0, 1, 2, 0], eps=0.01)


class Scaled(nn.Module):
    """Has a number that its code computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, 3)
        self.settings = {"sign": 1}
        self._factor = 1.0

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)) * self._factor * self.settings["sign"]


def test_numbers_of_the_code_count_as_they_are_now() -> None:
    network = Scaled()
    model, images = Classifier(network, input_shape=SHAPE, classes=3).eval(), some_images(4)
    labels = model(images).argmax(1)
    assert certify(model, images, labels, eps=0).certified.all()
    network._factor = -1.0
    assert torch.allclose(take_apart(model, images).logits, model(images), atol=1e-6)
    assert not certify(model, images, labels, eps=0).certified.any()
    network.settings["sign"] = -1
    assert torch.allclose(take_apart(model, images).logits, model(images), atol=1e-6)
    assert certify(model, images, labels, eps=0).certified.all()


class Late(nn.Module):
    """Scales its logits by a number that no trace and no attribute shows."""

    def __init__(self, factor: Callable[[], float]) -> None:
        super().__init__()
        self.head, self.factor = nn.Linear(72, 3), factor

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)) * self.factor()


def test_a_trace_that_stops_being_the_model_is_noticed() -> None:
    numbers = {"factor": 1.0}
    model = Classifier(Late(lambda: numbers["factor"]), input_shape=SHAPE, classes=3).eval()

    def use(times: int) -> None:
        for _ in range(times):
            take_apart(model, some_images(4))

    use(70)
    numbers["factor"] = 2.0
    with pytest.raises(ModelError, match="executes other operations"):
        use(64)  # one of them compares the trace again


def test_a_hook_on_a_layer_that_is_added_later_is_refused() -> None:
    model, images = model_of("dense"), some_images(4)
    for _ in range(4):
        take_apart(model, images)
    layer = next(each for each in model.modules() if isinstance(each, nn.Linear))
    layer.register_forward_hook(lambda module, given, output: output + 1)  # pyright: ignore
    with pytest.raises(ModelError, match="it has hooks, or a forward of its own"):
        take_apart(model, images)


def test_a_trace_whose_comparison_failed_otherwise_is_not_kept() -> None:
    model = model_of("dense")

    def out_of_memory(graph: Any) -> None:
        raise MemoryError

    for _ in range(3):
        with pytest.raises(MemoryError):
            calls_of(model, out_of_memory)


def test_a_model_that_counts_its_calls_keeps_few_traces() -> None:
    network = Scaled()
    model, images = Classifier(network, input_shape=SHAPE, classes=3).eval(), some_images(2)
    for call in range(30):
        network._factor = float(call + 1)
        take_apart(model, images)
    assert len(_traces[model]) <= 8


def test_an_image_whose_logits_overflow_is_not_certified_and_the_others_are() -> None:
    first, last = nn.Linear(72, 73), nn.Linear(73, 3)
    with torch.no_grad():
        first.weight[72], first.bias[72] = 4 * F.one_hot(torch.tensor(0), 72), -2  # positive for one image only
        last.weight[:, 72] = torch.tensor([3e38, 2e38, 1e38])
    model = Classifier(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last), input_shape=SHAPE, classes=3).eval()
    images = some_images(4)
    images[:, 0, 0, 0] = torch.tensor([0.0, 1, 0, 0])
    right = model(images).argmax(1)
    found = certify(model, images, right, eps=0)
    assert not model(images)[1].isfinite().all()
    assert found.certified.tolist() == [True, False, True, True]
    assert not certify(model, images, right, eps=0.9).certified.any()


class Shifted(nn.Module):
    """Scales and shifts in front of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(72, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head((images * 1000.3 - 900.27).flatten(1))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_rounding_of_scalings_before_the_first_layer_counts(norm: Norm) -> None:
    """What is left of `1000.3 x - 900.27` near x = 0.9 is mostly rounding."""
    model = Classifier(Shifted(), input_shape=SHAPE, classes=3).eval()
    images = 0.9 + 1e-6 * torch.randn(50, *SHAPE, generator=generator(3))
    logits = model(images).double()
    graph = take_apart(model, images, dtype=torch.float64).graph
    last = bound_layers(graph, region_around(images.double(), Ball(eps=0, norm=norm), (0, 1)), unit=FLOAT32).intervals[
        -1
    ]
    exact = graph.logits(images.double())
    assert (logits - exact).abs().max() > 1e-6
    assert ((logits >= last.lower) & (logits <= last.upper)).all()


def test_a_leaky_relu_rounds_its_slope_and_its_product() -> None:
    unit, slope = FLOAT32 / 2, 0.3
    values = -torch.rand(100_000, 1, generator=generator(0))
    errors = (F.leaky_relu(values, slope).double() - values.double() * slope).abs()
    allowed = Rectifier(slope).rounding(unit, Interval(values.double(), values.double()))
    assert allowed is not None
    assert (errors <= allowed).all()
    assert (errors > unit * slope * values.double().abs()).any()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"eps": -0.1}, SettingError, "eps"),
        ({"norm": "l0"}, SettingError, "there are no certificates in l0"),
        ({"norm": "l3"}, SettingError, "linf, l2, l1"),
        ({"method": "magic"}, SettingError, "interval, crown-ibp or crown"),
        ({"batch_size": 0}, SettingError, "batch_size = 0"),
        ({"images": 2 * some_images(3)}, ShapeError, "but the model's bounds are"),
        ({"images": some_images(3) * math.nan}, ShapeError, "pixels that are not finite numbers"),
        ({"images": some_images(3)[:, :1]}, ShapeError, r"expected \(n, 2, 6, 6\)"),
        ({"images": some_images(0), "labels": torch.arange(0)}, ShapeError, "no images to certify"),
        ({"images": some_images(3).long()}, DataError, "expected uint8 or floating point"),
        ({"labels": [0, 1]}, DataError, "3 images, but labels of shape"),
        ({"labels": [0, 1, 3]}, ShapeError, "with 3 classes they run from 0 to 2"),
        ({"labels": [0.5, 1, 2]}, DataError, "labels"),
        ({"labels": None}, DataError, "images without labels"),
        ({"model": model_of("dense").half()}, ModelError, "expected float32 or float64"),
        ({"model": "dense"}, ModelError, "torch.nn.Module"),
    ],
)
def test_bad_input_is_refused_in_words(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"model": model_of("dense"), "images": some_images(3), "labels": [0, 1, 2], "eps": 0.1} | options
    with as_installed(), pytest.raises(kind, match=message):
        certify(**given)


# ------------------------------------------------------------------------------------------------- other kinds of model


def test_a_softmax_at_the_end_changes_no_certificate() -> None:
    model, images = model_of("dense"), some_images(5)
    labels = model(images).argmax(1)
    plain = certify(model, images, labels, eps=0.01).margin
    for ending in (nn.Softmax(dim=1), nn.LogSoftmax(dim=1)):
        ended = Classifier(nn.Sequential(model.network, ending), input_shape=SHAPE, classes=3)
        assert torch.allclose(certify(ended, images, labels, eps=0.01).margin, plain, atol=1e-4)


@pytest.mark.parametrize("ending", [nn.LogSoftmax(dim=1), nn.Softmax(dim=1)])
@pytest.mark.parametrize("method", ["interval", "crown-ibp", "crown"])
def test_the_rounding_of_an_ending_counts(method: Any, ending: nn.Module) -> None:
    """Two logits that differ by 1e-5 of a pixel are the same number after it, and the first class is the answer."""
    layer = nn.Linear(1, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [1e-5], [0.0]]))
        layer.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
    network = nn.Sequential(nn.Flatten(), layer, ending)
    assert int(network(torch.full((1, 1, 1, 1), 0.0011)).argmax()) == 0
    found = certify(network, torch.full((1, 1, 1, 1), 0.5), torch.tensor([1]), eps=0.499, method=method)
    assert not found.certified.any()


# ---------------------------------------------------------------------------------------- code that no trace shows


def turned(images: Tensor, logits: Tensor) -> Tensor:
    """The logits in another order where the first pixel is bright."""
    return torch.where(images.flatten(1)[:, :1] > 0.55, logits.flip(1), logits)


class OnTensors(nn.Module):
    """Does something else for tensors than for the stand-ins that a trace is made of."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.change = nn.Linear(4, 2), change

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(images.flatten(1))
        return self.change(images, logits) if isinstance(logits, Tensor) else logits


def turned_by_numpy(images: Tensor, logits: Tensor) -> Tensor:
    """The same, written by NumPy into the memory of the logits, which PyTorch does not see."""
    pixels, numbers = images.detach().numpy(), logits.detach().numpy()
    numbers[...] = np.where(pixels[:, 0, 0, :1] > 0.55, numbers[:, ::-1], numbers)
    return logits


def raised_by_numpy(images: Tensor, logits: Tensor) -> Tensor:
    """The first logit raised by 3, in the same way."""
    logits.detach().numpy()[:, 0] += 3
    return logits


class Autocast(nn.Module):
    """Computes in bfloat16, where the looser comparison of a training sees no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.two(F.relu(self.one(images.flatten(1))))


def with_a_hook() -> nn.Module:
    network = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    network.register_forward_hook(lambda module, given, output: turned(given[0], output))  # pyright: ignore
    return network


def with_a_forward_of_its_own() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    before = network[1].forward
    network[1].forward = lambda flat: turned(flat, before(flat))  # type: ignore[method-assign]
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_a_hook, "no bounds for the Classifier: it has hooks, or a forward of its own"),
        (with_a_forward_of_its_own, r"no bounds for the layer .*1 \(Linear\): it has hooks, or a forward of its own"),
        (lambda: OnTensors(turned), r"the first is aten\.\w+.*depends on the images in Python code"),
        (lambda: OnTensors(lambda images, logits: logits + 1e-4 * torch.rand_like(logits)), "forward is random"),
        (Autocast, r"the first is aten\._to_copy.*in lower precision, as autocast does"),
        (lambda: OnTensors(turned_by_numpy), "on some images of the balls: its forward is random, depends on the"),
    ],
    ids=["hook", "own forward", "isinstance", "random", "autocast", "NumPy"],
)
def test_what_the_trace_does_not_show_is_refused_although_it_is_the_same_at_the_images(
    make: Callable[[], nn.Module], message: str
) -> None:
    torch.manual_seed(0)
    network, images = make(), 0.5 * torch.rand(20, 1, 2, 2, generator=generator(1))
    labels = network(images).argmax(1)
    with pytest.raises(ModelError, match=message):
        certify(network, images, labels, eps=0.09, method="interval")


class Deep(nn.Module):
    """Many layers: the rounding that intervals allow for exceeds its logits by far."""

    def __init__(self, change: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        wide = [part for _ in range(7) for part in (nn.Linear(64, 64), nn.ReLU())]
        self.inner, self.change = (
            nn.Sequential(nn.Flatten(), nn.Linear(4, 64), nn.ReLU(), *wide, nn.Linear(64, 2)),
            change,
        )
        for each in self.inner:
            if isinstance(each, nn.Linear):
                nn.init.kaiming_normal_(each.weight)
                nn.init.zeros_(each.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.inner, images)


def in_bfloat16(inner: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return inner(images)


@pytest.mark.parametrize("method", ["interval", "crown-ibp", "crown"])
@pytest.mark.parametrize(
    "change",
    [
        in_bfloat16,
        lambda inner, images: inner(images + random.gauss(0, 1e-3)),
        lambda inner, images: turned(images, inner(images)) if isinstance(images, Tensor) else inner(images),
    ],
    ids=["autocast", "Python's random numbers", "isinstance"],
)
def test_a_deep_network_hides_nothing_from_any_method(
    change: Callable[[nn.Module, Tensor], Tensor], method: Method
) -> None:
    torch.manual_seed(0)
    images = 0.5 * torch.rand(4, 1, 2, 2, generator=generator(1))
    plain, network = Deep(lambda inner, images: inner(images)), Deep(change)
    certify(plain, images, plain(images).argmax(1), eps=1e-3, method=method)
    with pytest.raises(ModelError, match="executes other operations"):
        certify(network, images, torch.zeros(4, dtype=torch.int64), eps=1e-3, method=method)


def test_a_hook_of_all_modules_is_refused() -> None:
    images = some_images(2)
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, output: None)
    try:
        with pytest.raises(ModelError, match="while hooks are registered for all modules: remove them"):
            certify(model_of("dense"), images, torch.zeros(2, dtype=torch.int64), eps=0.01)
    finally:
        handle.remove()


def test_another_image_of_the_batch_hides_no_difference() -> None:
    """One of them has logits of a million."""
    network = OnTensors(raised_by_numpy)
    with torch.no_grad():
        network.head.weight[:] = torch.tensor([[0.0, 0.0, 0.0, 2e6], [0.0, 0.0, 0.0, 1e6]])
    images = torch.zeros(2, 1, 2, 2)
    images[1, 0, 1, 1] = 0.5
    with pytest.raises(ModelError, match="compute other logits than the model"):
        certify(network, images, torch.tensor([0, 0]), eps=0.0, method="interval")


def test_the_rounding_of_a_factor_too_small_for_float32_counts() -> None:
    """Below 1.2e-38 a float32 has few digits."""

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 1, bias=False)
            self.head.weight.data.fill_(1e22)

        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([self.head(images.flatten(1)) * 1.402e-42 * 1e20, images.flatten(1) * 0 + 0.7015], dim=1)

    found = certify(Tiny(), torch.full((1, 1, 1, 1), 0.5), torch.tensor([1]), eps=0.01, method="interval")
    assert not found.certified.any()


def test_weights_that_are_computed_from_others_count_as_they_are() -> None:
    layer = nn.Linear(72, 3)
    parametrizations.weight_norm(layer)
    model, images = classifier(nn.Sequential(nn.Flatten(), layer), 3, SHAPE), some_images(5)
    labels = model(images).argmax(1)
    plain = nn.Linear(72, 3)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    expected = certify(classifier(nn.Sequential(nn.Flatten(), plain), 3, SHAPE), images, labels, eps=0.01).margin
    assert torch.allclose(certify(model, images, labels, eps=0.01).margin, expected)


def test_a_certified_image_has_no_neighbour_beyond_distance_eps() -> None:
    """The ball that is certified is the one within which attacks count: eps and the tolerance of float32."""
    problem = linear_problem(7)
    images = problem.images.detach()
    graph = take_apart(problem.model, images, dtype=torch.float64).graph
    ball = Ball(eps=0.1)
    region = region_around(images.double(), Ball(eps=ball.reach((0, 1))), (0, 1))
    exact = linear_margins(graph, bound_layers(graph, region, unit=FLOAT32), problem.labels)[:, 0].detach()
    assert torch.allclose(certify(problem.model, images, problem.labels, eps=0.1).margin, exact, atol=1e-12)
    moved = PGD(eps=0.1, steps=5)(problem.model, images, problem.labels).adversarial
    assert 0.1 - 1e-6 < distance(moved, images, "linf").max() <= ball.reach((0, 1))


def test_sparse_images_are_those_that_they_stand_for() -> None:
    model, images = model_of("dense"), some_images(3).round()
    labels = model(images).argmax(1)
    found = certify(model, images.to_sparse(), labels, eps=0.01)
    assert torch.equal(found.margin, certify(model, images, labels, eps=0.01).margin)


def test_the_rounding_of_the_sigmoid_of_one_logit_counts() -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(0.0)
        layer.bias.fill_(1e-9)
    network = nn.Sequential(nn.Flatten(), layer, nn.Sigmoid())
    image = torch.full((1, 1, 1, 1), 0.5)
    assert network(image).item() == 0.5
    assert not certify(network, image, torch.tensor([1]), eps=0.1).certified.any()
    with torch.no_grad():
        layer.bias.fill_(0.1)
    assert certify(network, image, torch.tensor([1]), eps=0.1).certified.all()


def test_a_sigmoid_of_several_classes_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Sigmoid())
    with pytest.raises(
        ModelError, match="no bounds for a sigmoid of several classes at the end: its results are equal"
    ):
        certify(network, some_images(2), torch.tensor([0, 1]), eps=0.1)


class Ends(nn.Module):
    """Returns something of its logits."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head, self.end = nn.Linear(72, 3), end

    def forward(self, images: Tensor) -> Any:
        return self.end(self.head(images.flatten(1)))


REFUSED_ENDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a softmax beside a sigmoid": (lambda z: (torch.sigmoid(z), F.softmax(z, 1))[0], "a sigmoid of several classes"),
    "softmax in bfloat16": (lambda z: F.softmax(z, 1, dtype=torch.bfloat16), "a softmax in torch.bfloat16: it rounds"),
    "softmax in float16": (lambda z: torch.softmax(z, 1, torch.float16), "a softmax in torch.float16: it rounds"),
    "log-softmax in bfloat16": (lambda z: z.log_softmax(1, dtype=torch.bfloat16), "a log_softmax in torch.bfloat16"),
}


@pytest.mark.filterwarnings("ignore:the network")
@pytest.mark.parametrize("name", REFUSED_ENDS)
def test_an_end_that_decides_otherwise_than_the_logits_is_refused(name: str) -> None:
    end, message = REFUSED_ENDS[name]
    with pytest.raises(ModelError, match=f"no bounds for {message}"):
        certify(Ends(end), some_images(2), torch.tensor([0, 1]), eps=0.1)


@pytest.mark.parametrize(
    "end",
    [
        lambda z: (z, torch.sigmoid(z))[0],
        lambda z: (F.softmax(z, 1), z)[1],
        lambda z: (F.softmax(z, 1, dtype=torch.float32), torch.sigmoid(z))[0],
    ],
)
def test_a_softmax_or_sigmoid_that_is_not_returned_does_not_matter(end: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    plain, network, images = Ends(lambda z: z), Ends(end), some_images(6)
    network.load_state_dict(plain.state_dict())
    labels = plain(images).argmax(1)
    expected, found = (certify(each, images, labels, eps=0.01).margin for each in (plain, network))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("method", ["interval", "crown-ibp", "crown"])
def test_one_logit_per_image_without_a_dimension_of_its_own(method: Method, norm: Norm) -> None:
    torch.manual_seed(0)
    column = nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 1))
    images = some_images(6)

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = column

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images).view(-1) * 2 / 2

    labels = (column(images) > 0).long().flatten()
    expected = certify(column, images, labels, eps=0.005, norm=norm, method=method)
    found = certify(Flat(), images, labels, eps=0.005, norm=norm, method=method)
    assert expected.certified.any()
    assert torch.allclose(found.margin, expected.margin, atol=1e-5)


def test_a_program_of_torchscript_is_refused() -> None:
    inner, images = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), some_images(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        program: Any = torch.jit.trace(inner, images)  # pyright: ignore[reportPrivateImportUsage]
    for network in (program, nn.Sequential(program, nn.ReLU())):
        with pytest.raises(ModelError, match="no bounds for"):
            certify(network, images, torch.tensor([0, 1]), eps=0.1)


def test_the_margin_of_logits_that_are_no_numbers_is_minus_infinity() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    with torch.no_grad():
        network[1].weight[1, 3] = math.nan  # type: ignore[index]
    assert certify(network, some_images(2), torch.tensor([0, 1]), eps=0.1).margin.tolist() == [-math.inf, -math.inf]
