"""Detectors held against literal scores and closed forms, their thresholds, and the attack that knows them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from casemate.attacks import PGD, Square
from casemate.attacks.differentiate import gradient_of
from casemate.data import LabelledImages
from casemate.defenses.detection import (
    CalibratedDetector,
    FeatureSqueezing,
    LogisticDetector,
    MahalanobisDetector,
    RelaxedDetector,
    calibrated,
    fit_logistic,
    fit_mahalanobis,
    layer_input,
)
from casemate.defenses.preprocessing import MedianFilter, ReducedDepth
from casemate.errors import CasemateWarning, DataError, ModelError, SettingError, ShapeError
from casemate.evaluation.detection import (
    DetectionResult,
    DetectorOutcome,
    Evasion,
    evaluate_detector,
    with_detector,
)
from casemate.models import Classifier
from casemate.norms import Bounds
from casemate.training.state import snapshot
from conftest import Listener, tiny_images, tiny_model
from oracles import as_installed, check_inside, classifier, generator, untyped

TRAIN, TRAIN_LABELS = tiny_images(200, seed=1).tensors()
IMAGES, LABELS = tiny_images(24, seed=2).tensors()
HELD_OUT, _ = tiny_images(100, seed=3).tensors()
QUICK: dict[str, Any] = {"eps": 0.35, "steps": 15, "restarts": 1, "attacks": {"PGD": PGD(eps=0.35, steps=15)}}
"""A ball in which all images can be misclassified."""


@cache
def trained() -> Classifier:
    """A tiny network that is nearly always right on the tiny images."""
    torch.manual_seed(0)
    model = tiny_model().train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        some = torch.randperm(len(TRAIN))[:50]
        optimiser.zero_grad()
        F.cross_entropy(model(TRAIN[some]), TRAIN_LABELS[some]).backward()
        optimiser.step()
    return model.eval()


@dataclass(frozen=True)
class Brightness:
    """The mean pixel, whatever the model says."""

    def scores(self, model: Classifier, images: Tensor) -> Tensor:
        """One number per image."""
        del model
        return images.flatten(1).mean(1)


@dataclass(frozen=True)
class Constant:
    """The same score for every image, without a gradient."""

    value: float = 1.0

    def scores(self, model: Classifier, images: Tensor) -> Tensor:
        """One number per image."""
        del model
        return torch.full((len(images),), self.value)


# ------------------------------------------------------------------------------------------------ feature squeezing


@pytest.mark.parametrize("bits", [None, 3])
def test_the_score_is_the_largest_distance_of_probabilities(bits: int | None) -> None:
    model = trained()
    with torch.no_grad():
        found = FeatureSqueezing(bits=bits, window=3).scores(model, IMAGES)
        own = model(IMAGES).softmax(1).numpy()
        versions = [change(IMAGES) for change in (ReducedDepth(bits or 1), MedianFilter(3))]
        apart = [np.abs(model(each).softmax(1).numpy() - own).sum(1) for each in versions]
    assert np.allclose(found.numpy(), np.maximum(*apart), atol=1e-6)
    assert not np.allclose(*apart, atol=1e-4)


def test_colour_images_keep_five_bits() -> None:
    images = torch.rand(2, 3, 6, 6, generator=generator(0))
    assert torch.equal(FeatureSqueezing().squeezed(images)[0], ReducedDepth(5)(images))
    assert torch.equal(FeatureSqueezing().squeezed(images)[1], MedianFilter(2)(images))


@pytest.mark.parametrize("bounds", [(0.0, 255.0), (-1.0, 1.0)])
def test_levels_run_over_the_bounds_of_the_model(bounds: Bounds) -> None:
    low, span = bounds[0], bounds[1] - bounds[0]
    model = Classifier(trained().network, bounds=bounds, mean=low, std=span).eval()
    detector, moved = FeatureSqueezing(bits=1), low + span * IMAGES
    with torch.no_grad():
        levels = detector.squeezed(moved, bounds)[0].unique().tolist()
        assert levels == list(bounds)
        for score in (detector.scores, detector.relaxed):
            expected = getattr(FeatureSqueezing(bits=1), score.__name__)(trained(), IMAGES)
            assert torch.allclose(score(model, moved), expected, atol=1e-4)
            assert expected.max() > 0.05


def test_scores_and_what_is_pursued_have_gradients_and_the_latter_does_not_vanish() -> None:
    """With logits a hundred times larger the softmax saturates."""

    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = trained()

        def forward(self, images: Tensor) -> Tensor:
            return 100 * self.model(images)

    moved = PGD(eps=0.35, steps=15)(trained(), IMAGES, LABELS).adversarial
    steep = Classifier(Steep(), input_shape=(1, 8, 8), classes=3).eval()
    detector = FeatureSqueezing()

    def gradients(model: Classifier, compute: Callable[[Classifier, Tensor], Tensor]) -> Tensor:
        leaf = moved.clone().requires_grad_(True)
        return gradient_of(compute(model, leaf).sum(), leaf).flatten(1).abs().amax(1)

    assert gradients(trained(), detector.scores).gt(0).all()
    with torch.no_grad():
        caught = detector.scores(steep, moved) > 1.9
    assert caught.sum() >= 3
    assert gradients(steep, detector.scores)[caught].median() < 1e-6
    assert gradients(steep, detector.relaxed)[caught].min() > 1e-2


def test_where_what_is_pursued_is_low_the_score_is_low() -> None:
    """All versions give the predicted class at least exp(-r), so no distance exceeds twice the rest."""
    detector = FeatureSqueezing()
    moved = (IMAGES + 0.2 * torch.randn(IMAGES.shape, generator=generator(2))).clamp(0, 1)
    with torch.no_grad():
        for images in (IMAGES, moved):
            scores, relaxed = (each(trained(), images) for each in (detector.scores, detector.relaxed))
            assert (scores <= 2 * (1 - (-relaxed).exp()) + 1e-5).all()
    assert isinstance(detector, RelaxedDetector)
    assert not isinstance(Brightness(), RelaxedDetector)


# ------------------------------------------------------------------------------------------------ features of a layer


def test_the_input_of_the_last_dense_layer_is_found_and_nothing_stays_behind() -> None:
    model = trained()
    with torch.no_grad():
        features = layer_input(model, IMAGES, "network.8")
        layer = model.get_submodule("network.8")
        assert torch.allclose(layer(features), model(IMAGES), atol=1e-5)
    assert not layer._forward_pre_hooks
    assert model.pass_size is None
    assert fit_mahalanobis(model, TRAIN, TRAIN_LABELS).layer == "network.8"


def test_a_layer_that_is_missing_or_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(36, 36)

        def forward(self, images: Tensor) -> Tensor:
            return self.dense(self.dense(images.flatten(1)))

    with pytest.raises(ModelError, match="the model has no layer 'nothing'; expected a name"):
        layer_input(trained(), IMAGES, "nothing")
    with pytest.raises(ModelError, match=r"calls its layer 'network.dense' 2 times for 3 images"):
        layer_input(classifier(Twice(), classes=36), torch.rand(3, 1, 6, 6), "network.dense")
    with pytest.raises(ModelError, match=r"no dense layer \(nn.Linear\)"):
        fit_mahalanobis(classifier(nn.Flatten(), classes=36), torch.rand(3, 1, 6, 6), torch.zeros(3).long())


class Shifted(nn.Module):
    """The features are the pixels."""

    def __init__(self, classes: int = 3, pixels: int = 36) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.flat, self.dense = nn.Flatten(), nn.Linear(pixels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.flat(images))


def test_the_distance_is_mahalanobis() -> None:
    model = classifier(Shifted(), classes=3)
    images = torch.rand(200, 1, 6, 6, generator=generator(5))
    labels = torch.arange(200) % 3
    images[labels == 2] = images[labels == 2] / 2 + 0.5
    detector = fit_mahalanobis(model, images, labels)
    flat = images.flatten(1).double().numpy()
    means = np.stack([flat[labels.numpy() == each].mean(0) for each in range(3)])
    apart = flat - means[labels.numpy()]
    inverse = np.linalg.inv(apart.T @ apart / len(flat))
    others = torch.rand(20, 1, 6, 6, generator=generator(6))
    seen = others.flatten(1).double().numpy()
    expected = [min((one - mean) @ inverse @ (one - mean) for mean in means) for one in seen]
    assert np.allclose(detector.scores(model, others).detach().numpy(), expected, rtol=1e-3)


def test_features_that_never_vary_do_not_count() -> None:
    model = classifier(Shifted(), classes=3)
    images = torch.rand(100, 1, 6, 6, generator=generator(5))
    images[:, :, 0] = 0.5
    detector = fit_mahalanobis(model, images, torch.arange(100) % 3)
    assert detector.whitening.shape == (36, 30)
    other = images.clone()
    other[:, :, 0] = 0.9
    with torch.no_grad():
        assert torch.allclose(detector.scores(model, images), detector.scores(model, other), rtol=1e-3)
    with pytest.raises(ShapeError, match="do not vary within the classes"):
        fit_mahalanobis(model, images[:1], torch.zeros(1).long())


def test_logistic_regression_is_at_its_optimum_and_separates() -> None:
    model = classifier(Shifted(), classes=3)
    clean = torch.rand(60, 1, 6, 6, generator=generator(7)) / 2
    other = torch.rand(30, 1, 6, 6, generator=generator(8)) / 2
    other[:, :, :2] += 0.15
    detector = fit_logistic(model, clean, other, penalty=0.01)
    with torch.no_grad():
        both = [detector.scores(model, images) for images in (clean, other)]
    assert both[0].median() < -1 < 1 < both[1].median()

    features = torch.cat([clean, other]).flatten(1).double()
    scale = features.std(0, correction=0)

    def objective(slope: Tensor, bias: float) -> float:
        odds = features @ slope + bias
        losses = F.softplus(torch.cat([odds[:60], -odds[60:]]))
        return float((losses[:60].mean() + losses[60:].mean()) / 2 + 0.005 * (slope * scale).square().sum())

    least = objective(detector.weight, detector.bias)
    random = generator(9)
    for size in (1e-3, 1e-1):
        for _ in range(10):
            change = size * torch.randn(37, generator=random, dtype=torch.float64)
            assert objective(detector.weight + change[1:], detector.bias + float(change[0])) > least - 1e-9


# ------------------------------------------------------------------------------------------------------ the threshold


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.29, 0.5, 0.99])
@pytest.mark.parametrize(
    "detector", [FeatureSqueezing(), Brightness(), Constant()], ids=lambda each: type(each).__name__
)
def test_at_most_the_requested_share_of_the_images_is_rejected(
    detector: FeatureSqueezing | Brightness | Constant, rate: float
) -> None:
    found = calibrated(detector, trained(), HELD_OUT, false_positive_rate=rate, batch_size=30)
    rejected = int(found.flags(trained(), HELD_OUT).sum())
    assert rejected <= round(100 * rate)
    if isinstance(detector, Brightness):  # all scores differ
        assert rejected == round(100 * rate)
    assert found.false_positive_rate == rate
    assert found.spread > 0


@dataclass(frozen=True)
class Rounded:
    """The mean pixel in steps of 0.01, which rounds upwards in batches of other than 30 images."""

    def scores(self, model: Classifier, images: Tensor) -> Tensor:
        """One number per image."""
        del model
        means = (images.flatten(1).mean(1) * 100).round() / 100
        return means * (1 if len(images) == 30 else 1 + 1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.29, 0.5, 0.99])
def test_rounding_in_other_batches_rejects_no_more(rate: float) -> None:
    found = calibrated(Rounded(), trained(), HELD_OUT[:90], false_positive_rate=rate, batch_size=30)
    assert int(found.flags(trained(), HELD_OUT[:90]).sum()) <= round(90 * rate)


def test_calibration_changes_neither_the_detector_nor_the_model() -> None:
    model = tiny_model().train()
    before = snapshot(model)
    bare = FeatureSqueezing()
    calibrated(bare, model, HELD_OUT)
    after = snapshot(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training
    assert bare == FeatureSqueezing()


def test_the_excess_is_in_units_of_the_spread() -> None:
    detector = CalibratedDetector(detector=Brightness(), threshold=0.4, spread=0.1)
    means = IMAGES.flatten(1).mean(1)
    assert torch.allclose(detector.excess(trained(), IMAGES), (means - 0.4) / 0.1, atol=1e-5)
    assert torch.equal(detector.flags(trained(), IMAGES), means > 0.4)
    assert torch.equal(detector.pursued(trained(), IMAGES), detector.excess(trained(), IMAGES))


# --------------------------------------------------------------------------------------------------------- the attack


def test_the_criterion_counts_what_is_misclassified_and_not_rejected() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor(
        [[1.0, 3, 0, 9, -1], [1, 3, 0, 9, 2], [3, 1, 0, 9, -1], [2, 1, 0, 9, 0]]  # class logits, pursued, excess
    )
    criterion = Evasion(labels)
    assert criterion.margin(logits).tolist() == [1, -2, -2, 0]
    assert criterion.fools(logits).tolist() == [True, False, False, True]  # a score at the threshold is accepted
    with pytest.raises(ShapeError, match=r"labels from 0 to 1; with 1 classes they run from 0 to 0"):
        criterion.check(3)


@pytest.mark.parametrize("kind", ["squeezing", "logistic", "mahalanobis"])
def test_the_joint_network_returns_logits_and_excess(kind: str) -> None:
    model = trained()
    detector = {
        "squeezing": FeatureSqueezing,
        "logistic": lambda: fit_logistic(model, TRAIN, 1 - TRAIN),
        "mahalanobis": lambda: fit_mahalanobis(model, TRAIN, TRAIN_LABELS),
    }[kind]()
    found = calibrated(detector, model, HELD_OUT)
    joint = with_detector(model, found)
    with torch.no_grad():
        columns = joint(IMAGES)
        assert torch.equal(columns[:, :3], model(IMAGES))
        assert torch.equal(columns[:, 4], found.excess(model, IMAGES))
        assert torch.equal(columns[:, 3], found.pursued(model, IMAGES))
    assert joint.interface["input_shape"] == (1, 8, 8)
    attack = PGD(eps=0.3, steps=5)
    result = attack(joint, IMAGES, Evasion(LABELS))
    check_inside(attack, result, IMAGES)
    with torch.no_grad():
        wrong = model(result.adversarial).argmax(1) != LABELS
    assert torch.equal(result.success, wrong & ~found.flags(model, result.adversarial))


@cache
def squeezing_evaluated() -> DetectionResult:
    """A detector that catches every image of an attack that does not know it."""
    detector = calibrated(FeatureSqueezing(bits=4), trained(), HELD_OUT)
    return evaluate_detector(detector, trained(), IMAGES, LABELS, **QUICK)


def test_the_adaptive_attack_defeats_feature_squeezing() -> None:
    result = squeezing_evaluated()
    unaware = result.unaware["PGD"]
    assert unaware.fooled.value > 0.9
    assert unaware.detected is not None
    assert unaware.detected.value > 0.9
    assert result.adaptive.fooled.value > 0.9
    assert result.adaptive.detected is not None
    assert result.adaptive.detected.value < 0.3
    assert result.is_broken
    assert result.robust.value < 0.3
    assert "The detector is broken: the adaptive attack evades it on" in result.summary
    assert result.summary in repr(result)
    assert "broken" in result._repr_html_()


def test_the_counts_add_up() -> None:
    result = squeezing_evaluated()
    assert len(result) == len(IMAGES)
    for each in (result.clean, result.adaptive, *result.unaware.values()):
        wrong, evaded = int(each.wrong.sum()), int(each.evaded.sum())
        assert wrong == evaded + int((each.wrong & each.flagged).sum())
        assert each.fooled.value * len(IMAGES) == pytest.approx(wrong)
        assert each.evading.value * len(IMAGES) == pytest.approx(evaded)
        if wrong:
            assert each.detected is not None
            assert each.detected.n == wrong
            assert each.detected.value == pytest.approx(1 - evaded / wrong)
            assert each.detected.low <= each.detected.value <= each.detected.high
    lost = result.clean.evaded | result.unaware["PGD"].evaded | result.adaptive.evaded
    assert np.array_equal(result.robust_mask, ~lost)
    assert result.false_positives.value == result.clean.flagged.mean()


def test_without_attacks_outcomes_are_those_of_the_model_and_the_detector() -> None:
    result = squeezing_evaluated()
    detector = calibrated(FeatureSqueezing(bits=4), trained(), HELD_OUT)
    with torch.no_grad():
        assert np.array_equal(result.clean.wrong, (trained()(IMAGES).argmax(1) != LABELS).numpy())
    assert np.array_equal(result.clean.flagged, detector.flags(trained(), IMAGES).numpy())
    alone = PGD(eps=0.35, steps=15)(trained(), IMAGES, LABELS).adversarial
    assert np.array_equal(result.unaware["PGD"].flagged, detector.flags(trained(), alone).numpy())


def test_a_detector_on_features_falls_too() -> None:
    model = trained()
    adversarial = PGD(eps=0.2, steps=20, keep="last")(model, TRAIN, TRAIN_LABELS)
    detector = calibrated(fit_logistic(model, TRAIN, adversarial.adversarial[adversarial.success]), model, HELD_OUT)
    result = evaluate_detector(detector, model, IMAGES, LABELS, eps=0.25, steps=15, restarts=1)
    unaware = result.unaware["PGD"].detected
    assert unaware is not None
    assert result.adaptive.detected is not None
    assert unaware.value > 0.7
    assert result.adaptive.detected.value < unaware.value - 0.4


@pytest.mark.filterwarnings("ignore:.*had no gradient to follow:casemate.errors.CasemateWarning")
def test_a_detector_that_rejects_everything_is_never_evaded_and_useless() -> None:
    detector = CalibratedDetector(detector=Constant(), threshold=0.0)
    result = evaluate_detector(detector, trained(), IMAGES, LABELS, **dict(QUICK, steps=3))
    assert result.false_positives.value == 1
    assert result.robust.value == 1
    assert result.adaptive.evading.value == 0
    assert not result.is_broken
    assert "of no use: it rejects 100.0 %" in result.summary
    assert math.isnan(result.requested_rate)


def test_a_detector_that_rejects_nothing_changes_nothing() -> None:
    detector = calibrated(Constant(), trained(), HELD_OUT, false_positive_rate=0)
    result = evaluate_detector(detector, trained(), IMAGES, LABELS, **QUICK)
    assert result.false_positives.value == 0
    assert np.array_equal(result.adaptive.evaded, result.adaptive.wrong)
    assert result.adaptive.wrong.sum() >= result.unaware["PGD"].wrong.sum()
    assert result.is_broken


def test_a_detector_is_broken_however_robust_the_model_is() -> None:
    """At a small radius few images fall at all; a detector that catches none of these is broken all the same."""
    detector = calibrated(Constant(), trained(), HELD_OUT, false_positive_rate=0)
    result = evaluate_detector(detector, trained(), IMAGES, LABELS, **dict(QUICK, eps=0.1, attacks={}))
    fooled = int(result.fooled_mask.sum())
    assert 0 < fooled < 0.5 * len(result)
    assert result.is_broken
    assert f"on {fooled} of the {fooled} images" in result.summary


def test_without_adversarial_images_there_is_nothing_to_detect() -> None:
    """Images that are misclassified without an attack are not the detector's to find."""
    detector = calibrated(Constant(), trained(), HELD_OUT, false_positive_rate=0)
    labels = torch.where(torch.arange(len(LABELS)) < 3, (LABELS + 1) % 3, LABELS)
    result = evaluate_detector(detector, trained(), IMAGES, labels, **dict(QUICK, eps=0.002, attacks={}))
    assert result.clean.wrong.sum() >= 3
    assert not result.is_broken
    assert "nothing to detect" in result.summary


def test_a_detector_without_gradients_is_warned_of() -> None:
    """It cannot be differentiated, and the model neither, so the attack did nothing."""

    class Rounding(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return trained()((images > 0.5).float())

    model = Classifier(Rounding(), input_shape=(1, 8, 8), classes=3).eval()
    detector = calibrated(Constant(), model, HELD_OUT)
    with pytest.warns(CasemateWarning, match="the adaptive attack had no gradient to follow on"):
        evaluate_detector(detector, model, IMAGES, LABELS, eps=0.01, steps=2, restarts=1, weights=(1,))


def test_another_adaptive_attack_gets_the_images_left(listener: Listener) -> None:
    detector = calibrated(Brightness(), trained(), HELD_OUT)
    settings: dict[str, Any] = {"eps": 0.2, "steps": 2, "restarts": 1, "weights": [1.0], "attacks": {}}
    without = evaluate_detector(detector, trained(), IMAGES, LABELS, **settings)
    square = Square(eps=0.35, n_queries=100)
    found = evaluate_detector(detector, trained(), IMAGES, LABELS, **settings, adaptive=square, observer=listener)
    assert found.unaware == {}
    assert (found.adaptive.evaded >= without.adaptive.evaded).all()
    assert found.adaptive.evaded.sum() > without.adaptive.evaded.sum()
    assert listener.titles == ["PGD", "APGD", "Square"]


def test_the_same_seed_gives_the_same_result_in_any_batches_and_the_model_stays() -> None:
    model = trained()
    before = snapshot(model)
    detector = calibrated(FeatureSqueezing(), model, HELD_OUT)
    settings: dict[str, Any] = {"eps": "3/2", "steps": 3, "restarts": 2, "weights": (1,), "norm": "l2", "seed": 7}
    one = evaluate_detector(detector, model, IMAGES, LABELS, **settings)
    two = evaluate_detector(detector, model, IMAGES.numpy(), LABELS.numpy(), **settings, batch_size=7)
    for first, second in (
        (one.adaptive, two.adaptive),
        (one.clean, two.clean),
        (one.unaware["PGD"], two.unaware["PGD"]),
    ):
        assert np.array_equal(first.wrong, second.wrong)
        assert np.array_equal(first.flagged, second.flagged)
    after = snapshot(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_labelled_images_and_loaders_give_the_same_as_tensors() -> None:
    model = trained()
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5)
    seen = LabelledImages(pixels=TRAIN, labels=TRAIN_LABELS)
    held_out = LabelledImages(pixels=HELD_OUT, labels=torch.zeros(len(HELD_OUT), dtype=torch.int64))
    detector = calibrated(fit_mahalanobis(model, seen), model, held_out)
    same = calibrated(fit_mahalanobis(model, TRAIN, TRAIN_LABELS), model, HELD_OUT)
    assert detector.threshold == same.threshold
    assert torch.equal(detector.flags(model, held_out), same.flags(model, HELD_OUT))
    one = evaluate_detector(detector, model, loader, eps=0.1, steps=2, restarts=1)
    two = evaluate_detector(same, model, IMAGES, LABELS, eps=0.1, steps=2, restarts=1)
    assert np.array_equal(one.adaptive.wrong, two.adaptive.wrong)
    with pytest.raises(DataError, match="images without labels"):
        evaluate_detector(detector, model, IMAGES, eps=0.1)


def test_a_clean_image_that_is_wrong_and_accepted_is_not_robust() -> None:
    detector = calibrated(Constant(), trained(), HELD_OUT)
    wrong = (LABELS + 1) % 3
    result = evaluate_detector(detector, trained(), IMAGES, wrong, eps=0, steps=1, restarts=1, attacks={})
    assert np.array_equal(result.robust_mask, ~result.clean.wrong)
    assert result.clean.wrong.mean() > 0.9


def test_no_misclassified_image_has_no_detection_rate() -> None:
    right = np.zeros(4, dtype=bool)
    assert DetectorOutcome(wrong=right, flagged=~right).detected is None
    outcome = DetectorOutcome(wrong=~right, flagged=np.array([True, True, True, False]))
    assert outcome.detected is not None
    assert (outcome.detected.value, outcome.evading.value) == (0.75, 0.25)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FeatureSqueezing(bits=0), SettingError, "bits = 0; expected a whole number of bits from 1 to 8"),
        (lambda: FeatureSqueezing(window=1), SettingError, "window = 1; expected at least 2"),
        (
            lambda: calibrated(Brightness(), trained(), HELD_OUT, false_positive_rate=1),
            SettingError,
            "false_positive_rate = 1; expected a share at least 0 and below 1",
        ),
        (
            lambda: calibrated(Brightness(), trained(), HELD_OUT[:19]),
            SettingError,
            "19 clean images for a false positive rate of 0.05; expected at least 20,",
        ),
        (lambda: calibrated(Brightness(), trained(), HELD_OUT[:0]), ShapeError, "no images; expected at least one"),
        (lambda: calibrated(Brightness(), trained(), HELD_OUT[:, :, :4]), ShapeError, "images of shape"),
        (lambda: calibrated(Constant(math.nan), trained(), HELD_OUT), ShapeError, "100 of 100 scores .* not finite"),
        (lambda: calibrated(Brightness(), trained(), HELD_OUT, batch_size=0), SettingError, "batch_size = 0"),
        (
            lambda: calibrated(untyped(FeatureSqueezing), trained(), HELD_OUT),
            SettingError,
            r"the class FeatureSqueezing as a detector; expected an object with a method scores\(model, images\)",
        ),
        (
            lambda: CalibratedDetector(detector=untyped(FeatureSqueezing), threshold=0.0),
            SettingError,
            "the class FeatureSqueezing as a detector; expected an object",
        ),
        (
            lambda: CalibratedDetector(detector=Brightness(), threshold=0.0, spread=0.0),
            SettingError,
            "spread = 0.0; expected positive",
        ),
        (lambda: fit_logistic(trained(), TRAIN, TRAIN, penalty=0), SettingError, "penalty = 0; expected positive"),
        (lambda: fit_logistic(trained(), TRAIN, TRAIN[:0]), ShapeError, "no images"),
        (lambda: fit_mahalanobis(trained(), TRAIN, TRAIN_LABELS + 1), ShapeError, "labels from 1 to 3"),
        (
            lambda: evaluate_detector(Brightness(), trained(), IMAGES, LABELS, eps=0.1),  # type: ignore[arg-type]
            SettingError,
            r"a Brightness as a detector; expected one with a threshold: calibrated\(",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with as_installed(), pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps": -0.1}, SettingError, "eps = -0.1"),
        ({"norm": "l0"}, SettingError, "norm = 'l0'; expected linf, l2 or l1"),
        ({"weights": ()}, SettingError, "no weights"),
        ({"weights": (-1,)}, SettingError, "weights = -1"),
        ({"steps": 0}, SettingError, "steps = 0"),
        ({"attacks": {"PGD": PGD}}, SettingError, "the class PGD as an attack"),
        ({"adaptive": "pgd"}, SettingError, "a str as an attack"),
        ({"labels": LABELS + 1}, ShapeError, "labels from 1 to 3"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ShapeError, "no images"),
    ],
)
def test_bad_evaluations_are_refused_by_name(settings: dict[str, object], error: type[Exception], message: str) -> None:
    detector = CalibratedDetector(detector=Brightness(), threshold=0.4)
    given = {"images": IMAGES, "labels": LABELS, "eps": 0.1} | settings
    with as_installed(), pytest.raises(error, match=message):
        evaluate_detector(detector, trained(), **given)  # type: ignore[arg-type]


def test_scores_of_another_shape_are_refused() -> None:
    @dataclass(frozen=True)
    class Column:
        def scores(self, model: Classifier, images: Tensor) -> Tensor:
            return model(images)

    detector = CalibratedDetector(detector=Column(), threshold=0.0)
    with as_installed(), pytest.raises(ShapeError, match=r"Column returns scores of shape \(24, 3\) for 24 images"):
        detector.flags(trained(), IMAGES)


def test_detectors_are_frozen_and_can_be_changed_by_copy() -> None:
    detector = CalibratedDetector(detector=FeatureSqueezing(), threshold=0.4)
    assert replace(detector, threshold=0.5).threshold == 0.5
    with pytest.raises(AttributeError):
        detector.threshold = 1.0  # type: ignore[misc]
    assert isinstance(fit_logistic(trained(), TRAIN, 1 - TRAIN), LogisticDetector)
    assert isinstance(fit_mahalanobis(trained(), TRAIN, TRAIN_LABELS), MahalanobisDetector)


@pytest.mark.parametrize(
    ("evaded", "words"),
    [
        (2, "The detector is not broken by this attack: the adaptive attack evades it on 2 of the 30"),
        (15, "It is not decided whether the detector is broken: the adaptive attack evades it on 15 of the 30"),
        (16, "The detector is broken: the adaptive attack evades it on 16 of the 30"),
    ],
)
def test_half_of_the_images_is_the_border_and_near_it_nothing_is_decided(evaded: int, words: str) -> None:
    none = np.zeros(30, dtype=bool)
    adaptive = DetectorOutcome(wrong=~none, flagged=np.arange(30) >= evaded)
    clean = DetectorOutcome(wrong=none, flagged=none)
    found = DetectionResult(eps=0.1, norm="linf", requested_rate=0.05, clean=clean, unaware={}, adaptive=adaptive)
    assert words in found.summary
