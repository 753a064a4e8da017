"""What people say of images: the labels of a collection, kept beside its results, and the masks that they draw.

Nothing else is ever written: not the images, not the scores.
"""

import base64
import binascii
import hashlib
import io
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from fcdd import storage
from fcdd.errors import ConfigError
from jobs import _labels, _parts
from schemas import LABELS, Layout, conform

MAX_BOXES, MAX_MASK_CHARACTERS = 200, 8_000_000
_MAX_MASK_PIXELS = 4_000_000
Side = Annotated[int, Field(ge=0, le=1_000_000)]


class Box(BaseModel):
    """Pixels [x0, x1) x [y0, y1) of the original image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    x0: Side
    y0: Side
    x1: Side
    y1: Side


class Verdict(BaseModel):
    """What somebody said of one image: 1 a real defect, 0 a false alarm, -1 a bad image; None takes it back.

    A drawing counts for defects only: boxes, and `mask`, a PNG in base64 of any size, opaque where it was painted. With
    neither, what was drawn before stays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Literal[-1, 0, 1] | None
    boxes: tuple[Box, ...] | None = Field(None, max_length=MAX_BOXES)
    mask: str | None = Field(None, max_length=MAX_MASK_CHARACTERS)


class BadDrawing(Exception):
    """A box or mask that is none."""


class Labels:
    """The labels of one collection. Every change is written at once; a process that dies loses nothing."""

    def __init__(self, layout: Layout, collection: str) -> None:
        """Reads what was said before. Raises ConfigError when that cannot be read."""
        self._layout, self._collection, self._lock = layout, collection, threading.Lock()
        self.uri = layout.labels(collection)
        try:
            table = conform(pq.read_table(pa.BufferReader(storage.read(self.uri)), partitioning=None), LABELS)
        except FileNotFoundError:
            table = LABELS.empty_table()
        except (pa.ArrowException, ValueError) as error:
            raise ConfigError(f"{self.uri} does not hold labels of this version: {error}; move it away") from error
        self._rows: dict[str, dict[str, Any]] = {row["image_uri"]: row for row in table.to_pylist()}

    def __len__(self) -> int:
        """Number of labelled images."""
        return len(self._rows)

    def of(self, uri: str) -> dict[str, Any] | None:
        """The label of an image, a row of LABELS."""
        return self._rows.get(uri)

    def say(self, image: Mapping[str, Any], verdict: Verdict, *, reviewer: str, now: datetime) -> dict[str, Any] | None:
        """Keep a verdict on a row of scores; the row that is kept, None if it was taken back.

        Raises BadDrawing when a box or the mask is none.
        """
        uri = image["image_uri"]
        with self._lock:
            if verdict.label is None:
                rows = {key: row for key, row in self._rows.items() if key != uri}
            else:
                boxes, mask_uri = self._drawing(image, verdict)
                rows = self._rows | {
                    uri: {
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
                }
            self._write(rows)
            self._rows = rows
        return self.of(uri)

    def _write(self, rows: Mapping[str, dict[str, Any]]) -> None:
        table = pa.Table.from_pylist([rows[uri] for uri in sorted(rows)], LABELS)
        storage.write(self.uri, _parts.to_parquet(conform(table, LABELS)))

    def _drawing(self, image: Mapping[str, Any], verdict: Verdict) -> tuple[list[dict[str, int]], str]:
        """Boxes, and where the mask is kept."""
        before = self._rows.get(image["image_uri"])
        if verdict.label != _labels.ANOMALOUS:
            return [], ""
        if verdict.boxes is None and verdict.mask is None:
            return (before["boxes"], before["mask_uri"]) if before else ([], "")
        boxes = [_clipped(box, image["width"], image["height"]) for box in verdict.boxes or ()]
        return boxes, self._mask(image, boxes, verdict.mask)

    def _mask(self, image: Mapping[str, Any], boxes: Sequence[dict[str, int]], paint: str | None) -> str:
        """Boxes and paint as one PNG of the image's size, named by its content; empty if there is neither."""
        painted = _decoded(paint) if paint else None
        if painted is None and not boxes:
            return ""
        size = (image["width"], image["height"])
        mask = painted.resize(size, Image.Resampling.NEAREST) if painted else Image.new("L", size)
        draw = ImageDraw.Draw(mask)
        for box in boxes:
            draw.rectangle((box["x0"], box["y0"], box["x1"] - 1, box["y1"] - 1), fill=255)
        if not mask.getbbox():
            return ""
        sink = io.BytesIO()
        mask.save(sink, "PNG")
        uri = self._layout.mask(self._collection, hashlib.sha256(sink.getvalue()).hexdigest()[:32])
        storage.write(uri, sink.getvalue())
        return uri


def _clipped(box: Box, width: int, height: int) -> dict[str, int]:
    clipped = {"x0": box.x0, "y0": box.y0, "x1": min(box.x1, width), "y1": min(box.y1, height)}
    if clipped["x0"] >= clipped["x1"] or clipped["y0"] >= clipped["y1"]:
        raise BadDrawing(f"expected a box within {width} x {height} pixels, got {box}")
    return clipped


def _decoded(mask: str) -> Image.Image:
    """Grey 0 or 255 of a painted PNG."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(mask, validate=True)), formats=("PNG",)) as image:
            if image.width * image.height > _MAX_MASK_PIXELS:
                raise BadDrawing(f"expected a mask of at most {_MAX_MASK_PIXELS} pixels, got {image.size}")
            return image.convert("RGBA").getchannel("A").point([255 if alpha >= 128 else 0 for alpha in range(256)])
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise BadDrawing("the mask is no PNG in base64") from error
