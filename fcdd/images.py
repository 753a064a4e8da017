"""Encoded bytes -> uint8 pixels of the network's size: the one decode path of training and scoring.

Jobs reach it through `fcdd.io.isolation`, which runs it in a process of its own. Pillow decodes JPEG, PNG, WebP and
BMP, `fcdd.tiff` decodes TIFF. The rules for unusual images are fixed here, because the conversions of the decoders
silently saturate some of them: 16-bit grey is scaled to 8 bits, transparency is composited on black, the EXIF
orientation is applied, of animations the first frame counts; 32-bit images are refused, and float images unless it is
said which value is white. What an image may cost (`Limits`) is checked before memory is taken.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)
from PIL.Image import Transpose

from fcdd import depth
from fcdd.cropping import Box, Crop
from fcdd.errors import ImageError, Reason
from fcdd.resizing import Resizer, resized

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
HASH_BYTES = 32
HASH_CELLS = (16, 17)  # rows and columns
_LEVELS = np.arange(256.0)
# Larger images are never asked for: `--max-megapixels` goes so far.
MAX_PIXELS = 500_000_000
_FAINT = 1 / 8
# Converted at once: the conversions of a whole line-scan image would take several times its memory.
_BAND_PIXELS = 2**24
_METADATA_ERRORS = (SyntaxError, ValueError, TypeError, KeyError, OSError, EOFError, struct.error)
_ORIENTATION, UPRIGHT = 0x0112, 1  # EXIF tag; its values and what turns the pixels upright:
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_PNG_DEPTH = 24  # where the header of a PNG has its bits per sample
_DEEP = 16
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
# Decoders name their errors in words only.
_REASON_WORDS: tuple[tuple[str, Reason], ...] = (
    ("truncated", "truncated"),
    ("unsupported", "unsupported"),
    ("cannot handle", "unsupported"),
    ("not supported", "unsupported"),
)
# Grey levels, colours, or the opacity of a picture.
Mode = Literal["L", "RGB", "A"]


class View(NamedTuple):
    """How a network sees images: in (height, width) pixels, with 1 (grey) or 3 (RGB) channels.

    `full_scale` is the value that is white in files of 16 bits, such as 4095 of a camera of 12 bits; None: the largest
    that they can hold. Files of 9 to 15 bits say what is white, those of floating-point values do not. `crop` is the
    part of the upright image that is seen; None: all of it. `resizer` makes it as small.
    """

    size: tuple[int, int] = (1, 1)
    channels: int = 1
    full_scale: float | None = None
    crop: Crop | None = None
    resizer: Resizer = "pillow"

    def decoded_size(self, full_size: tuple[int, int]) -> tuple[int, int]:
        """What a picture of `full_size` (width, height) must be decoded at, so that twice the size is left to scale."""
        times = 2.0
        if self.crop:  # the picture may lie on its side: by whichever side of it is the more
            sides = (100, 100) if self.crop.is_percent else full_size
            times *= max(1.0, max(sides) / min(self.crop.width, self.crop.height))
        return round(times * self.size[1]), round(times * self.size[0])


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest images that are decoded; what is larger is refused as too_large.

    89 megapixels decode to 270 MB.
    """

    encoded_bytes: int = 256 * 1024**2
    pixels: int = 89_478_485
    frames: int = 1_000

    @property
    def memory_bytes(self) -> int:
        """What decoding the largest of these images may take: 16-bit colours, their 8-bit copies and the file."""
        return max(2 * 1024**3, 20 * self.pixels + self.encoded_bytes)


# Whatever any run may have accepted: for those who look at its pictures, or train on pictures that were chosen.
ACCEPTED = Limits(encoded_bytes=8 * 1024**3, pixels=MAX_PIXELS, frames=2**31 - 1)


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Pixels (H,W,C) uint8 at the network's size; original width and height after EXIF orientation.

    Of the resized pixels, 0..255: `brightness` is the mean, `contrast` the standard deviation, `sharpness` the mean
    absolute difference between neighbours. `frames` is how many pictures the file holds, of which these are the first;
    `format` one of FORMATS; `hash` a difference hash of 256 bits, near that of pictures that look the same. `peak`
    is the largest value in a file of 16 bits or floating-point, else 0; it `is_faint` below an eighth of full scale.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    frames: int
    format: str
    is_faint: bool
    peak: float
    brightness: float
    contrast: float
    sharpness: float
    hash: bytes


def decode(data: bytes, view: View, *, limits: Limits = Limits()) -> DecodedImage:
    """Decode one image as a network sees it.

    JPEGs are decoded at a reduced DCT scale of at least twice the target size, then resized with an
    antialiased bilinear filter. Raises ImageError with the reason empty, not_an_image, too_large,
    unsupported, truncated or corrupt; nothing else, whatever the bytes.
    """
    with _reasons(data, limits):
        return _decode(data, view, limits)


def decode_full(
    data: bytes,
    *,
    mode: Mode = "RGB",
    within: tuple[int, int] | None = None,
    full_scale: float | None = None,
    part: Box | None = None,
    limits: Limits = Limits(),
) -> Image.Image:
    """The whole picture in `mode`, or a `part` of it, by the same rules and with the same errors as `decode`.

    To be looked at. With `within` (width, height) it is made smaller, in its proportions, until it fits. `full_scale`
    as in `View`; what of the part lies beyond the picture is left out.
    """

    def smaller(_: tuple[int, int]) -> tuple[int, int]:
        assert within is not None
        return within

    with _reasons(data, limits):
        if mode == "A":
            picture = _opened(data, limits).opacity()
        else:
            picture = _load(data, mode, limits, smaller if within and not part else None, full_scale).image
        if part:
            right, bottom = min(part.right, picture.width), min(part.bottom, picture.height)
            if not (part.left < right and part.top < bottom):
                size = f"{picture.width}x{picture.height}"
                raise ImageError("changed", f"the part {tuple(part)} lies beyond the {size} pixels of the picture")
            picture = picture.crop((part.left, part.top, right, bottom))
        if within:
            picture.thumbnail(within)
        return picture


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
    except MemoryError as error:
        raise ImageError("too_large", "decoding it takes more memory than one image may have") from error
    except Exception as error:  # decoders of hostile bytes raise anything: SyntaxError, TypeError, struct.error
        words = str(error).lower()
        reason: Reason = next((reason for word, reason in _REASON_WORDS if word in words), "corrupt")
        raise ImageError(reason, f"{_format_of(data)}: {type(error).__name__}: {error}") from error


def _format_of(data: bytes) -> str:
    """Which of FORMATS the bytes begin like. Raises ImageError not_an_image for none."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] in _TIFF_SIGNATURES:
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    raise ImageError("not_an_image", f"no {', '.join(FORMATS)} image in {len(data)} bytes")


def _decode(data: bytes, view: View, limits: Limits) -> DecodedImage:
    (height, width), channels = view.size, view.channels
    mode: Mode = "L" if channels == 1 else "RGB"
    # Grey pictures get their equal colours last: three times as many values would be resized and counted.
    loaded = _load(data, mode, limits, view.decoded_size, view.full_scale, grey_stays=True)
    seen, box = (loaded.image, None) if view.crop is None else _cropped(loaded, view.crop)
    small = resized(seen, (width, height), view.resizer, box)
    brightness, contrast = _mean_and_deviation(small)
    grey = small.convert("L")
    return DecodedImage(
        pixels=np.asarray(small.convert(mode), np.uint8).reshape(height, width, channels),
        width=loaded.size[0],
        height=loaded.size[1],
        frames=loaded.frames,
        format=loaded.format,
        is_faint=0 < loaded.peak < (view.full_scale or depth.DEEPEST) * _FAINT,
        peak=loaded.peak,
        brightness=brightness,
        contrast=contrast,
        sharpness=sharpness(grey),
        hash=difference_hash(grey),
    )


def _cropped(loaded: "_Loaded", crop: Crop) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """What of an image is seen, and where in it the crop lies: at a reduced scale that may begin within a pixel.

    Pillow's filter would look beyond the crop.
    """
    top, left, bottom, right = crop.box(loaded.size[::-1])
    across, down = (now / full for now, full in zip(loaded.image.size, loaded.size, strict=True))
    x, y = math.floor(left * across), math.floor(top * down)
    seen = loaded.image.crop((x, y, math.ceil(right * across), math.ceil(bottom * down)))
    return seen, (left * across - x, top * down - y, right * across - x, bottom * down - y)


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
    rows, columns = HASH_CELLS
    cells = np.asarray(grey.resize((columns, rows), Image.Resampling.BOX))
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


# The (width, height) that a picture of a full size is decoded at, at the least.
AtLeast = Callable[[tuple[int, int]], tuple[int, int]]


class _Loaded(NamedTuple):
    """The upright 8-bit image, perhaps at a reduced scale; its full size (width, height)."""

    image: Image.Image
    size: tuple[int, int]
    frames: int
    format: str
    peak: float


@dataclass(frozen=True, slots=True)
class _Opened:
    """A picture as it lies in its file: rows [first, last) of `size` as an image of Pillow, in any mode.

    `full_size` is the size without a reduced scale, `full_scale` as in `View`; `peak` as in `DecodedImage`.
    """

    rows: Callable[[int, int], Image.Image]
    size: tuple[int, int]
    full_size: tuple[int, int]
    frames: int
    format: str
    orientation: int
    peak: float
    full_scale: float | None

    def eight_bit(self, mode: str, *, grey_stays: bool) -> Image.Image:
        """The whole, in mode "L" or "RGB"; also in "L" where it is grey and may stay so."""
        return self._each(mode, lambda rows: to_eight_bit(rows, mode, self.full_scale, grey_stays=grey_stays))

    def opacity(self) -> Image.Image:
        """Mode "L": 255 where nothing shines through."""
        return self._each("L", lambda rows: rows.convert("RGBA").getchannel("A"))

    def _each(self, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
        width, height = self.size
        step = max(1, _BAND_PIXELS // width)
        if step >= height:
            return convert(self.rows(0, height))
        whole = Image.new(mode, self.size)
        for first in range(0, height, step):
            whole.paste(convert(self.rows(first, min(first + step, height))), (0, first))
        return whole


def _load(
    data: bytes,
    mode: str,
    limits: Limits,
    at_least: AtLeast | None,
    full_scale: float | None,
    *,
    grey_stays: bool = False,
) -> _Loaded:
    """Decoded; of a JPEG at a reduced scale of `at_least`. What is grey may stay in mode "L"."""
    opened = _opened(data, limits, mode, at_least, full_scale)
    upright, turn = opened.eight_bit(mode, grey_stays=grey_stays), _TURNS.get(opened.orientation)
    if turn is None:
        return _Loaded(upright, opened.full_size, opened.frames, opened.format, opened.peak)
    size = opened.full_size[::-1] if is_quarter_turn(opened.orientation) else opened.full_size
    return _Loaded(upright.transpose(turn), size, opened.frames, opened.format, opened.peak)


def _opened(
    data: bytes,
    limits: Limits,
    mode: str = "RGB",
    at_least: AtLeast | None = None,
    full_scale: float | None = None,
) -> _Opened:
    kind = _format_of(data)
    if kind == "TIFF":
        from fcdd import tiff  # only who decodes needs it

        picture = tiff.read(data, max_pixels=limits.pixels, max_frames=limits.frames, full_scale=full_scale)
        size, frames, turned = picture.size, picture.frames, picture.orientation
        return _Opened(picture.rows, size, size, frames, kind, turned, picture.peak, full_scale)
    image = _OPEN[kind](io.BytesIO(data), "")  # not Image.open: a limit of its own answers there, without the words
    full_size, frames = image.size, _frames(image)
    if image.width * image.height > limits.pixels:
        raise ImageError("too_large", f"{image.width}x{image.height} pixels, more than {limits.pixels}")
    if frames > limits.frames:
        raise ImageError("too_large", f"{frames} frames, more than {limits.frames}")
    if at_least:
        image.draft(mode, at_least(full_size))
    image.load()
    _correct_transparency(image, data)

    def rows(first: int, last: int) -> Image.Image:
        return image if (first, last) == (0, image.height) else image.crop((0, first, image.width, last))

    if full_scale and kind == "PNG" and image.mode in ("RGB", "RGBA", "LA") and data[_PNG_DEPTH] == _DEEP:
        # Pillow keeps their high bytes alone.
        raise ImageError("unsupported", "PNG: 16-bit colours have no full scale of their own; write them as TIFF")
    peak = float(np.asarray(image).max()) if image.mode.startswith("I;16") else 0.0
    return _Opened(rows, image.size, full_size, frames, kind, _orientation(image), peak, full_scale)


_OPEN: dict[str, Callable[[io.BytesIO, str], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,  # also of several pictures in a JPEG (MPO)
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _frames(image: Image.Image) -> int:
    """How many pictures the file holds, 1 when they cannot be counted: the first may still be whole."""
    try:
        return int(getattr(image, "n_frames", 1))
    except _METADATA_ERRORS:
        return 1


def _correct_transparency(image: Image.Image, data: bytes) -> None:
    """Pillow keeps the one transparent level of a PNG as the file has it, and scales the pixels.

    Raises ImageError for 16-bit colours, of which it keeps the high bytes: the transparent value cannot be known.
    """
    level = image.info.get("transparency")
    if image.format != "PNG" or level is None:
        return
    bits = data[_PNG_DEPTH]
    if image.mode == "L" and bits < 8:
        image.info["transparency"] = level * 255 // (2**bits - 1)
    if image.mode == "RGB" and bits == 16:
        raise ImageError("unsupported", "PNG: 16-bit colours with one that is transparent")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation. Pillow's `getexif` would take one of XMP as well."""
    found = image.info.get("exif")
    if found is None and (text := image.info.get("Raw profile type exif")):  # of ImageMagick, in a PNG
        try:
            found = bytes.fromhex("".join(text.split("\n")[3:]))
        except _METADATA_ERRORS:
            return UPRIGHT
    return exif_orientation(found or b"")


def exif_orientation(metadata: bytes) -> int:
    """The orientation, 1 (upright) to 8, that EXIF metadata say; 1 when they say none: the pixels can still be read."""
    try:
        exif = Image.Exif()
        exif.load(metadata)
        found = int(exif.get(_ORIENTATION, UPRIGHT))
    except (*_METADATA_ERRORS, OverflowError):  # the latter: of an infinite number
        return UPRIGHT
    return found if found in _TURNS else UPRIGHT


def is_quarter_turn(orientation: int) -> bool:
    """Whether an EXIF orientation exchanges width and height."""
    return _TURNS.get(orientation) in (
        *(Transpose.TRANSPOSE, Transpose.ROTATE_270),
        *(Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )


def to_eight_bit(
    image: Image.Image, mode: str, full_scale: float | None = None, *, grey_stays: bool = False
) -> Image.Image:
    """Convert to mode "L" or "RGB" by the rules of this module; ImageError if there is no rule.

    `full_scale` as in `View`. Grey pictures without transparency may stay in mode "L".
    """
    is_plain = "transparency" not in image.info
    if grey_stays and (image.mode.startswith("I;16") or (image.mode == "L" and is_plain)):
        mode = "L"
    if image.mode.startswith("I;16"):
        grey = np.asarray(image)
        scaled = depth.levels(2**16, full_scale or depth.DEEPEST)[grey]
        if (transparent := image.info.get("transparency")) is not None:
            scaled[grey == transparent] = 0
        return Image.fromarray(scaled).convert(mode)
    if image.mode in ("1", "L", "RGB", "CMYK", "YCbCr") and is_plain:
        return image if image.mode == mode else image.convert(mode)
    if image.mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa"):
        colours = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), colours).convert(mode)
    raise ImageError("unsupported", f"{image.format}: pixel mode {image.mode!r} has no defined 8-bit value")
