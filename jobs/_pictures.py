"""Pictures of scored images: the original, and the heatmap of a run over it. Only overlays load a bundle, and torch."""

import functools
import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fcdd import heatmap, images, storage
from fcdd.errors import ConfigError, ImageError
from fcdd.storage import ObjectInfo
from jobs import _console
from schemas import IDENTITY, RunRecord

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


def file_name(rank: int, of: int, uri: str) -> str:
    """Named by rank and a hash of the URI, since a key is never a path."""
    width = max(2, len(str(of)))
    return f"{rank:0{width}d}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.png"


def original(row: Mapping[str, Any]) -> Image.Image | None:
    """The picture that a row of scores is about; None, and a word in the log, if it is not as it was."""
    info = ObjectInfo(*(row[name] for name in IDENTITY))
    try:
        return images.decode_full(storage.read_checked(info))
    except ImageError as error:
        log.warning("no picture of %s: %s", _console.printable(info.uri), error)
        return None


class Overlays:
    """Heatmaps over originals; each bundle is loaded once."""

    def __init__(self) -> None:
        from fcdd.detector import Detector

        self._load = functools.cache(Detector.load)

    def __call__(self, picture: Image.Image, encoded: bytes, record: RunRecord) -> Image.Image:
        """The heatmap that a run stored, on the scale of its map threshold. Raises ConfigError for another bundle."""
        detector = self._load(record.bundle)
        if detector.spec.digest != record.bundle_digest:
            raise ConfigError(f"the bundle at {record.bundle} is not the one that run {record.run_id} used")
        return heatmap.overlay(picture, detector.heatmap(heatmap.decode(encoded)), record.map_threshold)


def side_by_side(pictures: Iterable[Image.Image]) -> Image.Image:
    """From left to right."""
    row = list(pictures)
    both = Image.new("RGB", (sum(picture.width for picture in row), max(picture.height for picture in row)))
    left = 0
    for picture in row:
        both.paste(picture, (left, 0))
        left += picture.width
    return both
