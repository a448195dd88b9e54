"""Claims are checked in full float32: without TensorFloat-32, and not on Apple's MPS device."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import PGD
from casemate.certification import certify
from casemate.errors import ModelError
from casemate.evaluation import evaluate
from casemate.evaluation.single_image import predict_singly
from casemate.float32_precision import full_precision, read_float32_precision, set_float32_precision
from casemate.models import Classifier, judge_of, numeric_settings, numeric_settings_as, with_network
from conftest import tiny_images
from test_record import thirds

IMAGES = tiny_images(40, noise=90.0)
CUDNN: Any = torch.backends.cudnn
ONEDNN: Any = torch.backends.mkldnn
BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)


def allowed() -> list[bool]:
    """Whether products and convolutions may use TensorFloat-32."""
    return [backend.allow_tf32 for backend in BACKENDS]


@pytest.fixture(autouse=True)
def _tensor_float() -> Iterator[None]:
    """As a user sets it who wants fast attacks."""
    before = allowed()
    for backend in BACKENDS:
        backend.allow_tf32 = True
    yield
    for backend, value in zip(BACKENDS, before, strict=True):
        backend.allow_tf32 = value


class Recording(nn.Module):
    """Remembers, for each pass with and without a gradient, whether TensorFloat-32 was allowed."""

    seen: dict[bool, set[bool]]

    def __init__(self) -> None:
        super().__init__()
        self.inner = thirds()

    def forward(self, images: Tensor) -> Tensor:
        """Answer, and remember."""
        Recording.seen[images.requires_grad] |= set(allowed())
        return self.inner(images)


@pytest.fixture
def recording() -> Classifier:
    """A model that remembers."""
    Recording.seen = {True: set(), False: set()}
    return with_network(thirds(), Recording())


def test_the_settings_are_as_before_also_after_an_error() -> None:
    @full_precision()
    def fail() -> None:
        raise ValueError(allowed())

    with pytest.raises(ValueError, match=r"\[False, False\]"):
        fail()
    assert allowed() == [True, True]


def test_one_by_one_means_in_full_precision(recording: Classifier) -> None:
    Recording.seen = {True: set(), False: set()}
    predict_singly(recording, IMAGES.tensors()[0][:3])
    seen = Recording.seen[False]
    assert seen == {False} or seen == {True, False}, "an examination of the network may come first"
    Recording.seen = {True: set(), False: set()}
    predict_singly(recording, IMAGES.tensors()[0][:3])
    assert Recording.seen[False] == {False}
    assert allowed() == [True, True]


def test_an_attack_is_fast_and_its_verification_exact(recording: Classifier) -> None:
    pixels, labels = IMAGES.tensors()
    PGD(eps=0.05, steps=3)(recording, pixels, labels)
    assert Recording.seen[True] == {True}
    assert False in Recording.seen[False]
    assert allowed() == [True, True]


def test_an_evaluation_leaves_the_settings(recording: Classifier) -> None:
    evaluate(recording, IMAGES, eps=0.05, attacks={"pgd": PGD(eps=0.05, steps=3)})
    assert allowed() == [True, True]


SETTINGS: dict[str, Callable[[], None]] = {
    "products high": lambda: torch.set_float32_matmul_precision("high"),
    "products medium": lambda: torch.set_float32_matmul_precision("medium"),
    "products on a GPU": partial(setattr, torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "convolutions on a GPU": partial(setattr, CUDNN.conv, "fp32_precision", "tf32"),
    "products on a CPU": partial(setattr, ONEDNN.matmul, "fp32_precision", "bf16"),
    "convolutions on a CPU": partial(setattr, ONEDNN.conv, "fp32_precision", "bf16"),
    "a backend": partial(setattr, torch.backends.mkldnn, "fp32_precision", "bf16"),
    "everything": partial(setattr, torch.backends, "fp32_precision", "tf32"),
    "everything exact": partial(setattr, torch.backends, "fp32_precision", "ieee"),
}
"""Ways to set the precision, of PyTorch's older and newer kind."""
PLACES: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    CUDNN.conv,
    CUDNN.rnn,
    ONEDNN.matmul,
    ONEDNN.conv,
    ONEDNN.rnn,
)


@pytest.fixture(params=SETTINGS)
def _set_by_the_user(request: pytest.FixtureRequest) -> Iterator[None]:
    before = read_float32_precision()
    SETTINGS[request.param]()
    yield
    set_float32_precision(before)
    assert read_float32_precision() == before


@pytest.mark.usefixtures("_set_by_the_user")
def test_every_way_of_setting_the_precision_is_left_as_it_is() -> None:
    before = read_float32_precision()
    with full_precision():
        assert {each.fp32_precision for each in PLACES} <= {"ieee", "none"}
    assert read_float32_precision() == before
    model, (pixels, labels) = thirds(), IMAGES.tensors()
    PGD(eps=0.05, steps=2)(model, pixels, labels)
    evaluate(model, IMAGES, eps=0.05, attacks={"pgd": PGD(eps=0.05, steps=2)})
    certify(model, pixels, labels, eps=0.01)
    assert read_float32_precision() == before
    with numeric_settings_as(numeric_settings()):
        assert read_float32_precision() == before


def test_a_network_that_sets_the_precision_is_undone() -> None:
    class Faster(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = thirds()

        def forward(self, images: Tensor) -> Tensor:
            torch.backends.mkldnn.fp32_precision = "bf16"
            return self.inner(images)

    before, (pixels, labels) = read_float32_precision(), IMAGES.tensors()
    PGD(eps=0.05, steps=2)(with_network(thirds(), Faster()), pixels, labels)
    assert read_float32_precision() == before


@pytest.fixture
def _on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model says that it is on Apple's device."""
    monkeypatch.setattr(Classifier, "device", torch.device("mps"))


@pytest.mark.usefixtures("_on_mps")
def test_on_mps_a_copy_on_the_cpu_judges() -> None:
    model = thirds()
    judge = judge_of(model)
    assert judge is not model
    assert all(each.device.type == "cpu" for each in judge.parameters())


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock = thirds(), threading.Lock()

    def forward(self, images: Tensor) -> Tensor:
        """Answer."""
        return self.inner(images)


@pytest.mark.usefixtures("_on_mps")
def test_on_mps_a_model_that_cannot_be_copied_is_refused_before_any_attack() -> None:
    model = with_network(thirds(), Locked())
    with pytest.raises(ModelError, match=r"Apple's MPS device.*cannot be copied to the CPU.*--device cpu"):
        evaluate(model, IMAGES, eps=0.05)


def test_elsewhere_the_model_itself_judges() -> None:
    model = with_network(thirds(), Locked())
    assert judge_of(model) is model
