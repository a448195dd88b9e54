"""Randomised smoothing: certificates where the truth is a formula, and the objectives written out by hand."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from casemate.attacks import EOT, PGD
from casemate.certification.smoothing import (
    ABSTAINED,
    SmoothedCertificate,
    Smoothing,
    binomial_lower_bound,
    certify_smoothed,
    predict_smoothed,
    smoothed,
    smoothing_radius,
)
from casemate.data import LabelledImages, split
from casemate.defenses.smoothing import ConsistencyTraining, GaussianTraining, SmoothAdversarialTraining
from casemate.errors import DataError, ModelError, SettingError, ShapeError
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.rng import Streams, derive
from casemate.training import Objective, TrainConfig, fit
from casemate.training.objective import SteppedObjective, TrainingStep
from casemate.training.state import snapshot
from conftest import Listener, tiny_images, tiny_model
from oracles import SHAPE, as_installed, classifier, distance, generator, linear_problem, small_task

SIGMA = 0.25
QUICK = Smoothing(sigma=SIGMA, n0=50, n=1000)
PROBLEM = linear_problem(0, count=24, gap=4.0)
IMAGES, LABELS = PROBLEM.images.detach(), PROBLEM.labels
DISTANCE = (PROBLEM.margin(IMAGES) / PROBLEM.slope.norm(dim=1)).detach()
"""Of each image from the hyperplane between the two classes: the true radius of the smoothed classifier."""
TASK = small_task(2, count=12, dtype=torch.float32)
TRAIN, VALIDATION = split(tiny_images(150, noise=40), 50, 0)
FEW, FEW_LABELS = TRAIN[:12].tensors()


class FirstPixel(nn.Module):
    """Class 1 where the first pixel is above `threshold`, else class 0; what is far below it has no finite logits."""

    def __init__(self, threshold: float, *, broken_below: float = -math.inf) -> None:
        super().__init__()
        self.threshold, self.broken_below = threshold, broken_below
        self.scale = nn.Parameter(torch.tensor(30.0))

    def forward(self, images: Tensor) -> Tensor:
        """Two logits, in proportion to the height above the threshold."""
        height = images[:, 0, 0, 0] - self.threshold
        logits = self.scale * torch.stack([-height, height], 1)
        return logits.where((height > self.broken_below).unsqueeze(1), math.nan)


def at_height(*heights: float) -> Tensor:
    """Images with these first pixels, all others grey."""
    images = torch.full((len(heights), *SHAPE), 0.5)
    images[:, 0, 0, 0] = torch.tensor(heights)
    return images


def cut(share: float) -> float:
    """The number below which this share of the noise lies."""
    return SIGMA * float(stats.norm.ppf(share))


# -------------------------------------------------------------------------------------------- the bound and the radius


@pytest.mark.parametrize("n", [1, 10, 137])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5])
def test_the_bound_is_that_of_scipy_s_exact_test(n: int, alpha: float) -> None:
    counts = np.arange(n + 1)
    expected = [
        stats.binomtest(int(count), n, alternative="greater").proportion_ci(1 - alpha, method="exact").low
        for count in counts
    ]
    found = binomial_lower_bound(counts, n, alpha)
    assert np.allclose(found, expected, atol=1e-9)
    assert found[0] == 0
    assert found[-1] == pytest.approx(alpha ** (1 / n))


def test_the_radius_by_hand() -> None:
    found = smoothing_radius(np.array([0.0, 0.3, 0.5, 0.8413447460685429, 0.9772498680518208]), 0.5)
    assert np.allclose(found, [0, 0, 0, 0.5, 1.0])
    assert not np.signbit(found).any()


def test_the_largest_radius_is_that_of_draws_all_alike() -> None:
    assert Smoothing(sigma=1.0, n=100_000).largest_radius == pytest.approx(3.81, abs=0.01)  # as in the paper's figures
    assert Smoothing(sigma=1.0).largest_radius == pytest.approx(3.20, abs=0.01)
    found = certify_smoothed(classifier(FirstPixel(-5.0)), at_height(0.5), [1], QUICK)
    assert found.votes.item() == 1000
    assert found.radius.item() == QUICK.largest_radius


# ------------------------------------------------------------------------------------------------- linear classifiers


def test_on_a_linear_classifier_the_radius_is_below_the_distance_and_approaches_it() -> None:
    """The smoothed classifier is the linear one itself, whose true radius is the distance to the hyperplane."""
    gaps = []
    for n in (100, 1000, 10_000):
        found = certify_smoothed(PROBLEM.model, IMAGES, LABELS, Smoothing(sigma=SIGMA, n=n))
        assert (found.radius <= DISTANCE).all()
        assert (found.prediction == LABELS)[~found.abstained].all()
        gaps.append(float((DISTANCE - found.radius).mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] < 0.02


def test_votes_are_as_frequent_as_the_formula_says() -> None:
    n = 4000
    found = certify_smoothed(PROBLEM.model, IMAGES, LABELS, Smoothing(sigma=SIGMA, n=n, n0=400))
    p = torch.from_numpy(stats.norm.cdf((DISTANCE / SIGMA).numpy()))
    own = torch.where(found.selected == LABELS, found.votes, n - found.votes)
    z = (own - n * p) / (n * p * (1 - p)).sqrt()
    assert z.abs().max() < 4
    assert z.std() == pytest.approx(1, abs=0.35)


def test_votes_are_those_of_noise_drawn_by_hand() -> None:
    """Streams by image and block of 100 draws, with noise that leaves the bounds."""
    found = certify_smoothed(PROBLEM.model, IMAGES[:5], LABELS[:5], replace(QUICK, n=250), seed=3)
    sizes = (100, 100, 50)
    for number in range(5):
        streams = Streams(derive(3, "smoothing"), torch.tensor([number]))
        noise = torch.cat([streams.normal((count, *SHAPE), "certify", at)[0] for at, count in enumerate(sizes)])
        with torch.no_grad():
            classes = PROBLEM.model(IMAGES[number] + SIGMA * noise).argmax(1)
        assert found.votes[number] == (classes == found.selected[number]).sum()


def test_the_noise_is_not_clipped() -> None:
    found = certify_smoothed(
        classifier(FirstPixel(-0.2)), at_height(0.0, 0.0), [1, 1], Smoothing(sigma=SIGMA, n=20_000)
    )
    p = stats.norm.cdf(0.2 / SIGMA)  # with clipped noise it would be 1, and the radius more than 0.2
    assert found.votes / 20_000 == pytest.approx(p, abs=0.02)
    assert (found.radius < 0.2).all()
    assert (found.radius > 0.18).all()


@pytest.mark.parametrize("size", [1, 7, 100, 350, 10_000])
def test_counts_do_not_depend_on_the_batch_size(size: int) -> None:
    some = replace(QUICK, n0=20, n=130)
    expected = certify_smoothed(PROBLEM.model, IMAGES[:4], LABELS[:4], some)
    found = certify_smoothed(PROBLEM.model, IMAGES[:4], LABELS[:4], replace(some, batch_size=size))
    for name in ("prediction", "radius", "selected", "votes"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_an_image_s_noise_goes_by_its_number_and_the_seed() -> None:
    whole = certify_smoothed(PROBLEM.model, IMAGES, LABELS, QUICK, seed=1)
    part = certify_smoothed(PROBLEM.model, IMAGES[16:], LABELS[16:], QUICK, seed=1, index=torch.arange(16, 24))
    assert torch.equal(part.votes, whole[torch.arange(16, 24)].votes)
    other = certify_smoothed(PROBLEM.model, IMAGES, LABELS, QUICK, seed=2)
    assert not torch.equal(other.votes, whole.votes)
    twins = certify_smoothed(PROBLEM.model, IMAGES[:1].repeat(8, 1, 1, 1), LABELS[:1].repeat(8), QUICK)
    assert len(set(twins.votes.tolist())) > 1


def test_certificates_are_false_no_more_often_than_alpha() -> None:
    """At alpha = 0.2, where errors can be counted: a false one is a radius beyond the true distance."""
    truth, alpha, repetitions = 0.1, 0.2, 800
    images = at_height(0.5).repeat(repetitions, 1, 1, 1)
    settings = Smoothing(sigma=SIGMA, n0=20, n=60, alpha=alpha)
    found = certify_smoothed(classifier(FirstPixel(0.5 - truth)), images, torch.ones(repetitions).long(), settings)
    false = ((found.prediction == 1) & (found.radius > truth)) | (found.prediction == 0)
    share = float(false.double().mean())
    assert share < alpha + 3 * math.sqrt(alpha * (1 - alpha) / repetitions)
    assert share > alpha / 2  # the bound is not far too low


def test_on_the_boundary_nothing_is_certified() -> None:
    strict = replace(QUICK, alpha=1e-6)
    found = certify_smoothed(classifier(FirstPixel(0.5)), at_height(*[0.5] * 60), [1] * 60, strict)
    assert found.abstained.all()
    assert (found.radius == 0).all()
    assert found.certified_accuracy() == 0
    assert found.votes / 1000 == pytest.approx(0.5, abs=0.07)


# --------------------------------------------------------------------------------------------------------- predictions


def test_predictions_are_decided_by_scipy_s_test() -> None:
    images = at_height(*np.linspace(0.44, 0.56, 300).tolist())
    settings = replace(QUICK, n=300, alpha=0.01)
    model = classifier(FirstPixel(0.5))
    found = predict_smoothed(model, images, settings, seed=5)
    streams = Streams(derive(5, "smoothing"), torch.arange(300))
    high = torch.zeros(300, dtype=torch.int64)
    for block in range(3):
        noise = streams.normal((100, *SHAPE), "predict", block)[:, :, 0, 0, 0]
        high += ((images[:, :1, 0, 0] + SIGMA * noise - 0.5) > 0).sum(1)
    values = [stats.binomtest(count, 300, 0.5).pvalue for count in high.tolist()]
    expected = [ABSTAINED if p > 0.01 else int(count > 150) for p, count in zip(values, high.tolist(), strict=True)]
    assert found.tolist() == expected
    assert any(0.01 < p < 0.02 for p in values)  # where a one-sided test would decide
    assert set(found.tolist()) == {ABSTAINED, 0, 1}


def test_a_prediction_is_seldom_another_class() -> None:
    found = predict_smoothed(classifier(FirstPixel(0.49)), at_height(*[0.5] * 200), Smoothing(n=100, alpha=0.05))
    assert (found == ABSTAINED).sum() > 100
    assert (found == 0).sum() < 200 * 0.05


# ------------------------------------------------------------------------------------------------------ broken networks


def test_logits_that_are_not_finite_are_no_votes() -> None:
    """A third of the draws are NaN: they count among all, so that the class's share is what is left."""
    model = classifier(FirstPixel(0.0, broken_below=0.5 + cut(1 / 3)))
    found = certify_smoothed(model, at_height(0.5), [1], Smoothing(sigma=SIGMA, n=6000))
    assert found.not_finite.item() / 6000 == pytest.approx(1 / 3, abs=0.025)
    assert found.votes.item() + found.not_finite.item() == pytest.approx(6000, abs=200)
    lower = binomial_lower_bound(found.votes.numpy(), 6000, 0.001)
    assert found.radius.item() == pytest.approx(SIGMA * stats.norm.ppf(lower).item())
    assert predict_smoothed(model, at_height(0.5), QUICK).item() == 1


def test_a_network_that_is_mostly_broken_abstains() -> None:
    mostly = classifier(FirstPixel(0.0, broken_below=0.5 + cut(0.7)))
    found = certify_smoothed(mostly, at_height(0.5), [1], QUICK)
    assert found.prediction.item() == ABSTAINED == predict_smoothed(mostly, at_height(0.5), QUICK).item()
    assert found.selected.item() == 1
    never = classifier(FirstPixel(0.0, broken_below=math.inf))
    found = certify_smoothed(never, at_height(0.5, 0.1), [0, 0], QUICK)
    assert found.prediction.tolist() == found.selected.tolist() == [ABSTAINED] * 2
    assert found.votes.tolist() == found.radius.tolist() == [0, 0]
    assert found.not_finite.tolist() == [1000] * 2
    assert found.certified_accuracy() == 0
    assert (predict_smoothed(never, at_height(0.5, 0.1), QUICK) == ABSTAINED).all()


def test_a_network_with_a_state_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return images.flatten(1)[:, :2] + self.calls

    with pytest.raises(ModelError, match=r"keeps a state.*a certificate needs one fixed function"):
        certify_smoothed(classifier(Counting()), IMAGES, LABELS, QUICK)


def test_a_random_network_is_refused() -> None:
    """It may draw once for all noisy copies of a pass, which are then no independent draws."""

    class Coin(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            side = torch.randn(()).expand(len(images), 1) + 0 * images.flatten(1)[:, :1]
            return torch.cat([side, -side], dim=1)

    for run in (
        lambda: certify_smoothed(Coin(), IMAGES, LABELS, QUICK),
        lambda: predict_smoothed(Coin(), IMAGES, QUICK),
    ):
        with pytest.raises(ModelError, match=r"it is random\. The draws of a certificate must be independent"):
            run()


def test_other_types_are_refused_in_words() -> None:
    smoothing: Any = {"sigma": 0.25}
    radius: Any = "a"
    model = PROBLEM.model
    found = certify_smoothed(model, IMAGES[:2], LABELS[:2], QUICK)
    numbers: Any = list(range(24))
    with as_installed():
        with pytest.raises(SettingError, match="smoothing is a dict; expected"):
            certify_smoothed(model, IMAGES, LABELS, smoothing)
        with pytest.raises(SettingError, match="radius = 'a'"):
            found.right_within(radius)
        listed = certify_smoothed(model, IMAGES, LABELS, QUICK, index=numbers)
    assert torch.equal(listed.votes, certify_smoothed(model, IMAGES, LABELS, QUICK).votes)


@pytest.mark.parametrize("objective", [GaussianTraining(), ConsistencyTraining(), SmoothAdversarialTraining(steps=1)])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((12,), 7), "labels from 7 to 7; with 3 classes they run from 0 to 2"),
        (torch.zeros(5, dtype=torch.int64), r"labels of type torch.int64 and shape \(5,\) for 12 images"),
        (torch.zeros(12), "labels of type torch.float32"),
    ],
)
def test_labels_that_do_not_fit_are_refused(objective: Objective, labels: Tensor, message: str) -> None:
    with as_installed(), pytest.raises(ShapeError, match=message):
        objective(tiny_model(), FEW, labels)


def test_the_model_and_the_random_numbers_stay_as_they_were() -> None:
    model = tiny_model().train()
    model.network[1].eval()  # type: ignore[index]
    next(model.parameters()).requires_grad_(False)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    certify_smoothed(model, FEW, FEW_LABELS, replace(QUICK, n=20, n0=5))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [each.requires_grad for each in model.parameters()].count(False) == 1
    for name, tensor in snapshot(model).items():
        assert torch.equal(tensor, before[name]), name
    calm = certify_smoothed(copy.deepcopy(model).eval(), FEW, FEW_LABELS, replace(QUICK, n=20, n0=5))
    assert torch.equal(certify_smoothed(model, FEW, FEW_LABELS, replace(QUICK, n=20, n0=5)).votes, calm.votes)


# ------------------------------------------------------------------------------------------------ results and settings


def _certificate() -> SmoothedCertificate:
    zeros = torch.zeros(5, dtype=torch.int64)
    return SmoothedCertificate(
        prediction=torch.tensor([0, 1, ABSTAINED, 1, 0]),
        radius=torch.tensor([0.5, 0.25, 0.0, 0.9, 0.1], dtype=torch.float64),
        labels=torch.tensor([0, 1, 0, 0, 0]),
        selected=zeros,
        votes=zeros,
        not_finite=zeros,
        smoothing=Smoothing(),
        seed=0,
    )


def test_certified_accuracy_by_hand() -> None:
    found = _certificate()
    assert found.right.tolist() == [True, True, False, False, True]
    assert found.abstained.tolist() == [False, False, True, False, False]
    accuracies = [found.certified_accuracy(radius) for radius in (0, 0.1, 0.11, 0.25, 0.5, 0.6)]
    assert accuracies == pytest.approx([0.6, 0.6, 0.4, 0.4, 0.2, 0.0])
    assert found[torch.tensor([0, 2])].certified_accuracy(0.2) == 0.5
    assert "2 of 5 images are certified to be classified correctly within 0.25 in L2" in found.statement(0.25)
    assert "each certificate holds with probability 0.999 (sigma 0.25, 10,000 draws)" in found.statement(0.25)
    assert found.statement(0.25).endswith("all of them together with probability at least 0.995")
    for radius in (-0.1, math.nan):
        with pytest.raises(SettingError, match=r"radius = .*; expected zero or more"):
            found.certified_accuracy(radius)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": 0.0}, "sigma = 0.0; expected positive"),
        ({"n0": 0}, "n0 = 0; expected at least 1"),
        ({"n": 0}, "n = 0; expected at least 1"),
        ({"alpha": 0.0}, "alpha = 0.0; expected a probability between 0 and 1"),
        ({"alpha": 1.0}, "alpha = 1.0"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_settings_outside_their_values_are_refused(settings: dict[str, Any], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        Smoothing(**settings)


@pytest.mark.parametrize(
    ("images", "labels", "index", "words"),
    [
        (IMAGES[:, :, :3], LABELS, None, r"expected floating point, \(n, 1, 6, 6\)"),
        (IMAGES[:0], LABELS[:0], None, "no images to certify"),
        (3 * IMAGES, LABELS, None, "pixels from .* the noise is added here"),
        (IMAGES * math.nan, LABELS, None, "pixels from nan"),
        (IMAGES, LABELS + 1, None, "labels from 1 to 2; with 2 classes they run from 0 to 1"),
        (IMAGES, LABELS, torch.arange(3), r"index of type torch.int64 and shape \(3,\)"),
    ],
)
def test_what_does_not_fit_is_refused(images: Tensor, labels: Tensor, index: Tensor | None, words: str) -> None:
    with as_installed(), pytest.raises(ShapeError, match=words):
        certify_smoothed(PROBLEM.model, images, labels, QUICK, index=index)


def test_images_and_labels_that_are_no_pair_are_refused() -> None:
    for images, labels, words in (
        (IMAGES[0], LABELS[:1], r"images\[None\] for a single image"),
        (IMAGES, LABELS[:3], "24 images, but labels of shape"),
        (IMAGES, None, "images without labels"),
    ):
        with as_installed(), pytest.raises(DataError, match=words):
            certify_smoothed(PROBLEM.model, images, labels, QUICK)
    with as_installed(), pytest.raises(ShapeError, match=r"expected floating point, \(n, 1, 6, 6\)"):
        predict_smoothed(PROBLEM.model, IMAGES[0], QUICK)


def test_bytes_lists_and_plain_networks_are_accepted(listener: Listener) -> None:
    pixels = (255 * IMAGES[:4]).round().to(torch.uint8)
    some = replace(QUICK, n=150)
    found = certify_smoothed(PROBLEM.model.network, pixels.numpy(), LABELS[:4].tolist(), some, observer=listener)
    expected = certify_smoothed(PROBLEM.model, pixels.float() / 255, LABELS[:4], some)
    assert torch.equal(found.votes, expected.votes)
    labelled = LabelledImages(pixels=pixels, labels=LABELS[:4])
    assert torch.equal(certify_smoothed(PROBLEM.model, labelled, smoothing=some).votes, expected.votes)
    assert torch.equal(predict_smoothed(PROBLEM.model, labelled, some), predict_smoothed(PROBLEM.model, pixels, some))
    assert listener.titles == ["Randomised smoothing"]
    assert listener.done == pytest.approx(4)


# ------------------------------------------------------------------------------------- the smoothed classifier itself


@pytest.mark.parametrize("output", ["probabilities", "votes"])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_the_smoothed_classifier_by_hand(output: Any, count: int) -> None:
    model = smoothed(TASK.model, replace(QUICK, sigma=0.5), draws=9, output=output)
    model.examine(TASK.images)
    images = TASK.images[:count]
    torch.manual_seed(4)
    with torch.no_grad():
        found = model(images)
    torch.manual_seed(4)
    noise = torch.randn(count, 9, *SHAPE)
    for number in range(count):
        logits = TASK.model(images[number] + 0.5 * noise[number])
        expected = logits.softmax(1).mean(0).log()
        if output == "votes":
            votes = torch.bincount(logits.argmax(1), minlength=4)
            expected = ((votes + 1) / 13).log()
        assert torch.allclose(found[number], expected, atol=1e-5)
    assert found.exp().sum(1) == pytest.approx(1, abs=1e-5)


def test_more_draws_than_fit_in_a_pass_are_drawn_too() -> None:
    model = smoothed(classifier(FirstPixel(0.4)), Smoothing(sigma=SIGMA), draws=2500, output="votes")
    torch.manual_seed(0)
    with torch.no_grad():
        shares = model(at_height(0.5, 0.3)).softmax(1)[:, 1]
    assert shares.tolist() == pytest.approx(stats.norm.cdf([0.1 / SIGMA, -0.1 / SIGMA]), abs=0.03)


def test_the_gradient_of_votes_is_that_of_the_mean_probabilities() -> None:
    images = TASK.images[:3].clone().requires_grad_(True)
    gradients = []
    for output in ("probabilities", "votes"):
        model = smoothed(TASK.model, replace(QUICK, sigma=0.5), draws=8, output=output)
        model.examine(images.detach())
        torch.manual_seed(1)
        logits = model(images)
        value = logits.exp()[:, 1].sum() if output == "probabilities" else (logits.exp()[:, 1] * 12 / 8).sum()
        gradients.append(torch.autograd.grad(value, images)[0])
    assert gradients[0].abs().amax() > 1e-3
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("output", ["probabilities", "votes"])
def test_draws_that_are_not_finite_vote_for_no_class(output: Any) -> None:
    third = classifier(FirstPixel(0.0, broken_below=0.5 + cut(1 / 3)))
    torch.manual_seed(0)
    with torch.no_grad():
        found = smoothed(third, QUICK, draws=1000, output=output)(at_height(0.5))
    assert found[0, 1].exp().item() == pytest.approx(2 / 3, abs=0.05)
    assert found.argmax(1).item() == 1
    mostly = classifier(FirstPixel(0.0, broken_below=0.5 + cut(0.7)))
    leaf = at_height(0.5, 5.0).requires_grad_(True)
    found = smoothed(mostly, QUICK, draws=100, output=output)(leaf)
    assert (found[0] == -math.inf).all()
    assert found[1].isfinite().all()
    assert torch.autograd.grad(found[1].sum(), leaf)[0].isfinite().all()


def test_the_smoothed_classifier_keeps_what_the_model_is() -> None:
    model = tiny_model().train()
    model.network[1].eval()  # type: ignore[index]
    modes = [module.training for module in model.modules()]
    found = smoothed(model)
    assert [module.training for module in model.modules()] == modes
    assert found.classes == model.classes
    assert found.input_shape == model.input_shape
    assert next(found.parameters()) is next(model.parameters())
    for bad in ({"draws": 0}, {"output": "logits"}):
        with as_installed(), pytest.raises(SettingError):
            smoothed(model, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("output", ["probabilities", "votes"])
def test_attacks_reach_the_true_radius_and_not_further(output: Any) -> None:
    """On a linear classifier: fooled where the linear one falls at a smaller eps, not well within the distance.

    So no image falls within its certified radius, and the attack has a gradient although votes have none.
    """
    certificate = certify_smoothed(PROBLEM.model, IMAGES, LABELS, QUICK)
    attack = PGD(eps=0.2, norm="l2", steps=8, keep="last", random_start=False)
    near, far = replace(attack, eps=0.14)(PROBLEM.model, IMAGES, LABELS).success, DISTANCE > 0.28
    assert near.sum() >= 3
    assert far.sum() >= 3
    assert certificate.right_within(0.28).sum() >= 3
    torch.manual_seed(0)
    model = smoothed(PROBLEM.model, QUICK, draws=64, output=output)
    result = EOT(attack=attack, eot_samples=2)(model, IMAGES, LABELS)
    assert result.success[near].all()
    assert not result.success[far].any()
    assert not result.success[certificate.right_within(0.28)].any()


def test_an_attack_long_enough_for_an_optimised_copy_runs_on_it_too() -> None:
    model = smoothed(tiny_model(), Smoothing(sigma=0.1), draws=4)
    result = PGD(eps=0.2, steps=45, keep="last")(model, FEW, FEW_LABELS)
    assert result.success.any()
    assert model(FEW).shape == (12, 3)


# --------------------------------------------------------------------------------------------------------- objectives


def drawn(seed: int, images: Tensor, draws: int, sigma: float) -> Tensor:
    """The noise that an objective draws when PyTorch's generator has this seed."""
    torch.manual_seed(seed)
    streams = Streams(int(torch.randint(1 << 62, ())), torch.arange(len(images)))
    return sigma * streams.normal((draws, *images.shape[1:]), "noise")


def settled() -> Classifier:
    """A tiny model without dropout, in training mode, whose running averages are not the initial ones."""
    model = tiny_model().train()
    model.network[6].p = 0.0  # type: ignore[index,assignment]
    with torch.no_grad():
        for _ in range(30):
            model(FEW + 0.2 * torch.randn(FEW.shape, generator=generator(1)))
    return model


def by_hand(model: Classifier, images: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of all copies, one batch, and probabilities `(n, draws, classes)`."""
    probabilities = model(torch.cat([image + each for image, each in zip(images, noise, strict=True)])).softmax(1)
    probabilities = probabilities.view(len(images), noise.shape[1], -1)
    losses = [
        -probabilities[row, draw, label].log()
        for row, label in enumerate(labels.tolist())
        for draw in range(noise.shape[1])
    ]
    return torch.stack(losses).mean(), probabilities


def assert_same_training(model: Classifier, twin: Classifier, loss: Tensor, expected: Tensor) -> None:
    """Loss, weight gradients and buffers."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name
    for (name, one), other in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.allclose(one.float(), other[1].float(), rtol=1e-5), name


@pytest.mark.parametrize("draws", [1, 3])
def test_gaussian_training_is_the_loss_of_noisy_copies(draws: int) -> None:
    model, twin = settled(), settled()
    torch.manual_seed(7)
    loss, logits = GaussianTraining(sigma=0.3, draws=draws)(model, FEW, FEW_LABELS)
    expected, probabilities = by_hand(twin, FEW, FEW_LABELS, drawn(7, FEW, draws, 0.3))
    assert torch.allclose(logits, probabilities.mean(1).log(), atol=1e-5)
    assert_same_training(model, twin, loss, expected)


def test_the_noise_of_training_is_normal_unclipped_and_another_each_time() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.detach().clone())
            return self.weight * images.flatten(1)[:, :2]

    model = classifier(Watching()).train()
    for _ in range(2):
        GaussianTraining(sigma=0.5, draws=4)(model, torch.zeros(50, *SHAPE), torch.zeros(50, dtype=torch.int64))
    assert not torch.equal(seen[0], seen[1])
    for each in seen:
        assert each.shape == (200, *SHAPE)
        assert float(each.mean()) == pytest.approx(0, abs=0.03)
        assert float(each.std()) == pytest.approx(0.5, rel=0.03)
        assert len(each.flatten(1).unique(dim=0)) == 200


def slow_pgd(model: Classifier, images: Tensor, labels: Tensor, noise: Tensor, eps: float, steps: int) -> Tensor:
    """PGD in L2 on the mean softmax, image by image, draw by draw, in evaluation mode."""
    found = []
    for image, label, noises in zip(images, labels.tolist(), noise, strict=True):
        moved = image
        for _ in range(steps):
            moved = moved.detach().requires_grad_(True)
            mean = torch.stack([model((moved + each).unsqueeze(0)).softmax(1)[0, label] for each in noises]).mean()
            (gradient,) = torch.autograd.grad(-mean.log(), moved)
            delta = moved.detach() + 2 * eps / steps * gradient / gradient.norm() - image
            delta = delta * min(1.0, eps / float(delta.norm()))
            moved = image + delta
        found.append(moved)
    return torch.stack(found)


GREY, GREY_LABELS = (0.3 + 0.4 * FEW)[:6], FEW_LABELS[:6]
"""Images that a small step does not bring to the bounds, where projections need more than is written out here."""


def test_smooth_adversarial_training_is_pgd_on_the_mean_softmax() -> None:
    objective = SmoothAdversarialTraining(sigma=0.2, eps=0.2, steps=3, draws=2)
    model, twin = settled(), settled()
    torch.manual_seed(9)
    loss, logits = objective(model, GREY, GREY_LABELS)
    noise = drawn(9, GREY, 2, 0.2)
    quiet = settled().eval()
    moved = slow_pgd(quiet, GREY, GREY_LABELS, noise, 0.2, 3)
    assert moved.min() > 0
    assert moved.max() < 1
    found, _ = objective.adversarial(quiet, GREY, GREY_LABELS, noise)
    assert torch.allclose(found, moved, atol=1e-5)
    assert torch.allclose(logits, by_hand(quiet, GREY, GREY_LABELS, noise)[1].mean(1).log(), atol=1e-5)
    assert not logits.requires_grad
    expected, _ = by_hand(twin, moved, GREY_LABELS, noise)
    assert_same_training(model, twin, loss, expected)


def test_the_adversarial_images_lie_in_the_ball_and_are_worse_under_the_same_noise() -> None:
    objective = SmoothAdversarialTraining(sigma=0.2, eps=0.5, steps=4, draws=3)
    assert objective.ball == Ball(eps=0.5, norm="l2")
    noise = drawn(2, TASK.images, 3, 0.2)
    moved, logits = objective.adversarial(TASK.model, TASK.images, TASK.labels, noise)
    assert distance(moved, TASK.images, "l2").max() <= 0.5 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    before = F.nll_loss(logits, TASK.labels, reduction="none")
    _, probabilities = by_hand(TASK.model, moved, TASK.labels, noise)
    after = F.nll_loss(probabilities.mean(1).log(), TASK.labels, reduction="none")
    assert (after > before).all()


def test_with_eps_zero_smooth_adversarial_training_is_gaussian_training() -> None:
    model, twin = settled(), settled()
    torch.manual_seed(3)
    loss, _ = SmoothAdversarialTraining(sigma=0.3, eps=0.0, steps=2, draws=4)(model, FEW, FEW_LABELS)
    torch.manual_seed(3)
    expected, _ = GaussianTraining(sigma=0.3, draws=4)(twin, FEW, FEW_LABELS)
    assert loss.item() == expected.item()
    assert_same_training(model, twin, loss, expected)


def test_the_warm_up_raises_eps_and_the_step() -> None:
    objective = SmoothAdversarialTraining(eps=0.4, step_size=0.1, warmup=0.2)
    assert isinstance(objective, SteppedObjective)
    index = torch.arange(3)
    found = [objective.at_step(TrainingStep(done=done, index=index)) for done in (0.0, 0.05, 0.1, 0.2, 0.9)]
    assert [each.eps for each in found] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    assert [each.step_size for each in found] == pytest.approx([0, 0.025, 0.05, 0.1, 0.1])
    assert all(each.warmup == 0 for each in found)
    still = SmoothAdversarialTraining(eps=0.4)
    assert still.at_step(TrainingStep(done=0.0, index=index)) == still


class Trouble(nn.Module):
    """A network whose logits are NaN where an image has a pixel above `limit`."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.inner = TASK.model.network
        self.limit = limit

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.inner(images) + torch.where(images.flatten(1).amax(1, keepdim=True) > self.limit, math.nan, 0.0)


def test_gradients_that_are_not_finite_leave_the_image_as_it_is() -> None:
    noise = torch.zeros(12, 2, *SHAPE)
    noise[:3, 0, 0, 0, 0] = 10
    objective = SmoothAdversarialTraining(eps=0.3, steps=2)
    moved, _ = objective.adversarial(classifier(Trouble(5), classes=4), TASK.images, TASK.labels, noise)
    assert torch.equal(moved[:3], TASK.images[:3])
    assert distance(moved, TASK.images, "l2")[3:].min() > 0.1


def test_an_image_whose_gradient_is_not_finite_only_later_is_the_clean_one_too() -> None:
    grey, labels, noise = torch.full((4, *SHAPE), 0.5), torch.arange(4), torch.zeros(4, 1, *SHAPE)
    objective = SmoothAdversarialTraining(eps=0.3, steps=2)
    moved, logits = objective.adversarial(classifier(Trouble(0.501), classes=4), grey, labels, noise)
    assert torch.equal(moved, grey)
    assert logits.isfinite().all()
    assert distance(objective.adversarial(TASK.model, grey, labels, noise)[0], grey, "l2").min() > 0.1


def test_consistency_by_hand() -> None:
    objective = ConsistencyTraining(sigma=0.3, draws=3, weight=5.0, entropy=0.7)
    model, twin = settled(), settled()
    torch.manual_seed(8)
    loss, logits = objective(model, FEW, FEW_LABELS)
    expected, probabilities = by_hand(twin, FEW, FEW_LABELS, drawn(8, FEW, 3, 0.3))
    total = torch.zeros(())
    for each in probabilities:  # (draws, classes) of one image
        mean = each.mean(0)
        for copy_ in each:
            total = total + 5.0 / 3 * (mean * (mean / copy_).log()).sum()
        total = total - 0.7 * (mean * mean.log()).sum()
    assert total.item() / len(FEW) > 0.1
    assert torch.allclose(logits, probabilities.mean(1).log(), atol=1e-5)
    assert_same_training(model, twin, loss, expected + total / len(FEW))


def test_consistency_without_factors_is_gaussian_training() -> None:
    torch.manual_seed(3)
    loss, _ = ConsistencyTraining(sigma=0.3, draws=2, weight=0.0, entropy=0.0)(settled(), FEW, FEW_LABELS)
    torch.manual_seed(3)
    expected, _ = GaussianTraining(sigma=0.3, draws=2)(settled(), FEW, FEW_LABELS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_consistency_accepts_masked_classes() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(36, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images.flatten(1)) + torch.tensor([0.0, 0.0, -math.inf])

    model = classifier(Masked(), classes=3).train()
    loss, _ = ConsistencyTraining()(model, IMAGES, LABELS)
    loss.backward()
    assert loss.isfinite()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())


OBJECTIVES: list[Objective] = [
    GaussianTraining(sigma=0.3, draws=2),
    SmoothAdversarialTraining(sigma=0.3, eps=0.2, steps=2, draws=2, warmup=0.5),
    ConsistencyTraining(sigma=0.3, weight=2.0),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: type(each).__name__)
def test_validation_is_the_loss_under_noise_and_changes_nothing(objective: Any) -> None:
    model = settled().eval()
    before = snapshot(model)
    torch.manual_seed(6)
    loss, logits = objective.validate(model, FEW, FEW_LABELS)
    noise = drawn(6, FEW, 2, 0.3)
    clean, probabilities = by_hand(model, FEW, FEW_LABELS, noise)
    assert torch.allclose(logits, probabilities.mean(1).log(), atol=1e-5)
    if isinstance(objective, SmoothAdversarialTraining):
        moved, _ = objective.adversarial(model, FEW, FEW_LABELS, noise)
        clean = by_hand(model, moved, FEW_LABELS, noise)[0]
    assert loss.item() == pytest.approx(clean.item(), rel=1e-5)
    assert not loss.requires_grad
    assert not logits.requires_grad
    assert not model.training
    for name, tensor in snapshot(model).items():
        assert torch.equal(tensor, before[name]), name


SETTINGS = TrainConfig(epochs=2, batch_size=25, learning_rate=1e-2, seed=3)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: type(each).__name__)
def test_training_lowers_the_loss_under_noise(objective: Any) -> None:
    assert isinstance(objective, Objective)
    judge = GaussianTraining(sigma=0.3, draws=8)
    images, labels = VALIDATION.tensors()
    torch.manual_seed(0)
    before = judge.validate(tiny_model().eval(), images, labels)[0].item()
    model = fit(tiny_model(), TRAIN, VALIDATION, SETTINGS, objective=objective).model
    torch.manual_seed(0)
    assert judge.validate(model, images, labels)[0].item() < before - 0.15


def test_training_is_a_function_of_its_seed() -> None:
    objective, once = SmoothAdversarialTraining(steps=1, draws=2, warmup=0.5), replace(SETTINGS, epochs=1)
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        weights.append(snapshot(fit(tiny_model(), TRAIN[:50], VALIDATION, once, objective=objective).model))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianTraining(sigma=0.0), "sigma = 0.0; expected positive"),
        (lambda: GaussianTraining(draws=0), "draws = 0; expected at least 1"),
        (lambda: SmoothAdversarialTraining(eps=-1.0), "eps = -1.0"),
        (lambda: SmoothAdversarialTraining(steps=0), "steps = 0; expected at least 1"),
        (lambda: SmoothAdversarialTraining(warmup=1.5), "warmup = 1.5; expected from 0 to 1"),
        (lambda: ConsistencyTraining(draws=1), r"draws = 1; expected at least 2 \(one copy agrees with itself\)"),
        (lambda: ConsistencyTraining(weight=-1.0), "weight = -1.0; expected zero or more"),
        (lambda: ConsistencyTraining(entropy=math.inf), "entropy = inf"),
    ],
)
def test_settings_of_objectives_outside_their_values_are_refused(make: Callable[[], object], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        make()
