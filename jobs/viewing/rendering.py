"""Pictures of scored images: the original, and the heatmap of a run over it. Only heatmaps load a bundle, and torch."""

import base64
import hashlib
import io
import logging
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
from schemas import IDENTITY, RunRecord

if TYPE_CHECKING:
    from fcdd.detector import Detector

# How evidence is shown: original and overlay; the heatmap over the original; or lines only, which hide nothing.
Style = Literal["side-by-side", "overlay", "outline", "contours"]
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


def file_name(rank: int, of: int, uri: str) -> str:
    """Named by rank and a hash of the URI, since a key is never a path."""
    width = max(2, len(str(of)))
    return f"{rank:0{width}d}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.png"


def info(row: Mapping[str, Any]) -> ObjectInfo:
    """The object that a row of scores is about, as it was listed."""
    return ObjectInfo(*(row[name] for name in IDENTITY))


def encoded(row: Mapping[str, Any], locations: Locations) -> bytes:
    """The image file that a row of scores is about. Raises ImageError when it is not as, or where, it was scored."""
    locations.check(row["image_uri"])
    return storage.read_checked(info(row))


def original(row: Mapping[str, Any], locations: Locations, within: tuple[int, int] | None = None) -> Image.Image:
    """The picture that a row of scores is about, made to fit `within` (width, height) if that is given.

    Raises ImageError when it is not as, or where, it was scored, or can no longer be decoded.
    """
    return isolation.picture(encoded(row, locations), within=within)


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


def original_or_warn(row: Mapping[str, Any], locations: Locations) -> Image.Image | None:
    """`original`; None, and a word in the log, when there is none."""
    try:
        return original(row, locations)
    except ImageError as error:
        log.warning("no picture of %s: %s", formatting.printable(row["image_uri"]), error)
        return None


class Heatmaps:
    """Full-resolution heatmaps, and contours, of stored anomaly maps; each bundle is loaded once."""

    def __init__(self, loaded: Iterable[tuple[BundleSpec, bytes]] = ()) -> None:
        """`loaded`: bundles that need not be read again."""
        self._loaded = {spec.digest: (spec, weights) for spec, weights in loaded}
        self._detectors: dict[str, Detector] = {}

    def __call__(self, encoded: bytes, record: RunRecord) -> npt.NDArray[np.float32]:
        """The heatmap (H,W) of the network's input, in the map's units.

        Raises ConfigError, or BundleError, when the bundle is not there as the run used it.
        """
        return self._detector_of(record).heatmap(heatmap.decode(encoded))

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
    regions: bool = True,
) -> Image.Image:
    """A picture with its heatmap (`values`, at any size) or contours (`lines`, in its pixels) over it.

    `regions`: outlines of what is above the threshold over the heatmap, too.
    """
    if style == "contours":
        return contours.draw(picture, lines)
    outlines = [each for each in lines if each[0] == 1]
    if style == "outline":
        return contours.draw(picture, outlines)
    shown = contours.draw(heatmap.overlay(picture, values, threshold), outlines if regions else [])
    return side_by_side([picture, shown]) if style == "side-by-side" else shown


def captioned(picture: Image.Image, text: str, threshold: float) -> Image.Image:
    """The picture above a strip with a line of text and the colour scale: its middle is the threshold."""
    size = max(12, min(28, picture.width // 40))
    font, pad = ImageFont.load_default(size), size // 2
    words, bar = round(font.getlength(text)), 8 * size
    width = max(picture.width, words + bar + 9 * size)
    shown = Image.new("RGB", (width, picture.height + size + 2 * pad), "white")
    shown.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(shown), picture.height + pad
    draw.text((pad, top - size // 8), text, "black", font)
    left = width - bar - 5 * size
    shown.paste(heatmap.colours(bar).resize((bar, size)), (left, top))
    draw.line((left + bar // 2, top, left + bar // 2, top + size), "white", 1)
    draw.text((left - pad, top - size // 8), "0", "black", font, anchor="ra")
    draw.text((left + bar // 2 + 2, top + size // 8), f"{threshold:.3g}", "white", ImageFont.load_default(size * 0.8))
    draw.text((left + bar + pad, top - size // 8), "infinite", "black", font)
    return shown


def side_by_side(pictures: Iterable[Image.Image]) -> Image.Image:
    """Pictures beside each other, from left to right."""
    row = list(pictures)
    both = Image.new("RGB", (sum(picture.width for picture in row), max(picture.height for picture in row)))
    left = 0
    for picture in row:
        both.paste(picture, (left, 0))
        left += picture.width
    return both


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture as an address that holds it."""
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(sink.getvalue()).decode()}"
