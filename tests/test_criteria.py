"""Losses and criteria of a user's own: held against closed forms, and every attack re-checked under every criterion."""

import copy
import functools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import casemate
from casemate import (
    ALMA,
    APGD,
    BIM,
    DDN,
    EOT,
    FAB,
    FGSM,
    FMN,
    LBFGS,
    MIFGSM,
    PGD,
    AnyOf,
    AutoAttack,
    Classifier,
    Criterion,
    DeepFool,
    MultiLabel,
    Restarts,
    Square,
    TargetedAPGD,
    TargetedFAB,
    TopK,
    Transfer,
    Transferable,
)
from casemate.attacks import AbstractAttack, Misclassification, Nesterov, Status, base
from casemate.attacks.criterion import Watched
from casemate.attacks.registry import library_attack_types
from casemate.engine.answers import packed, unpacked
from casemate.errors import CasemateError, MachineError, SettingError, ShapeError
from casemate.evaluation.pieces import piece_key
from casemate.functions import function_record, qualified_name
from casemate.losses import LOSSES, OwnLoss, stable_cross_entropy
from casemate.norms import norm_of
from conftest import TINY_SHAPE, tiny_images, tiny_model
from oracles import as_installed, classifier, generator
from test_every_attack import quick

pytestmark = pytest.mark.filterwarnings("ignore:.*found nothing that fools:casemate.errors.CasemateWarning")

ATTACKS = library_attack_types()
BY_CLASS = {name for name, kind in ATTACKS.items() if kind.without_classes}
IMAGES, LABELS = tiny_images(8).tensors()
MANY_LABELS = torch.stack([LABELS == 0, LABELS != 2, torch.arange(8) % 2 == 0], 1)


# Closed forms on a linear network ------------------------------------------------------------------------------------
CLASSES, SCALE = 5, 4.0
"""The rows of the weights are orthogonal and of this length, so that distances are those of the logits, divided by
it."""


def linear() -> Classifier:
    """A linear network of five classes whose weights are orthogonal."""
    rows = torch.linalg.qr(torch.randn(36, CLASSES, generator=generator(0), dtype=torch.float64))[0].T
    layer = nn.Linear(36, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(SCALE * rows)
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    return classifier(nn.Sequential(nn.Flatten(), layer), CLASSES)


LINEAR = linear()
GREY = (0.5 + 0.12 * torch.randn(6, 1, 6, 6, generator=generator(1))).clamp(0.1, 0.9)
with torch.no_grad():
    OUTPUTS = LINEAR(GREY).double()
PREDICTED = OUTPUTS.argmax(1)


def lowest(function: Callable[[Tensor], Tensor]) -> Tensor:
    """The minimum of a convex function of one level per image, `(n, 1)`, by ternary search."""
    low, high = OUTPUTS.amin(1, keepdim=True), OUTPUTS.amax(1, keepdim=True)
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        down = function(left) < function(right)
        low, high = torch.where(down, low, left), torch.where(down, right, high)
    return function((low + high) / 2).sqrt().squeeze(1) / SCALE


def nearest_top_k(k: int) -> Tensor:
    """The label's logit falls to a level to which the k largest others rise."""
    own = OUTPUTS.gather(1, PREDICTED[:, None])
    others = OUTPUTS.scatter(1, PREDICTED[:, None], -1e9).topk(k, dim=1).values
    return lowest(lambda level: (own - level) ** 2 + ((level - others).clamp(min=0) ** 2).sum(1, keepdim=True))


def nearest_any_of(chosen: Tensor) -> Tensor:
    """One logit of the set rises to a level to which all outside fall; the best of the set."""
    best = torch.full((len(OUTPUTS),), math.inf, dtype=torch.float64)
    for number in range(CLASSES):
        one = OUTPUTS[:, [number]]

        def change(level: Tensor, one: Tensor = one) -> Tensor:
            above = ((OUTPUTS - level).clamp(min=0) ** 2 * ~chosen).sum(1, keepdim=True)
            return (level - one).clamp(min=0) ** 2 + above

        best = torch.where(chosen[:, number], best.minimum(lowest(change)), best)
    return best


SETS = torch.zeros(len(GREY), CLASSES, dtype=torch.bool)
SETS[torch.arange(len(GREY)), (PREDICTED + 1) % CLASSES] = True
SETS[torch.arange(len(GREY)), (PREDICTED + 2) % CLASSES] = True
SIGNS = OUTPUTS > 0
NEAREST: Mapping[str, tuple[Criterion, Tensor]] = {
    "the second of all": (TopK(PREDICTED, k=2), nearest_top_k(2)),
    "the first of all": (TopK(PREDICTED, k=1), nearest_top_k(1)),
    "a set": (AnyOf(SETS), nearest_any_of(SETS)),
    "any label": (MultiLabel(SIGNS.int()), OUTPUTS.abs().amin(1) / SCALE),
    "all labels": (MultiLabel(SIGNS, wrong="all"), OUTPUTS.norm(dim=1) / SCALE),
    "one label": (MultiLabel(SIGNS, chosen=[2]), OUTPUTS[:, 2].abs() / SCALE),
    "two labels at another threshold": (
        MultiLabel((OUTPUTS > 0.5).numpy(), 0.5, chosen=[1, 3]),
        (OUTPUTS[:, [1, 3]] - 0.5).abs().amin(1) / SCALE,
    ),
}
MINIMUM_NORM: Mapping[str, AbstractAttack] = {
    "fmn": FMN(norm="l2", steps=120),
    "ddn": DDN(steps=120),
    "alma": ALMA(steps=120),
    "fab": FAB(norm="l2", steps=60),
    "deepfool": DeepFool(),
}
FURTHER = {("alma", "any label"): 1.5}
"""How far beyond the nearest image some attacks may end where the margin is not differentiable."""


# FAB sees one plane at a time: where all labels have to be wrong at once, the step back from each undoes the others
@pytest.mark.parametrize(
    ("name", "case"), [pair for pair in product(MINIMUM_NORM, NEAREST) if pair != ("fab", "all labels")]
)
def test_on_a_linear_network_the_nearest_image_is_found(name: str, case: str) -> None:
    criterion, nearest = NEAREST[case]
    found = MINIMUM_NORM[name](LINEAR, GREY, criterion)
    assert found.success.all()
    ratio = found.distance.double() / nearest
    assert ratio.min() > 1 - 1e-4, "nearer than possible"
    kinks = case == "all labels" or name == "deepfool"
    assert ratio.max() < FURTHER.get((name, case), 1.25 if kinks else 1.08)


def test_lbfgs_finds_the_nearest_image_of_a_single_label() -> None:
    criterion, nearest = NEAREST["one label"]
    found = LBFGS(steps=12, binary_search_steps=12)(LINEAR, GREY, criterion)
    assert found.success.all()
    ratio = found.distance.double() / nearest
    assert 1 - 1e-4 < ratio.min() <= ratio.max() < 1.05


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("attack", ["fab", "deepfool"])
def test_the_boundary_of_a_criterion_is_one_plane(attack: str, norm: Any) -> None:
    """With a single label the margin is linear: one step of FAB reaches it, in one backward pass."""
    if attack == "deepfool" and norm == "l1":
        pytest.skip("DeepFool has no L1")
    made = FAB(norm=norm, steps=1) if attack == "fab" else DeepFool(norm=norm, steps=1)
    found = made(LINEAR, GREY, MultiLabel(SIGNS, chosen=[2]))
    assert found.success.all()
    assert found.passes.backward == len(GREY)
    weight = LINEAR.network[1].weight[2].detach().double()  # type: ignore[index]
    dual = {"l2": weight.norm(), "linf": weight.abs().sum(), "l1": weight.abs().max()}[norm]
    nearest = OUTPUTS[:, 2].abs() / dual
    assert (found.distance >= nearest * (1 - 1e-4)).all()
    assert norm == "l1" or (found.distance <= 1.08 * nearest + 1e-3).all()  # in L1 bounds are in the way


def test_a_ball_is_fooled_exactly_where_it_holds_such_an_image() -> None:
    criterion, nearest = NEAREST["one label"]
    order = nearest.sort().values
    eps = ((order[2] + order[3]) / 2).item()
    for attack in (PGD(eps=eps, norm="l2"), APGD(eps=eps, norm="l2"), BIM(eps=eps, norm="l2")):
        assert torch.equal(attack(LINEAR, GREY, criterion).success, nearest < eps)


# Every attack under every criterion -----------------------------------------------------------------------------------
class Lead(Criterion):
    """Made as a user makes one: class 1 has to lead class 0 by the gap of each image."""

    def __init__(self, gap: Tensor, factor: float) -> None:
        super().__init__(torch.ones(len(gap), dtype=torch.int64))
        self.gap, self.factor = gap, factor

    def margin(self, logits: Tensor) -> Tensor:
        """Class 1 minus class 0 minus the gap."""
        return self.factor * (logits[:, 1] - logits[:, 0] - self.gap)


GAPS = torch.linspace(-0.05, 0.1, 8)
NEXT = F.one_hot((LABELS + 1) % 3, 3).bool()
CRITERIA: Mapping[str, tuple[Criterion, Callable[[np.ndarray, int], bool]]] = {
    "top-k": (TopK(LABELS, k=2), lambda z, n: sorted(z).index(z[LABELS[n]]) == 0),
    "one set": (AnyOf({0, 2}), lambda z, n: int(z.argmax()) in (0, 2)),
    "sets": (AnyOf(NEXT), lambda z, n: int(z.argmax()) == (int(LABELS[n]) + 1) % 3),
    "labels": (MultiLabel(MANY_LABELS), lambda z, n: [each > 0 for each in z] != MANY_LABELS[n].tolist()),
    "own": (Lead(GAPS, 2.0), lambda z, n: z[1] - z[0] > GAPS[n].item()),
}
"""Criteria for the tiny images, and each in other words: does an image with logits z, of the number n, fool?"""


@pytest.mark.parametrize("case", CRITERIA)
@pytest.mark.parametrize("name", sorted(set(ATTACKS) - BY_CLASS))
def test_every_attack_fools_as_the_criterion_says(name: str, case: str) -> None:
    criterion, fools = CRITERIA[case]
    model, attack = tiny_model(), quick(ATTACKS[name])
    found = attack(model, IMAGES, criterion)
    with torch.no_grad():
        clean, seen = (copy.deepcopy(model).eval()(each).numpy() for each in (IMAGES, found.adversarial))
    assert found.success.tolist() == [fools(logits, number) for number, logits in enumerate(seen)]
    assert torch.equal(found.success, found.status == Status.SUCCESS)
    before = torch.tensor([fools(logits, number) for number, logits in enumerate(clean)])
    assert found.success[before].all()
    ball = attack.ball()
    assert (norm_of(found.adversarial.double() - IMAGES.double(), ball.norm) <= ball.eps * (1 + 1e-5) + 1e-6).all()
    if not getattr(attack, "random_start", False):  # images that count as fooled already are left as they are
        assert torch.equal(found.adversarial[before], IMAGES[before])
    assert torch.equal(found.loss > 0, found.success)
    assert torch.equal(found.labels, criterion.for_images(8, 3).classes)
    assert len(found[found.success]) == found.success.sum()
    assert f"{found.robust_accuracy:.1%}".replace("%", " %") in repr(found)
    assert "robust accuracy" in found._repr_html_()


@pytest.mark.parametrize(
    ("case", "record"),
    [
        ("top-k", {"name": "TopK", "k": 2}),
        ("one set", {"name": "AnyOf"}),
        ("labels", {"name": "MultiLabel", "threshold": 0.0, "wrong": "any"}),
        ("own", {"name": "Lead", "factor": 2.0}),
    ],
)
def test_a_result_says_by_which_criterion(case: str, record: dict[str, Any]) -> None:
    attack = quick(ATTACKS["pgd"])
    found = attack(tiny_model(), IMAGES, CRITERIA[case][0])
    assert found.attack == attack.record() | {"criterion": record}
    assert "criterion" not in attack(tiny_model(), IMAGES, LABELS).attack


@pytest.mark.parametrize("name", sorted(BY_CLASS))
def test_an_attack_that_goes_through_the_classes_says_what_to_take(name: str) -> None:
    with pytest.raises(SettingError, match=r"goes through the wrong classes .* TopK does not have; take (APGD|FAB)"):
        quick(ATTACKS[name])(tiny_model(), IMAGES, TopK(LABELS, k=2))


def test_these_are_the_attacks_that_go_through_the_classes() -> None:
    assert {ATTACKS[name] for name in BY_CLASS} == {TargetedAPGD, TargetedFAB, AutoAttack}


INNER = PGD(eps=0.2, steps=4)


@pytest.mark.parametrize("case", CRITERIA)
@pytest.mark.parametrize(
    "attack",
    [
        EOT(attack=INNER, eot_samples=2),
        Transferable(attack=MIFGSM(eps=0.2, steps=4), parts=(Nesterov(),)),
        Restarts(attack=Square(eps=0.2, n_queries=6), restarts=2),
        Transfer(attack=INNER, substitute=tiny_model(3)),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_wrappers_fool_as_the_criterion_says(attack: AbstractAttack, case: str) -> None:
    criterion, fools = CRITERIA[case]
    model = tiny_model()
    found = attack(model, IMAGES, criterion)
    with torch.no_grad():
        seen = copy.deepcopy(model).eval()(found.adversarial).numpy()
    assert found.success.tolist() == [fools(logits, number) for number, logits in enumerate(seen)]


@pytest.mark.parametrize("targeted", [False, True])
def test_misclassification_given_as_a_criterion_is_the_default_to_the_bit(targeted: bool) -> None:
    targets = (LABELS + 1) % 3 if targeted else None
    usual = INNER(tiny_model(), IMAGES, LABELS, targets=targets)
    found = INNER(tiny_model(), IMAGES, Misclassification(LABELS if targets is None else targets, targeted))
    assert torch.equal(found.adversarial, usual.adversarial)
    assert torch.equal(found.status, usual.status)


def test_the_first_of_all_is_misclassification_with_the_margin_as_loss() -> None:
    usual = PGD(eps=0.2, steps=4, loss="margin")(tiny_model(), IMAGES, LABELS)
    found = PGD(eps=0.2, steps=4, loss="dlr")(tiny_model(), IMAGES, TopK(LABELS, k=1))
    assert torch.equal(found.adversarial, usual.adversarial)


@pytest.mark.parametrize("case", CRITERIA)
def test_groups_and_passes_of_any_size_give_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion, _ = CRITERIA[case]
    whole = INNER(tiny_model(), IMAGES, criterion)
    monkeypatch.setattr(base, "group_size", lambda shape: 3)
    parts = INNER(tiny_model(), IMAGES, criterion, batch_size=2)
    assert torch.equal(parts.success, whole.success)
    assert torch.allclose(parts.adversarial, whole.adversarial, atol=1e-5)
    assert torch.equal(parts.labels, whole.labels)


def test_criteria_are_indexed_moved_and_watched_with_their_rows() -> None:
    seen: list[Tensor] = []
    some = Lead(GAPS, 2.0).with_changes(watched=Watched(torch.arange(8), lambda at, logits: seen.append(at)))[
        torch.tensor([1, 4])
    ]
    assert torch.equal(some.gap, GAPS[[1, 4]])
    assert some.factor == 2.0
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    assert some.is_adversarial(logits).tolist() == [True, False]
    assert seen[0].tolist() == [1, 4]
    assert not some.with_changes(never=True).is_adversarial(logits).any()
    assert some.to(torch.device("meta")).gap.device.type == "meta"
    invalid = torch.tensor([[0.0, math.nan, 0.0], [0.0, math.inf, 0.0]])
    assert not some.is_adversarial(invalid).any()


class Several(nn.Module):
    """Logits of which any number may be positive; with `probabilities` the sigmoid of them."""

    def __init__(self, *, probabilities: bool) -> None:
        super().__init__()
        self.layer, self.probabilities = nn.Linear(math.prod(TINY_SHAPE), 4), probabilities
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=generator(2)))
            self.layer.bias.copy_(-self.layer.weight.sum(1) / 2)

    def forward(self, images: Tensor) -> Tensor:
        """One number per label."""
        logits = self.layer(images.flatten(1))
        return logits.sigmoid() if self.probabilities else logits


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.filterwarnings("error")
def test_a_network_of_several_labels_is_attacked_at_its_logits(probabilities: bool) -> None:
    network = Several(probabilities=probabilities)
    with torch.no_grad():
        outputs = Several(probabilities=False)(IMAGES)
    labels = outputs > 0
    assert (labels.sum(1) != 1).any()
    found = FMN(norm="l2", steps=100)(network, IMAGES, MultiLabel(labels))
    assert found.success.all()
    with torch.no_grad():
        seen = Several(probabilities=False)(found.adversarial) > 0
    assert ((seen != labels).sum(1) > 0).all()
    lengths = network.layer.weight.detach().norm(dim=1)
    assert (found.distance >= (outputs.abs() / lengths).amin(1) * (1 - 1e-4)).all()
    assert BIM(eps=0.0)(network, IMAGES, MultiLabel(labels)).robust_accuracy == 1
    assert BIM(eps=0.0)(network, IMAGES, MultiLabel(~labels)).robust_accuracy == 0


# Criteria that are refused --------------------------------------------------------------------------------------------
class Broken(Criterion):
    """Returns whatever a test wants as its margin."""

    def __init__(self, labels: Tensor, made: Callable[[Tensor], Any]) -> None:
        super().__init__(labels)
        self.made = made

    def margin(self, logits: Tensor) -> Any:
        """What the test wants."""
        return self.made(logits)


class Without(Criterion):
    """Forgets the classes."""

    def __init__(self) -> None:
        pass

    def margin(self, logits: Tensor) -> Tensor:
        """Never reached."""
        return logits.sum(1)


class WithWeights(Criterion):
    """Has a tensor without a row per image."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__(labels)
        self.weights = torch.ones(3)

    def margin(self, logits: Tensor) -> Tensor:
        """Never reached."""
        return (logits * self.weights).sum(1)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda z: z.mean(), r"the margin of Broken returned a tensor of shape \(\) for 8 .*leave out the reduction"),
        (lambda z: z, r"of shape \(8, 3\) for 8 images; expected .* \(8,\): take the sum"),
        (lambda z: 1.0, "returned a float; expected one floating-point number per image"),
        (lambda z: z.argmax(1), "of type torch.int64"),
        (lambda z: z.argmax(1).float(), "in a way that can be differentiated: .*argmax.*such as Square"),
        (lambda z: z.detach().sum(1), "in a way that can be differentiated"),
        (lambda z: z.sum(1) / 0, "is -?(inf|nan) for 8 of 8 images with finite logits"),
        (lambda z: (z.sum(1) - z.sum(1)).log() * 0, "is nan for 8 of 8 images with finite logits"),
    ],
)
def test_a_margin_that_is_no_number_per_image_is_refused(made: Callable[[Tensor], Any], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        PGD(eps=0.1)(tiny_model(), IMAGES, Broken(LABELS, made))


def test_a_margin_without_a_gradient_will_do_for_attacks_that_take_none() -> None:
    criterion = Broken(LABELS, lambda logits: (logits.argmax(1) != LABELS[: len(logits)]).float() - 0.5)
    found = Square(eps=0.3, n_queries=3)(tiny_model(), IMAGES[:1], criterion[:1])
    assert found.success.tolist() == (found.prediction != LABELS[:1]).tolist()


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (lambda: TopK(LABELS, k=3), "k = 3 for a model with 3 classes; expected at most 2"),
        (lambda: TopK(LABELS, k=0), "k = 0; expected at least 1"),
        (lambda: TopK(LABELS, k=1.5), "k = 1.5; expected a whole number"),  # type: ignore[arg-type]
        (lambda: TopK(LABELS + 2, k=1), "labels from 2 to 4; with 3 classes they run from 0 to 2"),
        (lambda: TopK(LABELS[:5], k=1), r"TopK.classes has the shape \(5,\); expected a row for each of 8 images"),
        (lambda: TopK(NEXT, k=1), "expected one whole number per image"),
        (lambda: AnyOf({3}), "classes from 3 to 3"),
        (lambda: AnyOf([0, 1, 2]), "image 0 has 3 of 3; expected at least one, and not all"),
        (lambda: AnyOf(NEXT & (LABELS != 1)[:, None]), "image 1 has 0 of 3"),
        (lambda: AnyOf(NEXT[:, :2]), r"shape \(8, 2\); expected booleans of shape \(n, 3\)"),
        (lambda: AnyOf(NEXT.int()), r"type torch.int32 and shape \(8, 3\); expected booleans \(n, classes\)"),
        (lambda: AnyOf(NEXT[:3]), "AnyOf.classes has the shape"),
        (lambda: MultiLabel(LABELS), "labels other than 0 and 1"),
        (lambda: MultiLabel(LABELS == 1), r"labels of shape \(8,\); expected \(n, 3\)"),
        (lambda: MultiLabel(NEXT[:, :2]), r"labels of shape \(8, 2\); expected \(n, 3\)"),
        (lambda: MultiLabel(NEXT, chosen=[3]), r"chosen = \(3,\); expected one or several numbers from 0 to 2"),
        (lambda: MultiLabel(NEXT, chosen=[]), r"chosen = \(\)"),
        (lambda: MultiLabel(NEXT, wrong="some"), "wrong = 'some'; expected any or all"),  # type: ignore[arg-type]
        (Without, "Without has a NoneType as classes; expected a tensor with a row per image"),
        (lambda: WithWeights(LABELS), r"WithWeights.weights has the shape \(3,\); expected a row for each of 8"),
        (lambda: Lead(GAPS, 1.0).with_changes(classes=GAPS), "has classes of type torch.float32"),
    ],
)
def test_a_criterion_that_does_not_fit_is_refused(criterion: Callable[[], Criterion], words: str) -> None:
    with as_installed(), pytest.raises(CasemateError, match=words):
        PGD(eps=0.1)(tiny_model(), IMAGES, criterion())


def test_targets_together_with_a_criterion_are_refused() -> None:
    with pytest.raises(SettingError, match="targets together with the criterion TopK"):
        PGD(eps=0.1)(tiny_model(), IMAGES, TopK(LABELS, k=2), targets=LABELS)


def test_images_are_checked_with_a_criterion_too() -> None:
    with pytest.raises(ShapeError, match="pixels from"):
        PGD(eps=0.1)(tiny_model(), 3 * IMAGES, TopK(LABELS, k=2))


# Losses of one's own --------------------------------------------------------------------------------------------------
def ours(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The named loss as a user's function."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return LOSSES[name](logits, labels)

    return loss


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["ce", "margin", "torch-ce"])
@pytest.mark.parametrize(
    "attack",
    [
        FGSM(eps=0.2),
        BIM(eps=0.2, steps=4),
        PGD(eps=0.2, steps=4, restarts=2),
        MIFGSM(eps=0.2, steps=4),
        APGD(eps=0.2, steps=6, restarts=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_the_same_function_gives_the_same_bits_as_its_name(attack: Any, name: str, targeted: bool) -> None:
    settings = {each.name: getattr(attack, each.name) for each in fields(attack)}
    targets = (LABELS + 1) % 3 if targeted else None
    by_name = type(attack)(**(settings | {"loss": name}))(tiny_model(), IMAGES, LABELS, targets=targets)
    own = type(attack)(**(settings | {"loss": ours(name)}))(tiny_model(), IMAGES, LABELS, targets=targets)
    assert torch.equal(own.adversarial, by_name.adversarial)
    assert own.passes == by_name.passes


def test_a_loss_of_ones_own_is_what_is_followed() -> None:
    """Towards a single logit: every pixel of the step has the sign of that logit's weight."""

    def third(logits: Tensor, labels: Tensor) -> Tensor:
        del labels
        return logits[:, 3]

    found = FGSM(eps=0.05, loss=third, keep="last")(LINEAR, GREY, PREDICTED)
    weight = LINEAR.network[1].weight[3].detach().view(1, 1, 6, 6)  # type: ignore[index]
    assert torch.allclose(found.adversarial, (GREY + 0.05 * weight.sign()).clamp(0, 1), atol=1e-6)


def test_a_targeted_loss_of_ones_own_is_minimised() -> None:
    def against(logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.gather(1, labels[:, None]).squeeze(1)

    targets = (PREDICTED + 1) % CLASSES
    found = BIM(eps=0.3, steps=5, loss=against, keep="last")(LINEAR, GREY, PREDICTED, targets=targets)
    with torch.no_grad():
        after = LINEAR(found.adversarial).gather(1, targets[:, None]).squeeze(1)
    assert (after > OUTPUTS.gather(1, targets[:, None]).squeeze(1)).all()


def test_a_loss_of_ones_own_gets_the_classes_of_a_criterion() -> None:
    seen: list[Tensor] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").sum(1)

    attack = PGD(eps=0.05, steps=3, loss=loss, keep="last")
    found = attack(tiny_model(), IMAGES, MultiLabel(MANY_LABELS))
    assert all(each.shape == (8, 3) for each in seen)
    other = PGD(eps=0.05, steps=3, keep="last")(tiny_model(), IMAGES, MultiLabel(MANY_LABELS))
    assert not torch.equal(found.adversarial, other.adversarial)


@pytest.mark.parametrize("attack", [PGD, APGD, FGSM])
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (F.cross_entropy, r"the loss torch.nn.functional.cross_entropy returned a tensor of shape \(\) .*reduction"),
        (lambda logits, labels: logits, r"of shape \(\d, 3\) for \d images"),
        (lambda logits, labels: logits.argmax(1).float(), "in a way that can be differentiated"),
        (lambda logits, labels: labels, "of type torch.int64"),
        (lambda logits, labels: None, "returned a NoneType"),
        (nn.CrossEntropyLoss(), r"CrossEntropyLoss returned a tensor of shape \(\)"),
    ],
)
def test_a_loss_that_is_no_number_per_image_is_refused(attack: Any, loss: Any, words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        attack(eps=0.1, loss=loss)(tiny_model(), IMAGES, LABELS)


def test_what_is_neither_a_name_nor_a_function_is_refused() -> None:
    for wrong in ("cross-entropy", 3, None):
        with (
            as_installed(),
            pytest.raises(SettingError, match=r"loss = .*; expected ce, .* or a function of logits and labels"),
        ):
            PGD(eps=0.1, loss=wrong)  # type: ignore[arg-type]
    with as_installed():
        assert PGD(eps=0.1, loss="CE").loss == "ce"  # type: ignore[arg-type]


# What results say of a function ---------------------------------------------------------------------------------------
FACTOR = 2.0


def scaled(logits: Tensor, labels: Tensor) -> Tensor:
    """Reads a global."""
    return FACTOR * F.cross_entropy(logits, labels, reduction="none")


def by_helper(logits: Tensor, labels: Tensor) -> Tensor:
    """Calls another function."""
    return scaled(logits, labels)


def weighted(factor: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Functions with the same code and name that differ in an enclosing variable."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return factor * F.cross_entropy(logits, labels, reduction="none")

    return loss


def hash_of(function: Callable[..., Any]) -> str | None:
    """The hash in the record of a function."""
    return function_record(function)["sha256"]


def key(loss: Any) -> str:
    """The key of a stored piece of an attack with this loss."""
    return piece_key("before", PGD(eps=0.1, loss=loss), 0.1)


def test_a_record_has_the_name_and_the_hash_of_a_function() -> None:
    record = PGD(eps=0.1, loss=scaled).record()["loss"]
    assert record["function"] == f"{__name__}.scaled"
    assert len(record["sha256"]) == 64
    assert PGD(eps=0.1).record()["loss"] == "ce"
    assert Restarts(attack=PGD(eps=0.1, loss=scaled)).record()["attack"]["loss"] == record
    assert qualified_name(functools.partial(scaled)) == f"{__name__}.scaled"


def test_two_losses_never_share_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    same_code = functools.partial(weighted(1.0))
    losses = [
        "ce",
        "torch-ce",
        scaled,
        by_helper,
        weighted(1.0),
        weighted(2.0),
        weighted(torch.ones(1)),
        weighted(torch.ones(1, dtype=torch.float64)),
        weighted([1.0]),
        weighted({"a": 1.0}),
        same_code,
        lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
        lambda logits, labels: F.cross_entropy(logits, labels, reduction="none") + 1,
        lambda logits, labels, by=1: F.cross_entropy(logits, labels, reduction="none"),
        lambda logits, labels, by=2: F.cross_entropy(logits, labels, reduction="none"),
        nn.CrossEntropyLoss(reduction="none"),
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
    ]
    keys = [key(loss) for loss in losses]
    assert len(set(keys)) == len(keys)
    assert keys == [key(loss) for loss in losses]
    before = key(by_helper)
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert key(by_helper) != before, "a global that another function reads"


def test_the_same_function_shares_its_pieces_across_processes() -> None:
    for loss in (weighted(2.0), scaled, nn.CrossEntropyLoss(reduction="none")):
        assert key(unpacked(packed(loss))) == key(loss)
    assert key(weighted(2.0)) == key(weighted(2.0))


class Callable_:
    """An object of a user's class, whose code is not seen."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A loss."""
        return stable_cross_entropy(logits, labels)


def imports_another(logits: Tensor, labels: Tensor) -> Tensor:
    """Takes its numbers from a module that is not seen."""
    import random

    return random.random() * stable_cross_entropy(logits, labels)


def evaluates(logits: Tensor, labels: Tensor) -> Tensor:
    """Runs code that is not seen."""
    del labels
    return eval("logits.sum(1)")


@functools.wraps(F.cross_entropy)
def disguised(*given: Any) -> Any:
    """Has the name of PyTorch's function."""
    return Callable_()(*given)


@pytest.mark.parametrize(
    "loss", [Callable_(), weighted(Callable_()), weighted(nn.Sequential()), imports_another, evaluates, disguised]
)
def test_what_cannot_be_hashed_is_never_taken_for_the_same(loss: Any) -> None:
    if isinstance(loss, type(scaled)) and loss.__name__ == "loss" and hash_of(loss) is not None:
        assert key(loss) == key(loss)  # a module of PyTorch's own is seen through
        return
    assert hash_of(loss) is None
    assert key(loss) != key(loss)


def test_a_function_that_calls_itself_has_a_hash() -> None:
    def down(count: int) -> int:
        return 0 if count == 0 else down(count - 1)

    def other(count: int) -> int:
        return 1 if count == 0 else other(count - 1)

    assert hash_of(down) not in (None, hash_of(other))


def test_a_loss_that_cannot_be_sent_to_another_process_is_refused() -> None:
    lock = threading.Lock()

    def locked(logits: Tensor, labels: Tensor) -> Tensor:
        with lock:
            return stable_cross_entropy(logits, labels)

    with pytest.raises(MachineError, match=r"cannot be sent to other processes .*without open files or locks"):
        packed(PGD(eps=0.1, loss=locked))
    sent = unpacked(packed((PGD(eps=0.1, steps=3, loss=weighted(2.0)), TopK(LABELS, k=2), Lead(GAPS, 1.0))))
    here = PGD(eps=0.1, steps=3, loss=weighted(2.0))(tiny_model(), IMAGES, TopK(LABELS, k=2))
    assert torch.equal(sent[0](tiny_model(), IMAGES, sent[1]).adversarial, here.adversarial)


def test_an_evaluation_takes_a_loss_of_ones_own_and_goes_on_with_its_pieces(tmp_path: Any) -> None:
    images = tiny_images(8)

    def judged(loss: Any) -> casemate.Evaluation:
        attacks = {"own": PGD(eps=0.1, steps=2, loss=loss)}
        return casemate.evaluate(
            tiny_model(), images, eps=0.1, attacks=attacks, store=tmp_path, batch_size=8, force=True
        )

    def pieces() -> int:
        return len(list(tmp_path.rglob("*.safetensors")))

    first = judged(weighted(1.0))
    once = pieces()
    judged(weighted(1.0))
    assert pieces() == once > 0
    judged(weighted(2.0))
    assert pieces() > once
    assert first.as_json()["attacks"]


def test_own_losses_are_compared_by_what_they_wrap() -> None:
    assert OwnLoss(scaled) == OwnLoss(scaled) != OwnLoss(by_helper)
