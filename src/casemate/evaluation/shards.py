"""Shards: the images of an evaluation in parts, each of which is read, attacked and stored by itself.

Their boundaries depend on the size of an image alone and not on the number of images, so that an evaluation on more
images begins with the same shards as one on fewer. The first shards are small, so that few images are enough to fill
them; later ones are larger, since attacks on survivors are faster on many images at a time.
"""

from collections.abc import Sequence
from math import prod

from casemate.data import ReadableImages

_FIRST, _MOST = 500, 4000
"""Number of images in the first shard, and in the largest."""
_NUMBERS = 1 << 25
"""Most numbers in the images of a shard, which take 128 MB as float32."""


def shard_bounds(count: int, image_shape: tuple[int, ...]) -> list[slice]:
    """The positions of each shard of `count` images; every shard is as large as all before it, within the limits."""
    most = max(1, min(_MOST, _NUMBERS // max(1, prod(image_shape))))
    found: list[slice] = []
    start = 0
    while start < count:
        stop = start + min(max(_FIRST, start), most)
        found.append(slice(start, min(stop, count)))
        start = stop
    return found


def speedup_at_most(bounds: Sequence[slice], workers: int) -> float:
    """By what factor this number of workers can be faster than one, if each attacks one shard at a time; at least 1."""
    sizes = [each.stop - each.start for each in bounds]
    return min(float(workers), sum(sizes) / max(sizes))


def shards_of(images: ReadableImages) -> list[slice]:
    """The positions of each shard of the images; at least one image is read for its shape."""
    return shard_bounds(len(images), tuple(images.read(slice(0, 1)).pixels.shape[1:])) if len(images) else []
