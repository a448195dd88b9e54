"""Certified and attacked accuracy of the same images: what is skipped, what is sampled, what voids a certificate."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from casemate.data import LabelledImages
from casemate.errors import SettingError, ShapeError
from casemate.evaluation import certified as module
from casemate.evaluation.certified import CertifiedEvaluation, evaluate_certified
from casemate.models import Classifier
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images

IMAGES = tiny_images(90, 4, noise=70)
VALUES = (0.12, 0.2, 0.26)


def network() -> Classifier:
    """Compares the brightness of three parts of an image, after a ReLU: easy to certify, not robust without end."""
    first = nn.Linear(64, 3)
    with torch.no_grad():
        first.weight.zero_()
        for place in range(3):
            first.weight[place].view(8, 8)[:, 3 * place : 3 * place + 2] = 1.0
        first.bias.fill_(-1.0)
    return Classifier(
        nn.Sequential(nn.Flatten(), first, nn.ReLU()), input_shape=TINY_SHAPE, classes=TINY_CLASSES
    ).eval()


@pytest.fixture(scope="module")
def found() -> CertifiedEvaluation:
    return evaluate_certified(network(), IMAGES, VALUES, budget="quick", sample=5)


def test_what_is_proven_is_at_most_what_the_attacks_leave(found: CertifiedEvaluation) -> None:
    assert (found.certified <= found.robust).all()
    assert (found.robust <= found.clean[:, None]).all()
    assert (np.diff(found.robust.astype(int), axis=1) <= 0).all()
    assert not found.is_void
    certified, robust = ([each.value for each in part] for part in (found.certified_accuracy, found.robust_accuracy))
    assert 0 < certified[-1] < robust[0] <= found.clean_accuracy.value
    assert all(one <= other for one, other in zip(certified, robust, strict=True))


def test_images_that_are_proven_are_not_attacked_but_for_the_sample(found: CertifiedEvaluation) -> None:
    assert found.sampled == [min(5, count) for count in found.certified.sum(0).tolist()]
    assert found.certified[:, 1].sum() > 20
    left = found.clean
    for column in range(3):
        proven = found.certified[:, column]
        assert (found.attacked[:, column] & ~proven).sum() == (left & ~proven).sum()
        left = found.robust[:, column]
    again = evaluate_certified(network(), IMAGES, VALUES, budget="quick", sample=5)
    assert np.array_equal(again.attacked, found.attacked)
    other = evaluate_certified(network(), IMAGES, VALUES, budget="quick", sample=5, seed=1)
    assert not np.array_equal(other.attacked, found.attacked)
    assert np.array_equal(other.robust, found.robust)


def test_to_skip_proven_images_changes_no_result(found: CertifiedEvaluation) -> None:
    whole = evaluate_certified(network(), IMAGES, VALUES, budget="quick", sample=len(IMAGES))
    assert np.array_equal(whole.robust, found.robust)
    assert whole.attacked.sum() > 2 * found.attacked.sum()
    assert whole.sampled == whole.certified.sum(0).tolist()


def test_one_success_on_a_certified_image_voids_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.certify

    def wrong(*given: object, **named: object) -> object:
        made = real(*given, **named)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        made.certified[:] = made.clean
        return made

    monkeypatch.setattr(module, "certify", wrong)
    found = evaluate_certified(network(), IMAGES, VALUES, budget="quick", sample=40)
    assert found.is_void
    assert found.contradicted.any()
    assert [each.value for each in found.certified_accuracy] == [0, 0, 0]
    assert "the certificate is void" in found.summary
    assert "certified images: the certificate is void" in repr(found)


def test_a_claim_from_elsewhere_skips_nothing() -> None:
    claim = np.ones((len(IMAGES), 1), dtype=bool)
    found = evaluate_certified(network(), IMAGES, VALUES[-1], budget="quick", claimed=claim)
    assert np.array_equal(found.attacked[:, 0], found.clean)
    assert found.is_void
    honest = evaluate_certified(network(), IMAGES, VALUES[-1], budget="quick").certified
    kept = evaluate_certified(network(), IMAGES, VALUES[-1], budget="quick", claimed=honest)
    assert not kept.is_void
    assert np.array_equal(kept.attacked[:, 0], kept.clean)
    assert kept.sampled == [int(honest.sum())]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms(norm: str) -> None:
    eps = {"l2": 0.3, "l1": 1.0}[norm]
    found = evaluate_certified(network(), IMAGES, eps, norm=norm, budget="quick", sample=10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert 0 < found.certified_accuracy[0].value <= found.robust_accuracy[0].value
    assert not found.is_void


@pytest.mark.parametrize("values", [[], [0.1, -1]])
def test_bad_settings(values: Sequence[float]) -> None:
    with pytest.raises(SettingError):
        evaluate_certified(network(), IMAGES, values)


def test_a_claim_in_another_order_than_ascending_is_refused() -> None:
    with pytest.raises(SettingError, match="expected ascending values, in the order of the claim's columns"):
        evaluate_certified(network(), IMAGES, [0.2, 0.1], claimed=np.ones((90, 2), dtype=bool))


def test_a_claim_about_misclassified_images_is_no_contradiction() -> None:
    wrong = LabelledImages(pixels=IMAGES.pixels, labels=(network()(IMAGES.tensors()[0]).argmax(1) + 1) % 3)
    found = evaluate_certified(network(), wrong, 0.1, budget="quick", claimed=np.ones((90, 1), dtype=bool))
    assert not found.is_void
    assert found.certified_accuracy[0].value == 0


def test_a_claim_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"a claim of shape \(3,\); expected \(90, 1\)"):
        evaluate_certified(network(), IMAGES, 0.1, claimed=np.ones(3, dtype=bool))


def test_images_that_are_all_misclassified_are_not_attacked() -> None:
    wrong = LabelledImages(pixels=IMAGES.pixels, labels=(network()(IMAGES.tensors()[0]).argmax(1) + 1) % 3)
    found = evaluate_certified(network(), wrong, 0.05, budget="quick")
    assert not found.attacked.any()
    assert not found.certified.any()
    assert found.robust_accuracy[0].value == 0
