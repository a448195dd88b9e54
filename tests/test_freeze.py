"""The frozen copy answers as the model does, with less work; and gives way where it would not."""

import copy
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import (
    APGD,
    BIM,
    FGSM,
    PGD,
    AutoAttack,
    HopSkipJump,
    Restarts,
    Square,
    TargetedFAB,
    frozen,
    group_size,
    prepare_for_attack,
    sweep_eps,
)
from casemate.attacks.base import innermost
from casemate.cli.shared.observers import watching
from casemate.errors import ModelError
from casemate.models import Classifier, create, freeze
from casemate.models.accel.channels_last_linear import ChannelsLastLinear
from casemate.models.accel.equivalence import TOLERANCE
from casemate.models.accel.optimize import optimize_for_inference
from casemate.models.accel.pass_size import DEFAULT_PASS_SIZE
from casemate.models.accel.precision import in_bfloat16
from casemate.models.accel.small_input_conv import SmallInputConv, is_small_input_conv
from casemate.models.layers import NoiseLayer
from casemate.progress import NULL_OBSERVER
from oracles import NoWayBack, Uncopied, classifier, generator, small_task

SHAPE = (1, 12, 12)
IMAGES = torch.rand(6, *SHAPE, dtype=torch.float64, generator=generator(0))


def lived_in(network: nn.Module) -> nn.Module:
    """In float64, with averages and scales of batch norms as after some training, in evaluation mode."""
    network.double().train()
    random = generator(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=random))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=random))
            if module.affine:
                nn.init.normal_(module.weight, generator=random)  # of either sign
                nn.init.normal_(module.bias, generator=random)
    return network.eval()


def model_of(*layers: nn.Module) -> Classifier:
    """A classifier of these layers, for `SHAPE`."""
    return classifier(lived_in(nn.Sequential(*layers)), classes=3, shape=SHAPE)


def head(channels: int, side: int) -> list[nn.Module]:
    """What makes logits of feature maps."""
    return [nn.Flatten(), nn.Linear(channels * side * side, 3)]


def with_gradient(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a random sum of them."""
    leaf = images.clone().requires_grad_(True)
    logits = model(leaf)
    (gradient,) = torch.autograd.grad((logits * torch.arange(1.0, 4.0)).sum(), leaf)
    return logits.detach(), gradient


def check_same(model: Classifier, changes: dict[str, int]) -> Classifier:
    """The copy made those changes, its logits and gradients are the model's to float64's rounding."""
    with frozen(model):
        prepared = freeze(model, IMAGES)
        expected, seen = with_gradient(model, IMAGES), with_gradient(prepared.copy, IMAGES)
    assert prepared.changes == changes
    assert prepared.matches_original
    for one, other in zip(expected, seen, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)
    return prepared.copy


HEAD = {"dense layer on maps": 1}
LAID = {"convolution of few channels": 1, "channels-last": 1}
"""Besides what a test looks at: the first convolution sees one channel."""


def test_dropout_goes() -> None:
    model = model_of(nn.Conv2d(1, 4, 3), nn.Dropout2d(0.5), *head(4, 10), nn.Dropout(0.3))
    seen = check_same(model, {"dropout removed": 2} | HEAD | LAID)
    assert not any(isinstance(layer, nn.Dropout | nn.Dropout2d) for layer in seen.modules())
    assert sum(isinstance(layer, nn.Dropout | nn.Dropout2d) for layer in model.modules()) == 2


@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_norm_behind_a_convolution_is_folded_whatever_the_padding(bias: bool) -> None:
    model = model_of(
        nn.Conv2d(1, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2),
        nn.BatchNorm2d(4, affine=False), *head(4, 10),
    )  # fmt: skip
    seen = check_same(model, {"batch norm folded": 2, "ReLU in place": 1} | HEAD | LAID)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in seen.modules())


def test_a_batch_norm_behind_or_before_a_dense_layer_is_folded() -> None:
    layers = [nn.Linear(144, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)]
    check_same(model_of(nn.Flatten(), *layers), {"batch norm folded": 2, "ReLU in place": 1} | HEAD)


@pytest.mark.parametrize(
    ("convolution", "folded"),
    [
        (lambda: nn.Conv2d(4, 6, 3), 1),
        (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), 1),
        (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), 1),
        (lambda: nn.Conv2d(4, 6, 3, padding="valid"), 1),
        (lambda: nn.Conv2d(4, 6, 3, padding=1), 0),
        (lambda: nn.Conv2d(4, 6, 3, padding="same"), 0),
    ],
)
def test_a_batch_norm_before_a_convolution_is_folded_but_for_zero_padding(
    convolution: Callable[[], nn.Module], folded: int
) -> None:
    """A shift before zero padding does not reach the border, so folding it would change the logits there."""
    side = convolution()(torch.zeros(1, 4, 12, 12)).shape[-1]
    model = model_of(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), convolution(), *head(6, side))
    check_same(model, ({"batch norm folded": 1} if folded else {}) | {"ReLU in place": 1} | HEAD | LAID)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3},
        {"kernel_size": 4, "stride": 2, "padding": 1},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2), "bias": False},
        {"kernel_size": 5, "stride": 3, "padding": 2},
        {"kernel_size": 1},
    ],
)
def test_a_convolution_of_few_channels_passes_the_same_gradient_back(channels: int, settings: dict[str, Any]) -> None:
    layer = nn.Conv2d(channels, 5, **settings).double()
    images = torch.rand(3, channels, 11, 12, dtype=torch.float64, generator=generator(4))
    found = []
    for module in (layer, SmallInputConv(layer)):
        leaf = images.clone().requires_grad_(True)
        maps = module(leaf)
        (gradient,) = torch.autograd.grad((maps * maps.detach().sin()).sum(), leaf)
        found.append((maps.detach(), gradient))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_convolution_of_few_channels_is_differentiated_after_autocast() -> None:
    layer = nn.Conv2d(1, 5, 3)
    images = torch.rand(3, 1, 11, 12, generator=generator(4))
    found = []
    for module in (layer, SmallInputConv(layer)):
        leaf = images.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            maps = module(leaf)
        (gradient,) = torch.autograd.grad(maps.float().sum(), leaf)
        assert (maps.dtype, gradient.dtype) == (torch.bfloat16, torch.float32)
        found.append(gradient)
    assert torch.allclose(*found, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "settings",
    [{"dilation": 2}, {"groups": 2}, {"padding_mode": "reflect", "padding": 1}, {"padding": "same", "kernel_size": 4}],
)
def test_other_convolutions_are_left(settings: dict[str, Any]) -> None:
    assert not is_small_input_conv(nn.Conv2d(2, 4, **{"kernel_size": 3, **settings}))
    assert not is_small_input_conv(nn.Conv2d(4, 4, 3))


def test_relu_goes_behind_pooling_and_never_across_a_batch_norm() -> None:
    model = model_of(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), *head(4, 3),
    )  # fmt: skip
    check_same(
        model,
        {"dropout removed": 1, "ReLU behind pooling": 1, "pooling with ReLU": 1, "ReLU in place": 1} | HEAD | LAID,
    )


def test_a_dense_layer_takes_maps_of_any_shape_and_flat_ones() -> None:
    layer = nn.Linear(24, 3).double()
    maps = torch.rand(5, 24, dtype=torch.float64, generator=generator(6))
    on_maps = ChannelsLastLinear(layer)
    for shape in ((2, 3, 4), (6, 2, 2), (24,), (4, 6)):
        shaped = maps.view(5, *shape)
        assert torch.allclose(on_maps(shaped), layer(maps), rtol=1e-12)
        if len(shape) == 3:
            assert torch.allclose(
                on_maps(shaped.contiguous(memory_format=torch.channels_last)), layer(maps), rtol=1e-12
            )


def test_a_relu_writes_over_its_input_only_where_nothing_else_needs_it() -> None:
    """Neither an activation that needs its own output for its gradient nor maps that are used again."""
    sigmoid = model_of(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.ReLU(), *head(4, 10))
    check_same(sigmoid, HEAD | LAID)
    again = model_of(
        nn.Conv2d(1, 4, 3), Past(nn.ReLU()), Past(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())), *head(4, 10)
    )
    check_same(again, {"ReLU in place": 1} | HEAD | LAID)


@pytest.mark.integration
def test_the_same_is_changed_every_time() -> None:
    """Whatever identities the new layers happen to get."""
    blocks = [nn.Conv2d(1, 4, 3, padding=1)]
    for _ in range(8):
        blocks += [nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(4, 4, 3, padding=1)]
    model = model_of(*blocks, *head(4, 12))
    expected = {"dropout removed": 8, "batch norm folded": 8, "ReLU in place": 8} | HEAD | LAID
    for _ in range(20):
        check_same(model, expected)


class Past(nn.Module):
    """A layer and a way past it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, maps: Tensor) -> Tensor:
        """The layer's answer and what it was given."""
        return self.inner(maps) + maps


class Residual(nn.Module):
    """A block with a way past it, and a function where others have a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second, self.second_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, maps: Tensor) -> Tensor:
        """As in a residual network."""
        inside = F.relu(self.first_norm(self.first(maps)))
        return F.relu(self.second_norm(self.second(inside)) + maps)


def test_folding_reaches_into_blocks_of_the_model_s_own_kind() -> None:
    model = model_of(nn.Conv2d(1, 4, 3), Residual(), Residual(), *head(4, 10))
    check_same(model, {"batch norm folded": 4} | HEAD | LAID)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["paper-cnn", "paper-student", "resnet-14"])
def test_the_study_s_networks_keep_their_answers(name: str) -> None:
    made = create(name, input_shape=(1, 28, 28), classes=("a", "b", "c"))
    lived_in(made)
    images = torch.rand(3, 1, 28, 28, dtype=torch.float64, generator=generator(3))
    with frozen(made):
        prepared = freeze(made, images)
        assert prepared.matches_original
        assert prepared.changes["dropout removed"] >= 1
        assert torch.allclose(made(images), prepared.copy(images), rtol=1e-10, atol=1e-12)


class Twice(nn.Module):
    """Uses the same layers for two things: neither pair is one."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.dense = nn.Linear(4 * 36 * 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Once with the norm, once without."""
        maps = self.convolution(images)
        parts = [self.pool(self.relu(self.norm(maps))), self.pool(self.relu(maps))]
        return self.dense(torch.cat(parts, 1).flatten(1))


def test_layers_used_twice_are_left() -> None:
    check_same(model_of(Twice()), LAID)


class Branching(nn.Module):
    """Cannot be traced as a whole; its parts can."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.dense = nn.Linear(4 * 25, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Dark batches are answered otherwise."""
        logits = self.dense(self.body(images).flatten(1))
        return -logits if images.mean() < 0.25 else logits


def test_what_cannot_be_traced_is_improved_part_by_part_and_still_branches() -> None:
    model = model_of(Branching())
    seen = check_same(model, {"batch norm folded": 1, "ReLU behind pooling": 1, "pooling with ReLU": 1} | LAID)
    dark = IMAGES / 4
    assert torch.allclose(seen(dark), model(dark), rtol=1e-11, atol=1e-12)


def test_hooks_and_parametrised_weights_are_respected() -> None:
    model = model_of(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *head(4, 10))
    model.network[0].register_forward_hook(lambda module, inputs, output: output + 1)  # type: ignore[index]
    check_same(model, {"channels-last": 1} | HEAD)
    model = model_of(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), *head(4, 10))
    torch.nn.utils.parametrizations.weight_norm(model.network[0])  # type: ignore[index]
    check_same(model, {"channels-last": 1} | HEAD)


def test_batch_statistics_are_not_folded() -> None:
    model = model_of(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), *head(4, 10))
    check_same(model, HEAD | LAID)


class Sly(nn.Module):
    """Behaves otherwise in a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(1, 4, 3), *head(4, 10))
        self.copied = False

    def forward(self, images: Tensor) -> Tensor:
        """A shift, if this is a copy."""
        return self.inner(images) + 0.01 * self.copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sly":
        made = Sly()
        made.inner, made.copied = copy.deepcopy(self.inner, memo), True
        return made


def test_a_copy_that_answers_otherwise_is_not_attacked() -> None:
    model = model_of(Sly())
    with frozen(model):
        prepared = freeze(model, IMAGES)
    assert prepared.difference > TOLERANCE
    assert not prepared.matches_original
    assert torch.equal(prepared.copy(IMAGES), model(IMAGES))
    assert prepared.copy is not model  # another view, with a pass size of its own
    assert model.pass_size is None


class Asked(nn.Module):
    """Answers as another network, and remembers how many images it was asked about."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.count = inner, 0

    def forward(self, images: Tensor) -> Tensor:
        """As the other."""
        self.count += len(images)
        return self.inner(images)


def test_the_model_itself_is_asked_where_its_copy_is_not_sure() -> None:
    """Of 40 images: the first few, and those whose two highest logits are nearer than the copies may differ."""
    inner = model_of(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), *head(4, 10)).network
    model = classifier(lived_in(Asked(inner)), classes=3, shape=SHAPE)
    images = torch.rand(40, *SHAPE, dtype=torch.float64, generator=generator(7))
    dense = inner[-1]  # type: ignore[index]
    with frozen(model):
        prepared = freeze(model, images[:8])
        network: Any = model.network
        network.count = 0
        assert torch.allclose(prepared.classify(images), inner(images), rtol=1e-10)
        assert network.count < 10
        dense.weight[1] = dense.weight[0]
        dense.bias[1], dense.bias[2] = dense.bias[0] + 1e-6, -100.0
        prepared = freeze(model, images[:8])
        network.count = 0
        assert torch.allclose(prepared.classify(images), inner(images), rtol=1e-10)
        assert network.count == 40


def test_a_copy_that_answers_otherwise_later_is_not_believed() -> None:
    model = model_of(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), *head(4, 10))
    with frozen(model):
        prepared = freeze(model, IMAGES)
        for buffer in prepared.copy.buffers():
            buffer += 0.1
        assert not torch.allclose(prepared.copy(IMAGES), model(IMAGES), rtol=1e-3)
        assert torch.equal(prepared.classify(IMAGES), model(IMAGES))


def test_a_model_that_cannot_be_copied_is_attacked_itself() -> None:
    class Fixed(Uncopied):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images)

    task = small_task()
    result = PGD(eps=0.1, steps=5)(classifier(Fixed(task.model.network), classes=4), task.images, task.labels)
    assert torch.equal(result.adversarial, PGD(eps=0.1, steps=5)(task.model, task.images, task.labels).adversarial)


def test_an_observer_that_cannot_be_copied_does_not_keep_the_model_from_being_optimised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The progress display of the command line holds locks."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model = model_of(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), *head(4, 10))
    with watching() as observer, frozen(model):
        prepared = freeze(model, IMAGES, observer=observer)
        assert prepared.changes == {"dropout removed": 1} | HEAD | LAID
        assert prepared.copy.observer is observer
        again = copy.deepcopy(prepared.copy)
    assert again.observer is observer
    assert again.network is not prepared.copy.network
    for one, other in zip(again.parameters(), prepared.copy.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


def test_noise_is_kept_and_the_caller_s_random_numbers_are_left_alone() -> None:
    model = model_of(NoiseLayer(0.5, at_inference=True), nn.Conv2d(1, 4, 3), nn.Dropout(0.5), *head(4, 10))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with frozen(model):
        prepared = freeze(model, IMAGES)
    assert prepared.matches_original
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(prepared.copy(IMAGES), prepared.copy(IMAGES))


def test_the_model_is_left_as_it_was() -> None:
    model = model_of(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), *head(4, 10)).float().train()
    before = copy.deepcopy(model.state_dict())
    APGD(eps=0.1, steps=5)(model, IMAGES.float(), torch.zeros(6, dtype=torch.int64))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert [type(layer) for layer in model.network] == [  # type: ignore[union-attr]
        nn.Conv2d, nn.BatchNorm2d, nn.Dropout, nn.Flatten, nn.Linear,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(eps=0.1),
        PGD(eps=0.1, steps=7),
        APGD(eps=0.1, steps=9),
        TargetedFAB(steps=6),
        Square(eps=0.1, n_queries=200),
    ],
)
def test_the_pass_size_does_not_change_what_is_found(attack: Any) -> None:
    """In float64, where no result hangs on the rounding of a batch size."""
    task = small_task(count=17)
    whole = attack(task.model, task.images, task.labels, batch_size=17)
    for size in (1, 4, 16):
        parts = attack(task.model, task.images, task.labels, batch_size=size)
        assert torch.allclose(whole.adversarial, parts.adversarial, atol=1e-12)
        assert torch.equal(whole.status, parts.status)
        assert whole.passes == parts.passes


def test_images_pass_in_equal_parts_of_at_most_the_pass_size() -> None:
    seen: list[int] = []

    class Sizes(Uncopied):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return F.avg_pool2d(images, 6).flatten(1)[:, :3]

    model = classifier(Sizes(), classes=3, shape=SHAPE)
    images, labels = torch.rand(9, *SHAPE, generator=generator(2)), torch.zeros(9, dtype=torch.int64)
    with prepare_for_attack(model, images, pass_size=4) as prepared:
        seen.clear()
        sweep_eps(BIM(eps=0.1, steps=2, keep="last"), prepared, images, labels, [0.0, 0.1])
    assert seen == [3, 3, 3] * 3  # the clean images, the second step, the verification


def test_an_attack_s_memory_does_not_grow_with_the_images() -> None:
    assert group_size((1, 28, 28)) == 668
    assert group_size((3, 32, 32)) == 256
    assert group_size((3, 224, 224)) == 27
    assert group_size((3, 4096, 4096)) == 1


def test_a_measured_pass_size_is_one_of_those_tried() -> None:
    model = create("student-8x1", input_shape=(1, 28, 28), classes=("a", "b"))
    with frozen(model):
        prepared = freeze(model, torch.rand(2, 1, 28, 28), pass_size=None)
    assert prepared.copy.pass_size in (16, 32, 64, 128, 256)


class Looping(nn.Module):
    """Calls its layers one by one and uses what each gives; cannot be traced as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.dense = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Linear(400, 3)

    def forward(self, images: Tensor) -> Tensor:
        """With a penalty on every layer's maps."""
        maps, penalty = images, torch.zeros(len(images), 1, dtype=images.dtype)
        for layer in self.features:
            maps = layer(maps)
            penalty = penalty + (maps * maps).mean((1, 2, 3)).unsqueeze(1)
        return self.dense(maps.flatten(1)) + (penalty if images.mean() > 0 else 0 * penalty)


class Curious(nn.Module):
    """Asks its dense layer how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.dense = nn.Flatten(), nn.Linear(144, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Scaled by its width."""
        return self.dense(self.flat(images)) / self.dense.in_features**0.5


@pytest.mark.parametrize("network", [Looping, Curious])
def test_a_copy_that_fails_is_not_used(network: type[nn.Module]) -> None:
    model = model_of(network())
    with frozen(model):
        prepared = freeze(model, IMAGES)
        assert not prepared.matches_original
        expected, seen = with_gradient(model, IMAGES), with_gradient(prepared.copy, IMAGES)
    assert all(torch.equal(one, other) for one, other in zip(expected, seen, strict=True))


def test_a_copy_without_parameters_knows_where_it_is() -> None:
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).to("meta"), classes=3, shape=SHAPE)
    assert optimize_for_inference(model)["dense layer on maps"] == 1
    assert not list(model.parameters())
    assert model.device.type == "meta"


def test_a_low_precision_copy_leaves_random_numbers_and_the_observer_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that cannot be copied, such as one that holds a lock."""
    said: list[str] = []
    observer: Any = SimpleNamespace(message=said.append, work=NULL_OBSERVER.work, lock=threading.RLock())
    times = iter([2.0, 1.0])
    monkeypatch.setattr(
        sys.modules["casemate.models.accel.precision"], "seconds_per_pass", lambda model, images, size: next(times)
    )
    model = model_of(NoiseLayer(0.01, at_inference=True), nn.Conv2d(1, 4, 3), *head(4, 10)).float()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with frozen(model):
        prepared = freeze(model, IMAGES.float(), precision="bfloat16", observer=observer)
    assert torch.equal(torch.rand(3), expected)
    assert said == []
    assert prepared.low_precision is not None
    assert prepared.low_precision.observer is observer
    assert prepared.low_precision(IMAGES.float()).dtype == torch.float32


def test_a_model_that_fails_while_it_is_measured_is_told_of_by_the_attack() -> None:
    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return NoWayBack.apply(images).flatten(1)[:, :3]  # type: ignore[union-attr]

    model = classifier(Failing(), classes=3, shape=SHAPE)
    with frozen(model):
        prepared = freeze(model, IMAGES, pass_size=None)
    assert prepared.copy.pass_size == DEFAULT_PASS_SIZE
    with pytest.raises(ModelError, match="no way back"):
        PGD(eps=0.1)(prepared, IMAGES, torch.zeros(6, dtype=torch.int64))


def test_gradients_in_bfloat16_are_followed_and_float32_says_what_fools() -> None:
    """The images are not those of float32, and no claim of it is reported that the model does not bear out."""
    task = small_task(count=60)
    model = classifier(copy.deepcopy(task.model.network).float(), classes=4)
    images = task.images.float()
    attack = PGD(eps=0.08, steps=12)
    exact = attack(model, images, task.labels)
    with frozen(model):
        prepared = replace(freeze(model, images), low_precision=in_bfloat16(model))
        result = attack(prepared, images, task.labels)
    assert prepared.precision == "bfloat16"
    assert not torch.equal(result.adversarial, exact.adversarial)
    assert torch.equal(result.success, model(result.adversarial).argmax(1) != task.labels)
    assert (result.success == exact.success).double().mean() > 0.9
    assert result.passes.backward > 0


def test_what_only_the_low_precision_copy_is_fooled_by_is_attacked_again() -> None:
    """Here that copy is another model altogether: it takes every image for fooled, or has no gradient."""
    task = small_task(count=30)
    model = classifier(copy.deepcopy(task.model.network).float(), classes=4)
    images = task.images.float()
    attack = PGD(eps=0.1, steps=10)
    exact = attack(model, images, task.labels)
    assert 0 < exact.success.sum() < 30

    class Wrong(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return F.one_hot((model.network(images).argmax(1) + 1) % 4, 4).float()

    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return model.network(images).detach()

    for network in (Wrong(), Flat()):
        with frozen(model):
            prepared = replace(freeze(model, images), low_precision=classifier(network, classes=4))
            result = attack(prepared, images, task.labels)
        wrong = model(images).argmax(1) != task.labels
        assert torch.equal(result.success, exact.success)
        assert torch.equal(result.adversarial[~wrong], exact.adversarial[~wrong])
        assert result.passes.forward > exact.passes.forward


def test_bfloat16_is_used_where_it_is_faster_and_much_the_same_and_said_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    observer = SimpleNamespace(message=said.append, work=NULL_OBSERVER.work)

    def precision(model: Classifier, gain: float) -> str:
        times = iter([gain, 1.0])
        monkeypatch.setattr(
            sys.modules["casemate.models.accel.precision"], "seconds_per_pass", lambda model, images, size: next(times)
        )
        with frozen(model):
            return freeze(model, IMAGES.float(), precision="bfloat16", observer=observer).precision  # type: ignore[arg-type]

    plain = model_of(nn.Conv2d(1, 4, 3), nn.ReLU(), *head(4, 10)).float()
    assert precision(plain, 2.0) == "bfloat16"
    assert said == []
    assert precision(plain, 0.5) == "float32"
    assert "0.5 times as fast" in said.pop()

    class Large(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 1e4 * (images.flatten(1)[:, :3] + 100) - 1e6

    assert precision(classifier(Large(), classes=3, shape=SHAPE), 2.0) == "float32"
    assert "changes logits" in said.pop()

    class Double(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ torch.ones(144, 3)

    assert precision(classifier(Double(), classes=3, shape=SHAPE), 2.0) == "float32"
    assert "fails in it" in said.pop()


def test_in_which_turn_models_are_attacked() -> None:
    """Low precision first, for attacks that bear rounding; a model in half precision last, after its float32 copy."""
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).eval(), classes=3, shape=SHAPE)
    half = classifier(copy.deepcopy(model.network).to(torch.bfloat16), classes=3, shape=SHAPE)
    with frozen(model), frozen(half):
        plain, both = freeze(model, IMAGES.float()), freeze(half, IMAGES.float())
    low = replace(plain, low_precision=in_bfloat16(model))
    assert plain.precision_stages(low_precision=True) == (plain.copy,)
    assert low.precision_stages(low_precision=True) == (low.low_precision, low.copy)
    assert low.precision_stages(low_precision=False) == (low.copy,)
    first, last = both.precision_stages(low_precision=True)
    assert (first.dtype, last.dtype) == (torch.float32, torch.bfloat16)
    assert last.network is half.network
    assert both.differentiable is both.copy
    assert plain.differentiable is model


def test_attacks_that_end_at_the_boundary_stay_in_float32() -> None:
    assert not innermost(TargetedFAB()).supports_low_precision
    assert not innermost(AutoAttack(eps=0.1)).supports_low_precision
    assert not innermost(Restarts(attack=HopSkipJump(norm="l2"), restarts=2)).supports_low_precision
    assert innermost(APGD(eps=0.1)).supports_low_precision
    assert innermost(Square(eps=0.1)).supports_low_precision


def test_a_forward_of_its_own_is_kept_by_the_copy() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    layer = network[3]
    before = layer.forward
    layer.forward = lambda flat: before(flat).flip(1)  # type: ignore[method-assign]
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = network(images)
    assert network[3].forward is not before
    for each in network.parameters():
        each.requires_grad_(False)
    optimize_for_inference(network)
    assert torch.allclose(network(images), expected, atol=1e-6)
