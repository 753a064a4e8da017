"""The published synthetic anomalies: confetti and the other noise modes, and how they malform an image.

Source: METHOD section 4 (official `datasets/noise.py`, `noise_modes.py`). Probabilities are per pixel and
sides in pixels, as published for images of 240 pixels: a larger image gets more and relatively smaller blobs.
All randomness comes from the generator.

Shapes: H x W pixels, C channels; noise is int64 and added to a uint8 image, or is itself an image.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Pixels = npt.NDArray[np.uint8]
Noise = npt.NDArray[np.int64]
Shape = tuple[int, int, int]

SIDES = (8, 54)
COLOURED_PROBABILITY, SINGLE_TONE_PROBABILITY = 1.8e-5, 1.2e-5
# The blur's 25x25 kernel: 12 pixels to each side, standard deviation 5.
_BLUR_STD, _BLUR_RADIUS = 5.0, 12
# A change smaller than this (grey levels, mean over the image) is tried with the opposite sign.
_FAINT = 0.025


class Blobs(NamedTuple):
    """A layer (H,W,C) of rotated squares, and how many were drawn."""

    layer: Noise
    number: int


def confetti(shape: Shape, generator: np.random.Generator) -> Noise:
    """Confetti noise (H,W,C), -511..0: coloured and single-tone squares, rotated and blurred; it only darkens."""
    coloured = blobs(shape, COLOURED_PROBABILITY, generator, coloured=True).layer
    single_tone = blobs(shape, SINGLE_TONE_PROBABILITY, generator, coloured=False).layer
    blurred = ndimage.gaussian_filter(
        (coloured + single_tone).astype(np.float64), _BLUR_STD, axes=(0, 1), radius=_BLUR_RADIUS, mode="mirror"
    )
    return np.trunc(blurred).astype(np.int64)


def blobs(shape: Shape, probability: float, generator: np.random.Generator, *, coloured: bool) -> Blobs:
    """At least one square: side uniform on SIDES, turned by up to 45 degrees either way.

    Coloured squares take one value of -256..-1 per channel and distinct side length, the others -255.
    """
    height, width, channels = shape
    while not (centres := np.argwhere(generator.random((height, width)) < probability)).size:
        pass
    sides = generator.integers(SIDES[0], SIDES[1] + 1, len(centres))
    colours = {side: generator.integers(-256, 0, channels) if coloured else np.int64(-255) for side in np.unique(sides)}
    layer = np.zeros(shape, np.int64)
    for (row, column), side in zip(centres, sides, strict=True):
        layer[_square(row, column, side / 2, height, width)] = colours[side]
    for (row, column), side in zip(centres, sides, strict=True):
        around = _square(row, column, 0.75 * side, height, width)
        angle = generator.uniform(-45, 45)
        layer[around] = ndimage.rotate(layer[around], angle, reshape=False, order=0, cval=0)
    return Blobs(layer, len(centres))


def _square(row: int, column: int, half: float, height: int, width: int) -> tuple[slice, slice]:
    start_row, start_column = round(row - half), round(column - half)
    size = round(2 * half)
    return (
        slice(max(start_row, 0), min(start_row + size, height)),
        slice(max(start_column, 0), min(start_column + size, width)),
    )


def gaussian(shape: Shape, generator: np.random.Generator) -> Noise:
    """Gaussian noise (H,W,C) with a deviation of 64 grey levels, truncated to integers."""
    return np.trunc(64 * generator.standard_normal(shape)).astype(np.int64)


def uniform(shape: Shape, generator: np.random.Generator) -> Noise:
    """Uniform noise (H,W,C), 0..254."""
    return generator.integers(0, 255, shape)


def blob(shape: Shape, generator: np.random.Generator) -> Noise:
    """White squares (H,W,C) of 6 pixels around pixels drawn with probability 0.002."""
    return _fixed_squares(shape, 6, 0.002, generator) * 255


def mixed_blob(shape: Shape, generator: np.random.Generator) -> Noise:
    """Squares (H,W,C) of 34 pixels, probability 1e-5: one layer white, one with a colour drawn for each pixel."""
    white = _fixed_squares(shape, 34, 1e-5, generator) * 255
    coloured = _fixed_squares(shape, 34, 1e-5, generator) * generator.integers(0, 256, shape)
    return white + coloured


def solid(shape: Shape, generator: np.random.Generator) -> Noise:
    """One random colour everywhere (H,W,C), 0..255."""
    return np.broadcast_to(generator.integers(0, 256, shape[2]), shape).copy()


def _fixed_squares(shape: Shape, side: int, probability: float, generator: np.random.Generator) -> Noise:
    """1 inside of at least one square, else 0; (H,W,C)."""
    height, width, channels = shape
    while not (centres := np.argwhere(generator.random((height, width)) < probability)).size:
        pass
    layer = np.zeros((height, width), np.int64)
    for row, column in centres:
        layer[_square(row, column, side / 2, height, width)] = 1
    return np.repeat(layer[:, :, None], channels, 2)


MODES: dict[str, Callable[[Shape, np.random.Generator], Noise]] = {
    "confetti": confetti,
    "gaussian": gaussian,
    "uniform": uniform,
    "blob": blob,
    "mixed_blob": mixed_blob,
    "solid": solid,
}


def as_image(noise: Noise) -> Pixels:
    """Noise (H,W,C) as an image of its own: published mode "noise"."""
    return noise.clip(0, 255).astype(np.uint8)


def malform(image_hwc: Pixels, noise: Noise) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """The image with the noise added, and the mask (H,W) of the pixels it changed in any channel.

    Where the noise would change next to nothing (a black image darkened), its opposite is added instead.
    """
    darker, brighter = (np.clip(image_hwc + sign * noise, 0, 255).astype(np.uint8) for sign in (1, -1))
    change, opposite = (_mean_change(image_hwc, result) for result in (darker, brighter))
    result = brighter if change < _FAINT and opposite > change else darker
    return result, (result != image_hwc).any(2)


def _mean_change(before: Pixels, after: Pixels) -> float:
    return abs(float(after.astype(np.int64).sum() - before.astype(np.int64).sum())) / before.size


def malform_offline(image_hwc: Pixels, noise: Noise) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """`malform` by the rule of the official offline generation: the noise changes its sign at bright pixels.

    Bright is a mean over the channels above 0.11 * 255.
    """
    bright = image_hwc.mean(2, keepdims=True) > 0.11 * 255
    result = np.clip(image_hwc + np.where(bright, -noise, noise), 0, 255).astype(np.uint8)
    return result, (result != image_hwc).any(2)
