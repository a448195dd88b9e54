"""Findings on models that are known to lie, one kind of lie each, and on honest ones beside them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import PGD, Square
from casemate.evaluation import Evaluation, evaluate
from casemate.models import Classifier, with_network
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images
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
    return evaluate(with_network(thirds(), model), IMAGES, eps=0.05, attacks=ATTACKS)


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


@pytest.mark.parametrize("own", [True, False])
def test_what_answers_at_random_remembers_nothing(own: bool) -> None:
    """Its draws can be held fixed, wherever they come from."""
    found = judged(Noisy(own=own))
    assert found.randomised
    assert not {"stateful-model", "fixed-randomness"} & set(raised(found))
    assert found.verdict.trust.trusted


def test_what_counts_from_the_first_question_on_is_not_taken_for_random() -> None:
    found = judged(Calls(thirds(), lambda count: count % 3 == 0))
    assert found.randomised
    assert raised(found)["stateful-model"] == "voids"


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


@pytest.mark.parametrize(("mean", "std", "told"), [(0.1307, 0.3081, False), (-5.0, 0.05, True)])
def test_a_normalisation_that_is_another_ones_is_found(mean: float, std: float, told: bool) -> None:
    model, known = (
        Classifier(Window(), input_shape=TINY_SHAPE, classes=TINY_CLASSES, mean=(each,), std=(other,)).eval()
        for each, other in ((mean, std), (0.1307, 0.3081))
    )
    images = tiny_images(80)
    found = evaluate(model, images[known(images.tensors()[0]).argmax(1) == images.labels], eps=0.02, attacks=ATTACKS)
    assert ("normalisation" in raised(found)) == told
    if told:
        (said,) = [each.sentence for each in found.findings if each.check == "normalisation"]
        assert "with MNIST's mean and deviation in place of the Classifier's own, 100.0 %" in said
        assert found.verdict.word == "not to be trusted"


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


@pytest.mark.parametrize(("share", "severity"), [(0.0, None), (0.25, "voids"), (0.75, "voids")])
def test_a_gradient_of_which_a_part_is_missing_is_not_the_models(share: float, severity: str | None) -> None:
    assert raised(judged(Hides(share))).get("finite-differences") == severity
