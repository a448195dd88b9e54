"""Loops over feature maps, compiled for the processor by Numba.

A convolution with few channels, a max-pooling and a ReLU are cheap to compute, but PyTorch reads and writes memory for
each of them, stores 64-bit positions, and clears whole maps in the backward pass. These loops do all three in one pass.
They are compiled for given sizes, so that Numba can vectorise them.

Among equal maxima the first one counts, and NaN counts as the largest number, as in PyTorch.
"""

import functools
from typing import no_type_check

import numpy as np

from casemate import compiled

ZEROED = 4
"""The position stored where the ReLU returns zero; positions within the pooling are 0 to 3, row by row."""
BLOCK = 8
"""Channels that are summed at once; the number of a convolution's output channels must be a multiple of it."""


@compiled.loop
@no_type_check
def pool(maps, pooled, positions):
    """2 x 2 max-pooling and ReLU of `maps`; writes `pooled`, and the `positions` of the maxima (0 to 3, `ZEROED`)."""
    count, height, width, channels = pooled.shape
    zero = maps.dtype.type(0)
    for n in range(count):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    most, position = zero, np.uint8(ZEROED)
                    value = maps[n, 2 * y, 2 * x, c]
                    if value > most or value != value:
                        most, position = value, np.uint8(0)
                    value = maps[n, 2 * y, 2 * x + 1, c]
                    if value > most or value != value:
                        most, position = value, np.uint8(1)
                    value = maps[n, 2 * y + 1, 2 * x, c]
                    if value > most or value != value:
                        most, position = value, np.uint8(2)
                    value = maps[n, 2 * y + 1, 2 * x + 1, c]
                    if value > most or value != value:
                        most, position = value, np.uint8(3)
                    pooled[n, y, x, c] = most
                    positions[n, y, x, c] = position


@compiled.loop
@no_type_check
def pool_bfloat16(maps, pooled, positions):
    """`pool` for bfloat16 maps viewed as int16: non-negative numbers are ordered as their bits are."""
    count, height, width, channels = pooled.shape
    for n in range(count):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    v0, v1 = maps[n, 2 * y, 2 * x, c], maps[n, 2 * y, 2 * x + 1, c]
                    v2, v3 = maps[n, 2 * y + 1, 2 * x, c], maps[n, 2 * y + 1, 2 * x + 1, c]
                    # NaN of either sign becomes the largest number
                    v0 = np.int16(0x7FFF) if (v0 & np.int16(0x7FFF)) > np.int16(0x7F80) else v0
                    v1 = np.int16(0x7FFF) if (v1 & np.int16(0x7FFF)) > np.int16(0x7F80) else v1
                    v2 = np.int16(0x7FFF) if (v2 & np.int16(0x7FFF)) > np.int16(0x7F80) else v2
                    v3 = np.int16(0x7FFF) if (v3 & np.int16(0x7FFF)) > np.int16(0x7F80) else v3
                    most, position = np.int16(0), np.uint8(ZEROED)
                    if v0 > most or v0 == 0x7FFF:
                        most, position = v0, np.uint8(0)
                    if v1 > most or v1 == 0x7FFF:
                        most, position = v1, np.uint8(1)
                    if v2 > most or v2 == 0x7FFF:
                        most, position = v2, np.uint8(2)
                    if v3 > most or v3 == 0x7FFF:
                        most, position = v3, np.uint8(3)
                    pooled[n, y, x, c] = most
                    positions[n, y, x, c] = position


@compiled.loop
@no_type_check
def unpool(gradient, positions, unpooled):
    """Backward pass of `pool`: writes the `gradient` to the `positions` of the maxima in `unpooled`, zero elsewhere."""
    count, height, width, channels = gradient.shape
    tall, wide = unpooled.shape[1:3]
    zero = unpooled.dtype.type(0)
    for n in range(count):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    value, position = gradient[n, y, x, c], positions[n, y, x, c]
                    unpooled[n, 2 * y, 2 * x, c] = value if position == 0 else zero
                    unpooled[n, 2 * y, 2 * x + 1, c] = value if position == 1 else zero
                    unpooled[n, 2 * y + 1, 2 * x, c] = value if position == 2 else zero
                    unpooled[n, 2 * y + 1, 2 * x + 1, c] = value if position == 3 else zero
        unpooled[n, 2 * height :] = zero  # the last row or column of an odd size is not pooled
        for y in range(tall):
            unpooled[n, y, 2 * width : wide] = zero


@compiled.loop
@no_type_check
def gather(maps, positions, gathered):
    """Write to `gathered` the entries of `maps` at the positions that `pool` stored; zero for `ZEROED`."""
    count, height, width, channels = gathered.shape
    zero = maps.dtype.type(0)
    for n in range(count):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    position = positions[n, y, x, c]
                    low = maps[n, 2 * y, 2 * x, c] if position == 0 else maps[n, 2 * y, 2 * x + 1, c]
                    high = maps[n, 2 * y + 1, 2 * x, c] if position == 2 else maps[n, 2 * y + 1, 2 * x + 1, c]
                    value = low if position < 2 else high
                    gathered[n, y, x, c] = zero if position == ZEROED else value


@compiled.loop
@no_type_check
def drop(values, numbers, kept, keep, seeds):
    """Dropout: keep each value with probability `keep` / 2**32 and scale it, else write zero.

    Whether a value is kept is a hash of its position and the two seeds, with the constants of Wellons' `lowbias32`.
    `numbers` are the positions of the rows in the whole batch, so the result does not depend on the number of threads.
    """
    count, size = values.shape
    zero, scale = values.dtype.type(0), values.dtype.type(2.0**32 / keep[0])
    below, one, other = keep[0], np.uint32(seeds[0]), np.uint32(seeds[1])
    for n in range(count):
        first = np.uint32(numbers[n] * size)
        for i in range(size):
            mixed = np.uint32(np.uint32(first + np.uint32(i)) ^ one)
            mixed = np.uint32((mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x7FEB352D))
            mixed = np.uint32((mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x846CA68B))
            mixed = np.uint32(mixed ^ (mixed >> np.uint32(16)) ^ other)
            mixed = np.uint32((mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x7FEB352D))
            mixed = np.uint32((mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x846CA68B))
            mixed = np.uint32(mixed ^ (mixed >> np.uint32(16)))
            kept[n, i] = values[n, i] * scale if mixed < below else zero


@functools.cache
def convolve_and_pool(kernel: tuple[int, int], inputs: int, outputs: int, stride: tuple[int, int]) -> compiled.Loop:
    """A loop that computes a small-input convolution followed by `pool`, compiled for these sizes.

    Returns:
        `forward(images, pooled, positions, weight, bias)`: images are padded, weights have the shape
        `(kernel rows * kernel columns * inputs, outputs)`.
    """
    tall, wide = kernel
    down, across = stride

    @compiled.loop
    @no_type_check
    def forward(images, pooled, positions, weight, bias):
        count, height, width, _ = pooled.shape
        zero = images.dtype.type(0)
        for n in range(count):
            for y in range(height):
                for x in range(width):
                    for c in range(outputs):
                        most, position = zero, np.uint8(ZEROED)
                        for p in range(2):
                            for q in range(2):
                                value = bias[c]
                                for u in range(tall):
                                    for v in range(wide):
                                        for i in range(inputs):
                                            seen = images[n, (2 * y + p) * down + u, (2 * x + q) * across + v, i]
                                            value += seen * weight[(u * wide + v) * inputs + i, c]
                                if value > most or value != value:
                                    most, position = value, np.uint8(2 * p + q)
                        pooled[n, y, x, c] = most
                        positions[n, y, x, c] = position

    return forward


@functools.cache
def unpool_and_convolve(rows: int, columns: int, outputs: int, stride: tuple[int, int]) -> compiled.Loop:
    """A loop for the backward pass of `convolve_and_pool`, compiled for these sizes.

    Args:
        rows: height of the image window that the four positions of one pooling cover.
        columns: width of that window, times the image channels.
        outputs: output channels, a multiple of `BLOCK`.
        stride: distance between the windows of neighbouring poolings, in rows and in columns times channels.

    Returns:
        `backward(gradient, positions, images, weight)`: writes the gradient `(n, height, width * channels)` of the
        padded images; weights are `SmallInputConvPool.window`, `(ZEROED + 1, outputs, rows * columns)`.
    """
    down, across = stride

    @compiled.loop
    @no_type_check
    def backward(gradient, positions, images, weight):
        count, height, width, _ = gradient.shape
        zero = images.dtype.type(0)
        sums = np.empty(rows * columns, images.dtype)
        for n in range(count):
            images[n] = zero
            for y in range(height):
                for x in range(width):
                    sums[:] = zero
                    g, p = gradient[n, y, x], positions[n, y, x]
                    for c in range(0, outputs, BLOCK):  # so that each sum is read and written once for all of them
                        w0, w1 = weight[p[c], c], weight[p[c + 1], c + 1]
                        w2, w3 = weight[p[c + 2], c + 2], weight[p[c + 3], c + 3]
                        w4, w5 = weight[p[c + 4], c + 4], weight[p[c + 5], c + 5]
                        w6, w7 = weight[p[c + 6], c + 6], weight[p[c + 7], c + 7]
                        for i in range(rows * columns):
                            low = g[c] * w0[i] + g[c + 1] * w1[i] + g[c + 2] * w2[i] + g[c + 3] * w3[i]
                            high = g[c + 4] * w4[i] + g[c + 5] * w5[i] + g[c + 6] * w6[i] + g[c + 7] * w7[i]
                            sums[i] += low + high
                    for u in range(rows):
                        for v in range(columns):
                            images[n, y * down + u, x * across + v] += sums[u * columns + v]

    return backward
