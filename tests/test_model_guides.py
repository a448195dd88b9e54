"""What docs/models.md promises of models from other libraries, where a first user stumbled; needs the extras."""

import copy
import importlib.util
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from casemate.data import open_images
from casemate.errors import DataError, ModelError
from casemate.models import ModelMetadata, create, open_model, save
from casemate.models.sources import onnx_rewrites

IMAGES = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
extras = pytest.mark.extras


def needs(*libraries: str) -> Any:
    """A skip, with its reason, where a library is missing."""
    missing = [each for each in libraries if importlib.util.find_spec(each) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@extras
@needs("onnx", "onnx2torch", "torchvision")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_network_trained_here_opens_after_an_export_to_onnx(tmp_path: Path) -> None:
    model = create("student-8x1", input_shape=(1, 28, 28), classes=tuple("abcdefghij"), seed=0).eval()
    path = tmp_path / "cnn.onnx"
    torch.onnx.export(
        model, (IMAGES[:1],), path, dynamo=False, input_names=["images"], dynamic_axes={"images": {0: "n"}}
    )
    opened = open_model(path)
    assert torch.allclose(opened.model(IMAGES), model(IMAGES), atol=1e-5)


def _padded(images: Tensor, top: int, bottom: int) -> Tensor:
    return nn.functional.pad(images, (top, bottom, top, bottom))


@extras
@needs("onnx", "onnx2torch", "torchvision")
@pytest.mark.parametrize(
    ("mode", "size", "kernel", "stride", "dilation", "pads"),
    [
        ("SAME_UPPER", 28, 3, 1, 1, (1, 1)),
        ("SAME_UPPER", 28, 4, 1, 1, (1, 2)),
        ("SAME_LOWER", 28, 4, 1, 1, (2, 1)),
        ("SAME_UPPER", 28, 3, 2, 1, (0, 1)),
        ("SAME_UPPER", 27, 3, 2, 1, (1, 1)),
        ("SAME_LOWER", 28, 3, 2, 1, (1, 0)),
        ("SAME_UPPER", 28, 3, 1, 2, (2, 2)),
        ("SAME_UPPER", 28, 1, 2, 1, (0, 0)),
    ],
)
def test_the_padding_of_onnx_that_keeps_the_size(
    tmp_path: Path, mode: str, size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]
) -> None:
    onnx = import_module("onnx")
    tensor, helper = onnx.TensorProto, onnx.helper
    layer = nn.Conv2d(1, 2, kernel, stride, dilation=dilation, bias=False)
    node = helper.make_node(
        "Conv", ["images", "w"], ["made"], auto_pad=mode, strides=[stride] * 2, dilations=[dilation] * 2
    )
    pooled = helper.make_node("GlobalAveragePool", ["made"], ["mean"])
    flat = helper.make_node("Flatten", ["mean"], ["scores"])
    program = helper.make_model(
        helper.make_graph(
            [node, pooled, flat],
            "small",
            [helper.make_tensor_value_info("images", tensor.FLOAT, ["n", 1, size, size])],
            [helper.make_tensor_value_info("scores", tensor.FLOAT, ["n", 2])],
            [onnx.numpy_helper.from_array(layer.weight.detach().numpy(), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(program, tmp_path / "small.onnx")
    images = IMAGES[:, :, :size, :size]
    with torch.no_grad():
        expected = layer(_padded(images, *pads))
        assert expected.shape[-1] == -(-size // stride)
        found = open_model(tmp_path / "small.onnx").model(images)
    assert torch.allclose(found, expected.mean((2, 3)), atol=1e-6)


def test_totals_of_padding() -> None:
    """By the definition: the output has ceil(size / stride) pixels, and one pixel of padding less is too little."""
    for size in (7, 8, 27, 28):
        for kernel in (1, 2, 3, 5):
            for stride in (1, 2, 3):
                for dilation in (1, 2):
                    (total,) = onnx_rewrites._totals([size], [kernel], [stride], [dilation])
                    wanted, reach = -(-size // stride), dilation * (kernel - 1) + 1
                    assert (size + total - reach) // stride + 1 >= wanted
                    assert total == 0 or (size + total - 1 - reach) // stride + 1 < wanted


@extras
@needs("timm", "torchvision")
def test_timm_weights_that_casemate_wrote_open_again(tmp_path: Path) -> None:
    name = "resnet10t"
    network = import_module("timm").create_model(name, pretrained=False, in_chans=1, num_classes=10)
    save_file(network.state_dict(), tmp_path / "start.safetensors")
    started = open_model(f"timm:{name}", weights=tmp_path / "start.safetensors")
    started.model.infer(IMAGES)
    save(started.model, tmp_path / "trained.safetensors", ModelMetadata(architecture=f"timm:{name}", dataset="any"))
    again = open_model(f"timm:{name}", weights=tmp_path / "trained.safetensors")
    assert torch.equal(again.model(IMAGES), started.model(IMAGES))


def test_a_black_box_in_numpy_has_the_same_scores_in_every_way_of_calling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nearest.py").write_text(
        "def scores(batch):\n    return batch.numpy().reshape(len(batch), -1)[:, 300:310]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    opened = open_model(f"{tmp_path / 'nearest.py'}:scores", black_box=True)
    opened.check(IMAGES)
    leaf = IMAGES.clone().requires_grad_(True)
    with pytest.raises(ModelError, match="black box, which has no gradient"):
        opened.model(leaf)
    with torch.no_grad():
        assert torch.equal(opened.model(leaf), IMAGES.flatten(1)[:, 300:310])


@extras
@needs("keras", "h5py")
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_a_keras_model_computes_in_float64_where_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its gradient is compared with differences in float32, which are mostly rounding."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = import_module("keras")
    layers = keras.layers
    stack = [keras.Input((28, 28, 1)), layers.Conv2D(4, 3, padding="same", activation="relu"), layers.MaxPooling2D(2)]
    stack += [layers.BatchNormalization(), layers.Flatten(), layers.Dense(10, activation="softmax")]
    keras.Sequential(stack).save(tmp_path / "net.keras")
    model = open_model(tmp_path / "net.keras").model
    model.infer(IMAGES)
    single = model(IMAGES).detach()
    exact = copy.deepcopy(model).double()(IMAGES.double())
    assert exact.dtype == torch.float64
    assert 0 < (exact - single).abs().max() < 1e-4
    assert torch.equal(model(IMAGES), single)


@pytest.mark.parametrize(
    ("classes", "advice"),
    [
        (("0", "1", "2"), ", or say what its outputs stand for, in their order: --classes 0 90 180"),
        (("0", "1"), ""),
        (("a", "0", "90"), ", or name the model's classes as these are, in the order of its outputs: --classes"),
    ],
)
def test_folders_of_which_some_are_named_like_the_model_s_numbers(
    tmp_path: Path, classes: tuple[str, ...], advice: str
) -> None:
    for name in ("0", "90", "180"):
        (tmp_path / "pages" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "pages" / name / "1.png")
    with pytest.raises(DataError) as caught:
        open_images(tmp_path / "pages", classes=classes)
    assert str(caught.value).endswith(f"Name the folders or labels like the model's classes{advice}")
    named = open_images(tmp_path / "pages", classes=("0", "90", "180"))
    assert named.labels.tolist() == [0, 1, 2]
