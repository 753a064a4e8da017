"""`fcdd query`: the most anomalous images of committed runs, as a table and as pictures."""

import functools
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from fcdd import heatmap, images, storage
from fcdd.errors import ConfigError, ImageError
from fcdd.storage import ObjectInfo
from jobs import _console, _runs
from jobs._settings import JobSettings, Night
from schemas import IDENTITY, RunRecord

# With its identity an image is read for a picture only if it is still the one that was scored.
COLUMNS = (
    *IDENTITY,
    "anomaly_score",
    "score_max",
    "p_value",
    "is_anomalous",
    "len(regions) AS num_regions",
    "date",
    "run_id",
)

log = logging.getLogger(__name__)


class QuerySettings(JobSettings):
    """Show the most anomalous images of a night (or of all nights) of a collection.

    Reads committed runs only, with DuckDB, directly from the results location.
    """

    verb: ClassVar[str] = "query"

    results: str = Field(description="location of the results")
    collection: str = Field(description="name of the image collection")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: all nights")
    top: int = Field(10, ge=1, le=10_000, description="how many images")
    output: Literal["table", "json"] = Field("table", description="what to print")
    pictures: str | None = Field(
        None, description="local folder for pictures, original beside heatmap overlay; needs images and bundle in place"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: query(QuerySettings.parse(argv)))


def query(settings: QuerySettings) -> None:
    """Print the top images and, if asked, save their pictures."""
    folder = _picture_folder(settings.pictures) if settings.pictures else None
    records = _runs.committed(settings.results, settings.collection, settings.date)
    connection = _runs.connect(settings.results)
    _runs.view_scores(connection, settings.results, records)
    relation = connection.sql(
        f"SELECT {', '.join(COLUMNS)}, heatmap, model_digest FROM scores "
        "ORDER BY anomaly_score DESC, image_uri LIMIT ?",
        params=[settings.top],
    )
    names = relation.columns
    rows = [dict(zip(names, row, strict=True)) for row in relation.fetchall()]
    heatmaps, models = ([row.pop(name) for row in rows] for name in ("heatmap", "model_digest"))
    if settings.output == "json":
        print(json.dumps(rows, indent=1, default=str))
    else:
        _print_table(rows, settings)
    if folder:
        _save_pictures(rows, heatmaps, models, records, folder)


def _picture_folder(location: str) -> Path:
    """The folder, created. Raises ConfigError when it cannot be one."""
    if "://" in location:
        raise ConfigError(f"expected a local folder for pictures, got {location!r}")
    folder = Path(location).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the folder {folder} for pictures: {error.strerror}") from error
    return folder


def _print_table(rows: list[dict[str, Any]], settings: QuerySettings) -> None:
    night = settings.date or "all nights"
    table = Table(title=f"{settings.collection}, {night}: top {len(rows)} by anomaly score", box=box.SIMPLE_HEAD)
    for name, justify in (("rank", "right"), ("image", "left"), ("score", "right"), ("max", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for name in ("p-value", "anomalous", "regions"):
        table.add_column(name, justify="right")
    for rank, row in enumerate(rows, start=1):
        table.add_row(
            str(rank),
            _console.printable(row["image_uri"]),
            f"{row['anomaly_score']:.4g}",
            f"{row['score_max']:.4g}",
            f"{row['p_value']:.4f}",
            "yes" if row["is_anomalous"] else "no",
            str(row["num_regions"]),
        )
    # Without a terminal nothing may be cut: a URI is there to be copied.
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def _save_pictures(
    rows: list[dict[str, Any]], heatmaps: list[bytes], models: list[str], records: list[RunRecord], folder: Path
) -> None:
    """One PNG per row, named by rank and a hash of the URI, since a key is never a path."""
    # Imported late: only pictures need the bundle, and with it torch.
    from fcdd.detector import Detector

    width = max(2, len(str(len(rows))))
    by_model = {record.bundle_digest: record for record in records}
    load = functools.cache(Detector.load)
    for rank, (row, encoded, model) in enumerate(zip(rows, heatmaps, models, strict=True), start=1):
        record = by_model[model]
        detector = load(record.bundle)
        if detector.spec.digest != model:
            raise ConfigError(f"the bundle at {record.bundle} is not the one that run {record.run_id} used")
        info = ObjectInfo(*(row[name] for name in IDENTITY))
        try:
            original = images.decode_full(storage.read_checked(info))
        except ImageError as error:
            log.warning("no picture of %s: %s", _console.printable(info.uri), error)
            continue
        full = detector.heatmap(heatmap.decode(encoded))
        shown = heatmap.overlay(original, full, record.map_threshold)
        path = folder / f"{rank:0{width}d}-{hashlib.sha256(row['image_uri'].encode()).hexdigest()[:12]}.png"
        _side_by_side(original, shown).save(path)
        print(f"picture {rank:2d}  {path}")


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


if __name__ == "__main__":
    _console.leave(main())
