"""Tensor shapes as jaxtyping annotations, checked by beartype in the tests only."""

from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

Pixels = UInt8[Tensor, "n channels height width"]
"""Images as stored: grey or colour levels 0 to 255."""

Images = Float[Tensor, "n channels height width"]
"""Images as a `Classifier` takes them, within its bounds; [0, 1] unless stated otherwise."""

Labels = Int64[Tensor, " n"]
"""Class numbers from 0."""

Classes = Shaped[Tensor, "n ..."]
"""What a criterion compares logits with: class numbers `(n,)`, or a row for each image, `(n, classes)`."""

Logits = Float[Tensor, "n classes"]
"""Network outputs: one unbounded score per class, before any softmax."""

PerExample = Float[Tensor, " n"]
"""One number per image: a loss, a norm."""

Flags = Bool[Tensor, " n"]
"""One boolean per image."""

Mask = Bool[Tensor, "n channels height width"]
"""One boolean per value of each image: True where an attack may change it."""
