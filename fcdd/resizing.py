"""How pictures become as small as a network sees them: bilinear, with antialiasing, rounded to 8 bits after each pass.

Both resizers are such a filter. That of cykooz-resizer (the Rust library fast_image_resize) computes with vector
instructions and coefficients of 16 bits: six times as fast, and no value differs by more than one grey level from
Pillow's. A bundle says which one its images were seen by, since whitened features notice one grey level.
"""

import functools
import importlib.util
from typing import Any, Literal

import numpy as np
from PIL import Image

from fcdd.errors import ConfigError

Resizer = Literal["pillow", "cykooz"]
_LIBRARY = "cykooz_resizer"
# (left, top, right, bottom) of a part of a picture, in pixels, that may begin within one.
Part = tuple[float, float, float, float]


def fastest() -> Resizer:
    """The faster of those that are installed."""
    return "cykooz" if importlib.util.find_spec(_LIBRARY) else "pillow"


def check(resizer: Resizer) -> None:
    """Raises ConfigError when it is not installed."""
    if resizer == "cykooz" and not importlib.util.find_spec(_LIBRARY):
        raise ConfigError(
            "the bundle's images are resized by cykooz-resizer, which is not installed here; run: pip install "
            "cykooz-resizer, or, where there is none (Linux on ARM), train the bundle with --resizer pillow"
        )


def prepare(resizer: Resizer) -> None:
    """Load it, and see that it does what it should: it reads the memory of Pillow's images by their addresses.

    Raises RuntimeError when it does not.
    """
    if resizer == "pillow":
        return
    coarse = Image.fromarray(np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3) * 2)
    for picture in (coarse, coarse.convert("L")):
        found, expected = (np.asarray(resized(picture, (3, 4), each), np.int16) for each in (resizer, "pillow"))
        if np.abs(found - expected).max() > 1:
            raise RuntimeError("cykooz-resizer does not fit the Pillow that is installed: update both")


def resized(image: Image.Image, size: tuple[int, int], resizer: Resizer, part: Part | None = None) -> Image.Image:
    """The image, or a part of it, of mode "L" or "RGB", at another size (width, height)."""
    if resizer == "pillow":
        return image.resize(size, Image.Resampling.BILINEAR, part)
    library, filtered = _cykooz()
    found = Image.new(image.mode, size)
    box = None
    if part:
        left, top, right, bottom = part
        box = library.CropBox(left, top, right - left, bottom - top)
    options = library.ResizeOptions(resize_alg=filtered, crop_box=box, use_alpha=False)
    # A new one each time: it would keep a buffer of the largest picture, and serves one thread.
    library.Resizer().resize_pil(image, found, options)
    return found


@functools.cache
def _cykooz() -> tuple[Any, Any]:
    """The library, and its filter: a tenth of a second that who resizes nothing need not wait for."""
    import cykooz_resizer

    return cykooz_resizer, cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
