"""From values of more than 8 bits to the 8 bits that a network sees: by one fixed scale, never by the image."""

import functools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

# What cameras of 10, 12 and 14 bits write into files of 16.
CAMERAS = (1023, 4095, 16383)
DEEPEST = 65535


@functools.lru_cache(maxsize=8)
def levels(values: int, full_scale: float) -> npt.NDArray[np.uint8]:
    """The nearest 8-bit level of each of the values 0 to `values` - 1; 255 from `full_scale` on."""
    found: npt.NDArray[np.uint8] = np.floor(np.arange(values) * (255 / full_scale) + 0.5).clip(0, 255).astype(np.uint8)
    return found


def find(peaks: Iterable[float]) -> float | None:
    """The full scale of images with these largest values, 0 for those of 8 bits; None: that of the files' own depth."""
    peak = max(peaks, default=0)
    return next((float(camera) for camera in CAMERAS if 0 < peak <= camera), None)
