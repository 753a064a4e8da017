"""Pictures of scored images: the original, and the heatmap of a run over it. Only heatmaps load a bundle, and torch."""

import base64
import io
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from fcdd import contours, heatmap
from fcdd.bundle import BundleSpec
from fcdd.contours import Contour, Ring
from fcdd.errors import ConfigError, ImageError
from fcdd.io import isolation, storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import bundles
from jobs.shell import formatting
from jobs.sources.locations import Locations
from jobs.viewing import colour_scale
from schemas import IDENTITY, RunRecord

if TYPE_CHECKING:
    from fcdd.detector import Detector

# How evidence is shown: original and overlay; the heatmap over the original; or lines only, which hide nothing.
Style = Literal["side-by-side", "overlay", "outline", "contours"]
# Of the parts of a file's name, of which a disk takes 255; characters of a name in a caption.
_NAME_BYTES, _TITLE = 100, 60
# Evidence is drawn over pictures of at most so many pixels a side: there are several copies, and a person looks at it.
_DRAWN = (4096, 4096)
# What is painted in a review.
_PAINT = "#ff2d55"

log = logging.getLogger(__name__)


def folder(location: str) -> Path:
    """The local folder, created. Raises ConfigError when it cannot be one."""
    if "://" in location:
        raise ConfigError(f"expected a local folder for pictures, got {location!r}")
    path = Path(location).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the folder {path} for pictures: {error.strerror}") from error
    return path


def check_apart(location: str, locations: Locations) -> None:
    """Raises ConfigError for pictures of ours below the images of a run: the next night would score them."""
    if locations.contains(f"{storage.normalize(location)}/x"):
        raise ConfigError(f"{location} lies below the images of the run, and would be scored; choose another place")


def file_name(rank: int, of: int, uri: str, group: str) -> str:
    """Named by rank, group and the image's own name, in letters that every disk takes: a key is never a path."""
    width = max(2, len(str(of)))
    return f"{rank:0{width}d}-{'-'.join(filter(None, (plain(group), plain(own_name(uri)))))}.png"


def own_name(uri: str) -> str:
    """The last part of a location, without its ending."""
    name = uri.rpartition("/")[2]
    return name.rpartition(".")[0] or name


def plain(name: str) -> str:
    """Letters, digits, - and _ alone, of any language, and not too many for a file's name."""
    return re.sub(r"[^\w-]+", "_", name).strip("_").encode()[:_NAME_BYTES].decode(errors="ignore")


def title(row: Mapping[str, Any]) -> str:
    """Which image a row of scores is about, for a caption: its group, its file's name, and the night."""
    name = row["image_uri"].rpartition("/")[2]
    parts = [row["image_group"], name if len(name) <= _TITLE else f"...{name[3 - _TITLE :]}"]
    return formatting.printable(f"{' / '.join(filter(None, parts))}   {row['date']}")


def info(row: Mapping[str, Any]) -> ObjectInfo:
    """The object that a row of scores is about, as it was listed."""
    return ObjectInfo(*(row[name] for name in IDENTITY))


def encoded(row: Mapping[str, Any], locations: Locations) -> bytes:
    """The image file that a row of scores is about. Raises ImageError when it is not as, or where, it was scored."""
    return storage.read_checked(locations.find(info(row)))


def original(
    row: Mapping[str, Any], locations: Locations, full_scale: float | None, within: tuple[int, int] | None = None
) -> Image.Image:
    """The picture that a row of scores is about, made to fit `within` (width, height) if that is given.

    `full_scale` is that of the row's run. Raises ImageError when it is not as, or where, it was scored, or can no
    longer be decoded.
    """
    return isolation.picture(encoded(row, locations), within=within, full_scale=full_scale)


def mask_layer(mask_uri: str) -> bytes:
    """A mask as it lies over the image: red where it is set, else transparent. Raises ConfigError, ImageError."""
    try:
        mask = isolation.picture(storage.read(mask_uri), mode="L")
    except FileNotFoundError as error:
        raise ConfigError(f"the mask {mask_uri} is gone") from error
    painted = Image.new("RGBA", mask.size, _PAINT)
    painted.putalpha(mask)
    sink = io.BytesIO()
    painted.save(sink, "PNG")
    return sink.getvalue()


def original_or_warn(row: Mapping[str, Any], locations: Locations, full_scale: float | None) -> Image.Image | None:
    """`original` to draw evidence over; None, and a word in the log, when there is none."""
    try:
        return to_draw_on(encoded(row, locations), full_scale)
    except ImageError as error:
        log.warning("no picture of %s: %s", formatting.printable(row["image_uri"]), error)
        return None


class Heatmaps:
    """Full-resolution heatmaps, and contours, of stored anomaly maps; each bundle is loaded once."""

    def __init__(self, loaded: Iterable[tuple[BundleSpec, bytes]] = ()) -> None:
        """`loaded`: bundles that need not be read again."""
        self._loaded = {spec.digest: (spec, weights) for spec, weights in loaded}
        self._detectors: dict[str, Detector] = {}

    def __call__(self, encoded: bytes, record: RunRecord, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """The heatmap (H,W) of an image of `size` (width, height) at the network's resolution, in the map's units.

        Raises ConfigError, or BundleError, when the bundle is not there as the run used it.
        """
        return self._detector_of(record).heatmap(heatmap.decode(encoded), size[::-1])

    def contours(self, encoded: bytes, record: RunRecord, size: tuple[int, int]) -> list[Contour]:
        """`Detector.contours` for an image of `size` (width, height). Raises as a call."""
        return self._detector_of(record).contours(heatmap.decode(encoded), size[::-1])

    def outline(self, encoded: bytes, record: RunRecord, size: tuple[int, int]) -> list[Ring]:
        """The lines around what is above the threshold, in pixels of an image of `size` (width, height)."""
        [(_, rings)] = self._detector_of(record).contours(heatmap.decode(encoded), size[::-1], (1.0,))
        return rings

    def _detector_of(self, record: RunRecord) -> "Detector":
        from fcdd.detector import Detector

        digest = record.bundle_digest
        if digest not in self._detectors:
            self._detectors[digest] = Detector(*(self._loaded.get(digest) or bundles.of_run(record)))
        return self._detectors[digest]


def evidence(
    picture: Image.Image,
    values: npt.NDArray[np.float32],
    lines: Iterable[Contour],
    threshold: float,
    style: Style,
    *,
    size: tuple[int, int],
    regions: bool = True,
) -> Image.Image:
    """A picture with its heatmap (`values`, at any size) or contours (`lines`) over it.

    Lines are in pixels of the original, of `size` (width, height), which the picture may show smaller. `regions`:
    outlines of what is above the threshold over the heatmap, too.
    """
    scale = np.divide(picture.size, size)
    lines = [(level, [ring * scale for ring in rings]) for level, rings in lines]
    if style == "contours":
        return contours.draw(picture, lines)
    outlines = [each for each in lines if each[0] == 1]
    if style == "outline":
        return contours.draw(picture, outlines)
    shown = contours.draw(heatmap.overlay(picture, values, threshold), outlines if regions else [])
    return side_by_side([picture, shown]) if style == "side-by-side" else shown


def to_draw_on(data: bytes, full_scale: float | None) -> Image.Image:
    """The picture of a file, of a size to draw evidence over. Raises ImageError."""
    return isolation.picture(data, within=_DRAWN, full_scale=full_scale)


def reduced(picture: Image.Image, size: tuple[int, int]) -> str:
    """For a caption: how much smaller a picture shows an original of `size` (width, height); else nothing."""
    if picture.size == size:
        return ""
    return f"   shown at {formatting.share(picture.width / size[0])} of {size[0]} x {size[1]} pixels"


def captioned(picture: Image.Image, text: str, threshold: float) -> Image.Image:
    """The picture above a strip with lines of text and the colour scale, whose numbers are below it."""
    lines, size = text.splitlines(), max(12, min(48, picture.width // 45))
    font, pad, row = ImageFont.load_default(size), size // 2, round(1.3 * size)
    words, bar = max(round(font.getlength(line)) for line in lines), 16 * size
    width = max(picture.width, words + bar + 6 * size)
    shown = Image.new("RGB", (width, picture.height + max(2, len(lines)) * row + 2 * pad), "white")
    shown.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(shown), picture.height + pad
    for number, line in enumerate(lines):
        draw.text((pad, top + number * row), line, "black", font)
    left, bottom = width - bar - 3 * size, top + size
    shown.paste(colour_scale.bar(bar).resize((bar, size)), (left, top))
    for mark in colour_scale.marks(threshold):
        at = left + round(mark.at * bar)
        draw.line(
            (at, top if mark.is_threshold else bottom - size // 4, at, bottom + 2), "black", 1 + mark.is_threshold
        )
        draw.text((at, bottom + 3), mark.text, "black", ImageFont.load_default(size * 0.8), anchor="ma")
    return shown


def titled(picture: Image.Image, text: str) -> Image.Image:
    """The picture below a line of text that is as wide as it, on two lines where it must be."""
    size = max(11, min(24, picture.width // 30))
    font, pad = ImageFont.load_default(size), size // 3
    lines = _wrapped(text, picture.width - 2 * pad, font)
    strip = round(1.3 * size) * len(lines) + 2 * pad
    shown = Image.new("RGB", (picture.width, picture.height + strip), "white")
    shown.paste(picture, (0, strip))
    ImageDraw.Draw(shown).text((pad, pad), "\n".join(lines), "black", font)
    return shown


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of whole words that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width or not lines[-1] else [*lines, word]
    return lines


def side_by_side(pictures: Iterable[Image.Image]) -> Image.Image:
    """Pictures beside each other, from left to right; what has a title stands at the bottom."""
    row = list(pictures)
    height = max(picture.height for picture in row)
    both, left = Image.new("RGB", (sum(picture.width for picture in row), height), "white"), 0
    for picture in row:
        both.paste(picture, (left, height - picture.height))
        left += picture.width
    return both


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as an address that holds it."""
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(sink.getvalue()).decode()}"
