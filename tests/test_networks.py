"""The networks beside the study's two: noise inside, the residual one, the family of students."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.errors import SettingError
from casemate.models import create, names
from casemate.models.layers import NoiseLayer

_TEN = tuple("0123456789")
_STUDENTS = [(width, depth) for width in (8, 16, 32) for depth in (1, 2, 3)]


def _network(name: str, shape: tuple[int, int, int] = (1, 28, 28), seed: int = 0) -> nn.Sequential:
    network = create(name, input_shape=shape, classes=_TEN, seed=seed).network
    assert isinstance(network, nn.Sequential)
    return network


def _images(count: int = 4, shape: tuple[int, int, int] = (1, 28, 28)) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _multiplications(name: str) -> int:
    """Of the convolutions and dense layers for one image."""
    network, found = _network(name).eval(), list[int]()

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        found.append(output[0, 0].numel() * layer.get_parameter("weight").numel())

    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network(_images(1))
    return sum(found)


def _beyond_glorot(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether a weight is larger than Glorot-uniform ever draws: some of He-normal's are."""
    spots = layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
    limit = math.sqrt(6 / (layer.weight[0].numel() + spots * layer.weight.shape[0]))
    return float(layer.weight.detach().abs().max()) > limit * (1 + 1e-6)


# --- noise inside a network --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "at_inference", "noisy"),
    [(True, False, True), (False, False, False), (True, True, True), (False, True, True)],
)
def test_noise_comes_while_training_and_otherwise_only_if_asked(
    training: bool, at_inference: bool, noisy: bool
) -> None:
    layer, inputs = NoiseLayer(0.3, at_inference=at_inference).train(training), _images()
    assert torch.equal(layer(inputs), inputs) != noisy
    assert torch.equal(layer(inputs), layer(inputs)) != noisy  # and each time other noise


def test_noise_at_inference_can_be_switched_later() -> None:
    layer, inputs = NoiseLayer(0.3).eval(), _images()
    assert torch.equal(layer(inputs), inputs)
    layer.at_inference = True
    assert not torch.equal(layer(inputs), inputs)
    layer.at_inference = False
    assert torch.equal(layer(inputs), inputs)


def test_noise_is_normal_of_the_given_deviation_in_every_place() -> None:
    torch.manual_seed(0)
    inputs = 5 * _images(40, (3, 20, 20))
    before = inputs.clone()
    noise = (NoiseLayer(0.3)(inputs) - inputs).double()
    assert torch.equal(inputs, before)
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert float((noise**4).mean()) / 0.3**4 == pytest.approx(3, rel=0.06)  # a normal number's fourth moment
    for axis in range(4):  # nothing is shared by images, channels, rows or columns
        one, two = noise.narrow(axis, 0, noise.shape[axis] - 1), noise.narrow(axis, 1, noise.shape[axis] - 1)
        assert float((one * two).mean()) / 0.09 == pytest.approx(0, abs=0.03)


def test_noise_passes_the_gradient_and_follows_the_global_seed() -> None:
    layer, inputs = NoiseLayer(0.3), _images().requires_grad_()
    shown = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        shown.append(layer(inputs))
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])
    weight = torch.rand_like(inputs)
    (gradient,) = torch.autograd.grad((shown[0] * weight).sum(), inputs)
    assert torch.equal(gradient, weight)


def test_no_deviation_is_no_noise_and_draws_nothing() -> None:
    layer, inputs = NoiseLayer(0, at_inference=True), _images()
    before = torch.get_rng_state()
    assert torch.equal(layer(inputs), inputs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf])
def test_a_bad_deviation_is_refused(std: float) -> None:
    with pytest.raises(SettingError, match=f"std = {std}; expected zero or more and finite"):
        NoiseLayer(std)


def test_a_noise_layer_says_its_settings() -> None:
    assert repr(NoiseLayer(0.25, at_inference=True)) == "NoiseLayer(std=0.25, at_inference=True)"


# --- paper-cnn-noise ---------------------------------------------------------------------------------------------


def _noise_layers(network: nn.Module) -> list[NoiseLayer]:
    return [layer for layer in network.modules() if isinstance(layer, NoiseLayer)]


def test_noise_stands_before_each_convolution_and_nowhere_else() -> None:
    layers = list(_network("paper-cnn-noise"))
    before = [layers[place - 1] for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    assert [layer.std for layer in before if isinstance(layer, NoiseLayer)] == [0.2, 0.1, 0.1, 0.1]
    assert not any(layer.at_inference for layer in before if isinstance(layer, NoiseLayer))
    others = [layer for layer in layers if not isinstance(layer, NoiseLayer)]
    assert len(others) == len(layers) - 4
    assert list(map(repr, others)) == list(map(repr, _network("paper-cnn")))


def test_without_its_noise_it_is_paper_cnn() -> None:
    noisy, plain = _network("paper-cnn-noise"), _network("paper-cnn", seed=1)
    assert not torch.equal(noisy.eval()(_images()), plain.eval()(_images()))
    weights = noisy.state_dict().values()
    plain.load_state_dict(dict(zip(plain.state_dict(), weights, strict=True)))
    assert torch.equal(noisy.eval()(_images()), plain.eval()(_images()))
    assert torch.equal(noisy(_images()), _network("paper-cnn").eval()(_images()))  # the same seed, the same weights


def test_it_is_random_while_training_by_its_noise() -> None:
    torch.manual_seed(0)
    for name, noisy in (("paper-cnn-noise", True), ("paper-cnn", False)):
        network = _network(name).train()
        for layer in network:
            if isinstance(layer, nn.Dropout):
                layer.eval()
        assert torch.equal(network(_images()), network(_images())) != noisy


def test_it_is_random_at_inference_if_asked() -> None:
    torch.manual_seed(0)
    network = _network("paper-cnn-noise").eval()
    plain = network(_images())
    assert torch.equal(network(_images()), plain)
    for layer in _noise_layers(network):
        layer.at_inference = True
    answers = [network(_images()) for _ in range(2)]
    assert not torch.equal(*answers)
    assert not torch.equal(answers[0], plain)
    for layer in _noise_layers(network):
        layer.at_inference = False
    assert torch.equal(network(_images()), plain)


# --- the residual network ----------------------------------------------------------------------------------------


def test_resnet_14_has_the_parameters_counted_by_hand() -> None:
    network = _network("resnet-14")
    counts = [_parameters(layer) for layer in network if _parameters(layer)]
    assert counts == [
        144,  # convolution 1 -> 16: 3 x 3 x 1 x 16, no bias before a batch norm
        32,  # batch norm: scale and shift for 16
        4_672,  # two convolutions 16 -> 16: 2 x 2,304; two norms: 2 x 32
        4_672,
        14_528,  # 16 -> 32: 4,608; 32 -> 32: 9,216; past them 1 x 1: 512; three norms: 3 x 64
        18_560,  # two convolutions 32 -> 32: 2 x 9,216; two norms: 2 x 64
        57_728,  # 32 -> 64: 18,432; 64 -> 64: 36,864; past them 1 x 1: 2,048; three norms: 3 x 128
        73_984,  # two convolutions 64 -> 64: 2 x 36,864; two norms: 2 x 128
        650,  # dense 64 -> 10: 64 x 10 + 10
    ]
    assert sum(counts) == 174_970


def test_resnet_14_has_13_convolutions_and_a_dense_layer_on_its_way() -> None:
    network = _network("resnet-14")
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert sum(layer.kernel_size == (3, 3) for layer in convolutions) == 13
    assert sum(layer.kernel_size == (1, 1) for layer in convolutions) == len(convolutions) - 13 == 2
    assert sum(isinstance(layer, nn.Linear) for layer in network.modules()) == 1
    assert [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)] == [0.3]


@pytest.mark.parametrize(
    ("shape", "sides"), [((1, 28, 28), (28, 14, 7)), ((3, 32, 32), (32, 16, 8)), ((1, 8, 8), (8, 4, 2))]
)
def test_resnet_14_halves_its_images_twice(shape: tuple[int, int, int], sides: tuple[int, ...]) -> None:
    network = _network("resnet-14", shape)
    seen: list[tuple[int, ...]] = []
    for layer in network:
        if hasattr(layer, "past"):  # a block
            layer.register_forward_hook(lambda *arguments: seen.append(tuple(arguments[2].shape[1:])))
    logits = network(_images(3, shape))
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()
    assert seen == [(16 << stage, side, side) for stage, side in enumerate(sides) for _ in range(2)]


def _norm(values: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.BatchNorm2d)
    return F.batch_norm(values, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, 1e-3)


@pytest.mark.parametrize("place", range(3, 9))
def test_a_block_adds_what_it_is_given(place: int) -> None:
    block = _network("resnet-14")[place]
    generator = torch.Generator().manual_seed(place)
    for layer in block.modules():  # norms that have seen images, so that none of them is nearly the identity
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data):
                assert values is not None
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    block.eval()
    parts = dict(block.named_modules())
    first, second = parts["first"].get_parameter("weight"), parts["second"].get_parameter("weight")
    inputs = torch.randn(2, first.shape[1], 7, 7, generator=generator)
    stride = 2 if place in (5, 7) else 1
    inside = F.conv2d(inputs, first, stride=stride, padding=1)
    inside = F.conv2d(_norm(inside, parts["first_norm"]).relu(), second, padding=1)
    past = inputs
    if stride == 2:
        past = _norm(F.conv2d(inputs, parts["past.0"].get_parameter("weight"), stride=2), parts["past.1"])
    torch.testing.assert_close(block(inputs), (_norm(inside, parts["second_norm"]) + past).relu())


def test_resnet_14_starts_he_normal_with_keras_norms() -> None:
    network = _network("resnet-14")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is None
            assert _beyond_glorot(layer)
            fan_in = layer.weight[0].numel()
            tolerance = 5 / math.sqrt(2 * layer.weight.numel())
            assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_in), rel=tolerance)
        if isinstance(layer, nn.Linear):
            assert not _beyond_glorot(layer)
            assert not layer.bias.any()
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.momentum, layer.eps) == (0.01, 1e-3)


# --- the strided network -----------------------------------------------------------------------------------------


def test_strided_cnn_has_the_parameters_counted_by_hand_and_a_sixth_of_the_multiplications() -> None:
    network = _network("strided-cnn")
    counts = [_parameters(layer) for layer in network if _parameters(layer)]
    assert counts == [
        544,  # convolution 1 -> 32: 4 x 4 x 32, and 32 biases
        64,  # batch norm: scale and shift for 32
        32_832,  # convolution 32 -> 64: 4 x 4 x 32 x 64, and 64 biases
        128,
        803_072,  # dense 7 x 7 x 64 -> 256, and 256 biases
        512,
        2_570,  # dense 256 -> 10
    ]
    assert _multiplications("paper-cnn") / _multiplications("strided-cnn") == pytest.approx(6, abs=0.5)


def test_the_pixelwise_network_computes_a_function_of_each_pixel_first() -> None:
    network = _network("pixelwise-cnn").eval()
    counts = [_parameters(layer) for layer in network if _parameters(layer)]
    assert counts == [
        12,  # 1 x 1 convolution 1 -> 6, and 6 biases
        12,  # batch norm: scale and shift for 6
        3_104,  # convolution 6 -> 32: 4 x 4 x 6 x 32, and 32 biases
        64,
        32_832,
        128,
        803_072,
        512,
        2_570,
    ]
    images, pixel = _images(2), (1, 0, 3, 4)
    changed = images.clone()
    changed[pixel] = 1 - changed[pixel]
    moved = (network[:3](changed) != network[:3](images)).any(1).nonzero().tolist()
    assert moved == [[1, 3, 4]]


def test_the_wide_network_has_twice_the_channels() -> None:
    counts = [_parameters(layer) for layer in _network("wide-pixelwise-cnn") if _parameters(layer)]
    assert counts == [12, 12, 6_208, 128, 131_200, 256, 1_605_888, 512, 2_570]


@pytest.mark.parametrize("name", ["strided-cnn", "pixelwise-cnn"])
@pytest.mark.parametrize(("shape", "flat"), [((3, 32, 32), 4_096), ((1, 8, 8), 256), ((1, 9, 7), 128)])
def test_strided_networks_take_images_of_other_sizes(name: str, shape: tuple[int, int, int], flat: int) -> None:
    network = _network(name, shape)
    assert network(_images(3, shape)).shape == (3, 10)
    assert network[-4].in_features == flat
    with pytest.raises(SettingError, match=f"{name} halves its images 2 times; 3 x 8 is too small"):
        _network(name, (1, 3, 8))


@pytest.mark.parametrize(
    "name",
    [
        "resnet-14",
        "strided-cnn",
        "pixelwise-cnn",
        "wide-pixelwise-cnn",
        "paper-cnn-noise",
        *(f"student-{w}x{d}" for w, d in _STUDENTS),
    ],
)
def test_every_parameter_is_learnt(name: str) -> None:
    torch.manual_seed(0)
    network = _network(name).train()
    F.cross_entropy(network(_images(8)), torch.arange(8)).backward()
    for path, parameter in network.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.any(), path


# --- students ----------------------------------------------------------------------------------------------------


def test_the_family_is_known_by_name() -> None:
    assert {name for name in names() if name.startswith("student-")} == {f"student-{w}x{d}" for w, d in _STUDENTS}


def test_the_papers_student_is_one_of_the_family() -> None:
    ours, papers = _network("student-32x2"), _network("paper-student")
    assert repr(ours) == repr(papers)
    assert _parameters(ours) == _parameters(papers) == 1_676_650
    assert torch.equal(ours.eval()(_images()), papers.eval()(_images()))


@pytest.mark.parametrize(("width", "depth"), _STUDENTS)
def test_a_student_has_its_blocks_and_widths(width: int, depth: int) -> None:
    network = _network(f"student-{width}x{depth}", (3, 29, 25))
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    channels = [(layer.in_channels, layer.out_channels) for layer in convolutions]
    last = width * 2 ** (depth - 1)
    assert channels[:2] == [(3, width), (width, width)]
    assert channels[2:] == [
        pair for block in range(1, depth) for pair in ((width << block - 1, width << block), (width << block,) * 2)
    ]
    dense = [(layer.in_features, layer.out_features) for layer in network if isinstance(layer, nn.Linear)]
    height_left, width_left = {1: (14, 12), 2: (7, 6), 3: (3, 3)}[depth]
    assert dense == [(last * height_left * width_left, 16 * width), (16 * width, 10)]
    kinds = [type(layer).__name__ for layer in network]
    block = ["Conv2d", "ReLU", "BatchNorm2d"] * 2 + ["MaxPool2d", "Dropout"]
    assert kinds == block * depth + ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert [layer.p for layer in network if isinstance(layer, nn.Dropout)] == [0.5] * (depth + 1)
    assert [place for place, layer in enumerate(convolutions) if _beyond_glorot(layer)] == [0, 1]
    assert network.eval()(_images(2, (3, 29, 25))).shape == (2, 10)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("tall", [True, False])
def test_images_too_small_for_a_student_are_refused(depth: int, tall: bool) -> None:
    side = 2**depth
    name = f"student-8x{depth}"
    assert _network(name, (1, side, side)).eval()(_images(2, (1, side, side))).shape == (2, 10)
    small = (1, 28, side - 1) if tall else (1, side - 1, 28)
    said = f"a student of {depth} blocks halves its images {depth} times; {small[1]} x {small[2]} is too small"
    with pytest.raises(SettingError, match=f"{said}, use {side} x {side} or more"):
        create(name, input_shape=small, classes=_TEN)
