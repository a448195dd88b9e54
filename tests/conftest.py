"""What the tests share: one thread, reproducible properties, a cache of their own, a tiny network and tiny images."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import hypothesis
import pytest
import torch
from jaxtyping import config
from torch import nn

import annotation_checks  # before any module of casemate: it changes how jaxtyping decorates their functions
from casemate.cli.shared import console
from casemate.data import LabelledImages
from casemate.documents import document
from casemate.models import Classifier, create, register
from casemate.models.keras_init import batch_norm
from casemate.progress import Advance
from published import problems

pytest.register_assert_rewrite("browser")  # so that its failures say what was seen
torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)  # what a pytest that shares the work out tells its helpers; output into a pipe is wide
hypothesis.settings.register_profile("casemate", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.load_profile("casemate")

TINY_SHAPE = (1, 8, 8)
TINY_CLASSES = ("left", "middle", "right")


def pytest_runtest_setup() -> None:
    """Annotations are checked in the first calls of each test, and programs that it starts listen to Ctrl-C.

    They inherit whether it is ignored, as it is in programs that a shell starts in the background.
    """
    annotation_checks.next_test()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@register("tiny")
def _tiny(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Everything that training has to get right: kernels, batch normalisation, dropout and a dense layer."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, kernel_size=3, padding="same"),
        batch_norm(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, kernel_size=3, padding="same"),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(4 * (height // 2) * (width // 2), classes),
    )


@register("linear")
def _linear(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A network simple enough to check by hand."""
    channels, height, width = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))


def tiny_model(seed: int = 0, name: str = "tiny") -> Classifier:
    """A fresh network for the tiny images."""
    return create(name, input_shape=TINY_SHAPE, classes=TINY_CLASSES, seed=seed)


def tiny_images(count: int, seed: int = 0, *, noise: float = 60.0, wrong: float = 0.0) -> LabelledImages:
    """Images whose class is the third that is bright, under `noise`; a share of the labels is `wrong`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    bright = torch.zeros(count, *TINY_SHAPE)
    for place in range(3):
        bright[labels == place, :, :, 3 * place : 3 * place + 2] = 120.0
    pixels = bright + 60 + noise * torch.randn(bright.shape, generator=generator)
    redrawn = torch.rand(count, generator=generator) < wrong
    labels = torch.where(redrawn, torch.randint(3, (count,), generator=generator), labels)
    return LabelledImages(pixels=pixels.round().clamp(0, 255).to(torch.uint8), labels=labels)


class Listener:
    """An observer that remembers what it hears."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.titles: list[str] = []
        self.notes: list[str] = []
        self.done = 0.0
        self.total = 0.0

    @contextmanager
    def work(self, title: str, total: float) -> Iterator[Advance]:
        self.titles.append(title)
        self.total += total
        yield self.advance

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        self.notes.append(note)

    def message(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def listener() -> Listener:
    """An observer that remembers what it hears."""
    return Listener()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the cache of the user who runs it, or the data that the environment names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASEMATE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("CASEMATE_DATA", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _published_documents() -> Iterator[None]:
    """Whatever a command prints with --json in a test is as its published schema says, without another field."""
    show = console.show_json

    def checked(content: Mapping[str, Any], schema: str) -> None:
        assert problems(document(schema, content)) == []
        show(content, schema)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "show_json", checked)
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations go unchecked, as outside of tests: what is then refused is refused by the code itself."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of PyTorch, by which the loops go."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
