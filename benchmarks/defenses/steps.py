"""Single steps of casemate's recipes beside the originals', with the same weights, images and random numbers.

`DEFENSES_SRC=... .venv-peers/bin/python benchmarks/defenses/steps.py` runs in the environment of the peers, where
casemate is installed too, and writes `steps.json`; with names of functions, such as `graph`, only their rows. Losses,
and the gradients of the weights, are computed in float64, in which equal formulas agree to about 1e-12; the random
numbers of both sides are replaced by the same ones.

Exit code 0: all agree within what is stated for each. 1: some do not. 2: a clone is missing.
"""

import argparse
import json
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, final
from unittest.mock import MagicMock, patch

import numpy as np
import theirs
import torch
import torch.nn.functional as F
from nsl import given_arrays, nsl_settings, run_nsl
from originals import NotHereError, commit, module, smoothing_core
from page import STEPS_FILE
from plan import EPS, Pair, images, network, pair_of
from torch import Tensor, nn

from casemate.certification import (
    Smoothing,
    bound_layers,
    certify,
    interval_margins,
    linear_margins,
    predict_smoothed,
    region_around,
    take_apart,
)
from casemate.certification.certificate import Method
from casemate.certification.smoothing import binomial_lower_bound, smoothing_radius
from casemate.defenses import AdversarialRegularization, GraphRegularization, make_objective, virtual_adversarial
from casemate.defenses import smoothing as smoothed_trainings
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.defenses.graph_regularization import nearest_neighbours
from casemate.defenses.several_norms import SeveralNorms
from casemate.defenses.trades import TRADES
from casemate.files import write_text
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.training import TrainingStep

EQUAL: Final = 1e-9
"""Largest difference between equal formulas in float64, relative to the larger value or 1."""
N: Final = 60
GRAPH: Final = 500
"""Images whose graphs are compared."""


@final
@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    recipe: str
    what: str
    original: str
    """The function, and the repository where it is not clear from the recipe."""
    commits: Mapping[str, str]
    ours: float
    theirs: float
    difference: float
    """Of the values, relative to the larger one or 1."""
    gradient_difference: float | None
    """Largest difference of a gradient, relative to the largest gradient; None where none is compared."""
    allowed: float
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether both differences are within what is allowed."""
        return max(self.difference, self.gradient_difference or 0.0) <= self.allowed


def row(
    recipe: str,
    what: str,
    original: str,
    clones: tuple[str, ...],
    ours: tuple[Tensor, Any],
    theirs: tuple[Tensor, Any],
    *,
    allowed: float = EQUAL,
    note: str = "",
) -> Row:
    """A row from the values, and the gradients or None, of both sides."""
    (one, gradients), (other, their_gradients) = ours, theirs
    scale = max(1.0, one.abs().max().item())
    apart = None
    if gradients is not None:
        largest = max(each.abs().max().item() for each in their_gradients)
        gaps = [(a - b).abs().max().item() for a, b in zip(gradients, their_gradients, strict=True)]
        apart = max(gaps) / largest
    return Row(
        recipe=recipe,
        what=what,
        original=original,
        commits={name: commit(name) for name in clones},
        ours=one.double().mean().item(),
        theirs=other.double().mean().item(),
        difference=(one - other).abs().max().item() / scale,
        gradient_difference=apart,
        allowed=allowed,
        note=note,
    )


@final
class Given:
    """The network, the images and the random numbers of all comparisons, in float64."""

    def __init__(self) -> None:
        x, y = theirs.tensors(images(pair_of("trades")).train)
        torch.manual_seed(1)
        self.network = network()
        optimizer = torch.optim.Adam(self.network.parameters(), lr=2e-3)
        for batch in torch.arange(len(x)).split(N):
            optimizer.zero_grad()
            F.cross_entropy(self.network(x[batch]), y[batch]).backward()
            optimizer.step()
        self.network.double().train()
        self.model = Classifier(self.network)
        test = images(pair_of("trades")).test
        self.x, self.y = test[0][:N].double(), test[1][:N]
        self.normal = torch.randn(self.x.shape, dtype=torch.float64)
        self.uniform = 2 * torch.rand(self.x.shape, dtype=torch.float64) - 1

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights."""
        return list(self.network.parameters())

    def gradients(self, loss: Tensor) -> tuple[Tensor, Any]:
        """The loss, and the gradients of the weights."""
        return loss.detach(), torch.autograd.grad(loss, self.parameters)

    def ours(self, pair: Pair, **settings: Any) -> tuple[Tensor, Any]:
        """Casemate's loss and gradients at the end of a training with the pair's settings."""
        objective = make_objective({"name": pair.recipe, "settings": {**pair.settings, **settings}})
        self.model.train()
        return self.gradients(objective(self.model, self.x, self.y)[0])


@contextmanager
def started_at(start: Tensor) -> Iterator[None]:
    """Let casemate's searches of adversarial images begin here."""
    with patch.object(Ball, "sample", lambda *_, **__: start.clone()):
        yield


@contextmanager
def drawn(**functions: Any) -> Iterator[None]:
    """Let functions of PyTorch return these tensors."""
    with ExitStack() as stack:
        for name, value in functions.items():
            stack.enter_context(patch.object(torch, name, lambda *_, _value=value, **__: _value.clone()))
        yield


# The rows -------------------------------------------------------------------------------------------------------------
def trades(given: Given) -> Iterator[Row]:
    """TRADES, whole: search and loss."""
    function, pair = module("TRADES", "trades").trades_loss, pair_of("trades")
    options = {**theirs._steps(pair), "beta": pair.settings["beta"]}
    with started_at(given.x + 0.001 * given.normal):
        ours = given.ours(pair)
    with drawn(randn=given.normal):
        value = function(given.network, given.x, given.y, MagicMock(), **options)
    yield row("trades", "loss with its search", "trades_loss", ("TRADES",), ours, given.gradients(value))


def mart(given: Given) -> Iterator[Row]:
    """MART, whole; with and without the constants that the original adds to avoid log 0."""
    function, pair = module("MART", "mart").mart_loss, pair_of("mart")
    options = {**theirs._steps(pair), "beta": pair.settings["beta"]}
    with started_at(given.x + 0.001 * given.normal):
        ours = given.ours(pair)
        moved, _ = AdversarialTraining(**theirs_steps(pair)).adversarial(given.model, given.x, given.y)
    with drawn(randn=given.normal):
        value = function(given.network, given.x, given.y, MagicMock(), **options)
    found = given.gradients(value)
    note = "the original takes log(1.0001 - p) and log(p + 1e-12)"
    yield row("mart", "loss with its search", "mart_loss", ("MART",), ours, found, allowed=1e-2, note=note)
    logits = given.network(moved)
    rest = F.softmax(logits, dim=1).scatter(1, given.y[:, None], 0).amax(1)
    guard = (torch.log(1.0001 - rest) - torch.log1p(-rest)).mean()
    less = (found[0] + guard.detach(), None)
    yield row(
        "mart",
        "loss, less the constant 1e-4",
        "mart_loss",
        ("MART",),
        (ours[0], None),
        less,
        allowed=1e-5,
        note="what remains are the constants 1e-7 and 1e-12",
    )


def theirs_steps(pair: Pair) -> dict[str, Any]:
    """Casemate's settings of PGD in a pair."""
    return {key: pair.settings[key] for key in ("eps", "steps", "step_size")}


def weight_perturbation(given: Given) -> Iterator[Row]:
    """Loss and gradient at weights that AWP has moved, for the same adversarial images."""
    pair = pair_of("adversarial-training-awp")
    with started_at(given.x + EPS * given.uniform):
        ours = given.ours(pair)
        moved, _ = AdversarialTraining(**theirs_steps(pair)).adversarial(given.model, given.x, given.y)
    yield _perturbed(
        given,
        "adversarial-training",
        "AT_AWP",
        "AdvWeightPerturb",
        pair.settings["weight_perturbation"],
        {"inputs_adv": moved, "targets": given.y},
        lambda: F.cross_entropy(given.network(moved), given.y),
        ours,
    )
    pair = pair_of("trades-awp")
    objective = TRADES(**pair.settings)
    with started_at(given.x + 0.001 * given.normal):
        ours = given.ours(pair)
        near, _ = objective.adversarial(given.model, given.x)
    beta = pair.settings["beta"]

    def loss() -> Tensor:
        clean = given.network(given.x)
        apart = F.kl_div(F.log_softmax(given.network(near), dim=1), F.softmax(clean, dim=1), reduction="batchmean")
        return F.cross_entropy(clean, given.y) + beta * apart

    call = {"inputs_adv": near, "inputs_clean": given.x, "targets": given.y, "beta": beta}
    gamma = pair.settings["weight_perturbation"]
    yield _perturbed(given, "trades", "trades_AWP", "TradesAWP", gamma, call, loss, ours)


def _perturbed(
    given: Given,
    recipe: str,
    folder: str,
    kind: str,
    gamma: float,
    call: dict[str, Any],
    loss: Callable[[], Tensor],
    ours: tuple[Tensor, Any],
) -> Row:
    made = getattr(module("AWP", "utils_awp", folder=folder), kind)
    proxy = network().double()
    before = {name: value.clone() for name, value in given.network.state_dict().items()}
    adversary = made(given.network, proxy, torch.optim.SGD(proxy.parameters(), lr=0.01), gamma)
    adversary.perturb(adversary.calc_awp(**call))
    found = given.gradients(loss())
    given.network.load_state_dict(before)
    return row(recipe, f"loss at perturbed weights, gamma {gamma:g}", kind, ("AWP",), ours, found, allowed=1e-7)


def single_step(given: Given) -> Iterator[Row]:
    """The images that the one step of FGSM-RS and N-FGSM finds."""
    made = module("N-FGSM", "utils.attack_utils").AttackUtils
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    attack = made(torch.zeros_like(one), one, one)

    def noise(self: Tensor, low: float, high: float) -> Tensor:
        return self.copy_(low + (high - low) * (given.uniform[:, 0].view_as(self) + 1) / 2)

    for name, size in (("n-fgsm", 2 * EPS), ("fgsm-rs", EPS)):
        pair = pair_of(name)
        objective: Any = make_objective({"name": name, "settings": dict(pair.settings)})
        with started_at((given.x + size * given.uniform).clamp(0, 1)):
            moved, _ = objective.adversarial(given.model, given.x, given.y)
        with patch.object(torch.Tensor, "uniform_", noise):
            if name == "n-fgsm":
                delta = attack.attack_nfgsm(given.network, given.x, given.y, 255 * EPS, 255 * EPS, unif=2.0, clip=0)
            else:
                delta = attack.attack_fgsm(given.network, given.x, given.y, EPS * one, 1.25 * EPS * one)
        function = {"n-fgsm": "attack_nfgsm", "fgsm-rs": "attack_fgsm of N-FGSM"}[name]
        found = (given.x + delta).detach()
        yield row(name, "adversarial images, largest difference", function, ("N-FGSM",), (moved, None), (found, None))


def robust_distillation(given: Given) -> Iterator[Row]:
    """The search and the loss of RSLAD."""
    function, pair = module("RSLAD", "rslad_loss").rslad_inner_loss, pair_of("robust-distillation")
    torch.manual_seed(5)
    teacher = network().double().eval()
    objective = make_objective({"name": pair.recipe, "settings": dict(pair.settings)}, teacher)
    with started_at(given.x + 0.001 * given.normal):
        ours = given.gradients(objective(given.model.train(), given.x, given.y)[0])
    with torch.no_grad():
        target = teacher(given.x)
    with drawn(randn=given.normal):
        moved = function(given.network, target, given.x, given.y, MagicMock(), **theirs._steps(pair))
    apart = [
        F.kl_div(F.log_softmax(z, dim=1), F.softmax(target, dim=1), reduction="batchmean")
        for z in (moved, given.network(given.x))
    ]
    value = given.gradients(5 / 6 * apart[0] + 1 / 6 * apart[1])
    yield row(pair.recipe, "loss with its search", "rslad_inner_loss", ("RSLAD",), ours, value)


def several_norms(given: Given) -> Iterator[Row]:
    """Which of three given perturbations is the worst, and the loss there."""
    functions, pair = module("robust_union", "mnist_funcs", folder="MNIST"), pair_of("several-norms")
    deltas = [EPS * given.uniform, 1.5 * given.normal / 28, EPS * given.normal.sign() * (given.uniform > 0)]
    moved = [(given.x + delta).clamp(0, 1) for delta in deltas]
    logits = given.network(given.x).detach()
    answers = iter(moved)
    with patch.object(AdversarialTraining, "adversarial", lambda *_: (next(answers), logits)):
        ours = given.gradients(SeveralNorms(**pair.settings)(given.model.train(), given.x, given.y)[0])
    for name, each in zip(("pgd_linf", "pgd_l2", "pgd_l1_topk"), moved, strict=True):
        setattr(functions, name, lambda *_, _each=each, **__: _each - given.x)
    worst = functions.pgd_worst_dir(given.network, given.x, given.y)
    value = given.gradients(F.cross_entropy(given.network(given.x + worst), given.y))
    yield row(pair.recipe, "loss of the worst of given images", "pgd_worst_dir", ("robust_union",), ours, value)


def _unit(direction: Tensor) -> Tensor:
    return direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def virtual(given: Given) -> Iterator[Row]:
    """The divergence at the virtual adversarial images, from the same first directions."""
    pair = pair_of("virtual-adversarial")
    options = {"xi": pair.settings["xi"], "eps": pair.settings["eps"]}
    vat = module("VAT-pytorch", "vat")
    function = vat.VATLoss(**options, ip=1)
    objective = virtual_adversarial.VirtualAdversarial(**pair.settings)
    with patch.object(virtual_adversarial.Streams, "normal", lambda *_: given.normal.clone()):
        smoothness, _ = objective.smoothness(given.model.train(), given.x)
    ours = given.gradients(smoothness)
    with drawn(rand=given.normal + 0.5):
        value = function(given.network, given.x)
    found = given.gradients(value)
    note = "adds 1e-8 to lengths of gradients that are hardly longer, so that some images move less than eps"
    yield row(pair.recipe, "smoothness", "VATLoss", ("VAT-pytorch",), ours, found, allowed=0.1, note=note)
    with drawn(rand=given.normal + 0.5), patch.object(vat, "_l2_normalize", _unit):
        value = function(given.network, given.x)
    what = "smoothness, without that 1e-8"
    yield row(pair.recipe, what, "VATLoss", ("VAT-pytorch",), ours, given.gradients(value), allowed=1e-7)


def certified(given: Given) -> Iterator[Row]:
    """Losses of bounds and regularisers at several shares of the growth of the radius."""
    name = "Fast-Certified-Robust-Training"
    certify_loss, regularization, bounded, schedule = theirs.certified_parts(name, given.network, EPS)
    limits = {key: value.double() for key, value in theirs.LIMITS.items()}
    for recipe, kind in (("ibp", "IBP"), ("crown-ibp", "CROWN-IBP")):
        objective: Any = make_objective({"name": recipe, "settings": {"eps": EPS}})
        arguments = types.SimpleNamespace(**vars(theirs.ARGUMENTS))
        arguments.bound_type = kind
        for share in (0.0, 0.01, 0.5, 1.0):
            schedule.now, reg = share * EPS, share < 1
            options = {"eps": schedule.now, "eps_scheduler": schedule, "train": True, "meter": MagicMock(), **limits}
            clean, worst, _, _ = certify_loss.cert(
                arguments, bounded, given.network, 1, share, given.x, given.y, robust=share > 0, reg=reg, **options
            )
            value = clean if share == 0 else (1 - share) * clean + share * worst
            if reg:
                value = value + regularization.compute_reg(arguments, bounded, MagicMock(), schedule.now, schedule)
            found = given.gradients(value)
            step = TrainingStep(done=share / 2, index=torch.arange(N))
            ours = given.gradients(objective.at_step(step)(given.model.train(), given.x, given.y)[0])
            note = "at radius 0 its regularisers see a radius of 1e-6, casemate's see none" if share == 0 else ""
            yield row(
                recipe,
                f"loss and regularisers, {share:.0%} of the radius",
                "cert, compute_reg",
                (name, "auto_LiRPA"),
                ours,
                found,
                allowed=1.0 if share == 0 else 1e-6,
                note=note,
            )


def structured(given: Given) -> Iterator[Row]:
    """NSL's training steps with adversarial neighbours, and the neighbours."""
    recipe = "adversarial-regularization"
    for objective in (
        AdversarialRegularization(norm="linf", multiplier=0.5, step_size=0.1, clip_min=0.0, clip_max=1.0),
        AdversarialRegularization(norm="l2", multiplier=0.5, step_size=0.5, iterations=3, pgd_eps=1.0),
        AdversarialRegularization(norm="l1", multiplier=0.5, step_size=2.0, iterations=2),
    ):
        norm = objective.norm
        arrays = given_arrays(given.network, given.x, given.y)
        found, numbers = run_nsl("step", arrays, settings=nsl_settings(objective))
        given.model.train()
        ours = given.gradients(objective(given.model, given.x, given.y)[0])
        what = f"loss with its neighbours, {norm}, steps: {objective.iterations}"
        yield row(recipe, what, "AdversarialRegularization", (), ours, loss_and_gradients(found, numbers))
        ours = objective.neighbours(given.model, given.x, given.y), None
        other = torch.from_numpy(found["adversarial"]), None
        yield row(recipe, f"neighbours, {norm}", "perturb_on_batch", (), ours, other)


def graph(given: Given) -> Iterator[Row]:
    """NSL's training steps with neighbours in a graph, and the graph."""
    recipe, index = "graph-regularization", torch.arange(N)
    train = images(pair_of(recipe)).train[:GRAPH]
    pool, y = theirs.tensors(train)[0].double(), train.labels[index]
    for distance in ("l2", "l1"):
        objective = GraphRegularization(multiplier=0.5, distance=distance)
        prepared = objective.prepared_for(train)
        known = pool, prepared.neighbours[index], prepared.weights[index].double()
        arrays = given_arrays(given.network, pool[index], y, known)
        found, numbers = run_nsl("step", arrays, settings=nsl_settings(objective))
        given.model.train()
        ours = given.gradients(prepared.at_step(TrainingStep(done=0.0, index=index))(given.model, pool[index], y)[0])
        other, note = loss_and_gradients(found, numbers), "NSL computes the distances in float32"
        yield row(recipe, f"loss, {distance}", "GraphRegularization", (), ours, other, allowed=1e-6, note=note)
    threshold = GraphRegularization().similarity_threshold
    found, _ = run_nsl("graph", {"images": pool.float().numpy()}, similarity_threshold=threshold)
    similar = torch.zeros(GRAPH, GRAPH, dtype=torch.float64)
    one, two = found["edges"][:, :2].T.astype(int)
    similar[one, two] = torch.from_numpy(found["edges"][:, 2])
    neighbours, likeness = nearest_neighbours(train.pixels, GRAPH - 1)
    mine = torch.zeros_like(similar).scatter(1, neighbours, likeness.double())
    ours, other = (mine.where(mine >= threshold, 0.0), None), (similar, None)
    what, note = f"weights of the edges between {GRAPH} images", "NSL computes similarities in float32"
    yield row(recipe, what, "build_graph", (), ours, other, allowed=1e-6, note=note)


def loss_and_gradients(arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """What NSL's side found, the gradients in the order of the network's weights."""
    gradients = [torch.from_numpy(arrays[name]) for name, _ in network().named_parameters()]
    return torch.tensor(numbers["loss"], dtype=torch.float64), gradients


def small_boxes(given: Given) -> Iterator[Row]:
    """SABR's and MTL-IBP's loss for the same adversarial images."""
    from auto_LiRPA import BoundedModule  # pyright: ignore[reportMissingImports]

    losses, utils = module("expressive-losses", "certified"), theirs.importlib_module("utils")
    bounded = BoundedModule(given.network, torch.zeros_like(given.x[:2]), device="cpu")
    low, high, std = (theirs.LIMITS[key].double() for key in ("data_min", "data_max", "std"))
    moved = (given.x + EPS * given.uniform.sign()).clamp(0, 1)
    inner = 0.2 + 0.6 * given.x  # farther from black and white than eps
    cases = (
        ("sabr", given.x, moved, "loss at the full radius, given images"),
        ("sabr", inner, inner + EPS * given.uniform.sign(), "the same for images away from black and white"),
        ("mtl-ibp", given.x, moved, "loss at the full radius, given images"),
    )
    for recipe, x, near, what in cases:
        objective = make_objective({"name": recipe, "settings": dict(pair_of(recipe).settings)})
        with patch.object(AdversarialTraining, "adversarial", lambda *_, _near=near: (_near, None)):
            ours = given.gradients(objective(given.model.train(), x, given.y)[0])
        around = (low, high, std, True, False)
        if recipe == "sabr":
            box, centre = utils.compute_sabr_perturbation(theirs.ARGUMENTS, EPS, x, near, *around)
        else:
            box, _, _ = utils.compute_perturbation(theirs.ARGUMENTS, EPS, x, *around)
            centre = x
        worst, _, _ = losses.ub_robust_loss(theirs.ARGUMENTS, bounded, box, centre, given.y, meter=MagicMock())
        if recipe == "mtl-ibp":
            worst = torch.lerp(F.cross_entropy(given.network(near), given.y), worst, 0.5)
        found, clones = given.gradients(worst), ("expressive-losses", "auto_LiRPA")
        yield row(recipe, what, "ub_robust_loss", clones, ours, found, allowed=1e-6)


def _float64_zeros(shape: tuple[int, ...], *, requires_grad: bool = False, **_: Any) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).zero_().requires_grad_(requires_grad)


def _clip_first(ball: Ball, moved: Tensor, clean: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The other order of clipping and projecting."""
    delta = moved.clamp(*bounds) - clean
    length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return clean + delta * (ball.eps / length).clamp(max=1)


def smoothed(given: Given) -> Iterator[Row]:
    """SmoothAdv and consistency with the same noise."""
    pair = pair_of("smooth-adv")
    draws, sigma = pair.settings["draws"], pair.settings["sigma"]
    torch.manual_seed(6)
    noise = sigma * torch.randn(N, draws, *given.x.shape[1:], dtype=torch.float64)
    same = patch.object(smoothed_trainings, "_draw_noise", lambda *_: noise)
    attacks = module("smoothing-adversarial", "attacks", folder="code")
    attack = attacks.PGD_L2(steps=pair.settings["steps"], max_norm=pair.settings["eps"], device=torch.device("cpu"))
    with same:
        ours = given.ours(pair)
    repeated = given.x.repeat_interleave(draws, 0)
    given.network.eval()
    with patch.object(torch, "zeros", _float64_zeros):
        moved = attack.attack(given.network, repeated, given.y, noise=noise.flatten(0, 1), num_noise_vectors=draws)
    given.network.train()
    value = F.cross_entropy(given.network(moved.detach() + noise.flatten(0, 1)), given.y.repeat_interleave(draws))
    clones = ("smoothing-adversarial",)
    found = given.gradients(value)
    note = "casemate projects onto the ball and then clips to [0, 1], the original in the other order"
    yield row("smooth-adv", "loss with its search", "PGD_L2", clones, ours, found, allowed=1e-2, note=note)
    with same, patch.object(Ball, "project", _clip_first):
        ours = given.ours(pair)
    yield row("smooth-adv", "the same, in the order of the original", "PGD_L2", clones, ours, found, allowed=1e-7)

    pair = pair_of("consistency")
    function = module("smoothing-consistency", "consistency", folder="code").consistency_loss
    with same:
        ours = given.ours(pair)
    logits = given.network((given.x[:, None] + noise).transpose(0, 1).flatten(0, 1))
    value = F.cross_entropy(logits, given.y.repeat(draws)) + function(
        torch.chunk(logits, draws), pair.settings["weight"], pair.settings["entropy"]
    )
    clones = ("smoothing-consistency",)
    yield row("consistency", "loss", "consistency_loss", clones, ours, given.gradients(value))


def smoothing_certificates(given: Given) -> Iterator[Row]:
    """Radii of all counts, and abstentions from predictions."""
    core = smoothing_core()
    sigma, n, alpha = 0.25, 1000, 0.001
    classifier = core.Smooth(given.network, 10, sigma)
    radii = []
    for count in range(n + 1):
        classifier._sample_noise = lambda *_, _count=count: np.array([_count, n - _count] if _count else [0, n])
        bound = classifier._lower_confidence_bound(count, n, alpha)
        radii.append(sigma * core.norm.ppf(bound) if bound >= 0.5 else 0.0)
    found = torch.tensor(np.array(radii))
    lower = binomial_lower_bound(np.arange(n + 1), n, alpha)
    ours = torch.from_numpy(smoothing_radius(lower, sigma))
    what = "certified radii of all counts of 1,000 draws, largest difference"
    yield row("smoothing", what, "Smooth.certify", ("smoothing",), (ours, None), (found, None))
    pairs = [(a, b) for a in range(2, 101, 2) for b in range(a) if a + b <= 100]
    votes = torch.zeros(len(pairs), 11, dtype=torch.int64)
    votes[:, :2] = torch.tensor(pairs)
    with patch("casemate.certification.smoothing._count_votes", lambda *_: (votes,)):
        mine = predict_smoothed(given.model, given.x, Smoothing(sigma=sigma, n=100))
    other = []
    for a, b in pairs:
        classifier._sample_noise = lambda *_, _a=a, _b=b: np.array([_a, _b, *[0] * 8])
        other.append(int(classifier.predict(given.x[0], 100, alpha, 100)))
    differ, none = (mine != torch.tensor(other)).double(), torch.zeros(len(pairs))
    what = f"predictions or abstentions from {len(pairs):,} pairs of counts: any that differs"
    yield row("smoothing", what, "Smooth.predict", ("smoothing",), (differ, None), (none, None))


def bounds(given: Given) -> Iterator[Row]:
    """Margins that casemate's certificates and auto_LiRPA prove for the same network."""
    theirs.certified_parts("Fast-Certified-Robust-Training", given.network, EPS)
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm  # pyright: ignore[reportMissingImports]
    from auto_LiRPA.utils import get_spec_matrix  # pyright: ignore[reportMissingImports]

    eps = 0.02
    bounded = BoundedModule(given.network, torch.zeros_like(given.x[:2]), device="cpu")
    around = PerturbationLpNorm(norm=np.inf, eps=eps, x_L=(given.x - eps).clamp(0), x_U=(given.x + eps).clamp(max=1))
    matrix = get_spec_matrix(given.x, given.y, 10).double()
    apart = take_apart(given.model, given.x)
    region = region_around(given.x, Ball(eps=eps), (0.0, 1.0))
    names: Mapping[Method, str] = {"interval": "IBP", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}
    for method, name in names.items():
        low, _ = bounded.compute_bounds(x=(BoundedTensor(given.x, around),), C=matrix, method=name, bound_upper=False)
        layers = bound_layers(apart.graph, region, tighten=method == "crown")
        margins = (interval_margins if method == "interval" else linear_margins)(apart.graph, layers, given.y)
        mine, other = margins.amin(1).detach(), low.amin(1).detach()
        what = f"proven margins at {eps:g}, without rounding: largest difference"
        clones = ("auto_LiRPA",)
        yield row(f"certify, {method}", what, f"compute_bounds, {name}", clones, (mine, None), (other, None))
        stated = certify(given.model, given.x, given.y, eps=eps, method=method).margin
        what = f"proven margins at {eps:g}, as certified: by how much any is above"
        if method == "interval":  # the other methods state the better of two bounds
            above = ((stated - other).clamp(min=0), None)
            none = (torch.zeros_like(other), None)
            yield row(f"certify, {method}", what, f"compute_bounds, {name}", clones, above, none)


ROWS = (
    trades,
    mart,
    weight_perturbation,
    single_step,
    robust_distillation,
    several_norms,
    virtual,
    smoothed,
    smoothing_certificates,
    certified,
    bounds,
    small_boxes,
    structured,
    graph,
)


def main() -> int:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="functions of this file; all if there are none")
    parts = parser.parse_args().parts
    chosen = [compare for compare in ROWS if not parts or compare.__name__ in parts]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given, rows = Given(), list[Row]()
    for compare in chosen:
        try:
            for each in compare(given):
                rows.append(each)
                verdict = ("differs as stated" if each.note else "agrees") if each.agrees else "DIFFERS"
                gradient = "" if each.gradient_difference is None else f", gradients {each.gradient_difference:.1e}"
                print(f"{verdict}: {each.recipe}, {each.what}: difference {each.difference:.1e}{gradient}")
        except (NotHereError, subprocess.CalledProcessError) as error:
            print(f"NOT COMPARED: {error}", file=sys.stderr)
            return 2
    before = json.loads(STEPS_FILE.read_text(encoding="utf-8"))["rows"] if parts else []
    table = {(each["recipe"], each["what"]): each for each in (*before, *map(asdict, rows))}
    text = json.dumps({"torch": torch.__version__, "rows": list(table.values())}, indent=1)
    write_text(STEPS_FILE, text + "\n")
    return 0 if all(each.agrees for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
