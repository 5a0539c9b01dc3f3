"""Pictures as the image tower takes them: resizing as torchvision does, then the preprocessing of CLIP (SPEC sections 4 and 5).

Both resizings are weighted sums along rows and columns. The first is bilinear in float32, rounded half to even. The second, for frames
that come in another size, is the bicubic one of Pillow: weights and sums in fixed point, with a rounding to 8 bits in between.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""RGB [3, frames, height, width]"""
Float = NDArray[np.float32]

SIZE = 224
"""Height and width of what the image tower sees."""
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FIXED = 2.0**22  # what Pillow multiplies weights by


def resize(picture: Frames, antialias: bool = False) -> Frames:
    """uint8 [..., height, width] -> [..., 224, 224], whatever the shape; what has that size is given back as it is.

    `antialias`: as torchvision does from 0.17 on. Without, a pixel is made of four, however large the picture.
    """
    if picture.shape[-2:] == (SIZE, SIZE):
        return picture
    resized = _resize_smoothly(picture) if antialias else _resize_sparsely(picture)
    return np.rint(resized).astype(np.uint8)


def pixel_values(frames: Frames) -> Float:
    """uint8 [3, frames, height, width] -> float32 [frames, 3, 224, 224]: shorter edge to 224, centre crop, normalised."""
    if frames.shape[-2:] != (SIZE, SIZE):
        frames = _crop(_resize_shorter_edge(frames))
    values = np.empty((frames.shape[1], 3, SIZE, SIZE), np.float32)
    for channel, table in enumerate(_normalised()):
        np.take(table, frames[channel], out=values[:, channel])
    return values


def black_pixels(count: int = 1) -> Float:
    """`pixel_values` of black frames, of which the null half of guidance is made: float32 [count, 3, 224, 224]."""
    return pixel_values(np.zeros((3, count, SIZE, SIZE), np.uint8))


@functools.cache
def _normalised() -> Float:
    """What becomes of each of the 256 values, in each channel: float32 [3, 256]."""
    shares = (np.arange(256.0) * (1 / 255)).astype(np.float32)
    return (shares - np.array(_MEAN, np.float32)[:, None]) / np.array(_DEVIATION, np.float32)[:, None]


def _resize_sparsely(picture: Frames) -> Float:
    """From the two nearest rows and columns, with half-pixel centres.

    The four products are summed up in the order of torch's kernel for pictures whose channels come last, as those of a reader do, and
    rounded to float32 as fused multiply-adds are: that decides between two values at up to 0.2 % of the places.
    """
    upper, lower, down = _neighbours(picture.shape[-2])
    left, right, across = _neighbours(picture.shape[-1])
    above, below = picture[..., upper, :], picture[..., lower, :]
    up, down, back, across = 1 - down[:, None], down[:, None], 1 - across, across
    mixed: Float = (up * across) * above[..., right].astype(np.float32)
    for weights, pixels in ((up * back, above[..., left]), (down * back, below[..., left]), (down * across, below[..., right])):
        mixed = (mixed + weights.astype(np.float64) * pixels).astype(np.float32)
    return mixed


@functools.lru_cache(8)
def _neighbours(length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Float]:
    """For each of 224 places: the pixel before, the one behind, and the weight of the latter."""
    scale = np.float64(np.float32(length) / np.float32(SIZE))
    place = np.maximum(scale * (np.arange(SIZE) + 0.5) - 0.5, 0.0).astype(np.float32)
    first = place.astype(np.int64)
    return first, np.minimum(first + 1, length - 1), place - first.astype(np.float32)


def _resize_smoothly(picture: Frames) -> Float:
    """From all pixels below a triangle as wide as the reduction."""
    down, across = (_triangles(length) for length in picture.shape[-2:])
    mixed: Float = down @ (picture.astype(np.float32) @ across.T)
    return mixed


def _resize_shorter_edge(frames: Frames) -> Frames:
    height, width = frames.shape[-2:]
    shorter = min(height, width)
    for axis, length in ((-1, width), (-2, height)):
        size = SIZE if length == shorter else int(SIZE * length / shorter)
        if size == length:
            continue
        weights = _cubics(length, size)
        exact = frames.astype(np.float64)  # whole numbers below 2^53
        exact = exact @ weights.T if axis == -1 else weights @ exact
        frames = np.clip(np.floor(exact / _FIXED + 0.5), 0, 255).astype(np.uint8)
    return frames


def _crop(frames: Frames) -> Frames:
    top, left = ((length - SIZE) // 2 for length in frames.shape[-2:])
    return frames[..., top : top + SIZE, left : left + SIZE]


@functools.lru_cache(8)
def _triangles(length: int) -> Float:
    """Weights [224, length] of a bilinear resizing, computed in float32 because that decides between two values at times."""
    scale, half = np.float32(length) / np.float32(SIZE), np.float32(0.5)
    stretch = max(scale, np.float32(1))
    centre = scale * (np.arange(SIZE, dtype=np.float32) + half)
    weights = np.maximum(1 - np.abs(_distances(length, centre, 1 / stretch, stretch)), np.float32(0))
    total = np.cumsum(weights, axis=1, dtype=np.float32)[:, -1:]
    return np.ascontiguousarray(weights / total)


@functools.lru_cache(8)
def _cubics(length: int, size: int) -> NDArray[np.float64]:
    """Weights [size, length] of a bicubic resizing with a = -0.5, as whole numbers: 2^22 times the share."""
    scale = length / size
    stretch = max(scale, 1.0)
    distance = np.abs(_distances(length, (np.arange(size) + 0.5) * scale, 1 / stretch, 2 * stretch))
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    shares = weights / weights.sum(axis=1, keepdims=True) * _FIXED
    whole: NDArray[np.float64] = np.trunc(shares + np.copysign(0.5, shares))
    return whole


def _distances(length: int, centre: NDArray[Any], shrink: Any, reach: Any) -> NDArray[Any]:
    """Distance [places, length] of pixels to the centres, times `shrink`; infinite for pixels that are not summed up at all."""
    pixels = np.arange(length)
    first, last = (centre - reach + centre.dtype.type(0.5)).astype(int), (centre + reach + centre.dtype.type(0.5)).astype(int)
    taken = (pixels >= first[:, None]) & (pixels < last[:, None])
    distance = (pixels.astype(centre.dtype) - centre[:, None] + centre.dtype.type(0.5)) * shrink
    infinite: NDArray[Any] = np.where(taken, distance, centre.dtype.type(np.inf))
    return infinite
