"""Certified and attacked accuracy of the same images: what is skipped, what is sampled, what voids a certificate."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate.certification import Certificate, certify
from casemate.data import LabelledImages
from casemate.errors import ModelError, SettingError, ShapeError
from casemate.evaluation import certificates as module
from casemate.evaluation import run_cascade, shards
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.certified import CertifiedEvaluation, evaluate_certified
from casemate.models import Classifier
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images
from oracles import as_installed

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
    return evaluate_certified(network(), IMAGES, eps=VALUES, budget="quick", sample=5)


def test_what_is_proven_is_at_most_what_the_attacks_leave(found: CertifiedEvaluation) -> None:
    assert (found.certified <= found.robust).all()
    assert (found.robust <= found.clean[:, None]).all()
    assert (np.diff(found.robust.astype(int), axis=1) <= 0).all()
    assert not found.is_void
    certified, robust = ([each.value for each in part] for part in (found.certified_accuracy, found.robust_accuracy))
    assert 0 < certified[-1] < robust[0] <= found.clean_accuracy.value
    assert all(one <= other for one, other in zip(certified, robust, strict=True))


def test_images_that_are_proven_are_not_attacked_but_for_the_sample(found: CertifiedEvaluation) -> None:
    """A certified image of the sample is attacked at the largest eps at which it is certified."""
    sampled = found.certified & found.attacked
    assert sampled.any(1).sum() == sampled.sum() == sum(found.sampled) == 5
    assert found.certified[:, 1].sum() > 20
    for column in range(3):
        proven = found.certified[:, column]
        if column < 2:
            assert not (sampled[:, column] & found.certified[:, column + 1]).any()
        left = found.clean if not column else found.robust[:, column - 1]
        assert (found.attacked[:, column] & ~proven).sum() == (left & ~proven).sum()
        assert found.spared[column] + found.sampled[column] == proven.sum()
        assert found.undecided[column] == found.robust[:, column].sum() - proven.sum()
    again = evaluate_certified(network(), IMAGES, eps=VALUES, budget="quick", sample=5)
    assert np.array_equal(again.attacked, found.attacked)
    other = evaluate_certified(network(), IMAGES, eps=VALUES, budget="quick", sample=5, seed=1)
    assert not np.array_equal(other.attacked, found.attacked)
    assert np.array_equal(other.robust, found.robust)
    assert "5 of the 85 certified images, a random sample (seed 1), were attacked" in other.notes[0]
    assert "all withstood" in other.notes[0]


def test_to_skip_proven_images_changes_no_result(found: CertifiedEvaluation) -> None:
    """The same images are fooled, by the same attacks, as if all were attacked at every eps."""
    whole = run_cascade(
        network(), attacks_for("quick", "linf", VALUES[0], randomised=False), IMAGES, VALUES, correct=found.clean
    )
    assert np.array_equal(whole.robust, found.robust)
    assert np.array_equal(whole.first_success, found.first_success)
    tried = whole.robust[:, :-1].sum() + found.clean.sum()
    assert tried > 1.8 * found.attacked.sum()


def test_what_is_certified_is_what_certify_proves(found: CertifiedEvaluation) -> None:
    """In stages, and only where a smaller eps is certified; every certificate holds at smaller eps too."""
    pixels, labels = IMAGES.tensors()
    for column, eps in enumerate(VALUES):
        proven = certify(network(), pixels, labels, eps=eps, method="crown").certified.numpy()
        assert np.array_equal(found.certified[:, column], proven)
    assert (np.diff(found.certified.astype(int), axis=1) <= 0).all()


def test_only_what_is_certified_at_smaller_eps_is_bounded_at_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[float, int]] = []
    real = module.certify

    def counted(
        model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, *, eps: float, **named: Any
    ) -> Certificate:
        counts.append((eps, len(pixels)))
        return real(model, pixels, labels, eps=eps, **named)

    monkeypatch.setattr(module, "certify", counted)
    found = evaluate_certified(network(), IMAGES, eps=VALUES, budget=None)
    smaller = [90, *found.certified.sum(axis=0).tolist()]
    assert counts == [(eps, count) for eps, count in zip(VALUES, smaller, strict=False) if count]


def test_without_attacks_there_is_no_upper_bound(found: CertifiedEvaluation) -> None:
    alone = evaluate_certified(network(), IMAGES, eps=VALUES, budget=None)
    assert np.array_equal(alone.certified, found.certified)
    assert not alone.attacked.any()
    assert not alone.has_attacks
    assert alone.attacks == {}
    assert "Nothing was attacked, so how many more are robust is not known." in str(alone)
    assert "attacked accuracy" not in alone._repr_html_()
    assert [each["robust_accuracy"] for each in alone.as_json()["radii"]] == [None, None, None]
    with pytest.raises(SettingError, match="a claim without attacks"):
        evaluate_certified(network(), IMAGES, eps=0.1, budget=None, claimed=np.ones((90, 1), dtype=bool))


def test_the_result_reads_like_that_of_evaluate(found: CertifiedEvaluation) -> None:
    low, high = found.certified_accuracy[-1], found.robust_accuracy[-1]
    assert repr(found).startswith("CertifiedEvaluation(eps 0.12, 0.2, 0.26 (linf): certified ")
    assert f"certified {low}  attacked {high}" in str(found)
    assert str(found) in found.summary()
    assert sum(found.successes_by_attack.values()) == (found.clean & ~found.robust[:, -1]).sum()
    rows = found.rows()
    assert [row[0] for row in rows] == ["0", "0.12", "0.2", "0.26"]
    assert all(len(row) == len(found.head) for row in rows)
    table = found._repr_html_()
    assert table.count("<tr>") == 5
    assert f"<td>{found.robust_accuracy[0]}</td>" in table


def test_images_are_read_part_by_part(found: CertifiedEvaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_FIRST", 25)
    pixels, labels = IMAGES.tensors()
    parts = evaluate_certified(network(), pixels, labels, eps=VALUES, budget="quick", sample=5)
    for name in ("clean", "certified", "attacked", "robust"):
        assert np.array_equal(getattr(parts, name), getattr(found, name))


def test_a_stopped_run_goes_on_from_what_is_finished(
    found: CertifiedEvaluation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither bounds nor attacks are computed twice, and the outcome is the same; another norm shares nothing."""
    monkeypatch.setattr(shards, "_FIRST", 25)
    real, calls = module.certify, 0

    def stopping(*given: Any, **named: Any) -> Certificate:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return real(*given, **named)

    settings: dict[str, Any] = {"eps": VALUES, "budget": "quick", "sample": 5, "store": tmp_path}
    monkeypatch.setattr(module, "certify", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate_certified(network(), IMAGES, **settings)
    whole = evaluate_certified(network(), IMAGES, **settings)
    needed = sum(1 for _ in tmp_path.glob("evaluations/*/certificates/*.json"))
    assert calls == needed + 1
    again = evaluate_certified(network(), IMAGES, **settings)
    assert calls == needed + 1
    for name in ("clean", "certified", "attacked", "robust", "first_success"):
        assert np.array_equal(getattr(whole, name), getattr(found, name))
        assert np.array_equal(getattr(again, name), getattr(found, name))
    parts = [json.loads(path.read_text()) for path in tmp_path.glob("evaluations/*/certificates/*.json")]
    assert again.certificate_seconds >= sum(part["seconds"] for part in parts)  # of the bounds, whenever it was
    pieces = sorted(tmp_path.glob("evaluations/*/*/*.safetensors"))
    evaluate_certified(network(), IMAGES, **settings, fresh=True)
    assert calls == 2 * needed + 1
    assert sorted(tmp_path.glob("evaluations/*/*/*.safetensors")) == pieces


@pytest.mark.parametrize(
    "damage",
    [
        '{"certified": "11"}',
        "[]",
        '{"certified": "x", "clean": "1", "seconds": 1}',
        "{",
        '{"seconds": 1, "numbers": {}}',
        None,
    ],
)
def test_damaged_parts_are_computed_again(damage: str | None, found: CertifiedEvaluation, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eps": VALUES, "budget": None, "store": tmp_path}
    evaluate_certified(network(), IMAGES, **settings)
    for path in tmp_path.glob("evaluations/*/certificates/*.json"):
        path.write_text(path.read_text().replace("0", "1") if damage is None else damage)
    again = evaluate_certified(network(), IMAGES, **settings)
    assert np.array_equal(again.certified, found.certified)


def test_one_success_on_a_certified_image_voids_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.certify

    def wrong(*given: object, **named: object) -> object:
        made = real(*given, **named)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        made.certified[:] = made.clean
        return made

    monkeypatch.setattr(module, "certify", wrong)
    found = evaluate_certified(network(), IMAGES, eps=VALUES, budget="quick", sample=40)
    assert found.is_void
    assert found.contradicted.any()
    assert [each.value for each in found.certified_accuracy] == [0, 0, 0]
    assert found.summary().startswith("The certificate is void: attacks fooled ")
    assert ": void; certified 0.0 %" in repr(found)
    assert set(found.fooled_certified) == set(np.flatnonzero(found.contradicted.any(1)).tolist())


def test_a_claim_from_elsewhere_skips_nothing() -> None:
    claim = np.ones((len(IMAGES), 1), dtype=bool)
    found = evaluate_certified(network(), IMAGES, eps=VALUES[-1], budget="quick", claimed=claim)
    assert np.array_equal(found.attacked[:, 0], found.clean)
    assert found.is_void
    honest = evaluate_certified(network(), IMAGES, eps=VALUES[-1], budget="quick").certified
    kept = evaluate_certified(network(), IMAGES, eps=VALUES[-1], budget="quick", claimed=honest)
    assert not kept.is_void
    assert np.array_equal(kept.attacked[:, 0], kept.clean)
    assert kept.sampled == [int(honest.sum())]
    for several in (claim.repeat(3, 1), honest.repeat(3, 1)):  # at a larger eps those that no attack has fooled yet
        found = evaluate_certified(network(), IMAGES, eps=VALUES, budget="quick", claimed=several)
        assert np.array_equal(found.attacked[:, 1:], found.clean[:, None] & found.robust[:, :-1])
        assert found.spared == [0, 0, 0]
        assert "Bounds" not in found.summary()
        assert found.certificate_seconds == 0


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms(norm: str) -> None:
    eps = {"l2": 0.3, "l1": 1.0}[norm]
    found = evaluate_certified(network(), IMAGES, eps=eps, norm=norm, budget="quick", sample=10)
    assert 0 < found.certified_accuracy[0].value <= found.robust_accuracy[0].value
    assert not found.is_void


@pytest.mark.parametrize("values", [[], [0.1, -1]])
def test_bad_settings(values: Sequence[float]) -> None:
    with pytest.raises(SettingError):
        evaluate_certified(network(), IMAGES, eps=values)


@pytest.mark.parametrize(("name", "value"), [("batch_size", -1), ("batch_size", 0), ("sample", -1), ("sample", 2.5)])
def test_bad_numbers_are_refused_by_name(name: str, value: Any) -> None:
    options: dict[str, Any] = {name: value}
    with as_installed(), pytest.raises(SettingError, match=f"{name} = {value}; expected"):
        evaluate_certified(network(), IMAGES, eps=0.1, budget="quick", **options)


def test_a_claim_in_another_order_than_ascending_is_refused() -> None:
    with pytest.raises(SettingError, match="expected ascending values, in the order of the claim's columns"):
        evaluate_certified(network(), IMAGES, eps=[0.2, 0.1], claimed=np.ones((90, 2), dtype=bool))


def test_a_claim_about_misclassified_images_is_no_contradiction() -> None:
    wrong = LabelledImages(pixels=IMAGES.pixels, labels=(network()(IMAGES.tensors()[0]).argmax(1) + 1) % 3)
    found = evaluate_certified(network(), wrong, eps=0.1, budget="quick", claimed=np.ones((90, 1), dtype=bool))
    assert not found.is_void
    assert found.certified_accuracy[0].value == 0


def test_a_claim_of_margins_or_one_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(SettingError, match="a claim of type float64; expected booleans: of margins, margin > 0"):
        evaluate_certified(network(), IMAGES, eps=0.1, claimed=np.full((90, 1), -0.7))
    claim = np.array([[True, True]] * 3 + [[False, True]] + [[False, False]] * 86)
    with pytest.raises(SettingError, match="a claim that image 3 is robust at an eps, but not at a smaller one"):
        evaluate_certified(network(), IMAGES, eps=[0.1, 0.2], claimed=claim)


def test_a_claim_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"a claim of shape \(3,\); expected \(90, 1\)"):
        evaluate_certified(network(), IMAGES, eps=0.1, claimed=np.ones(3, dtype=bool))


def test_images_that_are_all_misclassified_are_not_attacked() -> None:
    wrong = LabelledImages(pixels=IMAGES.pixels, labels=(network()(IMAGES.tensors()[0]).argmax(1) + 1) % 3)
    found = evaluate_certified(network(), wrong, eps=0.05, budget="quick")
    assert not found.attacked.any()
    assert not found.certified.any()
    assert found.robust_accuracy[0].value == 0


class Turning(nn.Module):
    """Has the weights of `network`; on bright images its logits are turned round, in code that a trace shows or not."""

    def __init__(self, inner: nn.Module, *, hidden: bool) -> None:
        super().__init__()
        self.inner, self.hidden = inner, hidden

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        if self.hidden and not isinstance(images, Tensor):
            return logits
        return torch.where(images.flatten(1)[:, :1] > 0.99, logits.flip(1), logits)


class Same(nn.Module):
    """Has the same weights under the same names, and nothing else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)


@pytest.mark.parametrize("hidden", [False, True])
def test_bounds_in_the_store_are_not_those_of_a_model_with_the_same_weights_and_other_code(
    hidden: bool, tmp_path: Path
) -> None:
    """They differ on none of the first images, by which evaluations are told apart."""
    inner = network().network
    one, other = Classifier(Same(inner)), Classifier(Turning(inner, hidden=hidden))
    pixels, labels = IMAGES.tensors()
    pixels[:, 0, 0, 0] = pixels[:, 0, 0, 0].clamp(max=0.9)
    pixels[80, 0, 0, 0] = 1.0
    settings: dict[str, Any] = {"eps": 0.005, "budget": None, "store": tmp_path}
    kept = evaluate_certified(one, pixels, labels, **settings)
    again = evaluate_certified(one, pixels, labels, **settings)
    assert kept.certified[80, 0]
    assert (again.certified == kept.certified).all()
    assert other(pixels)[80].argmax() != labels[80]
    with pytest.raises(ModelError, match=r"no bounds for the call of getitem|executes other operations"):
        evaluate_certified(other, pixels, labels, **settings)


def test_no_images_are_refused_in_words() -> None:
    pixels, labels = IMAGES.tensors()
    with pytest.raises(ShapeError, match="no images to certify"):
        evaluate_certified(Classifier(network().network), pixels[:0], labels[:0], eps=0.1)
