"""Images are resized and cropped as a model's configuration says: Hugging Face folders and timm names, by stand-ins.

The libraries themselves are replaced by small objects that build a network; what is read from the configurations is
casemate's own.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from casemate.cli.shared.inputs import open_for
from casemate.cli.shared.options import Reading
from casemate.data import Resizing
from casemate.errors import ModelError, SettingError
from casemate.models import ModelFacts, OpenedModel, open_model
from test_study import Run, runner

NAMES = {"0": "left", "1": "right"}


class Network(nn.Module):
    """Takes images of any size, unless `side` is given, as a vision transformer does."""

    def __init__(self, channels: int = 3, side: int | None = None) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4, 2)
        self.side = side

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.side is not None and tuple(images.shape[2:]) != (self.side, self.side):
            raise ValueError(f"expected {self.side}")
        return self.head(self.stem(images).mean((2, 3)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a Hugging Face folder with an image processor, and puts a stand-in in place of transformers."""

    def loaded(*given: Any, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        del given, options
        torch.manual_seed(0)
        return Network(), {}

    fake = SimpleNamespace(AutoModelForImageClassification=SimpleNamespace(from_pretrained=loaded))
    monkeypatch.setattr("casemate.models.sources.hugging_face.import_extra", lambda *_, **__: fake)
    for name in ("_quiet", "_offline"):
        monkeypatch.setattr(f"casemate.models.sources.hugging_face.{name}", nullcontext)

    def write(**processor: Any) -> Path:
        place = tmp_path / "vit"
        place.mkdir()
        (place / "config.json").write_text(json.dumps({"id2label": NAMES, "num_channels": 3}))
        (place / "preprocessor_config.json").write_text(json.dumps(processor))
        save_file({"weight": torch.zeros(1)}, place / "model.safetensors")
        return place

    return write


SQUARE = {"height": 24, "width": 24}
EDGE = {"size": {"shortest_edge": 32}, "crop_size": SQUARE, "do_center_crop": True}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": SQUARE}, Resizing(size=(24, 24))),
        ({"size": {"height": 20, "width": 30}, "resample": 3}, Resizing(size=(20, 30), interpolation="bicubic")),
        ({"size": 24, "resample": 0}, Resizing(size=(24, 24), interpolation="nearest")),
        ({"size": SQUARE, "resample": 1}, Resizing(size=(24, 24), interpolation="lanczos")),
        ({"size": SQUARE, "resample": 4}, Resizing(size=(24, 24), interpolation="box")),
        ({"size": SQUARE, "resample": 5}, None),  # Hamming's window, which is not offered
        ({"size": SQUARE, "do_resize": False}, None),
        (EDGE, Resizing(size=32, crop=(24, 24))),
        (EDGE | {"do_resize": False}, Resizing(crop=(24, 24))),
        (EDGE | {"do_center_crop": False}, Resizing(size=32)),
        ({"size": {"shortest_edge": 32}, "crop_size": 24}, Resizing(size=32, crop=(24, 24))),
        ({}, None),
    ],
)
def test_an_image_processor_says_how_images_are_prepared(
    folder: Callable[..., Path], processor: dict[str, Any], expected: Resizing | None
) -> None:
    opened = open_model(folder(**processor))
    assert opened.stated.preparation == expected
    if expected is not None:
        assert opened.stated.origins["preparation"] == "preprocessor_config.json"


@pytest.fixture
def timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenedModel]:
    """Opens timm:net with a configuration, by a stand-in for timm."""

    def opened(stated: ModelFacts | None = None, **config: Any) -> OpenedModel:
        whole = {"input_size": (3, 24, 24), "first_conv": "stem", "classifier": "head", **config}

        def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int, img_size: Any = None) -> Any:
            assert (name, pretrained, num_classes) == ("net", False, 2)
            return Network(in_chans, None if img_size is None else img_size[0])

        fake = SimpleNamespace(
            is_model=lambda name: name == "net",
            get_pretrained_cfg=lambda _: SimpleNamespace(to_dict=lambda: whole),
            create_model=create_model,
        )
        monkeypatch.setattr("casemate.models.sources.timm_name.import_extra", lambda *_, **__: fake)
        torch.manual_seed(0)
        save_file(Network().state_dict(), tmp_path / "net.safetensors")
        return open_model("timm:net", weights=tmp_path / "net.safetensors", overrides=stated)

    return opened


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"crop_pct": 0.75, "interpolation": "bilinear"}, Resizing(size=32, crop=(24, 24))),
        ({"crop_pct": 0.9}, Resizing(size=26, crop=(24, 24), interpolation="bicubic")),
        ({}, Resizing(size=24, crop=(24, 24), interpolation="bicubic")),
        ({"crop_pct": 0.75, "crop_mode": "squash"}, Resizing(size=(32, 32), crop=(24, 24), interpolation="bicubic")),
        ({"crop_mode": "border"}, None),
        ({"interpolation": "random"}, None),
        ({"crop_pct": 1.5}, None),
        ({"input_size": (3, 24, 32)}, None),
        ({"input_size": None}, None),
    ],
)
def test_timm_s_configuration_says_how_images_are_prepared(
    timm: Callable[..., OpenedModel], config: dict[str, Any], expected: Resizing | None
) -> None:
    opened = timm(**config)
    assert opened.stated.preparation == expected
    if expected is not None:
        assert opened.stated.origins["preparation"] == "timm's configuration"


def test_images_are_prepared_unless_they_are_as_the_model_takes_them(timm: Callable[..., OpenedModel]) -> None:
    """Where the network takes any size, small images stay as they are: it may have been trained on them."""
    free = timm(crop_pct=0.75)
    wanted = Resizing(size=32, crop=(24, 24), interpolation="bicubic")
    assert free.preparation_of((3, 30, 40)) == wanted
    assert free.preparation_of((3, 24, 40)) is None
    assert free.preparation_of((3, 8, 8)) is None
    fixed = timm(crop_pct=0.75, fixed_input_size=True)
    assert fixed.preparation_of((3, 8, 8)) == wanted
    assert fixed.preparation_of((3, 24, 24)) is None


@pytest.mark.parametrize(
    ("crop_mode", "size"),
    [("center", 16), ("squash", (16, 16))],
)
def test_a_stated_size_changes_the_preparation_in_proportion(
    timm: Callable[..., OpenedModel], crop_mode: str, size: Any
) -> None:
    stated = ModelFacts(size=(12, 12))
    opened = timm(stated, crop_pct=0.75, crop_mode=crop_mode, fixed_input_size=True)
    assert opened.preparation_of((3, 50, 50)) == Resizing(size=size, crop=(12, 12), interpolation="bicubic")


@pytest.mark.parametrize(
    ("resizing", "wanted", "expected"),
    [
        (Resizing(size=248, crop=224), (64, 64), Resizing(size=71, crop=(64, 64))),
        (Resizing(size=248, crop=224), (224, 224), Resizing(size=248, crop=224)),
        (Resizing(size=(30, 60), crop=(20, 40)), (10, 10), Resizing(size=(15, 15), crop=(10, 10))),
        (Resizing(size=(20, 40)), (10, 10), Resizing(size=(10, 10))),
        (Resizing(crop=24), (12, 12), Resizing(crop=(12, 12))),
        (Resizing(size=24), (12, 12), Resizing(size=24)),
    ],
)
def test_resizing_in_proportion(resizing: Resizing, wanted: tuple[int, int], expected: Resizing) -> None:
    assert resizing.in_proportion(wanted) == expected


def test_the_facts_show_the_preparation_only_of_images_that_get_it(timm: Callable[..., OpenedModel]) -> None:
    def shown(opened: OpenedModel, side: int) -> list[str]:
        opened.check(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
        return [value for title, value, _ in opened.facts.rows() if title == "preparation"]

    words = "images resized to 32 along the shorter side (bicubic), cropped to 24 x 24 at the centre"
    assert shown(timm(crop_pct=0.75), 24) == [words]
    assert shown(timm(crop_pct=0.75), 8) == []
    assert shown(timm(ModelFacts(size=(12, 12)), crop_pct=0.75, fixed_input_size=True), 12) == [
        words.replace("32", "16").replace("24", "12")
    ]


# The command line -----------------------------------------------------------------------------------------------------
@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures of 40 x 60 in a folder for each of two classes: one bright on the left, one on the right."""
    for name, side in (("left", 0), ("right", 30)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((40, 60, 3), 20 * number, np.uint8)
            pixels[:, side : side + 30] = 255
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def test_images_of_a_user_are_prepared_for_the_model(folder: Callable[..., Path], pictures: Path) -> None:
    found = open_for(open_model(folder(**EDGE, resample=3)), pictures, Reading())
    assert found.image_shape == (3, 24, 24)
    (note,) = found.notes
    assert note == (
        f"{pictures}: resized to 32 along the shorter side (bicubic), cropped to 24 x 24 at the centre, as "
        "preprocessor_config.json says (--resize and --crop change it)"
    )
    by_hand = Resizing(size=32, crop=(24, 24), interpolation="bicubic").resized(Image.open(pictures / "left/1.png"))
    first = found.read(slice(1, 2)).pixels[0]
    assert np.array_equal(first.permute(1, 2, 0).numpy(), np.asarray(by_hand))


def test_resize_and_crop_come_before_the_model_s_configuration(folder: Callable[..., Path], pictures: Path) -> None:
    model = open_model(folder(**EDGE))
    found = open_for(model, pictures, Reading(resize=(24, 24)))
    assert found.image_shape == (3, 24, 24)
    assert found.notes == ()
    by_hand = Resizing(size=(24, 24)).resized(Image.open(pictures / "left/1.png"))
    assert np.array_equal(found.read(slice(1, 2)).pixels[0].permute(1, 2, 0).numpy(), np.asarray(by_hand))
    with pytest.raises((SettingError, ModelError), match="--resize"):
        open_for(model, pictures, Reading(crop=(20,)))


def test_the_command_says_how_the_images_were_prepared(
    folder: Callable[..., Path],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run: Run = runner(capsys)
    monkeypatch.chdir(tmp_path)
    code, _, err = run("attack", "fgsm", folder(**EDGE), "--data", pictures, "--eps", "0.1", "--out", "out")
    assert code == 0, err
    said = " ".join(err.split())
    assert "cropped to 24 x 24 at the centre, as preprocessor_config.json says (--resize and --crop change it)" in said
    assert "preparation" in err
    assert "24 x 24" in err
