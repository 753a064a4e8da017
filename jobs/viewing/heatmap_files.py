"""Heatmaps of scored images as files: pictures over the originals, 16-bit pictures, arrays."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fcdd import heatmap
from fcdd.errors import ConfigError
from jobs.catalog import views
from jobs.results import Results
from jobs.shell import formatting, tables
from jobs.viewing import queries, rendering
from jobs.viewing.queries import MAX_COMPARED
from jobs.viewing.rendering import Heatmaps
from schemas import IDENTITY, RunRecord

Style = Literal[rendering.Style, "16-bit", "numpy"]
INDEX = "index.csv"
_COLUMNS = ", ".join((*IDENTITY, "anomaly_score", "p_value", "is_anomalous", "heatmap", "image_hash", "regions"))
_COLUMNS += ", width, height, model_digest, image_group, date"


def chosen(found: Results, names: Sequence[str], top: int, *, alarms: bool = False) -> tuple[list[dict[str, Any]], int]:
    """The rows of these images, named by their locations or by the ends of them, else the `top` most anomalous.

    With `alarms` these are the worst alarms, near-duplicates too; else of near-duplicates the worst, with `num_alike`.
    The other value is how many there are to choose from.

    Raises ConfigError for an image that was not scored, and for an end that several have.
    """
    if not names:
        asked = found if alarms else found.of_latest_bundle()
        count, several = None if alarms else max(MAX_COMPARED, top), asked.has_several_bundles
        question = queries.top(count=count, columns=_COLUMNS, alarms=alarms, in_thresholds=several)
        with views.readable():
            rows = asked.sql(*question).to_arrow_table()
        of_all = queries.with_duplicates_counted(rows, top, all_shown=alarms)
        return list(of_all.rows.to_pylist()), of_all.num_images
    by_uri = _rows_of(found, names)
    ends = {name: queries.by_its_end(found, name) for name in names if name not in by_uri and "://" not in name}
    by_uri |= _rows_of(found, list(ends.values())) if ends else {}
    uris = list(dict.fromkeys(ends.get(name, name) for name in names))
    if missing := [uri for uri in uris if uri not in by_uri]:
        raise ConfigError(
            f"{len(missing)} of {len(uris)} images were not scored in these runs, the first is {missing[0]!r}: "
            "`fcdd query history --uri` says why"
        )
    return [by_uri[uri] for uri in uris], len(uris)


def _rows_of(found: Results, uris: Sequence[str]) -> dict[str, dict[str, Any]]:
    latest = views.latest_night("image_uri")
    asked = f"SELECT {_COLUMNS} FROM scores WHERE list_contains($uris, image_uri) {latest}"
    return {row["image_uri"]: row for row in found.rows(asked, {"uris": list(uris)})}


def save(
    path: Path,
    picture: Image.Image,
    row: dict[str, Any],
    record: RunRecord,
    heatmaps: Heatmaps,
    style: Style,
    *,
    regions: bool = True,
    caption: bool = True,
) -> None:
    """One picture or array of a row; arrays and 16-bit pictures are of the original's size."""
    size = (row["width"], row["height"])
    threshold, values = record.map_threshold, heatmaps(row["heatmap"], record, size)
    if style == "16-bit" or style == "numpy":
        full = heatmap.at_size(values, *size)
        if style == "numpy":
            np.save(path, full)
        else:
            Image.fromarray(heatmap.to_16bit(full, threshold)).save(path, pnginfo=_about(row, threshold))
        return
    lines = heatmaps.contours(row["heatmap"], record, size)
    shown = rendering.evidence(picture, values, lines, threshold, style, size=size, regions=regions)
    if caption:
        alarm = "alarm" if row["is_anomalous"] else "no alarm"
        found = formatting.plural(len(row["regions"]), "region") + rendering.reduced(picture, size)
        text = f"{rendering.title(row)}\nscore {row['anomaly_score']:.4g}   p {row['p_value']:.4g}   {alarm}   {found}"
        shown = rendering.captioned(shown, text, threshold)
    shown.save(path, pnginfo=_about(row, threshold))


def write_index(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """index.csv of the pictures in a folder, those of earlier calls that are still there included."""
    drawn = {row["file"] for row in rows}
    known = [row for row in _known(folder / INDEX) if row["file"] not in drawn and (folder / row["file"]).is_file()]
    columns = {name: [row[name] for row in (*known, *rows)] for name in rows[0]}
    tables.write(pa.table(columns).to_reader(), "csv", str(folder / INDEX))


def _known(path: Path) -> list[dict[str, Any]]:
    """What an index says; nothing of a file that is none of ours."""
    found = list[dict[str, Any]]()
    with suppress(OSError, UnicodeError, csv.Error), path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            with suppress(ValueError, KeyError, TypeError):
                texts = {name: str(row[name]) for name in ("file", "image_uri")}
                found.append(texts | {name: float(row[name]) for name in ("anomaly_score", "p_value")})
    return found


def _about(row: dict[str, Any], threshold: float) -> PngInfo:
    """What the picture shows, for programs."""
    info = PngInfo()
    info.add_itxt("image_uri", row["image_uri"])
    info.add_text("anomaly_score", repr(row["anomaly_score"]))
    info.add_text("map_threshold", repr(threshold))
    return info
