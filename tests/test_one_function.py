"""Models that are not one function of an image, and honest ones that might be taken for such."""

import math
import sys
import threading
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad

from casemate.data import LabelledImages
from casemate.errors import EvaluationError
from casemate.evaluation import Severity, evaluate
from casemate.evaluation.findings import CHECKS, inputs
from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.findings.randomness import _recorded_autograd_calls
from casemate.models import with_network
from conftest import tiny_images
from test_findings import ATTACKS, judged, raised
from test_record import thirds


class Recalls(nn.Module):
    """Answers for an image near the first one of its batch's place as it did for that; cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.lock = thirds(), threading.Lock()
        self.first: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        logits = self.model(images)
        first = self.first
        if first is None or len(first) != len(images):
            self.first = images.detach().clone()
            return logits
        near = (images - first).abs().flatten(1).amax(1, keepdim=True) < 0.1
        return torch.where(near, self.model(first) + 0 * logits, logits)


class Rounds(nn.Module):
    """Rounds to grey levels, with the gradient of what is not rounded: many small jumps."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels, self.model = levels, thirds()

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        return self.model(images + ((images * self.levels).round() / self.levels - images).detach())


class Optimises(nn.Module):
    """Takes a step of its own at inference, by one of the ways to a gradient."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.model = way, thirds().network

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        with torch.enable_grad():
            leaf = images.detach().requires_grad_(True)
            if self.way == "backward":
                self.model(leaf).amax(1).sum().backward()
                step = leaf.grad
            elif self.way == "func":
                step = torch.func.grad(lambda each: self.model(each).amax(1).sum())(leaf.detach())
            else:
                (step,) = grad(self.model(leaf).amax(1).sum(), leaf)
        assert step is not None
        return self.model(images + 0.01 * step.sign())


@pytest.mark.integration
def test_a_memory_is_found_in_a_model_that_cannot_be_copied() -> None:
    assert raised(judged(Recalls()))["memory"] == "voids"


@pytest.mark.integration
@pytest.mark.parametrize("way", ["grad", "backward", "func"])
def test_a_step_at_inference_is_found_by_whatever_name(way: str) -> None:
    assert raised(judged(Optimises(way)))["inference-time-optimization"] == "voids"


def test_the_profiler_of_the_caller_is_kept() -> None:
    def mine(*given: object) -> None:
        del given

    sys.setprofile(mine)
    try:
        with _recorded_autograd_calls() as calls:
            leaf = torch.ones(1, requires_grad=True)
            (2 * leaf).backward()
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)
    assert calls == ["backward"]


@pytest.mark.integration
@pytest.mark.parametrize("levels", [255, 63])
def test_pixels_rounded_to_grey_levels_are_no_jump(levels: int) -> None:
    assert "jumps" not in raised(judged(Rounds(levels)))


@pytest.mark.integration
def test_a_preference_for_some_classes_is_no_wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """More contrast makes it more accurate, since the preference weighs less."""

    class Prefers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = thirds()

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images) + torch.tensor([-40.0, 0.0, 40.0])

    images = tiny_images(90, noise=20.0)
    images = LabelledImages(pixels=images.pixels, labels=thirds()(images.tensors()[0]).argmax(1))
    model = with_network(thirds(), Prefers())
    assert "normalisation" not in raised(evaluate(model, images, eps=0.02, attacks=ATTACKS))
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "_is_preference", lambda *given: False)
        with pytest.raises(EvaluationError, match="a normalisation is missing"):
            evaluate(model, images, eps=0.02, attacks=ATTACKS)


def test_a_copy_that_fails_is_a_note() -> None:
    failing = Mock(spec=CheckContext, frozen=Mock(difference=math.inf, changes={"dropout removed": 1}))
    failing.randomised = False
    found = CHECKS["frozen-copy"](failing)
    assert found.finding is not None
    assert (found.finding.severity, found.finding.failed) == (Severity.NOTE, False)
    assert "(dropout removed) fails where the model does not" in found.finding.sentence
