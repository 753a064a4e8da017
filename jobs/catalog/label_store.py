"""The labels that people gave to images of a collection, kept beside its results, and the masks that they drew.

Nothing else is ever written: not the images, not the scores.
"""

import base64
import functools
import hashlib
import io
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageChops, ImageDraw
from pydantic import BaseModel, ConfigDict, Field

from fcdd.errors import ConfigError, ImageError
from fcdd.images import Limits
from fcdd.io import isolation, storage
from fcdd.io.isolation import DecoderPool
from jobs.catalog import part_files
from schemas import LABELS, Layout, conform

MAX_BOXES, MAX_MASK_CHARACTERS = 200, 8_000_000
_MAX_MASK_PIXELS = 4_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
Side = Annotated[int, Field(ge=0, le=1_000_000)]


log = logging.getLogger(__name__)


class Box(BaseModel):
    """Pixels [x0, x1) x [y0, y1) of the original image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    x0: Side
    y0: Side
    x1: Side
    y1: Side


class Verdict(BaseModel):
    """A label of one image: 1 a real defect, 0 a false alarm, -1 a bad image; None removes it.

    A drawing is all boxes, and paint that is added to what was painted before: a PNG in base64 of any size, opaque
    where it was painted. With neither, what was drawn stays; with `clear`, it goes first. `seen` is the time of the
    label that the page showed, so that nobody overwrites what they have not seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Literal[-1, 0, 1] | None
    boxes: tuple[Box, ...] | None = Field(None, max_length=MAX_BOXES)
    mask: str | None = Field(None, max_length=MAX_MASK_CHARACTERS)
    clear: bool = False
    seen: datetime | None = None


class BadDrawing(Exception):
    """A box or mask that cannot be decoded, or lies outside of the image."""


class Outdated(Exception):
    """Another page has changed the label meanwhile."""


class Labels:
    """The labels of one collection. Every change is written at once; a process that dies loses nothing."""

    def __init__(self, layout: Layout, collection: str, *, check: Callable[[], None] = lambda: None) -> None:
        """Reads the labels that are there; `check` raises FCDDError when another process has taken over.

        Raises ConfigError when the labels cannot be read.
        """
        self._layout, self._collection, self._check, self._lock = layout, collection, check, threading.Lock()
        self.uri = layout.labels(collection)
        try:
            table = conform(pq.read_table(pa.BufferReader(storage.read(self.uri)), partitioning=None), LABELS)
        except FileNotFoundError:
            table = LABELS.empty_table()
        except (pa.ArrowException, ValueError) as error:
            raise ConfigError(f"{self.uri} does not hold labels of this version: {error}; move it away") from error
        self._rows: dict[str, dict[str, Any]] = {row["image_uri"]: self._own(row) for row in table.to_pylist()}

    def _own(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row without a mask that was not drawn here: the file is data, and its masks are opened."""
        if not row["mask_uri"] or row["mask_uri"].startswith(f"{self._layout.masks(self._collection)}/"):
            return row
        log.warning(
            "left out the mask %r of %r: it is not below those of the labels", row["mask_uri"], row["image_uri"]
        )
        return row | {"mask_uri": ""}

    def label_time(self, uri: str) -> datetime | None:
        """When an image was labelled, or an earlier one of that name."""
        row = self._rows.get(uri)
        return row["reviewed_at"] if row else None

    def get(self, image: Mapping[str, Any]) -> dict[str, Any] | None:
        """The label of an image (a row of scores), a row of LABELS; None if there is none, or of another image."""
        row = self._rows.get(image["image_uri"])
        return row if row and row["image_etag"] == image["image_etag"] else None

    def masks(self) -> set[str]:
        """Locations of all masks that labels name."""
        return {row["mask_uri"] for row in self._rows.values()} - {""}

    def set(self, image: Mapping[str, Any], verdict: Verdict, *, reviewer: str, now: datetime) -> None:
        """Keep a verdict on a row of scores.

        Raises BadDrawing when a box or the mask is none, Outdated when the page has not seen the latest label.
        """
        uri = image["image_uri"]
        with self._lock:
            if self.label_time(uri) != verdict.seen:
                raise Outdated(f"something else was said of {uri} meanwhile")
            self._check()
            rows = {key: row for key, row in self._rows.items() if key != uri}
            if verdict.label is not None:
                boxes, mask_uri = self._drawing(image, verdict)
                rows[uri] = {
                    "image_uri": uri,
                    "image_etag": image["image_etag"],
                    "label": verdict.label,
                    "boxes": boxes,
                    "mask_uri": mask_uri,
                    "collection": self._collection,
                    "date": image["date"],
                    "run_id": image["run_id"],
                    "anomaly_score": image["anomaly_score"],
                    "p_value": image["p_value"],
                    "reviewer": reviewer,
                    "reviewed_at": now,
                }
            table = pa.Table.from_pylist([rows[key] for key in sorted(rows)], LABELS)
            storage.write(self.uri, part_files.to_parquet(conform(table, LABELS)))
            self._rows = rows

    def _drawing(self, image: Mapping[str, Any], verdict: Verdict) -> tuple[list[dict[str, int]], str]:
        """All boxes, and where the mask of all that was ever drawn is kept; empty if there is none."""
        before = None if verdict.clear else self.get(image)
        boxes, mask_uri = (before["boxes"], before["mask_uri"]) if before else ([], "")
        if verdict.boxes is None and verdict.mask is None:
            return boxes, mask_uri
        if verdict.boxes is not None:
            boxes = [_clipped(box, image["width"], image["height"]) for box in verdict.boxes]
        size = (image["width"], image["height"])
        mask = _stored(mask_uri, size) if mask_uri else Image.new("L", size)
        if verdict.mask is not None:
            mask = ImageChops.lighter(mask, _decoded(verdict.mask).resize(size, Image.Resampling.NEAREST))
        draw = ImageDraw.Draw(mask)
        for box in boxes:
            draw.rectangle((box["x0"], box["y0"], box["x1"] - 1, box["y1"] - 1), fill=255)
        if not mask.getbbox():
            return boxes, ""
        sink = io.BytesIO()
        mask.save(sink, "PNG")
        name = f"{hashlib.sha256(sink.getvalue()).hexdigest()[:32]}.png"
        uri = storage.join(self._layout.masks(self._collection), name)
        storage.write(uri, sink.getvalue())
        return boxes, uri


def _stored(mask_uri: str, size: tuple[int, int]) -> Image.Image:
    """The mask that was kept before. Raises ConfigError when it is gone or another one."""
    try:
        mask = isolation.picture(storage.read(mask_uri), mode="L")
    except (FileNotFoundError, ImageError) as error:
        raise ConfigError(f"the mask {mask_uri} is gone or damaged; clear the drawing and draw again") from error
    if mask.size != size:
        raise ConfigError(f"the mask {mask_uri} is not of its image's size; clear the drawing and draw again")
    return mask


def _clipped(box: Box, width: int, height: int) -> dict[str, int]:
    clipped = {"x0": box.x0, "y0": box.y0, "x1": min(box.x1, width), "y1": min(box.y1, height)}
    if clipped["x0"] >= clipped["x1"] or clipped["y0"] >= clipped["y1"]:
        raise BadDrawing(f"expected a box within {width} x {height} pixels, got {box}")
    return clipped


def _decoded(mask: str) -> Image.Image:
    """Grey 0 or 255 of a painted PNG."""
    try:
        data = base64.b64decode(mask, validate=True)
    except ValueError as error:
        raise BadDrawing("the mask is no PNG in base64") from error
    if not data.startswith(_PNG):
        raise BadDrawing("the mask is no PNG in base64")
    try:
        opacity = _decoders().picture(data, mode="A")
    except ImageError as error:
        raise BadDrawing(f"expected a mask of at most {_MAX_MASK_PIXELS} pixels that can be read: {error}") from error
    return opacity.point([255 if alpha >= 128 else 0 for alpha in range(256)])


@functools.cache
def _decoders() -> DecoderPool:
    """The decoders of masks that reviewers send."""
    return DecoderPool(processes=1, limits=Limits(encoded_bytes=MAX_MASK_CHARACTERS, pixels=_MAX_MASK_PIXELS))
