"""Models and images that are described wrongly, on the command line: each is caught, and following the advice works.

For each case: what is said wrongly, the words of the message, among them the option, and the same command as the
message advises it, which must succeed.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import tiny_images
from test_study import Run, runner

CODE = """
    import torch
    from torch import nn


    class Network(nn.Module):
        '''Which third of the image is bright; takes images on a scale of its own.'''

        def __init__(self, channels=1, scale=(0.0, 1.0), last=False, soft=False):
            super().__init__()
            self.channels, self.scale, self.last, self.soft = channels, scale, last, soft

        def forward(self, images):
            images = images.permute(0, 3, 1, 2) if self.last else images
            if images.shape[1:] != (self.channels, 8, 8):
                raise ValueError("wrong shape")
            mean, std = self.scale
            pixels = (images * std + mean).clamp(0, 1.2)
            thirds = torch.stack([pixels[..., 3 * k : 3 * k + 2].mean((1, 2, 3)) for k in range(3)], 1)
            scores = 30 * torch.relu(thirds - 0.3) * torch.relu(0.95 - thirds)
            return scores.softmax(1) if self.soft else scores


    class Small(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))


    class Parts(Network):
        def forward(self, images):
            return {"scores": super().forward(images), "mask": images}


    def plain():
        return Network()


    def normalised():
        return Network(scale=(0.98, 0.05))


    def of_bytes():
        return Network(scale=(0, 1 / 255))


    def of_normalised_bytes():
        return Network(scale=(0.5, 0.1))


    def last():
        return Network(last=True)


    def colour():
        return Network(channels=3)


    def colour_last():
        return Network(channels=3, last=True)


    def soft():
        return Network(soft=True)


    def predict(images):
        return Network()(images)


    def predict_labels(images):
        return Network()(images).argmax(1)
"""
DATA = ("--data", "tiny.npz")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's code, weights, and images in several forms."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(textwrap.dedent(CODE))
    tiny = tiny_images(90)
    pixels, labels = tiny.pixels.numpy(), tiny.labels.numpy()
    images = {
        "tiny": pixels,
        "bytes_as_floats": pixels.astype(np.float32),
        "normalised": ((pixels / 255 - 0.98) / 0.05).astype(np.float32),
        "colour": pixels.repeat(3, 1),
        "large": pixels.repeat(4, 2).repeat(4, 3),
        "last": np.moveaxis(pixels, 1, -1),
    }
    for name, each in images.items():
        np.savez(folder / f"{name}.npz", images=each, labels=labels)
    np.savez(folder / "from_one.npz", images=pixels, labels=labels + 1)
    np.savez(folder / "shifted.npz", images=pixels, labels=(labels + 1) % 3)
    small = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    state = small.state_dict()
    torch.save(state, folder / "small.pt")
    torch.save({"1.weight": torch.zeros(3)}, folder / "others.pt")
    torch.save(state | {"3.weight": torch.zeros(5, 256), "3.bias": torch.zeros(5)}, folder / "five.pt")
    torch.save(small, folder / "module.pt")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That folder, as the current one."""
    place = tmp_path / "mine"
    shutil.copytree(made, place)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield place
    sys.modules.pop("mine", None)


CASES: dict[str, tuple[Sequence[str], Sequence[str], Sequence[str] | None]] = {
    # what is said, the words that must be in the message, and the advised command
    "mean of bytes": (
        ("mine:of_normalised_bytes", *DATA, "--mean", "127.5", "--std", "25.5"),
        ("--mean 127.5", "pixels from 0 to 1", "--bounds 0 255"),
        ("mine:of_normalised_bytes", *DATA, "--mean", "127.5", "--std", "25.5", "--bounds", "0", "255"),
    ),
    "std of bytes": (
        ("mine:normalised", *DATA, "--mean", "0.98", "--std", "12.75"),
        ("--std 12.75", "pixels from 0 to 1"),
        ("mine:normalised", *DATA, "--mean", "0.98", "--std", "0.05"),
    ),
    "bounds of bytes": (
        ("mine:normalised", *DATA, "--mean", "0.98", "--std", "0.05", "--bounds", "0", "255"),
        ("--bounds says 0 to 255", "leave --bounds out"),
        ("mine:normalised", *DATA, "--mean", "0.98", "--std", "0.05"),
    ),
    "mean alone": (
        ("mine:normalised", *DATA, "--mean", "0.98"),
        ("--mean is given without --std",),
        ("mine:normalised", *DATA, "--mean", "0.98", "--std", "0.05"),
    ),
    "mean of colours": (
        ("mine:normalised", *DATA, "--mean", "0.4", "0.5", "0.6", "--std", "0.05", "0.05", "0.05"),
        ("--mean has 3 numbers", "1 channel", "give --mean one number"),
        ("mine:normalised", *DATA, "--mean", "0.98", "--std", "0.05"),
    ),
    "classes": (
        ("mine:plain", *DATA, "--classes", "10"),
        ("shape (1, 3)", "10 classes", "--classes states another number"),
        ("mine:plain", *DATA),
    ),
    "class names": (
        ("mine:plain", *DATA, "--classes", "left", "middle"),
        ("shape (1, 3)", "2 classes", "--classes states another number"),
        ("mine:plain", *DATA, "--classes", "left", "middle", "right"),
    ),
    "many classes": (
        ("mine:plain", *DATA, "--classes", "1000000000"),
        ("--classes 1000000000",),
        ("mine:plain", *DATA, "--classes", "3"),
    ),
    "logits": (
        ("mine:soft", *DATA, "--output", "logits"),
        ("--output logits", "returns probabilities", "give --output probabilities"),
        ("mine:soft", *DATA, "--output", "probabilities"),
    ),
    "probabilities": (
        ("mine:plain", *DATA, "--output", "probabilities"),
        ("--output probabilities", "not within [0, 1]", "give --output logits"),
        ("mine:plain", *DATA, "--output", "logits"),
    ),
    "a part of a tensor": (
        ("mine:plain", *DATA, "--output", "scores"),
        ("--output scores names a part", "a tensor of shape (2, 3)", "leave --output out"),
        ("mine:plain", *DATA),
    ),
    "no part": (
        ("mine:Parts", *DATA),
        ("'scores'", "--output names the part"),
        ("mine:Parts", *DATA, "--output", "scores"),
    ),
    "channels last": (
        ("mine:plain", *DATA, "--channels-last"),
        ("accepts images of 8 x 8 with 1 channel, in the order channels, height, width", "leave --channels-last out"),
        ("mine:plain", *DATA),
    ),
    "channels first": (
        ("mine:last", *DATA),
        ("in the order height, width, channels", "give --channels-last"),
        ("mine:last", *DATA, "--channels-last"),
    ),
    "size of the images": (
        ("mine:plain", "--data", "large.npz"),
        ("(1, 1, 32, 32)", "accepts images of 8 x 8", "give --resize 8 8"),
        ("mine:plain", "--data", "large.npz", "--resize", "8", "8"),
    ),
    "size": (
        ("mine:plain", *DATA, "--size", "28"),
        ("the images are 8 x 8", "takes 28 x 28 (stated with an option)", "correct --size, or leave it out"),
        ("mine:plain", *DATA),
    ),
    "size of both": (
        ("mine:plain", "--data", "large.npz", "--size", "32", "--classes", "3"),
        ("give --resize 8 8, and leave --size out",),
        ("mine:plain", "--data", "large.npz", "--resize", "8", "8", "--classes", "3"),
    ),
    "weights of another network": (
        ("mine:Small", *DATA, "--weights", "others.pt"),
        ("the weights of another network", "unexpected ['1.weight']", "--weights"),
        ("mine:Small", *DATA, "--weights", "small.pt"),
    ),
    "weights for other classes": (
        ("mine:Small", *DATA, "--weights", "five.pt"),
        ("3.weight has the shape (5, 256)", "has (3, 256)", "give other --weights"),
        ("mine:Small", *DATA, "--weights", "small.pt"),
    ),
    "no weights": (
        ("mine:Small", *DATA, "--weights", "smal.pt"),
        ("--weights smal.pt does not exist",),
        ("mine:Small", *DATA, "--weights", "small.pt"),
    ),
    "a module as weights": (
        ("mine:Small", *DATA, "--weights", "module.pt"),
        ("more than tensors", "give it as MODEL with --trust-code"),
        ("module.pt", *DATA, "--trust-code"),
    ),
    "weights as a model": (
        ("small.pt", *DATA),
        ("has weights only", "mine.py:Network --weights small.pt"),
        ("mine.py:Small", *DATA, "--weights", "small.pt"),
    ),
    "code without a name": (("mine.py", *DATA), ("is a file of Python", "mine.py:NAME"), ("mine.py:plain", *DATA)),
    "grey for colour": (
        ("mine:colour", *DATA),
        ("accepts images of 8 x 8 with 3 channels", "give --channels 3"),
        ("mine:colour", *DATA, "--channels", "3"),
    ),
    "colour for grey": (
        ("mine:plain", "--data", "colour.npz"),
        ("accepts images of 8 x 8 with 1 channel", "give --channels 1"),
        ("mine:plain", "--data", "colour.npz", "--channels", "1"),
    ),
    "channels and layout": (
        ("mine:colour_last", *DATA),
        ("give --channels-last, and give --channels 3",),
        ("mine:colour_last", *DATA, "--channels-last", "--channels", "3"),
    ),
    "labels from one": (
        ("mine:plain", "--data", "from_one.npz"),
        ("labels from 1 to 3", "from 0 to 2", "number the classes from 0"),
        None,
    ),
    "bytes as floats": (
        ("mine:plain", "--data", "bytes_as_floats.npz"),
        ("pixels from", "to 255", "as uint8, or divided by 255"),
        ("mine:plain", *DATA),
    ),
    "images that are normalised": (
        ("mine:normalised", "--data", "normalised.npz"),
        ("the images have pixels from -", "with --mean and --std instead"),
        ("mine:normalised", *DATA, "--mean", "0.98", "--std", "0.05"),
    ),
    "images with channels last": (
        ("mine:plain", "--data", "last.npz"),
        ("channels last", "images.transpose(0, 3, 1, 2)"),
        ("mine:plain", *DATA),
    ),
    "a builder as a black box": (
        ("mine:plain", *DATA, "--black-box"),
        ("cannot be called with images alone", "leave --black-box out"),
        ("mine:plain", *DATA),
    ),
    "a network as a black box": (
        ("mine:Network", *DATA, "--black-box"),
        ("is a network of PyTorch", "leave --black-box out"),
        ("mine:Network", *DATA),
    ),
    "a black box as a network": (
        ("mine:predict", *DATA),
        ("cannot be called without arguments", "give --black-box"),
        ("mine:predict", *DATA, "--black-box"),
    ),
    "a black box of labels": (
        ("mine:predict_labels", *DATA, "--black-box"),
        ("one number per image", "give the number of classes: --classes 10"),
        ("mine:predict_labels", *DATA, "--black-box", "--classes", "3"),
    ),
    "weights of a black box": (
        ("mine:predict", *DATA, "--black-box", "--weights", "small.pt"),
        ("--weights belongs to a network",),
        ("mine:predict", *DATA, "--black-box"),
    ),
    "queries of a network": (
        ("mine:plain", *DATA, "--queries", "100"),
        ("--queries limits the queries of a black box",),
        ("mine:plain", *DATA),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("folder")
def test_a_wrong_description_is_caught_and_the_advice_works(run: Run, case: str) -> None:
    said, words, advised = CASES[case]
    code, out, err = run("evaluate", *said, "--eps", "0.02", "--dry-run")
    message = " ".join(err.split())
    assert (code, out) == (2, ""), err
    for each in words:
        assert each in message, message
    if advised is not None:
        code, out, err = run("evaluate", *advised, "--eps", "0.02", "--dry-run")
        assert code == 0, err


# What no look at two images can tell: the accuracy does ---------------------------------------------------------------
SILENT = {
    "no normalisation": (("mine:normalised", *DATA), "--mean and --std (none; none)"),
    "no bounds": (("mine:of_bytes", *DATA), "--bounds (0 to 1)"),
    "bounds of another network": (("mine:plain", *DATA, "--bounds", "0", "255"), "--bounds (0 to 255)"),
    "permuted classes": (("mine:plain", "--data", "shifted.npz"), "the order of --classes, and whether labels count"),
    "weights untrained": (("mine:Small", *DATA), "--weights"),
}


@pytest.mark.parametrize("case", SILENT)
@pytest.mark.usefixtures("folder")
def test_an_accuracy_of_guessing_names_the_options(run: Run, case: str) -> None:
    said, words = SILENT[case]
    torch.manual_seed(1)
    code, _, err = run("attack", "fgsm", *said, "--eps", "0.02", "--out", "out")
    assert code == 0, err
    message = " ".join(err.split())
    assert "is not shown to be above guessing (33.3%)" in message
    assert words in message


@pytest.mark.usefixtures("folder")
def test_a_right_description_names_no_options(run: Run) -> None:
    said = ("mine:normalised", *DATA, "--mean", "0.98", "--std", "0.05", "--eps", "0.02")
    code, _, err = run("attack", "fgsm", *said, "--out", "out")
    assert code == 0, err
    assert "above guessing" not in err
    digest = json.loads(Path("out/result.json").read_text())["model_facts"]["files"]["value"]["mine.py"]
    assert f"mine.py: {digest[:16]}..." in err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("mine:of_bytes", *DATA), "--mean, --std and --bounds"),
        (("mine:plain", "--data", "shifted.npz"), ", --classes), and whether the labels start at 0"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_an_evaluation_says_which_option_is_missing(run: Run, said: Sequence[str], words: str) -> None:
    command = ("evaluate", *said, "--eps", "0.02", "--budget", "quick", "--force", "--out", "out")
    code, _, err = run(*command)
    assert code == 0, err
    assert "above guessing" in " ".join(err.split())
    assert words in " ".join(Path("out/report.html").read_text().split())
