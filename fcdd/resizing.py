"""How pictures become as small as a network sees them: bilinear, with antialiasing, rounded to 8 bits after each pass.

Both resizers are such a filter. That of cykooz-resizer (the Rust library fast_image_resize) computes with vector
instructions and coefficients of 16 bits: six times as fast, and values differ by a grey level at most from Pillow's,
very few by two. A bundle says which one its images were seen by, since whitened features notice one grey level.
"""

import functools
import importlib.util
import math
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from fcdd.errors import ConfigError

Resizer = Literal["pillow", "cykooz"]
_LIBRARY = "cykooz_resizer"
# (left, top, right, bottom) of a part of a picture, in pixels, that may begin within one.
Part = tuple[float, float, float, float]


def fastest() -> Resizer:
    """The fastest of those that are installed."""
    return "pillow" if _why_not() else "cykooz"


def check(resizer: Resizer) -> None:
    """Raises ConfigError when it cannot be had here. Loads it, as a process must that can open no files later."""
    if resizer == "cykooz" and (why := _why_not()):
        raise ConfigError(
            f"images are to be resized by cykooz-resizer, as the bundle says or --resizer, which {why}; run: pip "
            "install --upgrade cykooz-resizer; where there is none (Linux on ARM) a bundle is trained with --resizer "
            "pillow"
        )


@functools.cache
def _why_not() -> str:
    """What is wrong with cykooz-resizer, which reads the memory of Pillow's images by their addresses; or nothing."""
    if not importlib.util.find_spec(_LIBRARY):
        return "is not installed here"
    coarse = Image.fromarray(np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3) * 2)
    try:
        for picture in (coarse, coarse.convert("L")):
            found, expected = (np.asarray(resized(picture, (3, 4), by), np.int16) for by in get_args(Resizer))
            if np.abs(found - expected).max() > 1:
                return "does not fit the Pillow that is installed"
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        return f"does not work here ({type(error).__name__}: {error})"
    return ""


def resized(image: Image.Image, size: tuple[int, int], resizer: Resizer, part: Part | None = None) -> Image.Image:
    """The image, or a part of it, of mode "L" or "RGB", at another size (width, height)."""
    if resizer == "pillow":
        return image.resize(size, Image.Resampling.BILINEAR, part)
    library, filtered = _cykooz()
    found = Image.new(image.mode, size)
    box = None
    if part:
        left, top, right, bottom = part
        box = library.CropBox(left, top, _length(left, right, image.width), _length(top, bottom, image.height))
    options = library.ResizeOptions(resize_alg=filtered, crop_box=box, use_alpha=False)
    # A new one each time: it would keep a buffer of the largest picture, and serves one thread.
    library.Resizer().resize_pil(image, found, options)
    return found


def _length(start: float, end: float, side: int) -> float:
    """From start to end, so that their sum is not a rounding error beyond the side of the image."""
    length = min(end, side) - start
    while start + length > side:
        length = math.nextafter(length, 0.0)
    return length


@functools.cache
def _cykooz() -> tuple[Any, Any]:
    """The library, and its filter: a tenth of a second that who resizes nothing need not wait for."""
    import cykooz_resizer

    return cykooz_resizer, cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
