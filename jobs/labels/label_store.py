"""The labels that people gave to images of a collection, kept beside its results, and the masks that they drew.

Nothing else is ever written: not the images, not the scores.
"""

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.catalog import part_files
from jobs.labels import label_drawings, label_files
from jobs.labels.label_drawings import MAX_BOXES, MAX_MASK_CHARACTERS, Box
from schemas import LABELS, Layout, conform

DefectClass = Annotated[str, Field(max_length=80), AfterValidator(lambda text: " ".join(text.split()))]
Note = Annotated[str, Field(max_length=4000), AfterValidator(str.strip)]

log = logging.getLogger(__name__)


class Verdict(BaseModel):
    """A label of one image: 1 a defect, 0 no defect, -1 a bad image; None removes it, and all that was said with it.

    A drawing is all boxes, and paint that is added to what was painted before: a PNG in base64 of any size, opaque
    where it was painted. With neither, what was drawn stays; with `clear`, it goes first. Class and note stay, too,
    where they are None; "" removes them. A class is of defects: with another label it goes. `seen` is the time of the
    label that the page showed, so that nobody overwrites what they have not seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Literal[-1, 0, 1] | None
    boxes: tuple[Box, ...] | None = Field(None, max_length=MAX_BOXES)
    mask: str | None = Field(None, max_length=MAX_MASK_CHARACTERS)
    clear: bool = False
    defect_class: DefectClass | None = None
    note: Note | None = None
    seen: datetime | None = None


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
        # What was said of each image before, the latest last; None where there was no label.
        self._before: defaultdict[str, list[dict[str, Any] | None]] = defaultdict(list)

    def _own(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its mask where the results lie by now, without one that was not drawn here.

        The file is data, and its masks are opened.
        """
        folder = self._layout.masks(self._collection)
        row = row | {"mask_uri": label_files.below(row["mask_uri"], folder)}
        if not row["mask_uri"] or row["mask_uri"].startswith(f"{folder}/"):
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

    def classes(self) -> list[str]:
        """Classes of defects that were given, the most frequent first."""
        counts = Counter(row["defect_class"] for row in self._rows.values() if row["defect_class"])
        return [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]

    def set(self, image: Mapping[str, Any], verdict: Verdict, *, reviewer: str, now: datetime) -> None:
        """Keep a verdict on a row of scores.

        Raises BadDrawing when a box or the mask is none, Outdated when the page has not seen the latest label.
        """
        uri = image["image_uri"]
        with self._lock:
            self._check_seen(uri, verdict.seen)
            row = (
                None
                if verdict.label is None
                else self._row(image, verdict) | {"reviewer": reviewer, "reviewed_at": now}
            )
            before = self._rows.get(uri)
            self._write(uri, row)
            self._before[uri].append(before)

    def undo(self, image: Mapping[str, Any], seen: datetime | None) -> bool:
        """Whether there was a verdict since this process began: then what was said before it is the label again.

        Raises Outdated when the page has not seen the latest label.
        """
        uri = image["image_uri"]
        with self._lock:
            self._check_seen(uri, seen)
            if not self._before[uri]:
                return False
            self._write(uri, self._before[uri][-1])
            self._before[uri].pop()
            return True

    def _check_seen(self, uri: str, seen: datetime | None) -> None:
        if self.label_time(uri) != seen:
            raise Outdated(f"something else was said of {uri} meanwhile")

    def _row(self, image: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
        """The label that a verdict makes, but for who said it and when."""
        before = self.get(image)
        boxes, mask_uri = label_drawings.kept(
            image,
            None if verdict.clear else before,
            verdict.boxes,
            verdict.mask,
            self._layout.masks(self._collection),
        )
        texts = {
            name: before[name] if before and said is None else said or None
            for name, said in (("defect_class", verdict.defect_class), ("note", verdict.note))
        }
        if verdict.label != label_files.ANOMALOUS:
            texts["defect_class"] = None
        return {
            "image_uri": image["image_uri"],
            "image_etag": image["image_etag"],
            "label": verdict.label,
            "boxes": boxes,
            "mask_uri": mask_uri,
            "collection": self._collection,
            "date": image["date"],
            "run_id": image["run_id"],
            "anomaly_score": image["anomaly_score"],
            "p_value": image["p_value"],
            **texts,
        }

    def _write(self, uri: str, row: dict[str, Any] | None) -> None:
        """Another label of an image, or none, in the file."""
        self._check()
        rows = {key: each for key, each in self._rows.items() if key != uri} | ({uri: row} if row else {})
        table = pa.Table.from_pylist([rows[key] for key in sorted(rows)], LABELS)
        storage.write(self.uri, part_files.to_parquet(conform(table, LABELS)))
        self._rows = rows
