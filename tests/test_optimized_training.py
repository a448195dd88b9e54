"""Training steps with less work: the same gradients, the same rates of dropout, and a model that is left as it was."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from casemate.models import Classifier, create, optimized_training
from casemate.models.accel.dropout import HashDropout
from casemate.models.accel.relu_max_pool import ReLUMaxPool2d
from oracles import Uncopied, classifier, generator

IMAGES = torch.rand(8, 1, 12, 12, generator=generator(0))


def network() -> nn.Sequential:
    """With all that is exchanged, in either order."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Dropout(0.3),
        nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 3),
    )  # fmt: skip


def model_of(made: nn.Module) -> Classifier:
    return classifier(made, classes=3, shape=(1, 12, 12))


def weight_gradients(model: Classifier) -> list[Tensor]:
    """Of one step in training mode."""
    model.zero_grad()
    nn.functional.cross_entropy(model(IMAGES), torch.arange(8) % 3).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_a_step_gives_the_same_gradients_and_averages() -> None:
    plain = model_of(network()).train()
    for layer in plain.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # its draws are others
    quick = copy.deepcopy(plain)
    expected = weight_gradients(plain)
    with optimized_training(quick, IMAGES):
        kinds = [type(layer) for layer in quick.modules()]
        seen = weight_gradients(quick)
    assert (kinds.count(ReLUMaxPool2d), kinds.count(HashDropout)) == (2, 2)
    assert len(expected) == len(seen) == 8
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)  # of a bias before a batch norm it is nothing
    torch.testing.assert_close(quick.state_dict(), plain.state_dict())


@pytest.mark.parametrize("raises", [False, True])
def test_the_model_is_as_it_was_afterwards(raises: bool) -> None:
    model = model_of(network()).train()
    modules, names = list(model.named_modules()), list(model.state_dict())
    random = torch.get_rng_state()
    try:
        with optimized_training(model, IMAGES):
            assert list(model.state_dict()) == names
            model.eval()
            if raises:
                raise KeyError
    except KeyError:
        pass
    assert list(model.named_modules()) == modules
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("name", ["paper-cnn", "paper-student", "resnet-14", "strided-cnn", "pixelwise-cnn"])
def test_the_study_s_networks_answer_as_before(name: str) -> None:
    model = create(name, input_shape=(1, 28, 28), classes=("a", "b", "c")).eval()
    images = torch.rand(4, 1, 28, 28, generator=generator(1))
    with torch.no_grad():
        expected = model(images)
        with optimized_training(model, images):
            torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


class Sly(nn.Module):
    """Answers otherwise when its pooling is not the usual one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.relu, self.dense = nn.MaxPool2d(2), nn.ReLU(), nn.Linear(36, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.dense(self.relu(self.pool(images)).flatten(1))
        return logits if isinstance(self.pool, nn.MaxPool2d) else logits + 1


class Branching(nn.Module):
    """Takes what comes out of its ReLU twice, while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.relu, self.pool = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.dense, self.other = nn.Linear(100, 3), nn.Linear(400, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.convolution(images))
        logits = self.dense(self.pool(maps).flatten(1))
        return logits + self.other(maps.flatten(1)) if self.training else logits


def test_what_a_model_does_only_in_training_counts() -> None:
    for training in (True, False):
        model = model_of(Branching()).train(training)
        with optimized_training(model, IMAGES):
            assert not any(isinstance(layer, ReLUMaxPool2d) for layer in model.modules())


def test_what_another_tool_has_made_is_trained_itself() -> None:
    """A traced module has a class of its own, and so has each copy of it."""
    model = model_of(fx.symbolic_trace(network())).train()
    parts = [id(parameter) for parameter in model.parameters()]
    with optimized_training(model, IMAGES):
        assert [id(parameter) for parameter in model.parameters()] == parts
        assert any(isinstance(layer, ReLUMaxPool2d) for layer in model.modules())


def test_dropout_in_place_is_left() -> None:
    model = model_of(nn.Sequential(nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(144, 3)))
    with optimized_training(model, IMAGES):
        assert not any(isinstance(layer, HashDropout) for layer in model.modules())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's forward mode uses what PyTorch has deprecated
def test_gradients_of_single_examples_and_forward_ones_go_as_before() -> None:
    model = model_of(network()).train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout | nn.BatchNorm2d):
            layer.eval()
    weights: dict[str, Tensor] = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (image.unsqueeze(0),)).square().sum()

    def found() -> tuple[dict[str, Tensor], Tensor]:
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, IMAGES)
        return each, torch.func.jvp(model, (IMAGES,), (torch.ones_like(IMAGES),))[1]

    expected = found()
    with optimized_training(model, IMAGES):
        assert any(isinstance(layer, ReLUMaxPool2d) for layer in model.modules())
        torch.testing.assert_close(found(), expected)


class Asking(Sly):
    """Asks its pooling for what only the usual one has."""

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.relu(self.pool(images)).flatten(1)) * self.pool.kernel_size


class Remembering(nn.Sequential):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__(Uncopied(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


@pytest.mark.parametrize("made", [Sly, Asking, Remembering])
def test_what_answers_otherwise_or_cannot_be_changed_is_left(made: Callable[[], nn.Module]) -> None:
    model = model_of(made())
    kinds = [type(layer) for layer in model.modules()]
    with optimized_training(model, IMAGES):
        assert [type(layer) for layer in model.modules()] == kinds


def test_a_model_with_hooks_is_left_and_they_are_not_called_for_copies() -> None:
    model = model_of(network())
    calls: list[object] = []
    model.get_submodule("network.4").register_forward_hook(lambda module, inputs, output: calls.append(output))
    kinds = [type(layer) for layer in model.modules()]
    with optimized_training(model, IMAGES):
        assert [type(layer) for layer in model.modules()] == kinds
    assert not calls


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_drops_as_many_as_it_should_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    layer = HashDropout(nn.Dropout(p))
    values = torch.ones(400, 10, 10, 5, dtype=dtype).permute(0, 3, 1, 2)
    kept = layer(values)
    share = (kept != 0).double().mean().item()
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / kept.numel())
    assert torch.allclose(kept[kept != 0], torch.tensor(1 / (1 - p), dtype=dtype), rtol=1e-6)
    assert kept.is_contiguous(memory_format=torch.channels_last)


def test_dropout_s_draws_are_independent_of_place_and_of_each_other() -> None:
    """Pairs of neighbours, in images, rows, columns, channels and calls, agree as often as chance has it."""
    torch.manual_seed(4)
    layer = HashDropout(nn.Dropout(0.5))
    kept = torch.stack([layer(torch.ones(64, 8, 16, 16)) for _ in range(6)]) != 0
    for dimension in range(kept.ndim):
        for apart in (1, 2, 4):
            if kept.shape[dimension] > apart:
                count = kept.shape[dimension] - apart
                low, high = (kept.narrow(dimension, start, count) for start in (0, apart))
                agree = (low == high).double()
                assert abs(agree.mean().item() - 0.5) < 5 * 0.5 / math.sqrt(agree.numel())
    by_bits = kept.permute(0, 1, 3, 4, 2).reshape(6, -1, 256).double().mean((0, 1))
    assert (by_bits - 0.5).abs().max() < 6 * 0.5 / math.sqrt(kept.numel() / 256)


def test_dropout_hangs_on_the_seed_and_not_on_threads_or_layout() -> None:
    layer = HashDropout(nn.Dropout(0.4))
    values = torch.rand(9, 4, 5, 6, generator=generator(2))

    def drawn(seed: int, threads: int, values: Tensor) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        try:
            return layer(values)
        finally:
            torch.set_num_threads(before)

    first = drawn(0, 1, values)
    assert torch.equal(first, drawn(0, 3, values))
    assert torch.equal(first, drawn(0, 1, values.contiguous(memory_format=torch.channels_last)))
    assert not torch.equal(first, drawn(1, 1, values))


@pytest.mark.parametrize("shape", [(7, 20), (3, 4, 5), (3, 4, 5, 6)])
def test_dropout_passes_back_what_it_let_through(shape: tuple[int, ...]) -> None:
    leaf = torch.rand(shape, dtype=torch.float64, generator=generator(2)).add_(0.5).requires_grad_(True)
    kept = HashDropout(nn.Dropout(0.4))(leaf)
    (gradient,) = torch.autograd.grad(kept.pow(2).sum(), leaf, create_graph=True)
    scale = kept.detach() / leaf.detach()
    torch.testing.assert_close(gradient.detach(), 2 * kept.detach() * scale)
    (second,) = torch.autograd.grad(gradient.sum(), leaf)
    torch.testing.assert_close(second, 2 * scale * scale)


@pytest.mark.parametrize("p", [0.0, 1 - 1e-11, 1.0])
def test_dropout_of_none_or_all(p: float) -> None:
    values = torch.rand(4, 5, generator=generator(2))
    assert torch.equal(HashDropout(nn.Dropout(p))(values), values * round(1 - p))


def test_dropout_in_evaluation_mode_and_other_precisions() -> None:
    values = torch.rand(4, 50, generator=generator(2))
    layer = HashDropout(nn.Dropout(0.5).eval())
    assert torch.equal(layer(values), values)
    kept = layer.train()(values.half())
    assert kept.dtype is torch.float16
    assert 0 < (kept != 0).sum() < kept.numel()


@pytest.mark.parametrize("shape", [(7, 20), (3, 4, 5, 6)])
def test_dropout_in_bfloat16_drops_what_it_drops_in_float32(shape: tuple[int, ...]) -> None:
    layer = HashDropout(nn.Dropout(0.3))
    values = torch.rand(shape, generator=generator(2)).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        leaf = values.to(dtype).requires_grad_(True)
        torch.manual_seed(5)
        kept = layer(leaf)
        (gradient,) = torch.autograd.grad(kept.sum(), leaf)
        assert kept.dtype is gradient.dtype is dtype
        found.append((kept.detach().bfloat16(), gradient.bfloat16()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert 0 < (found[0][0] != 0).sum() < values.numel()
