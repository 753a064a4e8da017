"""TIFF by rules: the samples of the first page, whatever its byte order, depth, compression, planes, strips or tiles.

tifffile reads the structure, imagecodecs the strips and tiles; both only in the process of `fcdd.io.isolation`. A TIFF
can be anything, and a guess is a wrong picture: what no rule here names is refused as unsupported, with what it is.
"""

import io
import struct
from math import prod
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffPage

from fcdd import depth
from fcdd.errors import ImageError

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
# How many samples of a pixel are its colour, and what they are to Pillow.
_COLOURS = {
    _WHITE_IS_ZERO: (1, "L"),
    _BLACK_IS_ZERO: (1, "L"),
    _RGB: (3, "RGB"),
    _PALETTE: (1, "RGB"),
    _CMYK: (4, "CMYK"),
    _YCBCR: (3, "YCbCr"),
}
_NONE, _JPEG = 1, 7
_FAX = (2, 3, 4)
_PREDICTABLE = (5, 8, 32946, 34925, 50000)  # LZW, deflate and its old number, LZMA, Zstandard
_COMPRESSIONS = (_NONE, *_FAX, _JPEG, 32773, *_PREDICTABLE)
_DECODERS = (
    *("bitorder", "packints", "delta", "jpeg", "jpeg8", "lzw", "zlib", "deflate", "packbits", "lzma", "zstd"),
    *("ccittrle", "ccittfax3", "ccittfax4"),
)
_EXTRA_SAMPLES, _INK_SET, _COEFFICIENTS, _REFERENCE, _ORIENTATION = 338, 332, 529, 532, 274
_REC_601 = (0.299, 0.587, 0.114)
_FULL_RANGE = (0, 255, 128, 255, 128, 255)
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex floating-point"}
_UNSIGNED, _FLOAT = (1, 4), 3  # 4: unknown
_SHALLOW, _DEEP = 8, 16
_LARGEST_PEAK = 1e38  # of what single precision has
_ASSOCIATED, _UNASSOCIATED = (1,), (2, 999)  # 999: CorelDRAW


class Picture(NamedTuple):
    """Samples (H,W,S) as they are stored, and what makes colours of them.

    `levels` has an 8-bit level, or three for a palette, for each value of a sample. `alpha` is the index of the sample
    that is the opacity, if there is one. `peak` is the largest value of 16 bits or floating-point, else 0.
    """

    samples: npt.NDArray[Any]
    levels: npt.NDArray[np.uint8]
    mode: str
    alpha: int | None
    is_associated: bool
    frames: int
    orientation: int
    peak: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as the samples lie."""
        return self.samples.shape[1], self.samples.shape[0]

    def rows(self, first: int, last: int) -> Image.Image:
        """Rows [first, last) as an 8-bit image, with its opacity."""
        samples = self.samples[first:last]
        colours = samples[:, :, : _channels(self.mode) if self.levels.ndim == 1 else 1]
        image = _image(_looked_up(colours, self.levels), self.mode)
        if self.alpha is None:
            return image
        # Of the opacity black is nothing, whatever it is of the colours.
        opacity = _looked_up(samples[:, :, self.alpha], _scale(self.levels.shape[0], samples.shape[2]))
        image = image if image.mode == "L" else image.convert("RGB")
        bands = (*image.split(), Image.fromarray(opacity))
        return Image.merge({"L": "La", "RGB": "RGBa"}[image.mode] if self.is_associated else image.mode + "A", bands)


def prepare() -> None:
    """Load the decoders now: imagecodecs loads each when it is first asked for, and then it may be forbidden."""
    for name in _DECODERS:
        getattr(imagecodecs, f"{name}_decode")
    sink = io.BytesIO()
    for options in ({}, {"compression": "lzw", "predictor": True}, {"tile": (16, 16), "compression": "deflate"}):
        tifffile.imwrite(sink, np.zeros((32, 32, 3), np.uint16), photometric="rgb", **options)
        read(sink.getvalue(), max_pixels=2**20, max_frames=1)
        sink.seek(0)


def read(data: bytes, *, max_pixels: int, max_frames: int, full_scale: float | None = None) -> Picture:
    """The first page; values from `full_scale` on are white, if they have 16 bits or are floating-point.

    Raises ImageError too_large before memory is taken, unsupported with what the file is, truncated; whatever tifffile
    raises for a damaged file.
    """
    _check_first_page(data)
    # Files of these vendors would be read beyond their first page.
    with tifffile.TiffFile(io.BytesIO(data), is_lsm=False, is_scanimage=False, is_ndpi=False) as file:
        page = file.pages[0]
        assert isinstance(page, TiffPage)
        if page.imagewidth * page.imagelength > max_pixels:
            raise ImageError("too_large", f"{page.imagewidth}x{page.imagelength} pixels, more than {max_pixels}")
        frames = _count_pages(file, data, max_frames)
        if frames > max_frames:
            raise ImageError("too_large", f"more than {max_frames} frames")
        _check_supported(page, full_scale)
        if page.compression not in _PREDICTABLE:
            page.predictor = 1  # by the rules of TIFF it means nothing with the others
        _check_whole(page, len(data))
        stored = page.asarray(squeeze=False, maxworkers=1)  # (S,1,H,W,1) or (1,1,H,W,S)
    samples = np.moveaxis(stored[:, 0, :, :, 0], 0, -1) if stored.shape[0] > 1 else stored[0, 0]
    colours = samples[:, :, : _COLOURS[page.photometric][0]]
    peak = min(max(0.0, float(colours.max())), _LARGEST_PEAK) if _has_no_scale(page) else 0.0
    if page.sampleformat == _FLOAT:
        samples = _eight_bit(samples, full_scale)
    orientation = page.tags.valueof(_ORIENTATION, 1)
    number, mode = _COLOURS[page.photometric]
    if page.photometric == _YCBCR and page.compression == _JPEG and page.planarconfig == 1:
        mode = "RGB"  # libjpeg has converted it
    alphas = [i for i, kind in enumerate(_extras(page), number) if kind in _ASSOCIATED + _UNASSOCIATED]
    return Picture(
        samples=samples.view(np.uint8) if samples.dtype == np.bool_ else samples,
        levels=_levels(page, full_scale),
        mode=mode,
        alpha=alphas[0] if alphas else None,
        is_associated=bool(alphas) and _extras(page)[alphas[0] - number] in _ASSOCIATED,
        frames=frames,
        orientation=orientation if isinstance(orientation, int) else 1,
        peak=peak,
    )


def _has_no_scale(page: TiffPage) -> bool:
    """Whether the largest value that can be stored says nothing about white: 16 bits may hold 12, as 12 do not."""
    return page.photometric != _PALETTE and bool(page.sampleformat == _FLOAT or page.bitspersample == _DEEP)


def _eight_bit(samples: npt.NDArray[Any], full_scale: float | None) -> npt.NDArray[np.uint8]:
    """Floating-point samples as 8-bit levels. Raises ImageError for what is no number."""
    if full_scale is None or not np.isfinite(samples).all():
        raise ImageError("unsupported", "a TIFF of floating-point values with NaN or infinity among them")
    return np.floor(samples.clip(0, full_scale) * (255 / full_scale) + 0.5).astype(np.uint8)


def _check_first_page(data: bytes) -> None:
    """Raises ImageError truncated when the first page lies beyond the end."""
    order, is_big = "<" if data.startswith(b"II") else ">", data[2:4] in (b"+\0", b"\0+")
    start = data[8:16].ljust(8, b"\xff") if is_big else data[4:8].ljust(4, b"\xff")
    [place] = struct.unpack(order + ("Q" if is_big else "I"), start)
    if place >= len(data):
        raise ImageError("truncated", f"the first page of the TIFF lies beyond its {len(data)} bytes")


def _count_pages(file: tifffile.TiffFile, data: bytes, limit: int) -> int:
    """How many pages follow each other, at most `limit` + 1; a pointer to nowhere, or back, ends them."""
    form, byte_order = file.tiff, file.byteorder
    seen: set[int] = set()
    place = file.pages[0].offset
    while place and place not in seen and len(seen) <= limit:
        start = place + form.tagnosize
        if start > len(data):
            break
        [tags] = struct.unpack_from(form.tagnoformat, data, place)
        end = start + tags * form.tagsize
        if not tags or end > len(data):
            break
        seen.add(place)
        if end + form.offsetsize > len(data):
            break
        [place] = struct.unpack_from(byte_order + form.offsetformat[-1], data, end)
    return max(1, len(seen))


def _check_supported(page: TiffPage, full_scale: float | None) -> None:
    """Raises ImageError unsupported for what has no rule, and corrupt for a page without pixels."""
    if not page.imagewidth or not page.imagelength or not page.samplesperpixel:
        raise ImageError("corrupt", "the first page of the TIFF has no pixels")
    why = _no_rule(page, full_scale)
    if why:
        raise ImageError("unsupported", f"{_described(page)}: {why}")


def _no_rule(page: TiffPage, full_scale: float | None) -> str:
    """Why there is no rule for a page; empty if there is one."""
    if page.sampleformat == _FLOAT:
        return _no_rule_of_floats(page, full_scale)
    bits = page.bitspersample
    if page.photometric not in _COLOURS:
        return "colours of this kind have no rule"
    if page.compression not in _COMPRESSIONS:
        return "this compression is not read"
    if page.sampleformat not in _UNSIGNED:
        return "only unsigned integers have a rule"
    if not isinstance(bits, int) or not 1 <= bits <= 16:
        return "only depths of 1 to 16 bits, the same for all samples, have a rule"
    if page.imagedepth != 1:
        return f"it is a volume of {page.imagedepth} layers"
    number, _ = _COLOURS[page.photometric]
    if page.samplesperpixel < number:
        return f"its colours need {number} samples per pixel"
    if page.compression in _FAX and (bits != 1 or page.samplesperpixel != 1):
        return "fax compression is for one bit per pixel"
    if page.predictor != 1 and page.compression in _PREDICTABLE and (page.predictor != 2 or bits not in (8, 16)):
        return f"predictor {int(page.predictor)} has no rule at this depth"
    if page.fillorder != 1 and bits > 8:
        return "bits in reversed order have a rule up to 8 bits only"
    if page.photometric == _PALETTE and (page.colormap is None or page.colormap.shape != (3, 2**bits)):
        return "its palette is missing, or of another size than its depth"
    if page.photometric == _PALETTE and page.compression == _JPEG:
        return "JPEG does not keep the numbers of a palette's colours"
    if page.photometric == _CMYK and page.tags.valueof(_INK_SET, 1) != 1:
        return "its inks are not cyan, magenta, yellow and black"
    if page.photometric not in (_BLACK_IS_ZERO, _RGB) and set(_extras(page)) & set(_ASSOCIATED):
        return "only grey levels and RGB are multiplied by an opacity"
    if page.photometric == _YCBCR:
        return _no_rule_of_ycbcr(page)
    return ""


def _no_rule_of_floats(page: TiffPage, full_scale: float | None) -> str:
    if full_scale is None:
        return "what is white of floating-point values is not known; train with --full-scale, such as 1.0"
    if page.bitspersample not in (32, 64) or page.photometric not in (_BLACK_IS_ZERO, _RGB) or _extras(page):
        return "of floating-point values only grey levels and RGB of 32 or 64 bits have a rule"
    if page.compression not in (_NONE, *_PREDICTABLE) or page.predictor != 1:
        return "this compression or predictor has no rule for floating-point values"
    return ""


def _no_rule_of_ycbcr(page: TiffPage) -> str:
    if page.compression == _JPEG and page.planarconfig == 1:
        return "JPEG of this kind with more samples than colours" if page.samplesperpixel > 3 else ""
    if page.is_subsampled:
        return "colours at a lower resolution are read with JPEG compression only"
    if page.bitspersample != 8:
        return "only 8 bits have a rule"
    if not np.allclose(_fractions(page.tags.valueof(_COEFFICIENTS), _REC_601), _REC_601, atol=1e-3):
        return "only the coefficients of Rec. 601 have a rule"
    if not np.array_equal(_fractions(page.tags.valueof(_REFERENCE), _FULL_RANGE), _FULL_RANGE):
        return "only the full range of values has a rule"
    return ""


def _fractions(value: Any, default: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Values of a tag of fractions, which are stored as numerator and denominator."""
    if value is None:
        return np.array(default, np.float64)
    flat = np.ravel(value).astype(np.float64)
    pairs = flat.reshape(-1, 2) if flat.size == 2 * len(default) else np.stack([flat, np.ones_like(flat)], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = pairs[:, 0] / pairs[:, 1]
    return values if values.size == len(default) else np.full(len(default), np.nan)


def _described(page: TiffPage) -> str:
    """What a page is, in words."""
    kind = _SAMPLE_FORMATS.get(page.sampleformat, "")
    bits = "/".join(map(str, np.ravel(page.bitspersample).tolist()))
    colours, compression = _name(PHOTOMETRIC, page.photometric), _name(COMPRESSION, page.compression)
    words = f"{page.samplesperpixel} x {bits} bits {kind}".rstrip()
    return f"a TIFF of {words}, photometric {colours}, compression {compression}"


def _name(kind: Any, value: int) -> str:
    try:
        return f"{int(value)} ({kind(value).name})"
    except ValueError:
        return str(value)


def _check_whole(page: TiffPage, length: int) -> None:
    """Raises ImageError when a strip or tile is missing, or lies beyond the end of the file."""
    if page.is_contiguous:
        if page.dataoffsets[0] + page.nbytes > length:
            raise ImageError("truncated", f"the pixels of the TIFF end beyond its {length} bytes")
        return
    expected = prod(page.chunked)
    offsets, counts = np.asarray(page.dataoffsets, np.uint64), np.asarray(page.databytecounts, np.uint64)
    if len(offsets) < expected or len(counts) < expected:
        raise ImageError(
            "corrupt", f"the TIFF needs {expected} strips or tiles and names {min(len(offsets), len(counts))}"
        )
    if not (offsets[:expected].all() and counts[:expected].all()):
        raise ImageError("corrupt", "a strip or tile of the TIFF is empty")
    if (offsets[:expected] > length).any() or (counts[:expected] > length - offsets[:expected]).any():
        raise ImageError("truncated", f"a strip or tile of the TIFF ends beyond its {length} bytes")


def _extras(page: TiffPage) -> tuple[int, ...]:
    """What the samples after the colours are."""
    number, _ = _COLOURS[page.photometric]
    found = tuple(np.ravel(page.tags.valueof(_EXTRA_SAMPLES, ())).astype(int).tolist())
    count = page.samplesperpixel - number
    if not found and page.photometric == _RGB and count == 1:
        return _UNASSOCIATED[:1]  # what else a fourth sample would be was forgotten to be said
    return (*found, *(0 for _ in range(count)))[:count]


def _levels(page: TiffPage, full_scale: float | None) -> npt.NDArray[np.uint8]:
    """For each value of a sample its 8-bit level, (2**bits,), or the colour of the palette, (2**bits,3)."""
    values = 2 ** (_SHALLOW if page.sampleformat == _FLOAT else int(page.bitspersample))
    if page.photometric == _PALETTE:
        colours = np.asarray(page.colormap)
        # Some writers put levels of 8 bits into the map, which is of 16; libtiff takes them as they are, too.
        return np.ascontiguousarray((colours >> (8 if colours.max() > 255 else 0)).astype(np.uint8).T)
    if full_scale is None or values < 2**_DEEP:
        levels = _scale(values, page.samplesperpixel)
        return levels[::-1] if page.photometric == _WHITE_IS_ZERO else levels
    levels = depth.levels(values, full_scale)
    return np.uint8(255) - levels if page.photometric == _WHITE_IS_ZERO else levels


def _scale(values: int, samples: int) -> npt.NDArray[np.uint8]:
    """The 8-bit levels of 0 to `values` - 1: the nearest; of 16-bit colours the high byte, as Pillow has it in PNG."""
    if values == 2**16 and samples > 1:
        return (np.arange(values) >> 8).astype(np.uint8)
    return ((np.arange(values, dtype=np.int64) * 255 + (values - 1) // 2) // (values - 1)).astype(np.uint8)


def _looked_up(samples: npt.NDArray[Any], levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Levels of samples (H,W,S) or (H,W); colours (H,W,3) of a palette's."""
    is_identity = levels.ndim == 1 and len(levels) == 256 and levels[1] == 1
    found = samples if is_identity else levels[samples[:, :, 0] if levels.ndim == 2 else samples]
    return np.ascontiguousarray(found, np.uint8)


def _channels(mode: str) -> int:
    return Image.getmodebands(mode)


def _image(values: npt.NDArray[np.uint8], mode: str) -> Image.Image:
    height, width = values.shape[:2]
    return Image.frombuffer(mode, (width, height), values, "raw", mode, 0, 1)
