"""Models in formats that need an extra: each opens and gives the same outputs, states its facts, and runs no code.

Each test is skipped, with the reason, where its extra is not installed; `make test-extras` installs them all.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import casemate
from casemate.attacks import PGD
from casemate.errors import MachineError, MissingExtraError, ModelError
from casemate.models import ModelFacts, open_model
from casemate.models.sources import extras
from test_model_sources import other_torchvision

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # by Keras itself
os.environ.setdefault("KERAS_BACKEND", "torch")
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
GREY = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(2))


def needs(*libraries: str) -> Any:
    """Marks of a test that needs libraries of an extra: skipped, with the reason, where one is missing."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]

    def mark(test: Any) -> Any:
        return pytest.mark.extras(pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")(test))

    return mark


# ONNX -----------------------------------------------------------------------------------------------------------------
def onnx_file(path: Path, *, batch: int | str = "n", last: bool = False, softmax: bool = False) -> nn.Module:
    """Write a small classifier of 3 x 32 x 32 images as ONNX; return the same network in PyTorch."""
    onnx = import_module("onnx")
    helper, numpy_helper, number = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT

    torch.manual_seed(3)
    convolution, dense = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4 * 16 * 16, 5)
    network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), dense).eval()
    weights = {"w": convolution.weight, "b": convolution.bias, "v": dense.weight, "c": dense.bias}
    first = "pixels" if last else "images"
    nodes = [helper.make_node("Transpose", ["images"], ["pixels"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        helper.make_node("Conv", [first, "w", "b"], ["h"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "v", "c"], ["scores" if not softmax else "z"], transB=1),
    ]
    nodes += [helper.make_node("Softmax", ["z"], ["scores"], axis=1)] if softmax else []
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", number, [batch, 32, 32, 3] if last else [batch, 3, 32, 32])],
        [helper.make_tensor_value_info("scores", number, [batch, 5])],
        [
            numpy_helper.from_array(each.detach().numpy(), name)
            for name, each in weights.items()
            if isinstance(each, torch.Tensor)
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, path)
    return network


@needs("onnx", "onnx2torch", "torchvision")
@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_an_onnx_file_opens(tmp_path: Path, batch: int | str, last: bool, softmax: bool) -> None:
    path = tmp_path / "net.onnx"
    expected = onnx_file(path, batch=batch, last=last, softmax=softmax)
    opened = open_model(path)
    opened.check(IMAGES)
    facts = opened.facts
    assert (facts.channels, facts.size, facts.channels_last, len(facts.classes or ())) == (3, (32, 32), last, 5)
    assert facts.origins["size"] == "the input of the ONNX graph"
    torch.testing.assert_close(opened.model(IMAGES), expected(IMAGES), rtol=1e-4, atol=1e-5)
    labels = opened.model(IMAGES).argmax(1)
    found = PGD(eps=0.3, steps=10)(opened.model, IMAGES, labels)
    assert found.success.all()


@needs("onnx", "onnx2torch", "torchvision")
def test_the_fixed_facts_of_an_onnx_file_cannot_be_stated_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx_file(path)
    with pytest.raises(ModelError, match=r"--size 28 28 contradicts the model, which has 32 x 32 \(the input of"):
        open_model(path, overrides=ModelFacts(size=(28, 28)))
    with pytest.raises(ModelError, match=r"--channels-last.*contradicts the model"):
        open_model(path, overrides=ModelFacts(channels_last=True))
    with pytest.raises(ModelError, match="the images are 28 x 28, but the model takes 32 x 32"):
        open_model(path).check(torch.rand(2, 3, 28, 28))


@needs("onnx", "onnx2torch", "torchvision")
@pytest.mark.parametrize("place", ["../secret.bin", "{}/secret.bin", "link.bin", "inner/../../secret.bin"])
def test_external_data_lie_in_the_folder_of_the_model(tmp_path: Path, place: str) -> None:
    onnx = import_module("onnx")

    folder = tmp_path / "model"
    folder.mkdir()
    onnx_file(folder / "inside.onnx")
    made = onnx.load(folder / "inside.onnx")
    onnx.save(made, folder / "inside.onnx", save_as_external_data=True, location="data.bin", size_threshold=0)
    assert (folder / "data.bin").is_file()
    open_model(folder / "inside.onnx").check(IMAGES)

    (folder / "data.bin").rename(tmp_path / "secret.bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    outside = onnx.load(folder / "inside.onnx", load_external_data=False)
    for tensor in outside.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place.format(tmp_path)
    (folder / "outside.onnx").write_bytes(outside.SerializeToString())
    with pytest.raises(ModelError, match=r"outside its folder; nothing of it was read"):
        open_model(folder / "outside.onnx")


@needs("onnx", "onnx2torch", "torchvision")
def test_damaged_onnx_files_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx_file(path)
    raw = path.read_bytes()
    random = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(raw[: random.integers(len(raw))] if number % 2 else raw)
        for place in random.integers(len(damaged) or 1, size=4):
            if damaged:
                damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            open_model(path).check(IMAGES)
        except ModelError:
            continue


@needs("onnx", "onnx2torch", "torchvision")
@pytest.mark.parametrize("where", ["function", "training", "missing", "pipe", "many"])
def test_external_data_are_checked_wherever_they_are_named(tmp_path: Path, where: str) -> None:
    onnx = import_module("onnx")
    path = tmp_path / "model" / "net.onnx"
    path.parent.mkdir()
    onnx_file(path)
    (tmp_path / "secret.bin").write_bytes(bytes(100))
    made = onnx.load(path)

    def external(name: str, place: str) -> Any:
        tensor = onnx.TensorProto(name=name, data_type=1, dims=[25], data_location=1)
        tensor.external_data.add(key="location", value=place)
        return tensor

    words = "outside its folder"
    match where:
        case "function":
            function = made.functions.add(name="f", domain="mine")
            node = function.node.add(op_type="Constant", output=["c"])
            node.attribute.add(name="value", type=4).t.CopyFrom(external("c", "../secret.bin"))
        case "training":
            made.training_info.add().algorithm.initializer.append(external("w", "../secret.bin"))
        case "missing":
            made.graph.initializer.append(external("unused", "data.bin"))
            words = "'data.bin', which is missing"
        case "pipe":
            os.mkfifo(path.parent / "data.bin")
            made.graph.initializer.append(external("unused", "data.bin"))
            words = "'data.bin', which is missing"
        case _:
            with (path.parent / "data.bin").open("wb") as file:
                file.truncate(30_000_000)
            made.graph.initializer.extend([external(f"unused{number}", "data.bin") for number in range(20)])
            words = "states external data of 600000000 bytes in all, but their files have 30000000"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=words):
        open_model(path)


@needs("onnx", "onnx2torch", "torchvision")
def test_the_hash_of_external_data_is_recorded(tmp_path: Path) -> None:
    onnx = import_module("onnx")
    path = tmp_path / "net.onnx"
    onnx_file(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="data.bin", size_threshold=0)
    expected = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("net.onnx", "data.bin")}
    assert dict(open_model(path).sha256) == expected


# timm -----------------------------------------------------------------------------------------------------------------
@needs("timm", "torchvision")
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_a_timm_network_opens_with_local_weights(tmp_path: Path, name: str) -> None:
    timm = import_module("timm")

    torch.manual_seed(0)
    expected = timm.create_model(name, pretrained=False, num_classes=7).eval()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(expected.state_dict(), path)
    opened = open_model(f"timm:{name}", weights=path)
    images = torch.rand(3, 3, 160, 160)
    opened.check(images)
    facts = opened.facts
    assert (facts.channels, len(facts.classes or ())) == (3, 7)
    assert facts.mean is not None
    assert facts.origins["mean"] == "timm's configuration"
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (facts.mean, facts.std))
    torch.testing.assert_close(opened.model(images), expected((images - mean) / std))


@needs("timm", "torchvision")
def test_a_timm_network_for_grey_images_of_another_size(tmp_path: Path) -> None:
    timm = import_module("timm")

    path = tmp_path / "weights.pt"
    expected = timm.create_model("test_vit", pretrained=False, num_classes=10, in_chans=1, img_size=32).eval()
    torch.save(expected.state_dict(), path)
    stated, grey = ModelFacts(size=(32, 32), mean=(0.5,), std=(0.25,)), IMAGES[:, :1]
    opened = open_model("timm:test_vit", weights=path, overrides=stated)
    opened.check(grey)
    torch.testing.assert_close(opened.model(grey), expected((grey - 0.5) / 0.25))
    with pytest.raises(ModelError, match=r"pos_embed has the shape .*give the size that it was trained for: --size"):
        open_model("timm:test_vit", weights=path)


@needs("timm", "torchvision")
def test_timm_downloads_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing is downloaded; give a local file: --weights FILE"):
        open_model("timm:resnet18")
    with pytest.raises(ModelError, match=r"timm has no model 'resnet18x'.*similar: .*resnet18"):
        open_model("timm:resnet18x", weights=tmp_path / "w.pt")


@needs("timm", "torchvision")
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_the_weights_of_a_timm_network_run_no_code(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / name
    torch.save({"conv1.weight": torch.zeros(1), "payload": Payload(mark)}, path)
    with pytest.raises(ModelError, match="more than tensors, which is not loaded"):
        open_model("timm:test_resnet", weights=path)
    assert not mark.exists()


@needs("timm", "torchvision")
def test_impossible_shapes_of_timm_weights_use_no_memory(tmp_path: Path) -> None:
    timm = import_module("timm")
    path = tmp_path / "weights.pt"
    state = timm.create_model("test_resnet", pretrained=False, num_classes=7).state_dict()
    for head in (torch.zeros(10**9, 0), torch.zeros(1).expand(10**6, 96), torch.zeros(1).expand(10**12, 1)):
        torch.save(state | {"fc.weight": head}, path)
        with pytest.raises(ModelError, match=r"fc\.weight"):
            open_model("timm:test_resnet", weights=path)


# Hugging Face ---------------------------------------------------------------------------------------------------------
def hugging_face_folder(folder: Path) -> Any:
    """Write a small image classifier as `save_pretrained` does; return it."""
    transformers = import_module("transformers")

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "owl"},
        label2id={"cat": 0, "dog": 1, "owl": 2},
    )
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(folder)
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.25, 0.25, 0.25],
        "size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return network


@needs("transformers")
def test_a_hugging_face_folder_opens(tmp_path: Path) -> None:
    expected = hugging_face_folder(tmp_path / "vit")
    opened = open_model(tmp_path / "vit")
    opened.check(IMAGES)
    facts = opened.facts
    assert (facts.classes, facts.size, facts.mean) == (("cat", "dog", "owl"), (32, 32), (0.5, 0.4, 0.3))
    scaled = (IMAGES - torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1)) / 0.25
    torch.testing.assert_close(opened.model(IMAGES), expected(scaled).logits)
    assert facts.origins["mean"] == "preprocessor_config.json"


@needs("transformers")
@pytest.mark.parametrize("what", ["remote code", "pickle", "missing"])
def test_a_hugging_face_folder_runs_no_code(tmp_path: Path, what: str) -> None:
    folder, mark = tmp_path / "vit", tmp_path / "mark"
    hugging_face_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    match what:
        case "remote code":
            config["auto_map"] = {"AutoModelForImageClassification": "modeling.Net"}
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "modeling.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
            words = "needs code of its own"
        case "pickle":
            (folder / "model.safetensors").unlink()
            torch.save({"payload": Payload(mark)}, folder / "pytorch_model.bin")
            words = r"has no \.safetensors file"
        case _:
            tensors = safetensors.torch.load_file(folder / "model.safetensors")
            kept = {name: each for name, each in tensors.items() if "classifier" not in name}
            safetensors.torch.save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
            words = "no weights for classifier"
    with pytest.raises(ModelError, match=words):
        open_model(folder)
    assert not mark.exists()


class Payload:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


# Keras ----------------------------------------------------------------------------------------------------------------
def keras_model() -> Any:
    """A small Keras classifier of grey images."""
    keras = import_module("keras")

    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(4, 3, activation="relu", strides=2),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def functional_model() -> Any:
    """A Keras classifier with a branch."""
    keras = import_module("keras")

    keras.utils.set_random_seed(0)
    layers = keras.layers
    images = keras.Input((28, 28, 1))
    one = layers.Conv2D(4, 3, padding="same")(layers.Rescaling(2.0, offset=-1.0)(images))
    other = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same")(one))
    return keras.Model(images, layers.Dense(10)(layers.GlobalAveragePooling2D()(layers.Add()([one, other]))))


def flat_model() -> Any:
    """A Keras classifier of images without the dimension of channels."""
    keras = import_module("keras")

    return keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10)])


@needs("keras")
@pytest.mark.parametrize("build", [keras_model, functional_model, flat_model])
def test_a_keras_file_opens(tmp_path: Path, build: Callable[[], Any]) -> None:
    path = tmp_path / "net.keras"
    made = build()
    made.save(path)
    opened = open_model(path)
    opened.check(GREY)
    facts = opened.facts
    assert (facts.channels, facts.size, len(facts.classes or ())) == (1, (28, 28), 10)
    inputs = GREY[:, 0] if build is flat_model else GREY.permute(0, 2, 3, 1)
    expected = torch.as_tensor(made(inputs, training=False)).detach()
    logits = opened.model(GREY).detach()
    torch.testing.assert_close(logits.softmax(1) if build is keras_model else logits, expected, rtol=1e-4, atol=1e-5)
    found = PGD(eps=0.5, steps=20)(opened.model, GREY, logits.argmax(1))
    assert found.success.any()


def _changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a .keras file with another config.json."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(entries["config.json"])
    change(config)
    entries["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


@needs("keras")
@pytest.mark.parametrize("what", ["lambda", "module", "registered", "function", "nested"])
def test_a_keras_file_of_other_layers_does_not_run(tmp_path: Path, what: str) -> None:
    keras = import_module("keras")

    path, mark = tmp_path / "net.keras", tmp_path / "mark"
    if what == "lambda":
        layer = keras.layers.Lambda(eval(f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]"))
        keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), layer]).save(path)
        mark.unlink(missing_ok=True)
    else:
        keras_model().save(path)
        opens = {"module": "builtins", "class_name": "exec", "config": f"open({str(mark)!r}, 'w').close()"}

        def change(config: dict[str, Any]) -> None:
            layer = config["config"]["layers"][1]
            match what:
                case "module":
                    layer.update({"module": "os", "class_name": "system"})
                case "registered":
                    layer["registered_name"] = "my>Conv2D"
                case "function":
                    layer["config"]["activation"] = opens | {"class_name": "function"}
                case _:
                    layer["config"]["kernel_initializer"]["config"] = {"seed": [{"deep": opens}]}

        _changed(path, change)
    with pytest.raises(ModelError, match=r"more than built-in layers .*nothing of it was run.*--trust-code"):
        open_model(path)
    assert not mark.exists()


@needs("keras", "h5py")
def test_the_weights_of_a_keras_file_are_its_own(tmp_path: Path) -> None:
    h5py = import_module("h5py")

    path, outside = tmp_path / "net.keras", tmp_path / "secret.h5"
    keras_model().save(path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    outside.write_bytes(entries["model.weights.h5"])
    linked = tmp_path / "linked.h5"
    with h5py.File(linked, "w") as file:
        file["layers"] = h5py.ExternalLink(str(outside), "/layers")
    entries["model.weights.h5"] = linked.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="lead elsewhere"):
        open_model(path)


@needs("keras")
@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_the_layout_of_a_keras_file_is_handled(tmp_path: Path, order: str) -> None:
    keras = import_module("keras")
    keras.utils.set_random_seed(0)
    path, images = tmp_path / "net.keras", IMAGES[:, :, :20, :24]
    shape = (20, 24, 3) if order == "channels_last" else (3, 20, 24)
    convolution = keras.layers.Conv2D(4, 3, data_format=order)
    made = keras.Sequential([keras.Input(shape), convolution, keras.layers.Flatten(), keras.layers.Dense(5)])
    made.save(path)
    opened = open_model(path)
    opened.check(images)
    facts = opened.facts
    assert (facts.channels, facts.size, facts.channels_last) == (3, (20, 24), order == "channels_last")
    expected = made(images.permute(0, 2, 3, 1) if order == "channels_last" else images, training=False)
    torch.testing.assert_close(opened.model(images), torch.as_tensor(expected).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="the images are 24 x 20, but the model takes 20 x 24"):
        open_model(path).check(images.transpose(2, 3))


@needs("keras", "h5py")
@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_lambda_of_keras_runs_with_trust_only(tmp_path: Path, name: str) -> None:
    keras = import_module("keras")
    path, mark = tmp_path / name, tmp_path / "mark"
    layer = keras.layers.Lambda(eval(f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]"))
    keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(3), layer]).save(path)
    mark.unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"nothing of it was run.*--trust-code"):
        open_model(path)
    assert not mark.exists()
    opened = open_model(path, trust_code=True)
    assert mark.exists()
    assert opened.model(GREY).shape == (5, 3)


@needs("keras", "jax")
def test_a_keras_that_computes_by_another_library_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    keras_model().save(path)
    program = f"""
import keras, sys
from casemate.errors import MachineError
from casemate.models import open_model
try:
    open_model({str(path)!r})
except MachineError as error:
    print(error)
"""
    places = {"PYTHONPATH": str(Path(casemate.__file__).parents[1]), "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ | places
    )
    assert "Keras is loaded with the backend jax; expected torch" in done.stdout, done.stderr
    assert "KERAS_BACKEND=torch" in done.stdout


@needs("keras")
def test_another_backend_of_keras_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras = import_module("keras")

    path = tmp_path / "net.keras"
    keras_model().save(path)
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(MachineError, match=r"backend jax; expected torch.*KERAS_BACKEND=torch"):
        open_model(path)


@needs("keras", "h5py")
@pytest.mark.parametrize("what", ["external", "large", "circle", "units"])
def test_the_weights_of_a_keras_file_are_arrays_of_their_size(tmp_path: Path, what: str) -> None:
    h5py = import_module("h5py")
    path, weights = tmp_path / "net.keras", tmp_path / "weights.h5"
    keras_model().save(path)
    with zipfile.ZipFile(path) as archive:
        weights.write_bytes(archive.read("model.weights.h5"))
        config = json.loads(archive.read("config.json"))
    words = ""
    with h5py.File(weights, "r+") as file:
        match what:
            case "external":
                del file["layers/dense/vars/1"]
                (tmp_path / "secret").write_bytes(bytes(40))
                place = [(str(tmp_path / "secret"), 0, 40)]
                file["layers/dense/vars"].create_dataset("1", (10,), "f4", external=place)
                words = "lie in another file"
            case "large":
                del file["layers/dense/vars/1"]
                file["layers/dense/vars"].create_dataset("1", (10**9,), "f4", chunks=True)
                words = "far more bytes than the file has"
            case "circle":
                file["layers/dense/vars/again"] = file["layers"]
                words = "lead in a circle"
            case _:
                config["config"]["layers"][-1]["config"]["units"] = 10**9
                words = "describes a model of [0-9]+ weights, but the file has"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights.read_bytes())
    with pytest.raises(ModelError, match=words):
        open_model(path)


@needs("keras", "h5py")
def test_keras_in_hdf5_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "net.h5"
    made = keras_model()
    made.save(path)
    with pytest.raises(ModelError, match=r"HDF5, and loading one can run code.*--trust-code"):
        open_model(path)
    assert open_model(path, trust_code=True).model(GREY).shape == (5, 10)


# Without the extras ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["onnx", "timm", "hf", "keras"])
def test_a_missing_extra_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> Any:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    monkeypatch.setattr(extras.metadata, "version", _no_version)
    monkeypatch.delitem(os.environ, "KERAS_BACKEND", raising=False)
    source: str | Path = tmp_path / f"net.{name}"
    match name:
        case "onnx":
            Path(source).write_bytes(b"\x08\x08")
        case "timm":
            source = "timm:resnet18"
        case "hf":
            source = tmp_path
            (tmp_path / "config.json").write_text("{}")
            safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
        case _:
            with zipfile.ZipFile(source, "w") as archive:
                archive.writestr("config.json", "{}")
    with pytest.raises(MissingExtraError) as raised:
        open_model(source)
    assert str(raised.value).endswith(f"needs the extra {name!r}: pip install 'casemate[{name}]'")
    assert "\n" not in str(raised.value)


def _no_version(name: str) -> str:
    raise extras.metadata.PackageNotFoundError(name)


def test_a_torchvision_for_another_pytorch_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(module: str) -> Any:
        raise RuntimeError(f"operator {module}::nms does not exist")

    monkeypatch.setattr(extras.importlib, "import_module", fails)
    monkeypatch.setattr(extras.metadata, "version", lambda _: "0.24.0")
    monkeypatch.setattr(extras.metadata, "requires", lambda _: ["numpy", "torch==2.9.0"])
    with pytest.raises(MachineError) as raised:
        open_model("timm:resnet18")
    for words in ("torchvision is 0.24.0, which belongs to torch 2.9.0", f"torch is {torch.__version__}"):
        assert words in str(raised.value)


@needs("onnx", "onnx2torch", "timm", "transformers", "torchvision")
@pytest.mark.parametrize("kind", ["onnx", "timm", "hf"])
def test_an_installed_torchvision_for_another_pytorch_is_one_error(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_file(tmp_path / "net.onnx")
    hugging_face_folder(tmp_path / "vit")
    monkeypatch.syspath_prepend(str(other_torchvision(tmp_path / "other")))
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    source = {"onnx": tmp_path / "net.onnx", "timm": "timm:resnet18", "hf": tmp_path / "vit"}[kind]
    with pytest.raises(MachineError) as raised:
        open_model(source)
    assert "torchvision is 0.24.0, which belongs to torch 2.9.0" in str(raised.value)
    assert "install the pair: pip install --upgrade torch torchvision" in str(raised.value)
