"""The shapes that pass between rooms, as jaxtyping annotations (checked by beartype in the tests only)."""

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

Pixels = UInt8[Tensor, "n channels height width"]
"""Images as stored: whole grey or colour levels 0 to 255."""

Images = Float[Tensor, "n channels height width"]
"""Images as a network sees them: within the bounds of its `Classifier`, [0, 1] unless said otherwise."""

Labels = Int64[Tensor, " n"]
"""Class numbers from 0."""

Logits = Float[Tensor, "n classes"]
"""What a network returns: one unbounded score per class, before any softmax."""

PerExample = Float[Tensor, " n"]
"""One number per image: a loss, a norm."""

Flags = Bool[Tensor, " n"]
"""One yes or no per image."""
