"""The study's networks against hand calculation, and checkpoints that nothing can be smuggled through."""

import hashlib
import io
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from casemate.errors import CasemateError, ModelError, SettingError, ShapeError
from casemate.models import Classifier, ModelMetadata, create, load, names, register, save
from casemate.models.checkpoint import sidecar_of
from casemate.models.keras_init import he_normal, keras_defaults
from casemate.models.registry import builder
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images, tiny_model

_TEN = tuple("0123456789")


def _network(name: str, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    network = create(name, input_shape=shape, classes=_TEN).network
    assert isinstance(network, nn.Sequential)
    return network


# --- the study's networks ----------------------------------------------------------------------------------------


def _counts(network: nn.Module) -> list[int]:
    """Trainable parameters of every layer that has some, in order."""
    counts = [sum(p.numel() for p in layer.parameters()) for layer in network.children()]
    return [count for count in counts if count]


def test_paper_cnn_has_the_parameters_of_appendix_a() -> None:
    assert _counts(_network("paper-cnn")) == [
        320,  # convolution 1 -> 32: 3 x 3 x 1 x 32 + 32
        18_496,  # convolution 32 -> 64: 3 x 3 x 32 x 64 + 64
        128,  # batch norm: scale and shift for 64
        73_856,  # convolution 64 -> 128: 3 x 3 x 64 x 128 + 128
        147_584,  # convolution 128 -> 128: 3 x 3 x 128 x 128 + 128
        2_304,  # batch norm: 28 / 2 = 14, / 2 = 7, / 2 = 3 rounded down; 3 x 3 x 128 = 1,152; scale and shift
        590_336,  # dense 1,152 -> 512: 1,152 x 512 + 512
        5_130,  # dense 512 -> 10: 512 x 10 + 10
    ]
    assert sum(_counts(_network("paper-cnn"))) == 838_154


def test_paper_student_has_the_parameters_of_appendix_b() -> None:
    assert _counts(_network("paper-student")) == [
        320,  # convolution 1 -> 32: 3 x 3 x 1 x 32 + 32
        64,  # batch norm: scale and shift for 32
        9_248,  # convolution 32 -> 32: 3 x 3 x 32 x 32 + 32
        64,  # batch norm: scale and shift for 32
        18_496,  # convolution 32 -> 64: 3 x 3 x 32 x 64 + 64
        128,  # batch norm: scale and shift for 64
        36_928,  # convolution 64 -> 64: 3 x 3 x 64 x 64 + 64
        128,  # batch norm: scale and shift for 64
        1_606_144,  # dense: 28 / 2 / 2 = 7; 7 x 7 x 64 = 3,136; 3,136 x 512 + 512
        5_130,  # dense 512 -> 10: 512 x 10 + 10
    ]
    assert sum(_counts(_network("paper-student"))) == 1_676_650


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper-cnn", "conv pool relu conv pool relu drop0.3 norm conv relu conv pool relu drop0.4 flat norm "
         "dense relu drop0.25 dense"),
        ("paper-student", "conv relu norm conv relu norm pool drop0.5 conv relu norm conv relu norm pool drop0.5 flat "
         "dense relu drop0.5 dense"),
    ],
)  # fmt: skip
def test_layers_come_in_the_papers_order(name: str, expected: str) -> None:
    short = {"Conv2d": "conv", "MaxPool2d": "pool", "ReLU": "relu", "BatchNorm2d": "norm", "BatchNorm1d": "norm",
             "Flatten": "flat", "Linear": "dense"}  # fmt: skip
    seen = [
        f"drop{layer.p}" if isinstance(layer, nn.Dropout) else short[type(layer).__name__] for layer in _network(name)
    ]
    assert " ".join(seen) == expected


@pytest.mark.parametrize("name", ["paper-cnn", "paper-student"])
def test_batch_norm_and_convolutions_are_keras(name: str) -> None:
    for layer in _network(name).modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (layer.momentum, layer.eps) == (0.01, 1e-3)
            assert layer.running_mean is not None
            # Keras: moving = 0.99 * moving + 0.01 * batch
            batch = torch.full((2, layer.num_features, *[1] * (isinstance(layer, nn.BatchNorm2d) * 2)), 5.0)
            layer.train()(batch)
            torch.testing.assert_close(layer.running_mean, torch.full((layer.num_features,), 0.05))
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), "same", (1, 1))


def test_he_normal_has_keras_moments() -> None:
    layer = nn.Conv2d(64, 512, 3)
    torch.manual_seed(0)
    he_normal(layer)
    weight = layer.weight.detach().double().flatten()
    wanted = math.sqrt(2 / (64 * 9))  # standard deviation after the cut
    before = wanted / 0.87962566103423978
    assert float(weight.var()) == pytest.approx(2 / (64 * 9), rel=0.01)
    assert float(weight.mean()) == pytest.approx(0, abs=4 * wanted / weight.numel() ** 0.5)
    assert float(weight.abs().max()) == pytest.approx(2 * before, rel=1e-3)
    assert float(weight.abs().max()) <= 2 * before * (1 + 1e-6)
    assert stats.kstest(weight.numpy(), stats.truncnorm(-2, 2, scale=before).cdf).pvalue > 0.01


def test_the_cut_off_deviation_is_the_one_of_a_normal_cut_at_two() -> None:
    assert stats.truncnorm(-2, 2).std() == pytest.approx(0.87962566103423978, rel=1e-12)


@pytest.mark.parametrize(
    ("layer", "fans"), [(nn.Linear(1152, 512), 1152 + 512), (nn.Conv2d(64, 128, 3), 9 * (64 + 128))]
)
def test_the_default_is_glorot_uniform_with_zero_bias(layer: nn.Conv2d | nn.Linear, fans: int) -> None:
    torch.manual_seed(0)
    keras_defaults(nn.Sequential(layer))
    limit = math.sqrt(6 / fans)
    weight = layer.weight.detach().double().flatten()
    assert float(weight.abs().max()) <= limit * (1 + 1e-6)
    assert float(weight.var()) == pytest.approx(2 / fans, rel=0.02)
    assert stats.kstest(weight.numpy(), stats.uniform(-limit, 2 * limit).cdf).pvalue > 0.01
    assert layer.bias is not None
    assert not layer.bias.any()


@pytest.mark.parametrize(("name", "he"), [("paper-cnn", [0]), ("paper-student", [0, 3])])
def test_the_named_layers_and_no_others_are_he_normal(name: str, he: list[int]) -> None:
    for place, layer in enumerate(_network(name)):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, outputs = layer.weight[0].numel(), layer.weight.shape[0]
            spots = 9 if isinstance(layer, nn.Conv2d) else 1
            limit = math.sqrt(6 / (fan_in + spots * outputs))
            beyond = float(layer.weight.detach().abs().max()) > limit * (
                1 + 1e-6
            )  # Glorot-uniform never is, He-normal is
            assert beyond == (place in he)
            assert layer.bias is not None
            assert not layer.bias.any()


def _value_and_gradient(layers: list[nn.Module], images: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    images = images.clone().requires_grad_()
    out = nn.Sequential(*layers)(images)
    convolution = layers[0]
    assert isinstance(convolution, nn.Conv2d)
    convolution.zero_grad()
    (out * weight).sum().backward()
    assert images.grad is not None
    assert convolution.weight.grad is not None
    return out, images.grad, convolution.weight.grad.clone()


@pytest.mark.parametrize("whole", [False, True])
def test_pooling_before_the_relu_changes_neither_value_nor_gradient(whole: bool) -> None:
    # whole numbers make ties, among positive, zero and negative entries alike
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 2, 9, 10, generator=generator)
    convolution = nn.Conv2d(2, 5, 3, padding="same")
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator))
        if whole:
            images = images.round()
            convolution.weight.copy_(convolution.weight.round())
            convolution.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    weight = torch.randn(8, 5, 4, 5, generator=generator)
    ours = _value_and_gradient([convolution, nn.MaxPool2d(2), nn.ReLU()], images, weight)
    papers = _value_and_gradient([convolution, nn.ReLU(), nn.MaxPool2d(2)], images, weight)
    for one, two in zip(ours, papers, strict=True):
        assert torch.equal(one, two)
    if whole:
        assert (convolution(images) == 0).any()


@pytest.mark.parametrize("name", ["paper-cnn", "paper-student"])
def test_the_networks_return_logits(name: str) -> None:
    model = create(name, input_shape=(1, 28, 28), classes=_TEN).eval()
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    logits = model(images).detach()
    assert logits.shape == (4, 10)
    assert (logits < 0).any()
    last = _last_linear(model)
    with torch.no_grad():  # a softmax or sigmoid behind the last layer would not pass this on in proportion
        last.weight.mul_(3)
        last.bias.add_(7)
    torch.testing.assert_close(model(images), 3 * logits + 7)


def _last_linear(model: Classifier) -> nn.Linear:
    assert isinstance(model.network, nn.Sequential)
    last = model.network[-1]
    assert isinstance(last, nn.Linear)
    return last


@pytest.mark.parametrize("name", ["paper-cnn", "paper-student"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 29, 31), (3, 33, 8), (2, 9, 15)])
def test_other_sizes_and_channels_work(name: str, shape: tuple[int, int, int]) -> None:
    model = create(name, input_shape=shape, classes=("a", "b", "c"))
    assert model(torch.rand(2, *shape)).shape == (2, 3)
    assert model.eval()(torch.rand(1, *shape)).shape == (1, 3)


@pytest.mark.parametrize(("name", "side"), [("paper-cnn", 8), ("paper-student", 4)])
def test_too_small_images_are_refused(name: str, side: int) -> None:
    create(name, input_shape=(1, side, side), classes=_TEN)
    with pytest.raises(SettingError, match=rf"halves.* 20 x {side - 1} is too small, use {side} x {side} or"):
        create(name, input_shape=(1, 20, side - 1), classes=_TEN)


# --- the registry ------------------------------------------------------------------------------------------------


def test_an_unknown_network_is_refused_with_a_hint() -> None:
    with pytest.raises(SettingError, match=r"unknown network 'papercnn'; known: .*paper-student.*mean paper-cnn"):
        builder("papercnn")
    with pytest.raises(SettingError, match=r"unknown network 'zzz'; known: [^;]*$"):
        create("zzz", input_shape=(1, 28, 28), classes=_TEN)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ModelError, match="'paper-cnn' is registered already"):
        register("paper-cnn")(builder("tiny"))
    assert builder("paper-cnn") is not builder("tiny")
    assert list(names()) == sorted(names())
    assert {"paper-cnn", "paper-student", "tiny"} <= set(names())


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = tiny_model(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, other = tiny_model(seed=3), tiny_model(seed=4)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    assert not torch.equal(one.state_dict()["network.0.weight"], other.state_dict()["network.0.weight"])


# --- the classifier ----------------------------------------------------------------------------------------------

_NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("one",)}, "1 classes; expected at least 2"),
        ({"classes": ()}, "0 classes"),
        ({"bounds": (1.0, 0.0)}, "expected the smaller one first"),
        ({"bounds": (1.0, 1.0)}, "expected the smaller one first"),
        ({"bounds": (0.0, math.nan)}, "expected the smaller one first"),
        ({"mean": (0.5, 0.5, 0.5)}, "only one of mean and std"),
        ({"std": (0.5, 0.5, 0.5)}, "only one of mean and std"),
        ({"mean": (0.5,), "std": (0.5,)}, "expected 3 numbers each, one per channel"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 2}, "expected 3 numbers each, one per channel"),
        ({"mean": (0.5,) * 3, "std": (0.5, 0.0, 0.5)}, "expected positive numbers"),
        ({"mean": (0.5,) * 3, "std": (0.5, -1.0, 0.5)}, "expected positive numbers"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Classifier(_NETWORK, **{"input_shape": (3, 2, 2), "classes": ("a", "b")} | settings)


def test_normalisation_lives_inside() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    model = Classifier(_NETWORK, input_shape=(3, 2, 2), classes=("a", "b"), mean=mean, std=std)
    images = torch.rand(5, 3, 2, 2)
    outside = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(model(images), _NETWORK(outside))
    assert {"mean", "std"} < set(model.state_dict())
    assert model.device == torch.device("cpu")
    assert Classifier(nn.Flatten(), input_shape=(3, 2, 2), classes=("a", "b")).device == torch.device("cpu")


# --- checkpoints -------------------------------------------------------------------------------------------------

_DESCRIPTION = ModelMetadata(
    architecture="tiny",
    dataset="stripes",
    recipe={"name": "none", "eps": 0.1, "more": [1, None]},
    seed=7,
    metrics={"accuracy": 0.1 + 0.2},
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a network whose running statistics have moved."""
    model = tiny_model().train()
    model(tiny_images(32).tensors()[0])
    return save(model, tmp_path / "model.safetensors", _DESCRIPTION)


def _reseal(path: Path) -> None:
    """Make the sidecar agree with a changed weights file, as one who tampers with both would."""
    sidecar = json.loads(sidecar_of(path).read_text())
    sidecar["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    sidecar_of(path).write_text(json.dumps(sidecar))


@pytest.mark.parametrize("normalised", [False, True])
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path, normalised: bool) -> None:
    plain = tiny_model().train()
    plain(tiny_images(32).tensors()[0])
    model = Classifier(
        plain.network,
        input_shape=TINY_SHAPE,
        classes=TINY_CLASSES,
        bounds=(-1.0, 2.0),
        mean=(0.3,) if normalised else None,
        std=(0.7,) if normalised else None,
    )
    path = save(model, tmp_path / "deep" / "model.v1.safetensors", _DESCRIPTION)
    back, description = load(path)
    assert description == _DESCRIPTION
    assert not back.training
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
        assert back.state_dict()[name].dtype == tensor.dtype
    assert (back.input_shape, back.classes, back.bounds) == (TINY_SHAPE, TINY_CLASSES, (-1.0, 2.0))
    images = tiny_images(16).tensors()[0]
    assert torch.equal(back(images), model.eval()(images))
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.v1.json", "model.v1.safetensors"]


def test_the_sidecar_can_be_read_by_anyone(saved: Path) -> None:
    sidecar = json.loads(saved.with_suffix(".json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert (sidecar["architecture"], sidecar["dataset"], sidecar["seed"]) == ("tiny", "stripes", 7)
    assert sidecar["input_shape"] == list(TINY_SHAPE)
    assert sidecar["classes"] == list(TINY_CLASSES)


def test_loading_leaves_the_global_generator_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_safetensors_are_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"saved as \.safetensors"):
        save(tiny_model(), tmp_path / "model.pt", _DESCRIPTION)


def test_a_description_that_json_cannot_hold_leaves_the_old_checkpoint(saved: Path) -> None:
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tiny_model(seed=5), saved, ModelMetadata(architecture="tiny", dataset="", metrics={"loss": math.nan}))
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


class Payload:
    """What a pickle may do when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _zip(payload: Payload, path: Path) -> None:
    torch.save({"weights": payload}, path)


def _legacy(payload: Payload, path: Path) -> None:
    torch.save({"weights": payload}, path, _use_new_zipfile_serialization=False)


def _pickled(protocol: int) -> Callable[[Payload, Path], None]:
    def write(payload: Payload, path: Path) -> None:
        path.write_bytes(pickle.dumps(payload, protocol))

    return write


@pytest.mark.parametrize("write", [_zip, _legacy, *map(_pickled, range(pickle.HIGHEST_PROTOCOL + 1))])
def test_a_pickle_by_another_name_is_not_executed(
    saved: Path, tmp_path: Path, write: Callable[[Payload, Path], None]
) -> None:
    mark = tmp_path / "mark"
    write(Payload(mark), saved)
    _reseal(saved)
    with pytest.raises(ModelError, match=r"is a pickle|is not a complete safetensors file"):
        load(saved)
    assert not mark.exists()
    raw = io.BytesIO(saved.read_bytes())
    torch.load(raw, weights_only=False) if write in (_zip, _legacy) else pickle.load(raw)
    assert mark.exists()  # the payload works: it was `load` that kept it from running


def test_an_honest_pickle_is_refused_too(saved: Path) -> None:
    torch.save(tiny_model().state_dict(), saved)
    with pytest.raises(ModelError, match=r"is a pickle .*mine:load"):
        load(saved)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(ModelError, match="is not a complete safetensors file"):
        load(saved)
    _reseal(saved)
    with pytest.raises(ModelError, match="is not a complete safetensors file"):
        load(saved)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_is_caught(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    path = save(tiny_model(), tmp_path_factory.getbasetemp() / "flipped.safetensors", _DESCRIPTION)
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 1 << bit
    path.write_bytes(bytes(raw))
    with pytest.raises(ModelError, match=r"does not match its sidecar|is not a complete safetensors file"):
        load(path)


@given(st.binary(max_size=64))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save(tiny_model(), path, _DESCRIPTION)
    path.write_bytes(raw)
    _reseal(path)
    with pytest.raises(ModelError):
        load(path)


def test_a_missing_sidecar_is_named(saved: Path) -> None:
    sidecar_of(saved).unlink()
    with pytest.raises(ModelError, match=r"model\.json is missing: model\.safetensors has weights only.*mine:load"):
        load(saved)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.safetensors does not exist"):
        load(tmp_path / "none.safetensors")


def test_another_architecture_is_refused(saved: Path) -> None:
    assert load(saved, architecture="tiny")[1].architecture == "tiny"
    with pytest.raises(ModelError, match="contains a tiny, but a paper-cnn is expected"):
        load(saved, architecture="paper-cnn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "linear"}, "contains the weights of another network: missing .*, unexpected"),
        ({"architecture": "unheard-of"}, "which is not registered here; known: .*paper-cnn"),
        ({"classes": ["a", "b"]}, r"of another shape \['network.8.bias', 'network.8.weight'\]"),
        ({"input_shape": [1, 8, 16]}, "of another shape"),
        ({"input_shape": [3, 8, 8]}, r"of another shape \['network.0.weight'\]"),
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"schema": None}, "schema None, this version reads 1"),
        ({"sha256": "0" * 64}, "does not match its sidecar"),
        ({"sha256": None}, "is not a valid sidecar"),
        ({"input_shape": [28, 28]}, "is not a valid sidecar"),
        ({"classes": 3}, "is not a valid sidecar"),
        ({"classes": ["one"]}, "1 classes"),
        ({"bounds": [0.0]}, "is not a valid sidecar"),
        ({"bounds": ["low", "high"]}, "is not a valid sidecar"),
        ({"normalised": True}, "is not a valid sidecar: KeyError.'mean'"),
        ({"normalised": "no"}, "is not a valid sidecar.*invalid normalised: no"),
        ({"bounds": [1.0, 0.0]}, "invalid bounds"),
        ({"bounds": [0, 10**400]}, "is not a valid sidecar"),
        ({"input_shape": [1, 8, -8]}, "invalid input_shape"),
        ({"input_shape": [1, 8.0, 8]}, "invalid input_shape"),
        ({"input_shape": [1, 0, 8]}, "invalid input_shape"),
        ({"input_shape": [1, 8, 10**9]}, "of another shape"),
        ({"input_shape": [1, 10**9, 10**9]}, "of another shape|cannot be built for the images of shape"),
        ({"input_shape": [1, 8, 10**30]}, "cannot be built for the images of shape|is not a valid sidecar"),
        ({"classes": [1, 2, 3]}, "invalid classes"),
        ({"classes": "abc"}, "invalid classes"),
        ({"recipe": []}, "invalid recipe"),
        ({"architecture": ["tiny"]}, "is not registered here"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_sidecar_that_does_not_fit_is_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    sidecar = json.loads(sidecar_of(saved).read_text())
    sidecar_of(saved).write_text(json.dumps(sidecar | change))
    with pytest.raises(CasemateError, match=message):
        load(saved)


@pytest.mark.parametrize(
    "field", ["schema", "architecture", "input_shape", "bounds", "normalised", "classes", "recipe", "seed", "sha256"]
)
def test_a_sidecar_without_a_field_is_refused(saved: Path, field: str) -> None:
    sidecar = json.loads(sidecar_of(saved).read_text())
    del sidecar[field]
    sidecar_of(saved).write_text(json.dumps(sidecar))
    with pytest.raises(ModelError, match=f"is not a valid sidecar: KeyError.'{field}'"):
        load(saved)


@pytest.mark.parametrize("content", ["", "[]", "null", '"text"', "{", '{"schema": 1}'])
def test_what_is_no_sidecar_is_refused(saved: Path, content: str) -> None:
    sidecar_of(saved).write_text(content)
    with pytest.raises(ModelError, match=r"cannot read .* as JSON|is not a valid sidecar"):
        load(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved)
    tensors["network.0.weight"] = tensors["network.0.weight"][:2]
    del tensors["network.8.bias"]
    tensors["extra"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, saved)
    _reseal(saved)
    with pytest.raises(ModelError, match=r"missing \['network.8.bias'\], unexpected \['extra'\], .*network.0.weight"):
        load(saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_are_float32_or_float64_as_the_images_whatever_the_network_computes_in(dtype: torch.dtype) -> None:
    """So that losses of them, and differences of losses, are not rounded to a few digits."""

    class Typed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3].to(dtype)

    model = Classifier(Typed(), input_shape=TINY_SHAPE, classes=("a", "b", "c"))
    for of_images in (torch.float16, torch.float32, torch.float64):
        images = torch.rand(2, *TINY_SHAPE).to(of_images)
        logits = model(images)
        assert logits.dtype == (torch.float64 if of_images == torch.float64 else torch.float32)
        assert torch.equal(logits, images.flatten(1)[:, :3].to(dtype).to(logits.dtype))


def test_classes_are_names_or_their_number() -> None:
    assert create("strided-cnn", input_shape=(1, 28, 28), classes=3).classes == ("0", "1", "2")
    with pytest.raises(ShapeError, match="expected their number, or the names"):
        create("strided-cnn", input_shape=(1, 28, 28), classes="abc")
