"""What the attacks are held against: closed-form optima, small networks, and checks that a broken attack must fail.

A two-class linear classifier is the one network on which the strongest attack is known exactly. The `check_*`
functions are what `test_attacks.py` runs on the real attacks and `test_mutants.py` on broken ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor, nn

from casemate.attacks import AbstractAttack, AttackResult
from casemate.models import Classifier
from casemate.norms import Bounds, Norm

SHAPE = (1, 6, 6)
PIXELS = 36
UNIT: Bounds = (0.0, 1.0)


def generator(seed: int) -> torch.Generator:
    """Random numbers of a test's own."""
    return torch.Generator().manual_seed(seed)


def classifier(network: nn.Module, classes: int = 2, shape: tuple[int, int, int] = SHAPE) -> Classifier:
    """A `Classifier` round `network` in evaluation mode."""
    names = tuple(f"class {number}" for number in range(classes))
    return Classifier(network, input_shape=shape, classes=names).eval()


@contextmanager
def as_installed() -> Iterator[None]:
    """Without the annotations being checked, as users run it: bad input meets the library's own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def untyped(value: Any) -> Any:
    """The value, of a type that is accepted when the test runs, or refused there, but is not among those declared."""
    return value


# ---------------------------------------------------------------------------------------------- closed-form optima


@dataclass(frozen=True)
class Linear:
    """Images, all classified correctly by a two-class linear classifier."""

    model: Classifier
    images: Tensor
    labels: Tensor
    slope: Tensor
    """Float64 `(n, pixels)`: by how much the margin of an image's label rises with each pixel."""

    def margin(self, images: Tensor) -> Tensor:
        """Logit of the label minus the other logit, in float64, not by the model's own arithmetic."""
        own, other = self._offsets()
        return (self.slope * images.flatten(1).double()).sum(1) + own - other

    def _offsets(self) -> tuple[Tensor, Tensor]:
        layer = self.model.network[1]  # type: ignore[index]
        bias = layer.bias.double()
        return bias[self.labels], bias[1 - self.labels]


def linear_problem(
    seed: int, *, count: int = 24, scale: float = 1.0, low: float = 0.0, high: float = 1.0, gap: float = 1.5
) -> Linear:
    """Pixels between `low` and `high`, some of them exactly there, and margins from 0 to about `gap` * `scale`.

    The two classes' weights are drawn independently, so the gradient of one logit alone points elsewhere than
    that of the margin.
    """
    random = generator(seed)
    layer = nn.Linear(PIXELS, 2)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(2, PIXELS, generator=random))
        layer.bias.copy_(-layer.weight.sum(1) * (low + high) / 2)  # grey images lie on the boundary
    images = (low - 0.1 + (high - low + 0.2) * torch.rand(count, *SHAPE, generator=random)).clamp(low, high)
    labels = torch.randint(2, (count,), generator=random)
    weight = layer.weight.detach().double()
    slope = weight[labels] - weight[1 - labels]
    problem = Linear(classifier(nn.Sequential(nn.Flatten(), layer)), images, labels, slope)
    # move every image along its slope until its margin is the wanted one, so that all are classified correctly
    wanted = gap * scale * (0.05 + torch.rand(count, generator=random).double())
    for _ in range(60):
        short = (wanted - problem.margin(images)) / slope.square().sum(1)
        images = (images + (short.unsqueeze(1) * slope).view_as(images)).clamp(low, high).float()
    assert (problem.margin(images) > 0).all()
    return replace(problem, images=images)


def room(images: Tensor, slope: Tensor, bounds: Bounds = UNIT) -> Tensor:
    """How far each pixel may go downhill: against the sign of its slope, until the bound."""
    return torch.where(slope > 0, images - bounds[0], bounds[1] - images)


def steepest_descent(slope: Tensor, rooms: Tensor, norm: Norm, eps: float) -> Tensor:
    """By how much a linear function can fall at most within ball and room, exactly, in float64, `(n,)`.

    Linf: every pixel to the edge or its bound. L1: the steepest pixel first, to its bound, until eps is spent.
    L2: only right where no bound is met: eps times the length of the slope. L0: the values that lose most to the bound.
    """
    size = slope.abs().double()
    if norm == "l0":
        return (size * rooms).sort(dim=1, descending=True).values[:, : int(eps)].sum(1)
    if norm == "linf":
        return (size * rooms.clamp(max=eps)).sum(1)
    if norm == "l2":
        return eps * size.norm(dim=1)
    size, order = size.sort(dim=1, descending=True)
    rooms = rooms.double().gather(1, order)
    spent_before = rooms.cumsum(1) - rooms
    return (size * (eps - spent_before).clamp(min=0).minimum(rooms)).sum(1)


def check_reaches_optimum(
    attack: AbstractAttack, problem: Linear, *, norm: Norm, eps: float, slack: float = 2e-5, targeted: bool = False
) -> None:
    """On a linear classifier the attack reaches the lowest margin in the ball, and not less; so it fools the same.

    Args:
        slack: allowed distance from the optimum, as a share of the length of the slope.
    """
    targets = 1 - problem.labels if targeted else None
    result = attack(problem.model, problem.images, problem.labels, targets=targets)
    fall = steepest_descent(problem.slope, room(problem.images.flatten(1).double(), problem.slope), norm, eps)
    best = problem.margin(problem.images) - fall
    reached = problem.margin(result.adversarial)
    length = problem.slope.norm(dim=1)
    assert (reached >= best - 1e-5 * length).all(), "went further than the ball allows"
    assert (reached <= best + slack * length).all(), f"missed the optimum by {((reached - best) / length).max():.3g}"
    clear = best.abs() > slack * length
    assert torch.equal(result.success[clear], (best < 0)[clear])


# ------------------------------------------------------------------------------------------------- small networks


def network(seed: int = 0, *, classes: int = 4, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> nn.Module:
    """A smooth convolutional network; in float64, so that no result hangs on the rounding of a batch size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(1, 5, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(45, classes)
        )
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(scale)
    return layers.to(dtype)


@dataclass(frozen=True)
class Task:
    """A classifier with images; its predictions are the labels, but for every sixth."""

    model: Classifier
    images: Tensor
    labels: Tensor


def small_task(seed: int = 0, *, count: int = 30, dtype: torch.dtype = torch.float64, scale: float = 4.0) -> Task:
    """Four classes, images of SHAPE, a sixth of the labels wrong."""
    random = generator(seed + 1000)
    model = classifier(network(seed, dtype=dtype, scale=scale), classes=4)
    images = torch.rand(count, *SHAPE, generator=random).to(dtype)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::6] = (labels[::6] + 1) % 4
    return Task(model, images, labels)


# ------------------------------------------------------------------------------------------------------- properties


def distance(first: Tensor, second: Tensor, norm: Norm) -> np.ndarray:
    """Norm of each example's difference, in float64, by NumPy."""
    delta = (first.double() - second.double()).flatten(1).numpy()
    return np.linalg.norm(delta, ord={"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[norm], axis=1)


def check_inside(attack: AbstractAttack, result: AttackResult, images: Tensor, bounds: Bounds = UNIT) -> None:
    """Every image lies in ball and bounds, and the norm that is claimed is the norm."""
    ball = attack.ball()
    norms = distance(result.adversarial, images, ball.norm)
    assert norms.max() <= ball.eps + ball.tolerance, f"{norms.max()} > {ball.eps}"
    assert result.adversarial.min() >= bounds[0]
    assert result.adversarial.max() <= bounds[1]
    assert np.allclose(result.norm.numpy(), norms, rtol=1e-5, atol=1e-7)


def check_claims(result: AttackResult, task: Task, targets: Tensor | None = None) -> None:
    """Predictions, success and loss are what the model says of the images that are handed back."""
    with torch.no_grad():
        logits = task.model(result.adversarial)
    assert torch.equal(result.prediction, logits.argmax(1))
    fooled = logits.argmax(1) != task.labels if targets is None else logits.argmax(1) == targets
    assert torch.equal(result.success, fooled)
    assert torch.allclose(result.loss, nn.functional.cross_entropy(logits, task.labels, reduction="none"))


def check_beats_chance(attack: AbstractAttack, task: Task) -> None:
    """The attack raises the loss of every image it can move, and by more than the best of 20 random corners does.

    The corners are those of the attack's own ball, so anything that follows the gradient uphill passes.
    """
    eps = attack.ball().eps
    result = attack(task.model, task.images, task.labels)
    random = generator(5)

    def loss_of(images: Tensor) -> Tensor:
        with torch.no_grad():
            return nn.functional.cross_entropy(task.model(images), task.labels, reduction="none")

    corners = [
        loss_of((task.images + eps * (2 * torch.randint(2, task.images.shape, generator=random) - 1)).clamp(0, 1))
        for _ in range(20)
    ]
    assert (result.loss > loss_of(task.images)).all()
    assert (result.loss >= torch.stack(corners).amax(0) - 1e-9).double().mean() > 0.9


def check_approaches_target(attack: AbstractAttack, task: Task, *, reached: int = 1) -> None:
    """Of a targeted attack: the target's probability rises for every image, and at least `reached` more reach it."""
    targets = (task.labels + 2) % 4
    result = attack(task.model, task.images, task.labels, targets=targets)
    chosen = targets.unsqueeze(1)
    with torch.no_grad():
        before = task.model(task.images).softmax(1).gather(1, chosen).squeeze(1)
        after = task.model(result.adversarial).softmax(1).gather(1, chosen).squeeze(1)
        reached_before = task.model(task.images).argmax(1) == targets
    moved = ~reached_before
    assert (after > before)[moved].all()
    assert (result.success & moved).sum() >= reached
    check_claims(result, task, targets)


def check_nothing_at_zero(make: Callable[[float], AbstractAttack], task: Task) -> None:
    """With eps 0 the images come back bit for bit."""
    result = make(0.0)(task.model, task.images, task.labels)
    assert torch.equal(result.adversarial, task.images)
    assert result.norm.eq(0).all()


class Uncopied(nn.Module):
    """A module that cannot be copied, so that attacks ask it itself: for those that remember what they see."""

    def __deepcopy__(self, memo: object) -> "Uncopied":
        raise TypeError("what it remembers is of one module")


class NoWayBack(torch.autograd.Function):
    """Raises when its gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        """The same images."""
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Refuse."""
        raise NotImplementedError("no way back")


class Tally:
    """What a stub of a network keeps of its calls: its attributes, lists in them too, are put back when an attack ends.

    An object that is no list, dictionary, set, tuple, tensor or array is left as it is.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.forwards = 0
        self.backwards = 0
        self.most = 0
        self.seen: list[Tensor] = []


EXAMINED = 4
"""How often a `Classifier` calls its network to examine it, the first time that it is called in evaluation mode."""


class Counting(Uncopied):
    """Counts the images that go forward and whose gradient comes back, but for its first four calls.

    By these calls a `Classifier` examines its network, so one of these networks belongs to one `Classifier`. They are
    held against what is known of them: one image, two, one again, and two that a gradient is asked for.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.tally = Tally()

    def forward(self, images: Tensor) -> Tensor:
        """Count and pass on."""
        self.tally.calls += 1
        if self.tally.calls <= EXAMINED:
            assert len(images) == (1, 2, 1, 2)[self.tally.calls - 1]
            assert images.requires_grad == (self.tally.calls == EXAMINED)
            return self.inner(images)
        self.tally.forwards += len(images)
        if images.requires_grad:
            images.register_hook(self._count)
        return self.inner(images)

    def _count(self, gradient: Tensor) -> None:
        self.tally.backwards += len(gradient)

    @property
    def forwards(self) -> int:
        """Images that went forward since the count was last set to zero."""
        return self.tally.forwards

    @property
    def backwards(self) -> int:
        """Images whose gradient came back since then."""
        return self.tally.backwards

    def restart(self) -> None:
        """Set both counts to zero; the calls by which the network was examined are not to come again."""
        self.tally.forwards = self.tally.backwards = 0


def both_ways(module: nn.Module, maps: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out of a layer, and the gradient of a random sum of it."""
    leaf = maps.clone().requires_grad_(True)
    out = module(leaf)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=generator(5))
    (gradient,) = torch.autograd.grad((out * weights).sum(), leaf)
    return out.detach(), gradient


def check_layer(expected: nn.Module, seen: nn.Module, maps: Tensor, rtol: float = 0, atol: float = 0) -> None:
    """Two layers do the same, forward and back."""
    for one, other in zip(both_ways(expected, maps), both_ways(seen, maps), strict=True):
        torch.testing.assert_close(other, one, rtol=rtol, atol=atol, equal_nan=True)
