"""Intervals against published values, clean measures by hand, curves, zero gradients, and tables on the disk."""

import math
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from casemate.attacks import BIM, EOT, FGSM, PGD, Passes, Status, sweep_eps
from casemate.data import LabelledImages, to_float
from casemate.errors import CasemateWarning, SettingError, ShapeError
from casemate.evaluation import (
    Curve,
    Estimate,
    eps_curve,
    evaluate_clean,
    mcnemar,
    mean,
    share,
    steps_curve,
    zero_gradients,
)
from casemate.evaluation.clean import CleanResult, expected_calibration_error
from casemate.evaluation.examples import clean_table, curve_table, example_table
from casemate.models import Classifier
from casemate.tables import Table, write_table
from conftest import Listener
from oracles import PIXELS, SHAPE, classifier, generator, network, small_task


def booleans(hits: int, count: int) -> np.ndarray:
    """`hits` times true, then false."""
    return np.arange(count) < hits


def stored_images(count: int, seed: int = 0, classes: int = 4) -> LabelledImages:
    """Random bytes with random labels."""
    random = generator(seed)
    return LabelledImages(
        pixels=torch.randint(256, (count, *SHAPE), generator=random, dtype=torch.uint8),
        labels=torch.randint(classes, (count,), generator=random),
    )


# -------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # Newcombe 1998, table I, method 3 (Wilson's score interval without continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_of_a_share_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    found = share(booleans(hits, count))
    assert (found.value, found.n) == (hits / count, count)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)
    assert found.as_json() == {"value": found.value, "low": found.low, "high": found.high, "n": count}


@given(st.integers(1, 300).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_of_a_share_is_wilsons_formula(case: tuple[int, int]) -> None:
    hits, count = case
    found, p, z = share(booleans(hits, count)), hits / count, 1.959963984540054
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    assert found.low == pytest.approx(max(0, centre - half), abs=1e-9)
    assert found.high == pytest.approx(min(1, centre + half), abs=1e-9)
    assert found.low <= found.value <= found.high


def test_the_bootstrap_interval_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    """300 samples of 60 from a skewed distribution of mean 1: about 93 % (the percentile method errs a little low)."""
    random = np.random.default_rng(0)
    holds = 0
    for number in range(300):
        found = mean(random.exponential(1.0, 60), seed=number)
        holds += found.low <= 1 <= found.high
    assert 0.88 <= holds / 300 <= 0.97


def test_the_bootstrap_interval_is_that_of_the_normal_approximation_where_that_holds() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 2000)
    found = mean(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.015)
    assert found.high == pytest.approx(values.mean() + half, abs=0.015)
    assert mean(values) == found, "the same seed"


def test_a_mean_of_equal_values_is_certain() -> None:
    assert mean(np.full(7, 2.5)).as_json() == {"value": 2.5, "low": 2.5, "high": 2.5, "n": 7}
    assert mean(np.array([3.0])).n == 1


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ShapeError):
        mean(np.array(values))
    with pytest.raises(ShapeError):
        share(np.array([], dtype=bool))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("", "62.5 % (58.9 to 66.0)"),
        ("n", "62.5 % (58.9 to 66.0, n = 1,234)"),
        (".0%n", "62 % (59 to 66, n = 1,234)"),
        (".3f", "0.625 (0.589 to 0.660)"),
    ],
)
def test_an_estimate_is_written_in_one_way(form: str, text: str) -> None:
    estimate = Estimate(0.625, 0.589, 0.66, 1234)
    assert format(estimate, form) == text
    assert Estimate.from_json(estimate.as_json()) == estimate
    with pytest.raises(ValueError, match="expected decimals"):
        format(estimate, "e")


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemar_is_twice_the_tail_of_a_fair_coin(only_first: int, only_second: int, p: float) -> None:
    """Of the examples on which only one is right; where both are right or wrong says nothing."""
    first = np.array([True] * only_first + [False] * only_second + [True] * 30 + [False] * 4)
    second = np.array([False] * only_first + [True] * only_second + [True] * 30 + [False] * 4)
    assert mcnemar(first, second) == pytest.approx(p)
    assert mcnemar(second, first) == pytest.approx(p)


def test_mcnemar_wants_the_same_examples() -> None:
    with pytest.raises(ShapeError):
        mcnemar(booleans(1, 3), booleans(1, 4))


# ---------------------------------------------------------------------------------------------------- clean measures


def by_hand() -> CleanResult:
    """Six examples of three classes; nobody belongs to the third."""
    return CleanResult(
        classes=("a", "b", "c"),
        labels=np.array([0, 0, 0, 1, 1, 1]),
        prediction=np.array([0, 0, 1, 1, 2, 1]),
        loss=np.array([0.1, 0.2, 2.0, 0.1, 3.0, 0.6]),
        confidence=np.array([0.95, 0.95, 0.61, 0.99, 0.65, 0.41]),
        gap=np.array([3.0, 3.0, 0.5, 5.0, 0.6, 0.1]),
    )


def test_accuracy_confusion_and_classes_by_hand() -> None:
    result = by_hand()
    assert result.correct.tolist() == [True, True, False, True, False, True]
    assert result.accuracy.value == pytest.approx(4 / 6)
    assert result.mean_loss.value == pytest.approx(1.0)
    assert result.confusion.tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 0]]
    first, second, third = result.per_class
    assert first is not None
    assert second is not None
    assert (first.value, first.n, second.value, second.n) == (pytest.approx(2 / 3), 3, pytest.approx(2 / 3), 3)
    assert third is None
    assert result.gap_quantiles["0.5"] == pytest.approx(1.8)


def test_calibration_error_by_hand() -> None:
    """Bins of 1/15: two right at 0.95 and one right at 0.99 share a bin; two wrong in another; one right alone."""
    last = abs(0.95 + 0.95 + 0.99 - 3)
    ninth = abs(0.61 + 0.65 - 0)
    sixth = abs(0.41 - 1)
    assert by_hand().calibration_error == pytest.approx((last + ninth + sixth) / 6)


def test_calibration_error_at_the_ends() -> None:
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([False, False])) == 1
    assert expected_calibration_error(np.array([0.5, 0.5]), np.array([True, False])) == 0


def test_clean_measures_are_those_of_the_network() -> None:
    model = classifier(network(dtype=torch.float32), classes=4).train()
    images = stored_images(50)
    result = evaluate_clean(model, images, batch_size=16)
    assert model.training
    with torch.no_grad():
        logits = model(to_float(images.pixels)).double()
    assert result.prediction.tolist() == logits.argmax(1).tolist()
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, images.labels, reduction="none").numpy())
    assert result.confidence == pytest.approx(logits.softmax(1).amax(1).numpy())
    top = logits.sort(1, descending=True).values
    assert result.gap == pytest.approx((top[:, 0] - top[:, 1]).numpy(), rel=1e-4, abs=1e-5)
    assert result.classes == model.classes
    assert result.labels.tolist() == images.labels.tolist()
    assert result.confusion.sum() == 50


# ----------------------------------------------------------------------------------------------------------- curves


def learner() -> tuple[Classifier, LabelledImages]:
    """A float32 network and stored images of which it gets most right."""
    model = classifier(network(dtype=torch.float32, scale=4.0), classes=4)
    images = stored_images(45)
    with torch.no_grad():
        labels = model(to_float(images.pixels)).argmax(1)
    labels[::9] = (labels[::9] + 1) % 4
    return model, LabelledImages(pixels=images.pixels, labels=labels)


def test_the_points_of_a_curve(listener: Listener) -> None:
    model, images = learner()
    curve = eps_curve(model, FGSM(eps=0.5), images, [0.0, 0.05, 0.2], batch_size=20, observer=listener)
    points = curve.points()
    assert [set(point) for point in points] == [{"eps", "worst", "last", "loss"}] * 3
    assert [point["eps"] for point in points] == [0.0, 0.05, 0.2]
    assert all(set(point[name]) == {"value", "low", "high", "n"} for point in points for name in point if name != "eps")
    assert points[0]["worst"]["value"] == points[0]["last"]["value"] == pytest.approx(40 / 45)
    assert points[0]["last"]["n"] == 45
    assert points[2]["last"]["value"] < points[0]["last"]["value"]
    assert points[2]["loss"]["value"] > points[0]["loss"]["value"]
    assert curve.attack["name"] == "FGSM"
    assert listener.done == listener.total == 45
    assert listener.titles == ["FGSM over eps"]


def test_a_curve_of_averaged_gradients_says_whose_they_are(listener: Listener) -> None:
    model, images = learner()
    eps_curve(model, EOT(attack=BIM(eps=0.5, steps=1), eot_samples=2), images, [0.0], observer=listener)
    assert listener.titles == ["BIM over eps, mean of 2 gradients"]


def test_a_curve_of_only_worst_has_nothing_else() -> None:
    model, images = learner()
    full = eps_curve(model, BIM(eps=0.5), images, [0.0, 0.05])
    less = eps_curve(model, BIM(eps=0.5), images, [0.0, 0.05], only_worst=True)
    assert less.last is None
    assert [set(point) for point in less.points()] == [{"eps", "worst"}] * 2
    assert np.array_equal(full.worst, less.worst)


def test_a_curve_is_its_sweeps_joined_whatever_the_batch_size() -> None:
    model, images = learner()
    attack = PGD(eps=0.5, steps=3)
    curve = eps_curve(model, attack, images, [0.02, 0.1], batch_size=7, seed=5)
    pixels, labels = images.tensors()
    whole = sweep_eps(attack, model, pixels, labels, [0.02, 0.1], seed=5)
    assert np.array_equal(curve.worst, whole.worst.numpy())
    assert curve.last is not None
    assert whole.last is not None
    assert curve.last.loss == pytest.approx(whole.last.loss.numpy(), rel=1e-4)
    assert curve.passes == whole.passes


def test_a_curve_over_iterations() -> None:
    model, images = learner()
    curve = steps_curve(model, BIM(eps=0.05, step_size=0.01), images, [0, 1, 5])
    assert [point["steps"] for point in curve.points()] == [0, 1, 5]
    assert curve.axis == "steps"
    assert (np.diff(curve.worst.mean(0)) <= 0).all()
    with pytest.raises(SettingError):
        steps_curve(model, BIM(eps=0.05), images, [5, 1])


def test_a_loss_that_is_not_finite_is_left_out_of_the_mean_and_shows_in_n() -> None:
    class Masked(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.flatten(1).mean(1)
            return torch.stack([level, -level, level.where(level < 0.5, -torch.inf)], 1)

    images = LabelledImages(
        pixels=torch.tensor([[60], [90], [200]], dtype=torch.uint8).repeat(1, PIXELS).view(3, *SHAPE),
        labels=torch.tensor([0, 1, 2]),
    )
    points = eps_curve(classifier(Masked(), classes=3), FGSM(eps=0.1), images, [0.0]).points()
    assert points[0]["loss"]["n"] == 2
    assert points[0]["last"]["n"] == 3


# --------------------------------------------------------------------------------------------------- zero gradients


def overconfident(gaps: list[float], *, others: bool = False) -> tuple[Classifier, LabelledImages]:
    """One image for each gap, told apart by its one bright pixel; the label leads by at least the gap.

    Without `others`, no logit but the label's depends on the pixels.
    """
    layer = nn.Linear(PIXELS, 3, bias=False)
    pixels = torch.zeros(len(gaps), *SHAPE, dtype=torch.uint8)
    with torch.no_grad():
        layer.weight.zero_()
        for number, gap in enumerate(gaps):
            layer.weight[:, number] = torch.tensor([gap, -1.0 if others else 0.0, 0.0])
            pixels[number].view(-1)[number] = 255
    return classifier(nn.Sequential(nn.Flatten(), layer), classes=3), LabelledImages(
        pixels=pixels, labels=torch.zeros(len(gaps), dtype=torch.int64)
    )


def test_zero_gradients_of_a_saturated_classifier() -> None:
    """Past a gap of about 17 `torch-ce` is left with the other classes' gradients, if they depend on the pixels at all.

    The probability form is left with nothing, the stable form with everything.
    """
    gaps = [1.0, 10.0, 15.5, 18.5, 30.0, 60.0]
    found = zero_gradients(*overconfident(gaps), batch_size=4)
    nowhere, where_sure = [False] * 6, [False] * 3 + [True] * 3
    assert {loss: zeros.tolist() for loss, zeros in found.items()} == {
        "ce": nowhere,
        "torch-ce": where_sure,
        "prob-ce": where_sure,
        "margin": nowhere,
    }
    found = zero_gradients(*overconfident(gaps, others=True))
    assert {loss: zeros.tolist() for loss, zeros in found.items()} == {
        "ce": nowhere,
        "torch-ce": nowhere,
        "prob-ce": where_sure,
        "margin": nowhere,
    }


def test_with_a_zero_gradient_fgsm_does_not_move_whatever_its_eps() -> None:
    model, images = overconfident([30.0, 60.0])
    pixels, labels = images.tensors()
    for loss, standing in (("prob-ce", True), ("torch-ce", True), ("ce", False), ("margin", False)):
        words = "FGSM had no gradient to follow on 2 of 2 images"
        with pytest.warns(CasemateWarning, match=words) if standing else nullcontext():
            result = FGSM(eps=1.0, loss=loss)(model, pixels, labels)  # type: ignore[arg-type]
        assert torch.equal(result.adversarial, pixels) == standing
        assert result.status.eq(Status.ZERO_GRADIENT).all() == standing


def test_only_the_losses_asked_for_are_looked_at(listener: Listener) -> None:
    model, images = overconfident([1.0, 60.0])
    found = zero_gradients(model, images, ("prob-ce",), observer=listener)
    assert {loss: zeros.tolist() for loss, zeros in found.items()} == {"prob-ce": [False, True]}
    assert listener.done == listener.total == 2


# ----------------------------------------------------------------------------------------------------------- tables


def written(table: Table, folder: Path) -> pl.DataFrame:
    """A table as it comes back from the disk."""
    read = pl.read_parquet(write_table(table, folder / "table"))
    assert read.columns == list(table)
    for name, column in table.items():
        np.testing.assert_array_equal(read[name].to_numpy(), column)
    return read


def test_a_clean_table_comes_back_from_the_disk(tmp_path: Path) -> None:
    table = clean_table(by_hand())
    assert list(table) == ["index", "label", "prediction", "loss", "confidence", "gap"]
    written(table, tmp_path)


def test_an_attack_table_comes_back_from_the_disk(tmp_path: Path) -> None:
    task = small_task()
    result = BIM(eps=0.05)(task.model, task.images, task.labels)
    table = example_table(result, task.labels.numpy())
    assert list(table) == ["index", "label", "prediction", "loss", "norm", "status"]
    read = written(table, tmp_path)
    assert read["label"].to_list() == task.labels.tolist()
    assert read["prediction"].to_list() == result.prediction.tolist()
    assert read["status"].to_list() == [Status(code).name.lower() for code in result.status.tolist()]
    assert {"success", "failed"} == set(read["status"])
    assert (read["status"] == "success").to_list() == result.success.tolist()


@pytest.mark.parametrize("only_worst", [False, True])
def test_a_curve_table_has_one_row_per_image_and_value(tmp_path: Path, only_worst: bool) -> None:
    model, images = learner()
    curve = eps_curve(model, FGSM(eps=0.5), images, [0.0, 0.05, 0.2], only_worst=only_worst)
    table = curve_table(curve, images.labels.numpy())
    more = [] if only_worst else ["right", "prediction", "loss", "norm", "status"]
    assert list(table) == ["index", "label", "eps", "worst", *more]
    read = written(table, tmp_path)
    assert read.height == 45 * 3
    at = read.filter((pl.col("index") == 7) & (pl.col("eps") == 0.2))
    assert at.height == 1
    assert at["label"].item() == images.labels[7].item()
    assert at["worst"].item() == curve.worst[7, 2]
    shares = read.group_by("eps").agg(pl.col("worst").mean()).sort("eps")
    assert shares["worst"].to_list() == pytest.approx([point["worst"]["value"] for point in curve.points()])
    if curve.last is not None:
        assert at["loss"].item() == pytest.approx(curve.last.loss[7, 2])
        assert at["status"].item() == Status(curve.last.status[7, 2]).name.lower()
        assert set(read["status"]) == {"success", "failed"}


def test_a_curve_can_be_made_by_hand() -> None:
    """Its arrays are all that its points are computed from."""
    curve = Curve(
        axis="eps",
        attack={"name": "FGSM"},
        values=(0.0, 0.1),
        worst=np.array([[True, False], [True, True], [False, False], [True, False]]),
        last=None,
        passes=Passes(8, 4),
    )
    assert [point["worst"]["value"] for point in curve.points()] == [0.75, 0.25]
