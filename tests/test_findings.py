"""Findings on models that are known to lie, one kind of lie each, and on honest ones beside them."""

import cProfile
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate import units
from casemate.attacks import PGD, Square
from casemate.data import LabelledImages
from casemate.errors import EvaluationError
from casemate.evaluation import Evaluation, Severity, evaluate, evaluation
from casemate.evaluation.findings import CHECKS, LEFT_OUT, agreement, randomness
from casemate.evaluation.findings.check import Measured, check
from casemate.evaluation.findings.context import SAMPLE_SIZE, CheckContext
from casemate.models import Classifier, is_randomised, with_fixed_seed, with_network
from casemate.norms import Ball
from conftest import TINY_CLASSES, TINY_SHAPE, Listener, tiny_images
from scripts import imported
from test_record import thirds

IMAGES = tiny_images(40, noise=90.0)
ATTACKS = {"pgd": PGD(eps=0.05, steps=5), "square": Square(eps=0.05, n_queries=20)}


class Calls(nn.Module):
    """Says something else whenever `other` of the number of questions so far holds."""

    def __init__(self, model: nn.Module, other: Callable[[int], bool]) -> None:
        super().__init__()
        self.model, self.other, self.count = model, other, 0

    def forward(self, images: Tensor) -> Tensor:
        """Answer, and count."""
        self.count += 1
        logits = self.model(images)
        return logits.roll(1, 1) if self.other(self.count) else logits


def judged(model: nn.Module) -> Evaluation:
    """A model evaluated by few attacks."""
    return evaluate(with_network(thirds(), model), IMAGES, eps=0.05, attacks=ATTACKS, force=True)


def raised(found: Evaluation) -> dict[str, str]:
    """What was raised, and how grave it is."""
    return {each.check: str(each.severity) for each in found.findings}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda count: count > 12, id="another model after some questions"),
        pytest.param(lambda count: count > 12 and count % 9 == 0, id="another answer now and then"),
    ],
)
def test_a_model_that_counts_its_questions_is_not_trusted(other: Callable[[int], bool]) -> None:
    found = judged(Calls(thirds(), other))
    assert raised(found)["stateful-model"] == "voids"
    assert found.verdict.word == "not to be trusted"


@pytest.mark.integration
def test_a_model_that_remembers_nothing_is_unchanged() -> None:
    assert "stateful-model" not in raised(judged(thirds()))


class Noisy(nn.Module):
    """Adds noise from the global generator, or from one of its own."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.model = thirds()
        self.random = np.random.default_rng(0) if own else None

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        drawn = torch.rand(images.shape) if self.random is None else torch.from_numpy(self.random.random(images.shape))
        return self.model(images + 0.01 * drawn.to(images.dtype))


@pytest.mark.integration
@pytest.mark.parametrize("own", [True, False])
def test_what_answers_at_random_remembers_nothing(own: bool) -> None:
    """Its draws can be held fixed, wherever they come from."""
    found = judged(Noisy(own=own))
    assert found.randomised
    assert not {"stateful-model", "fixed-randomness"} & set(raised(found))
    assert found.verdict.trust.trusted


class NoisyTwice(nn.Module):
    """Adds normal noise before and after a layer: what the second draws depends on the size of the batch."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.model, self.share = thirds(), share

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        images = images + 0.01 * self.share * torch.randn_like(images)
        logits = self.model(images)
        return logits + 0.01 * self.share * torch.randn_like(logits)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_random_logits_are_found_and_fixed_ones_are_not_random(count: int) -> None:
    images, _ = IMAGES[:count].tensors()
    noisy = with_network(thirds(), NoisyTwice(1.0))
    assert is_randomised(noisy, images)
    assert not is_randomised(with_fixed_seed(noisy), images)
    assert not is_randomised(with_network(thirds(), NoisyTwice(0.0)), images)


@pytest.mark.integration
def test_what_counts_from_the_first_question_on_is_not_taken_for_random() -> None:
    found = judged(Calls(thirds(), lambda count: count % 3 == 0))
    assert found.randomised
    assert raised(found)["stateful-model"] == "voids"


@pytest.mark.integration
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12])
def test_the_scale_of_the_logits_changes_no_accuracy(scale: float) -> None:
    """However near or far they lie: a softmax would round the near ones to ties."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = thirds()

        def forward(self, images: Tensor) -> Tensor:
            return scale * self.model(images)

    found, plain = judged(Scaled()), judged(thirds())
    assert found.clean.accuracy == plain.clean.accuracy
    assert found.verdict.word == plain.verdict.word


class Window(nn.Module):
    """Undoes MNIST's normalisation, and sees no pixels below 0.45 then."""

    def __init__(self) -> None:
        super().__init__()
        self.model = thirds()

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        return self.model((images * 0.3081 + 0.1307).clamp(0.45, 1))


@pytest.mark.integration
@pytest.mark.parametrize(("mean", "std", "told"), [(0.1307, 0.3081, False), (-5.0, 0.05, True)])
def test_a_normalisation_that_is_another_ones_is_found(mean: float, std: float, told: bool) -> None:
    model, known = (
        Classifier(Window(), input_shape=TINY_SHAPE, classes=TINY_CLASSES, mean=(each,), std=(other,)).eval()
        for each, other in ((mean, std), (0.1307, 0.3081))
    )
    images = tiny_images(80)
    images = images[known(images.tensors()[0]).argmax(1) == images.labels]
    found = evaluate(model, images, eps=0.02, attacks=ATTACKS, force=True)
    assert ("normalisation" in raised(found)) == told
    if told:
        (said,) = [each.sentence for each in found.findings if each.check == "normalisation"]
        assert (
            "with MNIST's mean and deviation (mean 0.1307, std 0.3081) in place of the Classifier's own, 100.0 %"
            in said
        )
        assert found.verdict.word == "not to be trusted"


def test_a_profiler_of_the_users_goes_on() -> None:
    """One in Python, and cProfile, which is not a function."""
    frames: list[str] = []
    profiler = cProfile.Profile()
    with profiler:
        found = judged(thirds())
        helps_the_profiler()
    assert "inference-time-optimization" not in raised(found)
    assert any("helps_the_profiler" in str(each.code) for each in profiler.getstats())
    sys.setprofile(lambda frame, event, argument: frames.append(frame.f_code.co_name))
    judged(thirds())
    helps_the_profiler()
    sys.setprofile(None)
    assert "helps_the_profiler" in frames


def helps_the_profiler() -> None:
    """Is seen."""


class Backwards(torch.autograd.Function):
    """Nothing on the way forward; on the way back the gradient of some rows is lost."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, lost: Tensor) -> Tensor:
        """Pass on."""
        ctx.save_for_backward(lost)
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Lose."""
        (lost,) = ctx.saved_tensors
        return gradients[0] * ~lost, None


class Hides(nn.Module):
    """Hides the gradient of a share of the rows."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.model = thirds()
        self.lost = torch.arange(8).unsqueeze(1) < 8 * share

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        return self.model(Backwards.apply(images, self.lost))


@pytest.mark.integration
@pytest.mark.parametrize(("share", "severity"), [(0.0, None), (0.25, "voids"), (0.75, "voids")])
def test_a_gradient_of_which_a_part_is_missing_is_not_the_models(share: float, severity: str | None) -> None:
    assert raised(judged(Hides(share))).get("finite-differences") == severity


# Before the attacks, and after a model fell -----------------------------------------------------------------------
def shifted() -> LabelledImages:
    """Labels that count from one, the last of them from zero."""
    return LabelledImages(pixels=IMAGES.pixels, labels=(thirds()(IMAGES.tensors()[0]).argmax(1) + 1) % 3)


class MeanOfSoftmaxes(nn.Module):
    """Probabilities instead of logits, from no one softmax that could be taken off."""

    def forward(self, logits: Tensor) -> Tensor:
        """The mean at two temperatures."""
        return (logits.softmax(1) + (2 * logits).softmax(1)) / 2


def with_softmax() -> Classifier:
    """A network that ends so."""
    return with_network(thirds(), nn.Sequential(thirds(), MeanOfSoftmaxes()))


def seen_right() -> LabelledImages:
    """Images that `Window` gets right with the normalisation that it undoes."""
    model, images = normalised_otherwise(0.1307, 0.3081), tiny_images(80)
    return images[model(images.tensors()[0]).argmax(1) == images.labels]


def normalised_otherwise(mean: float = -5.0, std: float = 0.05) -> Classifier:
    """Normalised by another mean and deviation than those that it undoes."""
    return Classifier(Window(), input_shape=TINY_SHAPE, classes=TINY_CLASSES, mean=(mean,), std=(std,)).eval()


@pytest.mark.parametrize(
    ("model", "images", "eps", "names"),
    [
        (thirds, shifted, 0.05, "labels"),
        (with_softmax, lambda: IMAGES, 0.05, "probabilities"),
        (normalised_otherwise, seen_right, 0.05, "normalisation"),
        (thirds, lambda: IMAGES, 8.0, "eps-unit"),
        (thirds, lambda: IMAGES, 1e-5, "eps-unit"),
    ],
    ids=["labels", "probabilities", "normalisation", "eps above", "eps below"],
)
def test_what_voids_the_number_stops_the_evaluation_before_the_first_attack(
    model: Callable[[], Classifier],
    images: Callable[[], LabelledImages],
    eps: float,
    names: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_late(*given: object, **options: object) -> None:
        raise AssertionError("attacked")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "run_cascade", too_late)
        with pytest.raises(EvaluationError, match="nothing was attacked") as caught:
            evaluate(model(), images(), eps=eps, attacks=ATTACKS)
    assert str(caught.value).endswith("To attack all the same, and keep this finding: --force, or force=True in Python")
    (first, *_) = evaluate(model(), images(), eps=eps, attacks=ATTACKS, force=True).findings
    assert first.check == names
    assert first.severity is Severity.VOIDS
    assert first.sentence in str(caught.value)


def test_training_mode_stops_nothing() -> None:
    model = with_network(thirds(), nn.Sequential(thirds(), nn.Dropout(0.5))).train()
    assert raised(evaluate(model, IMAGES, eps=0.05, attacks=ATTACKS))["training-mode"] == "note"


def test_a_model_no_better_than_guessing_is_told_before_the_attacks(listener: Listener) -> None:
    images = LabelledImages(pixels=IMAGES.pixels, labels=torch.arange(40) // 14)
    found = evaluate(thirds(), images, eps=0.02, attacks=ATTACKS, observer=listener)
    assert "untrained" in found.verdict.word
    assert listener.said[0].startswith("Untrained or mislabelled: the accuracy without an attack, ")
    assert "is not shown to be above guessing" in listener.said[0]


def states(found: Evaluation) -> dict[str, str]:
    """How each check ended."""
    return {each.check: each.state for each in found.checks}


def test_what_could_only_flatter_is_left_out_once_a_model_fell() -> None:
    found = evaluate(thirds(), IMAGES, eps=0.3, attacks=ATTACKS)
    assert found.verdict.fallen
    left_out = {each.check for each in found.checks if each.not_run == LEFT_OUT}
    assert left_out == {name for name, check in CHECKS.items() if check.only_flattery and not check.thorough}
    assert len(left_out) > 10
    assert {"stateful-model", "re-checked", "labels", "sample-size"} <= states(found).keys() - left_out
    standing = evaluate(thirds(), IMAGES, eps=0.02, attacks=ATTACKS)
    assert not standing.verdict.fallen
    assert not [each.check for each in standing.checks if each.not_run == LEFT_OUT]


def test_a_model_that_fell_at_the_larger_eps_only_gets_every_check() -> None:
    found = evaluate(thirds(), IMAGES, eps=[0.02, 0.3], attacks=ATTACKS)
    assert [each.fallen for each in found.verdicts] == [False, True]
    assert not [each.check for each in found.checks if each.not_run == LEFT_OUT]


@pytest.mark.integration
def test_a_thorough_evaluation_leaves_nothing_out() -> None:
    found = evaluate(thirds(), IMAGES, eps=0.3, attacks=ATTACKS, thorough=True)
    assert found.verdict.fallen
    assert not [each.check for each in found.checks if each.not_run == LEFT_OUT]


def test_a_check_that_leaves_out_only_flattery_says_so_of_every_finding() -> None:
    """A finding of such a check that spoils the number in either direction would be lost on a model that fell."""
    for name, declared in CHECKS.items():
        if declared.only_flattery:
            assert declared.reads == "attacks", name
            assert "flatters=" not in inspect.getsource(declared.measure), name


@pytest.mark.parametrize(("low", "high", "eps"), [(0.0, 255.0, 20.0), (-1.0, 1.0, 0.1), (-2.1, 2.6, 0.2)])
def test_bounds_other_than_0_to_1_have_a_question_about_the_unit(low: float, high: float, eps: float) -> None:
    found = units.find_eps_issue(Ball(eps=eps), (low, high), 64)
    assert found is not None
    assert not found.is_obvious
    assert f"{100 * eps / (high - low):.3g} % of their range" in found.message
    assert "Was eps meant in this unit?" in found.message
    assert (f"If {eps:g} of a range of 1 is meant, write {eps * (high - low):.4g}" in found.message) == (eps <= 1)
    assert units.find_eps_issue(Ball(eps=0.1), (0.0, 1.0), 64) is None


# As few images and passes as the checks need --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("risen", "sizes", "severity"), [(0, [32], None), (1, [32, 96], None), (4, [32, 96], Severity.VOIDS)]
)
def test_larger_eps_attacks_all_images_only_if_the_accuracy_rises_on_the_first(
    risen: int, sizes: list[int], severity: Severity | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked: list[int] = []

    def right(context: CheckContext, values: list[float], part: slice) -> np.ndarray:
        del context
        size = len(range(SAMPLE_SIZE)[part])
        attacked.append(size)
        found = np.zeros((size, len(values)), dtype=bool)
        found[: risen * size // 32, -1] = True  # right at the largest eps only
        return found

    monkeypatch.setattr(agreement, "_right_over_eps", right)
    pixels = Mock(bounds=(0.0, 1.0))
    context = Mock(spec=CheckContext, sample=range(SAMPLE_SIZE), model=pixels, eps=0.1, norm="l2", randomised=False)
    found = CHECKS["larger-eps"](context)
    assert attacked == sizes
    assert found.value == risen / 32
    assert (None if found.finding is None else found.finding.severity) == severity


@pytest.mark.parametrize(("fallen", "sizes", "state"), [(1, [32, 32], "passed"), (2, [32, 32, 96, 96], "weakens")])
def test_more_draws_are_tried_on_all_images_only_if_they_help_on_the_first(
    fallen: int, sizes: list[int], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked: list[int] = []

    def right(context: CheckContext, draws: int, part: slice) -> np.ndarray:
        del context
        attacked.append(len(range(SAMPLE_SIZE)[part]))
        return np.arange(attacked[-1]) % 32 >= (fallen if draws == 20 else 0)

    monkeypatch.setattr(randomness, "_right_with_draws", right)
    found = CHECKS["eot-samples"](Mock(spec=CheckContext, sample=range(SAMPLE_SIZE), randomised=True))
    assert attacked == sizes
    assert found.value == fallen / 32
    assert found.state == state


@pytest.mark.integration
@pytest.mark.parametrize("model", [thirds, lambda: with_network(thirds(), Noisy(own=False))], ids=["fixed", "random"])
def test_a_verdict_takes_at_most_two_and_a_half_times_the_passes_of_its_attacks(
    model: Callable[[], Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a model that withstands, on which every check is run."""
    spent, attacks = [0], [0]
    logits, cascade = Classifier._logits, evaluation.run_cascade

    def counted(model: Classifier, images: Tensor) -> Tensor:
        if not any(isinstance(each, Classifier) for each in model.network.modules()):  # a mean calls the model itself
            spent[0] += len(images) * (3 if torch.is_grad_enabled() else 1)
        return logits(model, images)

    def attacked(*given: Any, **options: Any) -> Any:
        before = spent[0]
        found = cascade(*given, **options)
        attacks[0] = spent[0] - before
        return found

    monkeypatch.setattr(Classifier, "_logits", counted)
    monkeypatch.setattr(evaluation, "run_cascade", attacked)
    images = tiny_images(200, noise=90.0)
    found = evaluate(model(), images, eps=0.02, budget="quick")
    assert not found.verdict.fallen
    assert not [each.check for each in found.checks if each.not_run == LEFT_OUT]
    assert spent[0] <= 2.5 * attacks[0]


# Declarations and their page ------------------------------------------------------------------------------------------
ROOT = Path(__file__).resolve().parents[1]
NOTE, WEAKENS, VOIDS = Severity


@check("ladder", "Values are small", why="So.", advice="Make it smaller.", note=0.1, weakens=0.2, voids=0.5)
def ladder(context: CheckContext) -> Measured:
    """A value."""
    del context
    return Measured(0.3, "it is 0.3")


@pytest.mark.parametrize(
    ("found", "severity"),
    [
        (Measured(0.1, ""), None),
        (Measured(0.11, ""), NOTE),
        (Measured(0.2, ""), NOTE),
        (Measured(0.3, ""), WEAKENS),
        (Measured(0.51, ""), VOIDS),
        (Measured(-1.0, ""), None),
        (Measured(0.6, "", counts=False), None),
        (Measured(0.6, "", at_most=WEAKENS), WEAKENS),
        (Measured(0.15, "", at_most=WEAKENS), NOTE),
        (Measured(0.0, "", at_least=NOTE), NOTE),
        (Measured(0.6, "", at_least=NOTE), VOIDS),
        (Measured(0.0, "", at_least=VOIDS), VOIDS),
        (Measured(0.6, "", threshold=0.7), None),
        (Measured(0.06, "", threshold=0.05), VOIDS),
    ],
)
def test_the_severity_follows_from_the_declared_thresholds(found: Measured, severity: Severity | None) -> None:
    assert ladder.severity_of(found) == severity


def test_a_finding_says_what_was_seen_and_what_to_do() -> None:
    found = ladder(Mock(spec=CheckContext))
    assert found.finding is not None
    assert (found.finding.severity, found.threshold, found.value) == (WEAKENS, 0.1, 0.3)
    assert found.finding.sentence == "it is 0.3. Make it smaller"
    assert ladder.raised_if == "above 10 % (a note) or above 20 % (weakens) or above 50 % (voids)."
    assert ladder.measures == "A value."


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The tool that writes docs/findings.md."""
    return imported("tools/findings_page.py")


def test_the_page_of_the_checks_is_up_to_date(tool: ModuleType) -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    assert text == tool.page(text), "run python tools/findings_page.py"
    assert text.count("\n## ") == text.count(tool.MARKER) * (len(CHECKS) + 4)
    assert f"the first {SAMPLE_SIZE} correctly classified images" in " ".join(text.split())
    assert f"less than {units._FAR_BELOW['linf']:g} grey levels" in CHECKS["eps-unit"].raised_if


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_declares_its_four_lines(name: str, tool: ModuleType) -> None:
    declared = CHECKS[name]
    assert declared.name == name
    assert declared.title
    assert not declared.title.endswith(".")
    for line in (declared.measures, declared.raised_if, declared.why, declared.advice):
        assert len(line.split()) > 1, line
        assert line.endswith("."), line
    assert declared.thresholds or declared.condition
    assert list(declared.thresholds.values()) == sorted(declared.thresholds.values())
    shown = " ".join(tool.section(declared).split())
    assert [shown.count(f"- *{label}*: ") for label in tool.LINES] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.thresholds])
def test_another_threshold_shows_on_the_page_and_in_the_severity(name: str, tool: ModuleType) -> None:
    declared = CHECKS[name]
    for severity, least in declared.thresholds.items():
        assert declared.severity_of(Measured(least, "")) != severity
        assert declared.severity_of(Measured(np.nextafter(least, 1), "")) == severity
        other = replace(declared, thresholds={**declared.thresholds, severity: least + 0.003})
        assert tool.section(other) not in tool.PAGE.read_text(encoding="utf-8")
        assert tool.section(declared) in tool.PAGE.read_text(encoding="utf-8")
        assert other.severity_of(Measured(np.nextafter(least, 1), "")) != severity
