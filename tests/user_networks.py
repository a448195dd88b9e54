"""Networks as users write them, each beside a well-behaved twin: what `test_user_networks.py` goes through.

A network writes into its input, wants contiguous memory, is in another precision, masks classes, returns something
other than logits, leaves a switch of PyTorch changed, keeps what it saw. Its twin computes the same without that.
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from casemate.models import Classifier

Maker = Callable[[], nn.Module]
Step = Callable[[Tensor], Any]
Shape = tuple[int, int, int]

GREY: Shape = (1, 8, 8)
COLOUR: Shape = (3, 8, 8)


def as_they_are(images: Tensor) -> Tensor:
    """The user's images are float32 within [0, 1]."""
    return images


def evaluation_mode(model: Classifier) -> None:
    """The user has called `eval()`."""
    model.eval()


@dataclass(frozen=True, kw_only=True)
class UserNetwork:
    """A network as a user writes it, and what is expected of it."""

    name: str
    kind: str
    make: Maker
    twin: Maker | None = None
    """Computes the same and is well-behaved; None where there are no numbers to compare."""
    outcome: Literal["same", "refused", "either"] = "same"
    """same: the numbers of the twin everywhere. refused: the same `ModelError` everywhere. either: every entry point
    gives the numbers of the twin (if there is one) or the one error."""
    says: tuple[str, ...] = ()
    """Regular expressions that the error has to match, in any case of letters."""
    shape: Shape = GREY
    classes: int = 4
    twin_classes: int | None = None
    """Those of the twin, if it has fewer: the others are the last ones."""
    pixels: Callable[[Tensor], Tensor] = as_they_are
    """How the user stores images."""
    mode: Callable[[Classifier], object] = evaluation_mode
    """In which mode the user hands the model over."""
    normalised: bool = False
    """With a mean and a standard deviation in the `Classifier`."""
    trains: bool = True
    """Its training is compared with that of the twin too."""
    finding: bool = False
    """The evaluation says something of it that it does not say of the twin: only numbers are compared."""
    coarse: bool = False
    """Its own precision is so low that an attack may do a little worse on it than on the twin."""

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"

    def classifier(self) -> Classifier:
        """The network, wrapped as a user does."""
        return self._wrapped(self.make(), self.classes)

    def twin_classifier(self) -> Classifier:
        """The twin, wrapped alike and in evaluation mode."""
        assert self.twin is not None
        return self._wrapped(self.twin(), self.twin_classes or self.classes, evaluation_mode)

    def _wrapped(
        self, network: nn.Module, classes: int, mode: Callable[[Classifier], object] | None = None
    ) -> Classifier:
        channels = self.shape[0]
        model = Classifier(
            network,
            input_shape=self.shape,
            classes=tuple(f"class {number}" for number in range(classes)),
            mean=(0.4,) * channels if self.normalised else None,
            std=(0.5,) * channels if self.normalised else None,
        )
        (mode or self.mode)(model)
        return model


# Building blocks ------------------------------------------------------------------------------------------------------
def convolutional(channels: int = 1, classes: int = 4, seed: int = 0, scale: float = 4.0) -> nn.Sequential:
    """The network that most of the others are built round."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, classes)
    )
    with torch.no_grad():
        network[-1].weight.mul_(scale)  # pyright: ignore[reportCallIssue]
    return network


def with_batch_norm() -> nn.Sequential:
    """Batch normalisation whose averages are not those of a fresh layer."""
    network = convolutional()
    network.insert(1, nn.BatchNorm2d(4))
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.1, -0.1, 0.2, 0.0]))  # pyright: ignore[reportOptionalMemberAccess]
        norm.running_var.copy_(torch.tensor([0.5, 1.5, 0.8, 1.1]))  # pyright: ignore[reportOptionalMemberAccess]
    return network


class Around(nn.Module):
    """A network with a step before it, after it, or both."""

    def __init__(self, inner: nn.Module, before: Step | None = None, after: Step | None = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor) -> Any:
        if self.before is not None:
            x = self.before(x)
        found = self.inner(x)
        return found if self.after is None else self.after(found)


@cache
def before(step: Step, channels: int = 1) -> Maker:
    """Makes the convolutional network with a step before it; the same maker for the same step."""
    return lambda: Around(convolutional(channels), before=step)


@cache
def after(step: Step, classes: int = 4, channels: int = 1) -> Maker:
    """Makes the convolutional network with a step after it."""
    return lambda: Around(convolutional(channels, classes), after=step)


@cache
def first(layer: Callable[[], nn.Module], channels: int = 1) -> Maker:
    """Makes the convolutional network with a layer before it."""
    return lambda: nn.Sequential(layer(), convolutional(channels))


class Forward(nn.Module):
    """A network whose forward is a function of it and the images; `kept` are attributes of its own."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], inner: nn.Module | None = None, **kept: Any) -> None:
        super().__init__()
        self.inner = convolutional() if inner is None else inner
        self.run = forward
        for name, value in kept.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def forward(run: Callable[[Any, Tensor], Any], **kept: Callable[[], Any]) -> Maker:
    """Makes a network with a forward of its own and fresh attributes."""
    return lambda: Forward(run, **{name: make() for name, make in kept.items()})


def done(change: Callable[[Tensor], Any], step: Callable[[Tensor], Tensor] = as_they_are) -> Step:
    """A step that makes a change in place, as a statement of its own, and goes on with `step` of the same tensor."""

    def run(x: Tensor) -> Tensor:
        change(x)
        return step(x)

    return run


# a) They write into their input ---------------------------------------------------------------------------------------
def _assign_all(x: Tensor) -> None:
    x[:] = x * 2 - 1


def _assign_small(x: Tensor) -> None:
    x[x < 0.3] = 0.0


def _assign_row(x: Tensor) -> None:
    x[:, :, 0, :] = 0.5


def _assign_steps(x: Tensor) -> None:
    x[..., ::2] *= 2


def _assign_data(x: Tensor) -> None:
    x.data = x.data - 0.5


def _augmented(x: Tensor) -> Tensor:
    x -= 0.5
    x /= 0.25
    return x


def _numpy(x: Tensor) -> None:
    array = x.detach().numpy()
    array -= 0.5


def _numpy_without_gradient(x: Tensor) -> Tensor:
    if x.requires_grad:
        return x - 0.5
    array = x.numpy()
    array -= 0.5
    return x


def _out(x: Tensor) -> Tensor:
    return x - 0.5 if x.requires_grad else torch.sub(x, 0.5, out=x)


def _row(x: Tensor) -> Tensor:
    return torch.cat([torch.full_like(x[:, :, :1], 0.5), x[:, :, 1:]], 2)


def _index_copy(x: Tensor) -> None:
    x.index_copy_(2, torch.tensor([0]), torch.full_like(x[:, :, :1], 0.5))


def _unbound(x: Tensor) -> None:
    for image in x.unbind():
        image.mul_(2)


def _chunk(x: Tensor) -> None:
    x.chunk(2, dim=2)[0].mul_(2)


def _split(x: Tensor) -> None:
    x.split([4, 4], dim=3)[1].mul_(2)


def _top_doubled(x: Tensor) -> Tensor:
    return torch.cat([x[:, :, :4] * 2, x[:, :, 4:]], 2)


def _right_doubled(x: Tensor) -> Tensor:
    return torch.cat([x[..., :4], x[..., 4:] * 2], 3)


def _diagonal(x: Tensor) -> None:
    x.diagonal(dim1=2, dim2=3).zero_()


def _without_diagonal(x: Tensor) -> Tensor:
    return x * (1 - torch.eye(8))


def _every_second(x: Tensor) -> Tensor:
    return x * torch.tensor([2.0, 1.0] * 4)


def _first_channel(x: Tensor) -> Tensor:
    return x * torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1)


def _zeroed_after(network: Any, x: Tensor) -> Tensor:
    found = network.inner(x)
    with torch.no_grad():
        x.zero_()
    return found


def _zeroed_before_answer(network: Any, x: Tensor) -> Tensor:
    found = network.inner(x)
    x.detach().fill_(0.5)
    return found


def _clear_the_last(network: Any, x: Tensor) -> Tensor:
    """Clears the batch of the call before, which it kept."""
    if network.last is not None:
        with torch.no_grad():
            network.last.zero_()
    network.last = x.detach()
    return network.inner(x)


def _ask_for_gradient(x: Tensor) -> Tensor:
    x.requires_grad_(True)
    return x


def _squeezed(network: Any, x: Tensor) -> Tensor:
    x.squeeze_(1)
    return network.inner(x.unsqueeze(1))


def _transposed(network: Any, x: Tensor) -> Tensor:
    x.transpose_(2, 3)
    return network.inner(x)


def _doubled(x: Tensor) -> Tensor:
    return x * 2


def _halved(x: Tensor) -> Tensor:
    return x * 0.5


def _standard(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.25


def _centred(x: Tensor) -> Tensor:
    return x - 0.5


def _within(x: Tensor) -> Tensor:
    return x.clamp(0.2, 0.8)


def _own_value_doubled(x: Tensor) -> Tensor:
    """What `x.data.mul_(2)` computes: the value is doubled, the gradient is not."""
    return x + x.detach()


_PLAIN: Maker = convolutional
_PLAIN_COLOUR: Maker = lambda: convolutional(3)  # noqa: E731


def writing() -> Iterator[UserNetwork]:
    """Networks that write into the images they are given."""

    def each(
        name: str, change: Step, twin: Callable[[Tensor], Tensor], shape: Shape = GREY, **more: Any
    ) -> UserNetwork:
        make, beside = before(change, shape[0]), before(twin, shape[0])
        return UserNetwork(name=name, kind="writes", make=make, twin=beside, shape=shape, **more)

    def layer(name: str, make: Callable[[], nn.Module], twin: Callable[[], nn.Module], **more: Any) -> UserNetwork:
        return UserNetwork(name=name, kind="writes", make=first(make), twin=first(twin), **more)

    yield each("sub-div", lambda x: x.sub_(0.5).div_(0.25), _standard)
    yield each("sub-div-colour", lambda x: x.sub_(0.5).div_(0.25), _standard, COLOUR)
    yield each("sub-div-normalised", lambda x: x.sub_(0.5).div_(0.25), _standard, normalised=True)
    yield each("augmented-assignment", _augmented, _standard)
    yield each("assign-all", done(_assign_all), lambda x: x * 2 - 1)
    yield each("assign-masked", done(_assign_small), lambda x: torch.where(x < 0.3, torch.zeros_like(x), x))
    yield each("assign-row", done(_assign_row), _row)
    yield each("assign-steps", done(_assign_steps), _every_second)
    yield each("clamp", lambda x: x.clamp_(0.2, 0.8), _within)
    yield each("functional-relu", lambda x: F.relu(x, inplace=True), F.relu)
    yield each("functional-hardtanh", lambda x: F.hardtanh(x, 0.2, 0.8, inplace=True), _within)
    yield layer("relu-first", lambda: nn.ReLU(inplace=True), nn.ReLU)
    yield layer("hardtanh-first", lambda: nn.Hardtanh(0.2, 0.8, inplace=True), lambda: nn.Hardtanh(0.2, 0.8))
    yield layer("silu-first", lambda: nn.SiLU(inplace=True), nn.SiLU)
    yield layer("elu-first", lambda: nn.ELU(inplace=True), nn.ELU)
    yield layer("threshold-first", lambda: nn.Threshold(0.3, 0.0, inplace=True), lambda: nn.Threshold(0.3, 0.0))
    yield layer("dropout-first", lambda: nn.Dropout(0.5, inplace=True), lambda: nn.Dropout(0.5), trains=False)
    yield each("channel-view", done(lambda x: x[:, 0].mul_(2)), _doubled)
    yield each("channel-view-colour", done(lambda x: x[:, 0].mul_(2)), _first_channel, COLOUR)
    yield each("view", done(lambda x: x.view(-1).add_(0.1)), lambda x: x + 0.1)
    yield each("view-colour", done(lambda x: x.view(-1).add_(0.1)), lambda x: x + 0.1, COLOUR)
    yield each("flatten", done(lambda x: x.flatten(1).mul_(2)), _doubled)
    yield each("flatten-colour", done(lambda x: x.flatten(1).mul_(2)), _doubled, COLOUR)
    yield each("reshape-colour", done(lambda x: x.reshape(-1).mul_(2)), _doubled, COLOUR)
    yield each("transpose", done(lambda x: x.transpose(2, 3).mul_(2)), _doubled)
    yield each("permute-colour", done(lambda x: x.permute(0, 2, 3, 1)[..., 0].mul_(2)), _first_channel, COLOUR)
    yield each("narrow-colour", done(lambda x: x.narrow(1, 0, 1).mul_(2)), _first_channel, COLOUR)
    yield each("diagonal", done(_diagonal), _without_diagonal)
    yield each("unbind", done(_unbound), _doubled, outcome="either")
    yield each("chunk", done(_chunk), _top_doubled, outcome="either")
    yield each("split", done(_split), _right_doubled, outcome="either")
    yield each("detach", done(lambda x: x.detach().sub_(0.5)), _centred)
    yield each("data", done(lambda x: x.data.sub_(0.5)), _centred)
    yield each("data-mul", done(lambda x: x.data.mul_(2)), _own_value_doubled)
    yield each("data-assigned", done(_assign_data), _centred)
    yield each("numpy", done(_numpy), _centred)
    yield each("numpy-without-gradient", _numpy_without_gradient, _centred)
    yield each("out", _out, _centred)
    yield each("copy", done(lambda x: x.copy_(x * 2 - 1)), lambda x: x * 2 - 1)
    yield each("fill", done(lambda x: x[:, :, :1].fill_(0.5)), _row)
    yield each("masked-fill", lambda x: x.masked_fill_(x.detach() > 0.8, 0.8), lambda x: x.masked_fill(x > 0.8, 0.8))
    yield each("index-copy", done(_index_copy), _row)
    yield each("index-fill", done(lambda x: x.index_fill_(2, torch.tensor([0]), 0.5)), _row)
    yield each("pow", lambda x: x.pow_(2), lambda x: x.pow(2))
    yield each("neg-add", lambda x: x.neg_().add_(1), lambda x: 1 - x)
    yield each("lerp", lambda x: x.lerp_(torch.ones_like(x), 0.3), lambda x: x.lerp(torch.ones_like(x), 0.3))
    yield each("only-without-gradient", lambda x: x * 0.5 if x.requires_grad else x.mul_(0.5), _halved)
    yield each("only-with-gradient", lambda x: x.mul_(0.5) if x.requires_grad else x * 0.5, _halved)
    yield each("under-no-grad", done(torch.no_grad()(lambda x: x.sub_(0.5))), _centred)
    yield each("asks-for-gradient", _ask_for_gradient, as_they_are)
    for name, run in (("zero-after", _zeroed_after), ("fill-after", _zeroed_before_answer)):
        # the way back of its convolution needs the images, in plain PyTorch too
        yield UserNetwork(name=name, kind="writes", make=forward(run), twin=_PLAIN, outcome="either", trains=False)
    yield UserNetwork(name="squeeze", kind="writes", make=forward(_squeezed), twin=_PLAIN)
    yield UserNetwork(
        name="transpose-metadata", kind="writes", make=forward(_transposed), twin=before(lambda x: x.transpose(2, 3))
    )
    yield UserNetwork(
        name="clears-the-batch-before",
        kind="writes",
        make=forward(_clear_the_last, last=lambda: None),
        twin=_PLAIN,
        trains=False,
    )


# b) They need contiguous memory ---------------------------------------------------------------------------------------
class Mlp(nn.Module):
    """One dense layer over all pixels."""

    def __init__(self, channels: int, flat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense, self.flat = nn.Linear(channels * 64, 4), flat

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.flat(x)) * 5


class LeNet(nn.Module):
    """A convolution, a pooling, a dense layer."""

    def __init__(self, flat: Callable[[Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.dense, self.flat = nn.Conv2d(channels, 6, 3, padding=1), nn.Linear(96, 4), flat

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.flat(F.max_pool2d(self.convolution(x).relu(), 2))) * 5


class Middle(nn.Module):
    """Something is done to the feature maps in the middle."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.step = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), step
        self.dense = nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.two(self.step(self.one(x).relu())).relu().flatten(1)) * 10


class OwnKernel(nn.Module):
    """Standardises its kernel, as weight standardisation does."""

    def __init__(self, flat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel, self.dense, self.flat = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Linear(256, 4), flat

    def forward(self, x: Tensor) -> Tensor:
        rows = self.flat(self.kernel)
        rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
        return self.dense(F.conv2d(x, rows.reshape(4, 3, 3, 3), padding=1).relu().flatten(1))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def _shuffled(x: Tensor) -> Tensor:
    return x.view(len(x), 2, 2, 8, 8).transpose(1, 2).reshape(len(x), 4, 8, 8)


def _shuffled_anyhow(x: Tensor) -> Tensor:
    return x.reshape(len(x), 2, 2, 8, 8).transpose(1, 2).reshape(len(x), 4, 8, 8)


def _paired(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(x.view(len(x), 3, 8, 4, 2)) * 1j).view(len(x), 3, 8, 8)


def _paired_anyhow(x: Tensor) -> Tensor:
    pairs = x.reshape(len(x), 3, 8, 4, 2)
    return torch.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(len(x), 3, 8, 8)


def _strided(x: Tensor) -> Tensor:
    return torch.as_strided(x, (len(x), 192), (192, 1))


def _asserted(x: Tensor) -> Tensor:
    if not x.is_contiguous() or x.stride(1) != 64:
        raise RuntimeError("expected contiguous images")
    return x.reshape(len(x), -1)


def _patches(x: Tensor) -> Tensor:
    return x.as_strided((len(x), 3, 7, 7), (192, 64, 8, 1)).flatten(1)


def _patches_anyhow(x: Tensor) -> Tensor:
    return x[:, :, :7, :7].flatten(1)


class Patches(nn.Module):
    """A dense layer over a part of the pixels."""

    def __init__(self, flat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense, self.flat = nn.Linear(147, 4), flat

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.flat(x)) * 5


def contiguous() -> Iterator[UserNetwork]:
    """Networks that read memory in the order of the dimensions."""

    def each(name: str, make: Maker, twin: Maker, shape: Shape = COLOUR, **more: Any) -> UserNetwork:
        return UserNetwork(name=name, kind="contiguous", make=make, twin=twin, shape=shape, **more)

    yield each("mlp-view", lambda: Mlp(3, lambda x: x.view(x.size(0), -1)), lambda: Mlp(3, _rows))
    yield each("mlp-view-grey", lambda: Mlp(1, lambda x: x.view(x.size(0), -1)), lambda: Mlp(1, _rows), GREY)
    yield each("mlp-view-192", lambda: Mlp(3, lambda x: x.view(-1, 192)), lambda: Mlp(3, _rows))
    yield each("mlp-as-strided", lambda: Mlp(3, _strided), lambda: Mlp(3, _rows))
    yield each("mlp-asserts", lambda: Mlp(3, _asserted), lambda: Mlp(3, _rows))
    yield each("mlp-view-normalised", lambda: Mlp(3, lambda x: x.view(-1, 192)), lambda: Mlp(3, _rows), normalised=True)
    yield each("patches-as-strided", lambda: Patches(_patches), lambda: Patches(_patches_anyhow))
    yield each("lenet-view", lambda: LeNet(lambda x: x.view(-1, 96)), lambda: LeNet(_rows))
    yield each("lenet-view-grey", lambda: LeNet(lambda x: x.view(-1, 96), 1), lambda: LeNet(_rows, 1), GREY)
    yield each("lenet-view-features", lambda: LeNet(lambda x: x.view(-1, x.shape[1:].numel())), lambda: LeNet(_rows))
    yield each("shuffled-channels", lambda: Middle(_shuffled), lambda: Middle(_shuffled_anyhow))
    yield each(
        "unflatten",
        lambda: Middle(nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(1, 2))),
        lambda: Middle(nn.Identity()),
    )
    yield each("complex", before(_paired, 3), before(_paired_anyhow, 3))
    yield each("view-as", before(lambda x: x.view(-1).view(len(x), 3, 8, 8), 3), _PLAIN_COLOUR)
    yield each("kernel-view", lambda: OwnKernel(lambda k: k.view(4, -1)), lambda: OwnKernel(lambda k: k.reshape(4, -1)))


# c) Precision ---------------------------------------------------------------------------------------------------------
def double(images: Tensor) -> Tensor:
    """As they come from NumPy."""
    return images.double()


def half(images: Tensor) -> Tensor:
    """To save memory."""
    return images.half()


def bfloat16(images: Tensor) -> Tensor:
    """To save memory too."""
    return images.bfloat16()


class Cast(nn.Module):
    """The twin of a network in another precision: it takes and returns float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.dtype)).float()


class Mixed(nn.Module):
    """The dense layer is in another precision than the convolution, and `forward` casts between them."""

    def __init__(self, dtype: torch.dtype, *, back: bool) -> None:
        super().__init__()
        network = convolutional()
        self.convolution, self.dense, self.back = network[0], network[-1].to(dtype), back

    def forward(self, x: Tensor) -> Tensor:
        found = self.dense(self.convolution(x).relu().flatten(1).to(self.dense.weight.dtype))
        return found.float() if self.back else found


class Scaled(nn.Module):
    """The first parameter is double, and yet the convolution wants float32."""

    def __init__(self, *, back: bool, buffer: bool = False) -> None:
        super().__init__()
        scale = torch.full((1,), 2.0, dtype=torch.float64)
        if buffer:
            self.register_buffer("scale", scale)
        else:
            self.scale = nn.Parameter(scale)
        self.inner, self.back = convolutional(), back

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x) * self.scale
        return found.float() if self.back else found


class CastsInside(nn.Module):
    """Takes float32 and works in another precision."""

    def __init__(self, dtype: torch.dtype, *, back: bool) -> None:
        super().__init__()
        self.inner, self.dtype, self.back = convolutional().to(dtype), dtype, back

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x.to(self.dtype))
        return found.float() if self.back else found


def precisions() -> Iterator[UserNetwork]:
    """Networks and images in another precision than float32."""

    def each(name: str, make: Maker, twin: Maker, **more: Any) -> UserNetwork:
        return UserNetwork(name=name, kind="precision", make=make, twin=twin, **more)

    kinds = {"double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
    for name, dtype in kinds.items():
        same: Maker = lambda dtype=dtype: Cast(convolutional(), dtype)  # noqa: E731
        trains = dtype == torch.float64  # the optimiser's small numbers are none in half precision
        coarse = not trains
        yield each(f"{name}-network", lambda dtype=dtype: convolutional().to(dtype), same, trains=trains, coarse=coarse)
        yield each(
            f"{name}-casts-inside",
            lambda dtype=dtype: CastsInside(dtype, back=False),
            same,
            trains=trains,
            coarse=coarse,
        )
        yield each(f"mixed-{name}", lambda dtype=dtype: Mixed(dtype, back=False),
                   lambda dtype=dtype: Mixed(dtype, back=True), trains=trains)  # fmt: skip
    yield each("double-images", convolutional, _PLAIN, pixels=double)
    yield each("half-images", convolutional, _PLAIN, pixels=half)
    yield each("bfloat16-images", convolutional, _PLAIN, pixels=bfloat16)
    yield each(
        "double-both", lambda: convolutional().double(), lambda: Cast(convolutional(), torch.float64), pixels=double
    )
    yield each("half-both", lambda: convolutional().half(), lambda: Cast(convolutional(), torch.float16), pixels=half,
               trains=False, coarse=True)  # fmt: skip
    yield each("double-scale-first", lambda: Scaled(back=False), lambda: Scaled(back=True))
    yield each("double-buffer-first", lambda: Scaled(back=False, buffer=True), lambda: Scaled(back=True, buffer=True))
    yield each(
        "double-network-normalised",
        lambda: convolutional().double(),
        lambda: Cast(convolutional(), torch.float64),
        normalised=True,
    )
    yield each("double-logits", after(lambda o: o.double()), _PLAIN)
    yield each(
        "double-writes-into-input",
        lambda: Around(convolutional().double(), before=lambda x: x.sub_(0.5)),
        lambda: Cast(Around(convolutional(), before=_centred), torch.float64),
    )


# d) Masked classes ----------------------------------------------------------------------------------------------------
_INFINITY = float("inf")


def _assigned(value: float, start: int) -> Step:
    def run(o: Tensor) -> Tensor:
        o = o.clone()
        o[:, start:] = value
        return o

    return run


def _assigned_in_place(start: int) -> Step:
    def run(o: Tensor) -> Tensor:
        o[:, start:] = -_INFINITY
        return o

    return run


def _kept(count: int, start: int) -> Tensor:
    return torch.arange(count) < start


def _log_mask(count: int, start: int) -> Step:
    return lambda o: o + _kept(count, start).float().log()


def _filled(count: int, start: int, value: float) -> Step:
    return lambda o: o.masked_fill(~_kept(count, start), value)


def _picked(count: int, start: int) -> Step:
    return lambda o: torch.where(_kept(count, start), o, -_INFINITY)


def _padded(extra: int) -> Step:
    return lambda o: torch.cat([o[:, :-extra], torch.full_like(o[:, -extra:], -_INFINITY)], 1)


@cache
def _indexed(start: int, step: Step) -> Step:
    return lambda o: step(o[:, :start])


def masks() -> Iterator[UserNetwork]:
    """Networks that give classes nobody wants the logit minus infinity, or one that is as good as that."""

    def each(name: str, count: int, start: int, step: Step, twin: Step = as_they_are, **more: Any) -> UserNetwork:
        return UserNetwork(
            name=name,
            kind="masks",
            make=after(step, count),
            twin=after(_indexed(start, twin), count),
            classes=count,
            twin_classes=start,
            trains=False,
            **more,
        )

    lowest = torch.finfo(torch.float32).min
    yield each("assigned", 4, 3, _assigned(-_INFINITY, 3))
    yield each("assigned-in-place", 6, 5, _assigned_in_place(5))
    yield each("masked-fill", 6, 4, _filled(6, 4, -_INFINITY))
    yield each("log-mask", 6, 4, _log_mask(6, 4))
    yield each("where", 6, 5, _picked(6, 5))
    yield each("padded", 6, 4, _padded(2))
    yield each("all-but-two", 6, 2, _filled(6, 2, -_INFINITY))
    yield each("all-but-two-assigned", 4, 2, _assigned_in_place(2))
    yield each("many", 30, 5, _filled(30, 5, -_INFINITY))
    yield each("log-softmax", 6, 4, lambda o: _filled(6, 4, -_INFINITY)(o).log_softmax(1), lambda o: o.log_softmax(1))
    for name, value in (("1e9", -1e9), ("1e4", -1e4), ("lowest", lowest)):
        yield each(f"minus-{name}", 6, 5, _assigned(value, 5))
        yield each(f"minus-{name}-all-but-two", 6, 2, _filled(6, 2, value))


def non_finite() -> Iterator[UserNetwork]:
    """Networks whose logits are no numbers, or plus infinity: there is no answer to attack."""
    steps: Mapping[str, Step] = {
        "nan": lambda o: o * float("nan"),
        "nan-in-one": lambda o: torch.cat([o[:, :-1], o[:, -1:] * float("nan")], 1),
        "plus-infinity": _assigned(_INFINITY, 3),
        "zero-times-infinity": lambda o: o + torch.tensor([0.0, 0.0, 0.0, 1.0]) * -_INFINITY,
        "square-root-of-negative": lambda o: (o - 100).sqrt(),
        "all-minus-infinity": _assigned(-_INFINITY, 0),
        "overflow": lambda o: (o.half() * 60000.0 * 60000.0).float(),
    }
    for name, step in steps.items():
        yield UserNetwork(name=name, kind="non-finite", make=after(step), trains=False)


# e) What cannot be used -----------------------------------------------------------------------------------------------
class Grows(nn.Module):
    """Adds to what it said before."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = convolutional(), convolutional(seed=1), torch.zeros(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        for network in (self.one, self.two):
            self.out = self.out + network(x)
        return self.out / 2


def _cached(network: Any, x: Tensor) -> Tensor:
    network.cache = torch.cat([network.cache, network.inner(x)])
    return network.cache


def _listed(network: Any, x: Tensor) -> Tensor:
    network.seen.append(network.inner(x))
    return torch.cat(network.seen)


def _raises(network: Any, x: Tensor) -> Tensor:
    raise ValueError("nothing to see")


def _raises_own(network: Any, x: Tensor) -> Tensor:
    class StrangeError(Exception):
        """Of the user."""

    raise StrangeError("nothing to see")


def _raises_late(network: Any, x: Tensor) -> Tensor:
    network.calls += 1
    if network.calls > 3:
        raise ValueError("nothing to see")
    return network.inner(x)


def _raises_with_gradient(network: Any, x: Tensor) -> Tensor:
    if x.requires_grad:
        raise ValueError("nothing to see")
    return network.inner(x)


def _spoils_the_way_back(network: Any, x: Tensor) -> Tensor:
    """Writes over what the way back needs."""
    hidden = network.inner[0](x).exp()
    hidden += 1.0
    return network.inner[3](hidden.flatten(1))


def enclosed() -> Iterator[UserNetwork]:
    """Networks whose logits are in something else, or are one number for two classes."""

    def each(name: str, make: Maker, twin: Maker = _PLAIN, **more: Any) -> UserNetwork:
        return UserNetwork(name=name, kind="encloses", make=make, twin=twin, **more)

    yield each("tuple-of-one", after(lambda o: (o,)))
    yield each("list-of-one", after(lambda o: [o]))
    yield each("dict-of-logits", after(lambda o: {"loss": None, "logits": o}))
    yield each("object-of-logits", after(lambda o: SimpleNamespace(logits=o)))
    yield each("one-logit", after(as_they_are, 1), after(_two, 1), classes=2)
    yield each("one-logit-squeezed", after(lambda o: o.squeeze(1), 1), after(_two, 1), classes=2)
    yield each("one-logit-colour", after(lambda o: o[:, 0], 1, 3), after(_two, 1, 3), classes=2, shape=COLOUR)
    yield each("softmax", after(lambda o: o.softmax(1)))
    yield each("sigmoid", after(torch.sigmoid, 1), after(_two, 1), classes=2)


def _two(o: Tensor) -> Tensor:
    """The two logits that one stands for."""
    return torch.cat([torch.zeros_like(o), o], 1)


def refused() -> Iterator[UserNetwork]:
    """Networks that no entry point can use."""

    def each(name: str, make: Maker, *says: str, classes: int = 4, **more: Any) -> UserNetwork:
        return UserNetwork(name=name, kind="refused", make=make, outcome="refused", says=says, classes=classes, **more)

    yield each("one-logit-sigmoid", after(lambda o: o.sigmoid().sigmoid(), 1), "zero", "logit", classes=2)
    yield each("more-logits", after(as_they_are, 10), r"\b10\b", r"\b4\b")
    yield each("fewer-logits", after(as_they_are, 3), r"\b3\b", r"\b4\b")
    yield each("tuple", after(lambda o: (o, o)), "tuple", "output=0 or output=1")
    yield each("list", after(lambda o: [o, 2 * o]), "list", "output=0 or output=1")
    yield each("dict", after(lambda o: {"scores": o, "other": o}), "dict", "output='scores' or output='other'")
    yield each("object", after(lambda o: SimpleNamespace(scores=o)), "SimpleNamespace")
    yield each("none", after(lambda o: None), "None")
    yield each("array", after(lambda o: o.detach().numpy()), "NumPy array|ndarray")
    yield each("number", after(lambda o: o.sum().item()), "float")
    yield each("string", after(lambda o: "class 1"), "str")
    yield each("squeeze", after(lambda o: o.squeeze()), r"\(4,\)")
    yield each("squeeze-one", after(lambda o: o[0] if len(o) == 1 else o), r"\(4,\)")
    yield each("transposed", after(lambda o: o.T), r"\(4, ")
    yield each("maps", after(lambda o: o[:, :, None, None]), r"4, 1, 1\)")
    yield each("mean-over-batch", after(lambda o: o.mean(0, keepdim=True)), r"\(1, 4\)")
    yield each("integers", after(lambda o: o.long()), "int64")
    yield each("booleans", after(lambda o: o > 0), "bool")
    yield each("complex", after(lambda o: torch.complex(o, o)), "complex")
    yield each("classes", after(lambda o: o.argmax(1)), "int64|argmax|class")
    yield each("scalar", after(lambda o: o.mean()), r"\(\)")
    yield each("fixed-batch", lambda: Around(convolutional(), before=lambda x: x.view(12, 1, 8, 8)), "batch|images")
    yield each("wants-three-channels", lambda: convolutional(3), "channels")
    yield each("wants-other-size", lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 4)), "RuntimeError", "64")
    yield each("mixed-without-cast", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4).double()),
               "dtype|double|float")  # fmt: skip
    yield each("grows-sum", Grows, "batch|images|call")
    yield each("grows-cat", forward(_cached, cache=lambda: torch.zeros(0, 4)), "images|call")
    yield each("grows-list", forward(_listed, seen=list), "images|call")
    yield each("raises", forward(_raises), "ValueError", "nothing to see")
    yield each("raises-own", forward(_raises_own), "StrangeError", "nothing to see")
    yield each("abstract", nn.Module, "forward")
    yield UserNetwork(
        name="raises-with-gradient",
        kind="refused",
        make=forward(_raises_with_gradient),
        twin=_PLAIN,
        outcome="either",
        says=("ValueError", "nothing to see"),
    )
    yield UserNetwork(
        name="spoils-the-way-back",
        kind="refused",
        make=forward(_spoils_the_way_back),
        outcome="either",
        says=("modified by an inplace operation",),
    )
    yield UserNetwork(
        name="raises-late",
        kind="refused",
        make=forward(_raises_late, calls=int),
        twin=_PLAIN,
        outcome="either",
        says=("ValueError", "nothing to see"),
    )


# f) Without a gradient ------------------------------------------------------------------------------------------------
def _switched_off(x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    return x


def _left_off(o: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    return o


def _left_on(o: Tensor) -> Tensor:
    torch.set_grad_enabled(True)
    return o


class Decorated(nn.Module):
    """Its forward is decorated, as that of a network for inference may be."""

    def __init__(self, decorate: Callable[[], Any]) -> None:
        super().__init__()
        self.inner, self.decorate = convolutional(), decorate

    def forward(self, x: Tensor) -> Tensor:
        with self.decorate():
            return self.inner(x)


def without_gradient() -> Iterator[UserNetwork]:
    """Networks through which no gradient comes; attacks that need none work as on the twin."""
    others = ("rounded", "constant", "hard")  # they answer otherwise than the plain network
    makers: Mapping[str, Maker] = {
        "no-grad": lambda: Decorated(torch.no_grad),
        "inference-mode": lambda: Decorated(torch.inference_mode),
        "detached-logits": after(lambda o: o.detach()),
        "detached-images": before(lambda x: x.detach()),
        "switched-off-and-left": before(_switched_off),
        "rounded": before(lambda x: (x * 255).round() / 255),
        "through-numpy": before(lambda x: torch.from_numpy(x.detach().numpy().copy())),
        "constant": after(lambda o: torch.zeros_like(o)),
        "fresh-tensor": after(lambda o: torch.tensor(o.tolist())),
        "hard": after(lambda o: F.one_hot(o.argmax(1), 4).float()),
    }
    for name, make in makers.items():
        yield UserNetwork(name=name, kind="no-gradient", make=make, twin=make if name in others else _PLAIN)


# g) Harmless ----------------------------------------------------------------------------------------------------------
class Shared(nn.Module):
    """One layer is used twice."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.relu, self.dense = nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(inplace=shared), nn.Linear(64, 4)
        self.two = self.one if shared else nn.Conv2d(1, 1, 3, padding=1)
        self.two.load_state_dict(self.one.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.relu(self.two(self.relu(self.one(x)))).flatten(1)) * 8


class Recurrent(nn.Module):
    """Reads an image row by row."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.dense, self.step = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4), step

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.rows(self.step(x))[0][:, -1]) * 20


class Residual(nn.Module):
    """Adds in place, but not to its input."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.dense, self.in_place = nn.Linear(256, 4), in_place

    def forward(self, x: Tensor) -> Tensor:
        start = self.one(x)
        out = self.two(start)
        if self.in_place:
            out += start
            out = F.relu_(out)
        else:
            out = F.relu(out + start)
        return self.dense(out.flatten(1)) * 4


def _hooked() -> nn.Module:
    network = convolutional()
    network[1].register_forward_hook(lambda module, given, found: found * 2)  # pyright: ignore[reportOperatorIssue]
    network[0].register_forward_pre_hook(lambda module, given: (given[0] - 0.5,))
    return network


def _hooks_by_hand(network: Any, x: Tensor) -> Tensor:
    conv, relu, flat, dense = network.inner
    return dense(flat(relu(conv(x - 0.5)) * 2))


def _backward_hooked() -> nn.Module:
    network = convolutional()
    network[0].register_full_backward_hook(lambda module, down, up: None)
    return network


def _weight_normed() -> nn.Module:
    network = convolutional()
    parametrizations.weight_norm(network[3])
    return network


def _old_weight_normed() -> nn.Module:
    network = convolutional()
    nn.utils.weight_norm(network[3])
    network(torch.rand(2, 1, 8, 8))  # its weight is then no leaf, and cannot be copied
    return network


def _spectral() -> nn.Module:
    network = convolutional()
    parametrizations.spectral_norm(network[0])
    return network.eval()


def _old_spectral() -> nn.Module:
    network = convolutional()
    nn.utils.spectral_norm(network[0])
    network(torch.rand(2, 1, 8, 8))
    return network.eval()


def _spectral_by_hand(old: bool) -> nn.Module:
    """The same kernel without the parametrisation."""
    made, plain = (_old_spectral() if old else _spectral()), convolutional()
    made(torch.rand(2, 1, 8, 8))
    weight = made[0].weight  # pyright: ignore[reportIndexIssue]
    with torch.no_grad():
        plain[0].weight.copy_(weight)  # pyright: ignore[reportCallIssue]
    return plain


class Absolute(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs()


def _parametrised() -> nn.Module:
    network = convolutional()
    parametrize.register_parametrization(network[0], "weight", Absolute())
    return network


def _absolute() -> nn.Module:
    network = convolutional()
    with torch.no_grad():
        network[0].weight.abs_()  # pyright: ignore[reportCallIssue]
    return network


def _counted(network: Any, x: Tensor) -> Tensor:
    network.calls += 1
    return network.inner(x)


def _counted_in_buffer(network: Any, x: Tensor) -> Tensor:
    network.count.add_(len(x))
    return network.inner(x)


def _averaged(network: Any, x: Tensor) -> Tensor:
    """Follows the mean of its images with a buffer, which it does not use."""
    network.mean.lerp_(x.detach().mean(), 0.1)
    return network.inner(x)


def _remembered(network: Any, x: Tensor) -> Tensor:
    network.last = x
    network.features = network.inner(x)
    network.history.append(network.features)
    return network.features


def _kept_gradient(network: Any, x: Tensor) -> Tensor:
    """As for Grad-CAM."""
    maps = network.inner[0](x)
    if maps.requires_grad:
        maps.retain_grad()
    network.maps = maps
    return network.inner[1:](maps)


class WithAutocast(nn.Module):
    """Works in bfloat16 inside."""

    def __init__(self, *, by_hand: bool) -> None:
        super().__init__()
        self.inner, self.by_hand = convolutional(), by_hand

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = self.inner(x)
        return found.float() if self.by_hand else found


def _recomputed(network: Any, x: Tensor) -> Any:
    return checkpoint(network.inner, x, use_reentrant=False)


def _with_buffer(run: Callable[[Any, Tensor], Any], name: str, value: Tensor) -> Maker:
    def make() -> nn.Module:
        network = Forward(run)
        network.register_buffer(name, value.clone())
        return network

    return make


def _leaves(change: Callable[[], object]) -> Maker:
    def run(network: Any, x: Tensor) -> Tensor:
        found = network.inner(x)
        change()
        return found

    return forward(run)


def _seeds() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # as users do
    random.seed(0)


def _no_benchmark() -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True


def _modes(network: Any, x: Tensor) -> Tensor:
    """Puts itself into evaluation mode for every answer, and back."""
    network.eval()
    found = network.inner(x)
    network.train()
    return found


def _draws(o: Tensor) -> Tensor:
    return o + 0.3 * torch.randn_like(o) + 0.01 * random.random() + 0.01 * float(np.random.rand())  # noqa: NPY002


def partly_training(model: Classifier) -> None:
    """The model is in training mode, but for its batch normalisation."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def partly_evaluation(model: Classifier) -> None:
    """The model is in evaluation mode, but for its batch normalisation, which was frozen the wrong way round."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()


def training_mode(model: Classifier) -> None:
    """The user forgot `eval()`."""
    model.train()


def some_frozen(model: Classifier) -> None:
    """Some of the weights are frozen, and others hold a gradient."""
    model.eval()
    for number, parameter in enumerate(model.parameters()):
        if number % 2:
            parameter.requires_grad_(False)
        else:
            parameter.grad = torch.full_like(parameter, 0.5)


class OwnStatistics(nn.Module):
    """Normalises by the statistics of the batch in every mode, which one image does not have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.batch_norm(self.first(x.flatten(1)), None, None, training=True)
        return self.last(hidden.relu()) * 4


def harmless() -> Iterator[UserNetwork]:
    """Networks with oddities that change nothing of their answers."""

    def each(name: str, make: Maker, twin: Maker | None = _PLAIN, **more: Any) -> UserNetwork:
        return UserNetwork(name=name, kind="harmless", make=make, twin=twin, **more)

    yield each("hooks", _hooked, forward(_hooks_by_hand))
    yield each("backward-hook", _backward_hooked)
    yield each("shared-layers", lambda: Shared(shared=True), lambda: Shared(shared=False), trains=False)
    yield each("weight-norm", _weight_normed, trains=False)
    yield each("old-weight-norm", _old_weight_normed, trains=False)
    yield each("spectral-norm", _spectral, lambda: _spectral_by_hand(old=False), trains=False)
    yield each("old-spectral-norm", _old_spectral, lambda: _spectral_by_hand(old=True), trains=False)
    yield each("parametrised", _parametrised, _absolute, trains=False)
    yield each("scripted", lambda: torch.jit.script(convolutional()))
    yield each("traced", lambda: torch.jit.trace(convolutional(), torch.rand(2, 1, 8, 8)))  # pyright: ignore[reportArgumentType]
    yield each("data-parallel", lambda: nn.DataParallel(convolutional()))
    yield each("data-parallel-writes", lambda: nn.DataParallel(before(lambda x: x.sub_(0.5))()), before(_centred))
    yield each(
        "no-parameters",
        lambda: nn.Sequential(nn.AvgPool2d(4), nn.Flatten()),
        lambda: Around(nn.AvgPool2d(4), after=lambda o: o.reshape(len(o), -1)),
        trains=False,
    )
    yield each(
        "images-are-logits",
        lambda: nn.Flatten(),
        lambda: Around(nn.Identity(), after=lambda o: o.reshape(len(o), -1) * 1.0),
        classes=64,
        trains=False,
    )
    yield each("identity-view", lambda: Around(nn.Identity(), after=lambda x: x[:, 0, 0, :4]),
               lambda: Around(nn.Identity(), after=lambda x: x[:, 0, 0, :4] * 1.0), trains=False)  # fmt: skip
    yield each("nested", lambda: nn.Sequential(nn.Sequential(nn.Identity(), nn.Sequential(convolutional()))))
    yield each("counter", forward(_counted, calls=int))
    yield each("counter-in-buffer", _with_buffer(_counted_in_buffer, "count", torch.zeros((), dtype=torch.int64)))
    yield each("average-in-buffer", _with_buffer(_averaged, "mean", torch.zeros(())))
    yield each("cache", forward(_remembered, last=lambda: None, features=lambda: None, history=list))
    yield each("kept-maps", forward(_kept_gradient, maps=lambda: None))
    yield each("autocast", lambda: WithAutocast(by_hand=False), lambda: WithAutocast(by_hand=True))
    yield each("lstm", lambda: Recurrent(lambda x: x.squeeze(1)), lambda: Recurrent(lambda x: x[:, 0]))
    yield each("residual", lambda: Residual(in_place=True), lambda: Residual(in_place=False))
    yield each("checkpointing", forward(_recomputed))
    yield each("holds-lock", forward(_counted, calls=int, lock=threading.Lock))
    yield each("holds-generator", forward(_counted, calls=int, words=lambda: (word for word in "abc")))
    yield each("holds-torch-generator", forward(_counted, calls=int, own=torch.Generator))
    yield each("wrong-gradient-mode-after", after(_left_off), trains=False)
    yield each("gradient-mode-on-after", after(_left_on))
    yield each("seeds-everything", _leaves(_seeds))
    yield each("threads-left", _leaves(lambda: torch.set_num_threads(2)))
    yield each("cudnn-flags-left", _leaves(_no_benchmark))
    yield each("deterministic-left", _leaves(lambda: torch.use_deterministic_algorithms(True)))
    yield each("default-dtype-left", _leaves(lambda: torch.set_default_dtype(torch.float64)))
    yield each("changes-own-mode", forward(_modes), trains=False)
    yield each("partly-training", with_batch_norm, with_batch_norm, mode=partly_training, finding=True)
    yield each("partly-evaluation", with_batch_norm, with_batch_norm, mode=partly_evaluation, finding=True)
    yield each("training-mode", with_batch_norm, with_batch_norm, mode=training_mode, finding=True)
    yield each("frozen-and-gradients", convolutional, mode=some_frozen, trains=False)
    yield each("draws-at-random", after(_draws), None, outcome="either", trains=False)
    yield each("statistics-of-the-batch", OwnStatistics, None, outcome="either", trains=False)


KINDS: tuple[Callable[[], Iterator[UserNetwork]], ...] = (
    writing,
    contiguous,
    precisions,
    masks,
    non_finite,
    enclosed,
    refused,
    without_gradient,
    harmless,
)
NETWORKS: Mapping[str, UserNetwork] = {str(each): each for kind in KINDS for each in kind()}
