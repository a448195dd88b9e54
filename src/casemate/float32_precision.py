"""How precisely PyTorch multiplies float32 numbers: as they are, or rounded to TensorFloat-32 or bfloat16.

PyTorch has settings for each operation of each backend (`fp32_precision`), and older ones for several of them together
(`torch.set_float32_matmul_precision`, `allow_tf32`), which it refuses to read while the others contradict them. So the
older ones are read and written only where they say something.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch

_CUDNN: Any = torch.backends.cudnn
_ONEDNN: Any = torch.backends.mkldnn
_OPERATIONS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    *(_CUDNN.conv, _CUDNN.rnn),
    *(_ONEDNN.matmul, _ONEDNN.conv, _ONEDNN.rnn),
)
_PLACES: tuple[Any, ...] = (torch.backends, _CUDNN, _ONEDNN, *_OPERATIONS)
"""What has a setting of its own; those of whole backends come first, since setting one sets its operations too."""
_EXACT = ("ieee", "none")


@final
@dataclass(frozen=True)
class Float32Precision:
    """All settings together."""

    places: tuple[str, ...]
    """The settings of `_PLACES`: ieee, tf32, bf16 or none."""
    products: str | None
    """That of `torch.set_float32_matmul_precision`; None where the places contradict it."""
    convolutions: bool | None
    """Whether cuDNN may use TensorFloat-32, by `allow_tf32`; None where the places contradict it."""


def read_float32_precision() -> Float32Precision:
    """The settings as they are."""
    return Float32Precision(
        tuple(each.fp32_precision for each in _PLACES),
        _if_readable(torch.get_float32_matmul_precision),
        _if_readable(lambda: _CUDNN.allow_tf32),
    )


def set_float32_precision(wanted: Float32Precision) -> None:
    """Make the settings what they were when `wanted` was read."""
    now = read_float32_precision()
    if wanted.products not in (None, now.products):
        torch.set_float32_matmul_precision(wanted.products)
    if wanted.convolutions not in (None, now.convolutions):
        _CUDNN.allow_tf32 = wanted.convolutions
    for place, value in zip(_PLACES, wanted.places, strict=True):
        if place.fp32_precision != value:
            place.fp32_precision = value


@contextmanager
def full_precision() -> Iterator[None]:
    """Context in which products and convolutions of float32 numbers round as float32 does, on every device.

    TensorFloat-32 and bfloat16 round the factors to 10 or 7 bits, which changes predictions near a decision boundary,
    where adversarial examples lie. The settings of PyTorch are as before at the end.
    """
    before = read_float32_precision()
    try:
        if before.products not in (None, "highest"):
            torch.set_float32_matmul_precision("highest")
        if before.convolutions:
            _CUDNN.allow_tf32 = False
        for each in _OPERATIONS:
            if each.fp32_precision not in _EXACT:
                each.fp32_precision = "ieee"
        yield
    finally:
        set_float32_precision(before)


def uses_tf32() -> dict[str, bool]:
    """Whether NVIDIA GPUs use TensorFloat-32 in convolutions and in products."""
    places: dict[str, Any] = {"convolutions": _CUDNN.conv, "products": torch.backends.cuda.matmul}
    return {name: each.fp32_precision == "tf32" for name, each in places.items()}


def _if_readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return None
