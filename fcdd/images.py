"""Encoded bytes -> uint8 pixels of the network's size, safely: the one decode path of training and scoring.

Pillow is the only decoder, with an allow-list of formats. The rules for unusual images are fixed here,
because Pillow's own conversions silently saturate some of them: 16-bit grey is scaled to 8 bits,
transparency is composited on black, EXIF orientation is applied, of animations the first frame counts;
32-bit and float images are refused. What an image may cost (`Limits`) is checked before memory is taken.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.Image import Transpose

from fcdd.errors import ImageError, Reason

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
HASH_BYTES = 32
_HASH_ROWS = 16
_LEVELS = np.arange(256.0)
_METADATA_ERRORS = (SyntaxError, ValueError, TypeError, KeyError, OSError, EOFError, struct.error)
_ORIENTATION = 0x0112  # EXIF tag; the values and what turns the pixels upright:
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest images that are decoded; what is larger is refused as too_large.

    89 megapixels, where Pillow would warn, decode to 270 MB.
    """

    encoded_bytes: int = 256 * 1024**2
    pixels: int = 89_478_485
    frames: int = 1_000


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Pixels (H,W,C) uint8 at the network's size; original width and height after EXIF orientation.

    Of the resized pixels, 0..255: `brightness` is the mean, `contrast` the standard deviation, `sharpness` the mean
    absolute difference between neighbours. `frames` is how many pictures the file holds, of which these are the first;
    `format` one of FORMATS; `hash` a difference hash of 256 bits, near that of pictures that look the same.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    frames: int
    format: str
    brightness: float
    contrast: float
    sharpness: float
    hash: bytes


def decode(data: bytes, *, size: tuple[int, int], channels: int, limits: Limits = Limits()) -> DecodedImage:
    """Decode one image to `size` = (height, width) with 1 (grey) or 3 (RGB) channels.

    JPEGs are decoded at a reduced DCT scale of at least twice the target size, then resized with an
    antialiased bilinear filter. Raises ImageError with the reason empty, not_an_image, too_large,
    unsupported, truncated or corrupt; nothing else, whatever the bytes.
    """
    with _reasons(data, limits):
        return _decode(data, size, channels, limits)


def decode_full(data: bytes, *, limits: Limits = Limits(), at_least: tuple[int, int] | None = None) -> Image.Image:
    """The whole picture as RGB, by the same rules and with the same errors as `decode`: to be looked at.

    With `at_least` (width, height), a JPEG may come smaller, but not than that: several times as fast.
    """
    with _reasons(data, limits):
        return _load(data, "RGB", limits, at_least).image


def check_size(encoded_bytes: int, limits: Limits) -> None:
    """Raises ImageError empty or too_large for the size of an encoded image, before it is fetched."""
    if not encoded_bytes:
        raise ImageError("empty", "the object has 0 bytes")
    if encoded_bytes > limits.encoded_bytes:
        raise ImageError("too_large", f"{encoded_bytes} bytes, more than {limits.encoded_bytes}")


@contextmanager
def _reasons(data: bytes, limits: Limits) -> Iterator[None]:
    """Whatever a decoder raises, as ImageError."""
    check_size(len(data), limits)
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not_an_image", f"no {', '.join(FORMATS)} image in {len(data)} bytes") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except MemoryError as error:
        raise ImageError("too_large", "decoding it takes more memory than one image may have") from error
    except Exception as error:  # decoders of hostile bytes raise anything: SyntaxError, TypeError, struct.error
        reason: Reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise ImageError(reason, f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, size: tuple[int, int], channels: int, limits: Limits) -> DecodedImage:
    height, width = size
    mode = "L" if channels == 1 else "RGB"
    loaded = _load(data, mode, limits, (2 * width, 2 * height))
    resized = loaded.image.resize((width, height), Image.Resampling.BILINEAR)
    brightness, contrast = _mean_and_deviation(resized)
    grey = resized.convert("L")
    return DecodedImage(
        pixels=np.asarray(resized, np.uint8).reshape(height, width, channels),
        width=loaded.size[0],
        height=loaded.size[1],
        frames=loaded.frames,
        format=loaded.format,
        brightness=brightness,
        contrast=contrast,
        sharpness=sharpness(grey),
        hash=difference_hash(grey),
    )


def _mean_and_deviation(image: Image.Image) -> tuple[float, float]:
    """Of all values, from the histogram: ten times faster than over the pixels."""
    counts = np.array(image.histogram(), np.float64).reshape(-1, 256).sum(0)
    mean = float(counts @ _LEVELS / counts.sum())
    return mean, float(np.sqrt(counts @ np.square(_LEVELS - mean) / counts.sum()))


def sharpness(grey: Image.Image) -> float:
    """Mean absolute difference between horizontal and vertical neighbours; 0 for an image of one pixel."""
    width, height = grey.size
    pairs = (
        ((1, 0, width, height), (0, 0, width - 1, height)),
        ((0, 1, width, height), (0, 0, width, height - 1)),
    )
    steps = [_mean_and_deviation(ImageChops.difference(grey.crop(a), grey.crop(b)))[0] for a, b in pairs if _area(b)]
    return float(np.mean(steps)) if steps else 0.0


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def difference_hash(grey: Image.Image) -> bytes:
    """256 bits: whether each of 16x16 coarse cells is brighter than its left neighbour (dHash)."""
    cells = np.asarray(grey.resize((_HASH_ROWS + 1, _HASH_ROWS), Image.Resampling.BOX))
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


class _Loaded(NamedTuple):
    """The upright 8-bit image, perhaps at a reduced scale; its full size (width, height)."""

    image: Image.Image
    size: tuple[int, int]
    frames: int
    format: str


def _load(data: bytes, mode: str, limits: Limits, at_least: tuple[int, int] | None) -> _Loaded:
    """Decoded; of a JPEG at a reduced scale of `at_least` (width, height)."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > limits.pixels:
            raise ImageError("too_large", f"{image.width}x{image.height} pixels, more than {limits.pixels}")
        full_size = image.size
        frames = _frames(image)
        if frames > limits.frames:
            raise ImageError("too_large", f"{frames} frames, more than {limits.frames}")
        if at_least:
            image.draft(mode, at_least)
        image.load()
        turn = _TURNS.get(_orientation(image))
        upright, kind = (
            to_eight_bit(image, mode),
            {"MPO": "JPEG"}.get(image.format or "", image.format or ""),
        )  # several pictures in a JPEG
    if turn is None:
        return _Loaded(upright, full_size, frames, kind)
    quarter = turn not in (Transpose.FLIP_LEFT_RIGHT, Transpose.FLIP_TOP_BOTTOM, Transpose.ROTATE_180)
    return _Loaded(upright.transpose(turn), full_size[::-1] if quarter else full_size, frames, kind)


def _frames(image: Image.Image) -> int:
    """How many pictures the file holds, 1 when they cannot be counted: the first may still be whole."""
    try:
        return int(getattr(image, "n_frames", 1))
    except _METADATA_ERRORS:
        return 1


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) when the metadata cannot be read: the pixels still can."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _METADATA_ERRORS:
        return 1


def to_eight_bit(image: Image.Image, mode: str) -> Image.Image:
    """Convert to mode "L" or "RGB" by the rules of this module; ImageError if there is no rule."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        return Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert(mode)
    if image.mode in ("1", "L", "RGB", "CMYK", "YCbCr") and "transparency" not in image.info:
        return image.convert(mode)
    if image.mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa"):
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), colours).convert(mode)
    raise ImageError("unsupported", f"pixel mode {image.mode!r} has no defined 8-bit value")
