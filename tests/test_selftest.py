"""The models of the self-test: each part does what it says, each check sees its own model, and the whole comes out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from casemate import data
from casemate.attacks import PGD
from casemate.data import LabelledImages
from casemate.evaluation import Evaluation, evaluate
from casemate.evaluation.cost import PassCost
from casemate.models import Classifier, with_network
from casemate.selftest import CASES, Case, ModelFactory, Sizes, choose_cases, run, self_test, self_test_seconds
from casemate.selftest.evasive import anti_adversarial, by_batch, by_frozen_weights, by_whole_levels, remembering
from casemate.selftest.networks import TRAIN_SPECS, training_passes
from casemate.selftest.odd import (
    Transformer,
    halves,
    of_strips,
    preferring,
    separating_halves,
    strips,
    with_bfloat16,
)
from conftest import TINY_SHAPE, tiny_images
from test_record import thirds

EPS = 0.1
IMAGES = tiny_images(48, noise=90.0)
PIXELS, LABELS = IMAGES.tensors()
ATTACK = PGD(eps=EPS, steps=10, keep="last")


class Elsewhere(nn.Module):
    """Answers as `thirds`, but from a blurred image, and turned by one class: nothing that `thirds` would answer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = thirds()

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        return self.model(images).roll(1, 1)


def other() -> Classifier:
    """A second model, which never predicts what `thirds` does."""
    return with_network(thirds(), Elsewhere())


def logits(model: nn.Module, images: Tensor = PIXELS) -> Tensor:
    """The logits without gradients, with the weights as they are."""
    with torch.no_grad():
        return model(images)


def made() -> Tensor:
    """Adversarial images of `thirds`."""
    return ATTACK(thirds(), PIXELS, logits(thirds()).argmax(1)).adversarial


# What misleads ----------------------------------------------------------------------------------------------------
def test_a_remembering_model_answers_as_before() -> None:
    near, clean = made(), logits(thirds()).argmax(1)
    fooled = logits(thirds(), near).argmax(1) != clean
    assert fooled.double().mean() > 0.5
    model = remembering(thirds())
    assert torch.equal(logits(model).argmax(1), clean)
    assert torch.equal(logits(model, near).argmax(1), clean)
    assert torch.equal(logits(model, near).sort(1).values, logits(thirds(), near).sort(1).values)
    unprepared = remembering(thirds())
    assert torch.equal(logits(unprepared, near), logits(thirds(), near))


def test_a_remembering_model_keeps_so_many_images_and_no_more() -> None:
    model = remembering(thirds())
    model.network.size = 3  # pyright: ignore[reportArgumentType]
    logits(model)
    assert len(model.network.seen) == 3  # pyright: ignore[reportArgumentType]


def test_whole_levels_get_the_models_answer_and_others_the_robust_ones() -> None:
    model = by_whole_levels(thirds(), other())
    assert torch.equal(logits(model), logits(thirds()))
    moved = (PIXELS + 0.3 / 255).clamp(0, 1)
    assert torch.equal(logits(model, moved), logits(other(), moved))
    one_level = (PIXELS + 1 / 255).clamp(0, 1)
    assert torch.equal(logits(model, one_level), logits(thirds(), one_level))


def test_a_batch_of_more_than_sixteen_is_large() -> None:
    model = by_batch(thirds(), other())
    assert torch.equal(logits(model, PIXELS[:16]), logits(thirds(), PIXELS[:16]))
    assert torch.equal(logits(model, PIXELS[:17]), logits(other(), PIXELS[:17]))


def test_frozen_weights_are_answered_by_the_other_model() -> None:
    model = by_frozen_weights(thirds(), other())
    assert torch.equal(logits(model), logits(thirds()))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(logits(model), logits(other()))


def test_an_anti_adversary_is_surer_of_the_same_class() -> None:
    model, plain = anti_adversarial(thirds()), logits(thirds())
    found = logits(model)
    assert torch.equal(found.argmax(1), plain.argmax(1))
    assert (found.amax(1) - plain.amax(1)).min() > 0
    images = PIXELS.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(images).sum(), images)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("change", [by_whole_levels, by_batch, by_frozen_weights])
def test_what_fools_in_use_counts_whatever_attacks_see(change: Callable[..., Classifier]) -> None:
    """Attacks see a model that is never fooled by these images; one image at a time it is."""
    robust = with_network(thirds(), Unmoved())
    images = PIXELS[logits(thirds()).argmax(1) == 2].repeat(2, 1, 1, 1)
    labels = torch.full((len(images),), 2)
    fooling = ATTACK(thirds(), images, labels).adversarial
    hit = run._fooled_in_use(change(thirds(), robust), fooling, images, labels)
    assert hit.double().mean() > 0.5
    assert not run._fooled_in_use(robust, fooling, images, labels).any()
    assert not ATTACK(change(thirds(), robust), images, labels).success.any()


class Unmoved(nn.Module):
    """Always answers the last class, more or less surely."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]))

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        return self.answer + images.flatten(1).mean(1, keepdim=True) * torch.tensor([0.1, 0.0, 0.0])


# What is odd ------------------------------------------------------------------------------------------------------
def test_one_logit_separates_the_halves() -> None:
    model, images = separating_halves(thirds()), halves(IMAGES, 3)
    assert images.labels.tolist() == [int(label == 2) for label in LABELS]
    probabilities = logits(thirds()).softmax(1)
    torch.testing.assert_close(logits(model).softmax(1)[:, 1], probabilities[:, 2])
    assert set(model.network(PIXELS)) == {"logits of all classes", "score"}


def test_bfloat16_rounds_and_no_more() -> None:
    found, wanted = logits(with_bfloat16(thirds())), logits(thirds())
    assert not torch.equal(found, wanted)
    assert torch.equal(found, found.bfloat16().float())
    assert ((found - wanted).abs().amax(1) < 0.02 * wanted.abs().amax(1)).all()


def test_strips_are_the_same_images() -> None:
    model, images = of_strips(thirds()), strips(IMAGES, 3)
    pixels, labels = images.tensors()
    assert pixels.shape == (48, 1, 1, 64)
    assert pixels.amin() >= model.bounds[0]
    assert torch.equal(labels, LABELS)
    torch.testing.assert_close(logits(model, pixels), logits(thirds()))


def test_a_preference_is_a_constant_for_each_class() -> None:
    gain = logits(preferring(thirds())) - logits(thirds())
    torch.testing.assert_close(gain, gain[:1].expand_as(gain))
    assert gain[0].max() - gain[0].min() > 3


def test_a_transformer_is_the_same_with_gradients() -> None:
    torch.manual_seed(0)
    network = Transformer(TINY_SHAPE, 3).eval()
    with torch.no_grad():
        alone = network(PIXELS)
    together = network(PIXELS)
    assert together.requires_grad
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# What the checks find ---------------------------------------------------------------------------------------------
def judged(model: Classifier, images: LabelledImages = IMAGES, eps: float = EPS / 4) -> Evaluation:
    """A model evaluated by a short attack."""
    return evaluate(model, images, eps=eps, attacks={"pgd": PGD(eps=eps, steps=5)}, force=True)


def voided(found: Evaluation) -> set[str]:
    """Names of the findings that void."""
    return {each.check for each in found.findings if each.severity == "voids"}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: remembering(thirds()), "memory"),
        (lambda: by_whole_levels(thirds(), thirds(80.0)), "jumps"),
        (lambda: by_batch(thirds(), thirds(80.0)), "batch-dependence"),
        (lambda: by_frozen_weights(thirds(), thirds(80.0)), "way-of-calling"),
        (lambda: anti_adversarial(thirds()), "inference-time-optimization"),
    ],
    ids=["remembering", "whole levels", "large batches", "frozen weights", "anti-adversary"],
)
def test_each_evasion_is_found_by_its_check(make: Callable[[], Classifier], name: str) -> None:
    found = judged(make())
    assert name in voided(found)
    assert found.verdict.word == "not to be trusted"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("model", "images", "eps"),
    [
        (thirds, IMAGES, EPS / 4),
        (lambda: separating_halves(thirds()), halves(IMAGES, 3), EPS / 4),
        (lambda: with_bfloat16(thirds()), IMAGES, EPS / 4),
        (lambda: of_strips(thirds()), strips(IMAGES, 3), EPS / 2),
        (lambda: preferring(thirds(80.0)), IMAGES, EPS / 4),
    ],
    ids=["plain", "one logit", "bfloat16", "strips", "preferring"],
)
def test_what_is_odd_is_trusted(model: Callable[[], Classifier], images: LabelledImages, eps: float) -> None:
    found = judged(model(), images, eps)
    assert found.verdict.trust.trusted
    assert not [each.check for each in found.findings if each.severity != "note"]


# The list ---------------------------------------------------------------------------------------------------------
def test_the_names_are_different_and_the_networks_known() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) == 29
    assert sum(case.honest for case in CASES) == 9
    assert {name for case in CASES for name in case.networks()} <= set(TRAIN_SPECS)
    assert all(case.claim is None or case.claim.eps == case.eps for case in CASES)  # pyright: ignore[reportAttributeAccessIssue]
    assert [case.name for case in choose_cases(["transformer", "remembering"])] == ["remembering", "transformer"]


def test_further_networks_are_trained_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = choose_cases(["large-batches"])
    factory = ModelFactory(data.load("digits"), Sizes(train=100, test=20))
    assert training_passes(case.networks(), factory.sizes) > training_passes([case.network], factory.sizes)
    with monkeypatch.context() as patch:
        patch.setattr(run, "measure_pass_cost", lambda *given: PassCost(1e-6, 1e-6))
        alone, twice = (Case(name="", about="", network=case.network, passes=passes) for passes in (1, 2))
        one, two, both = (self_test_seconds(factory, [each], "quick") for each in (alone, twice, case))
    training = 2e-6 * training_passes([case.network], factory.sizes)
    assert two - training == pytest.approx(2 * (one - training))
    assert both - one == pytest.approx(2e-6 * training_passes(case.others, factory.sizes))


@pytest.mark.slow
def test_the_whole_self_test_comes_out() -> None:
    factory = ModelFactory(data.load("auto"), Sizes())
    missed = [
        f"{outcome.case.name}: {outcome.evaluation.verdict.sentence}"
        for outcome in self_test(factory)
        if not outcome.as_expected
    ]
    assert not missed
