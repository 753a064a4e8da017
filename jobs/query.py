"""`fcdd query`: the most anomalous images of committed runs, as a table and as pictures.

Near-duplicates (the same part photographed thirty times) are one line, with how many they are.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import duckdb
import pyarrow as pa
from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from fcdd import duplicates, heatmap
from fcdd.errors import ConfigError
from jobs import _console, _pictures, _runs
from jobs._settings import JobSettings, Night
from schemas import IDENTITY, RunRecord

# With its identity an image is read for a picture only if it is still the one that was scored.
COLUMNS = (
    *IDENTITY,
    "anomaly_score",
    "score_max",
    "image_group",
    "p_value",
    "is_anomalous",
    "len(regions) AS num_regions",
    "date",
    "run_id",
)
_HIDDEN = ("heatmap", "model_digest", "image_hash")
# Of so many images, the most anomalous first, near-duplicates are found.
MAX_COMPARED = 2_000


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
    alarms: bool = Field(False, description="only images that are anomalous")
    alpha: float | None = Field(None, gt=0, lt=1, description="only images with a p-value of at most this")
    discoveries: bool = Field(False, description="only images on their run's list at its false-discovery rate")
    group: str | None = Field(None, description="only images of this camera or folder")
    duplicates: bool = Field(False, description="show near-duplicates too, not only the worst of each")
    output: Literal["table", "json"] = Field("table", description="what to print")
    pictures: str | None = Field(
        None, description="local folder for pictures, original beside heatmap overlay; needs images and bundle in place"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: query(QuerySettings.parse(argv)))


def query(settings: QuerySettings) -> None:
    """Print the top images and, if asked, save their pictures."""
    folder = _pictures.folder(settings.pictures) if settings.pictures else None
    records = _runs.committed(settings.results, settings.collection, settings.date)
    rows, more = _found(settings, records)
    if settings.output == "json":
        shown = [{name: value for name, value in row.items() if name not in _HIDDEN} for row in rows]
        print(json.dumps(shown, indent=1, default=str))
    else:
        _print_table(rows, settings)
    if more:
        limit = max(MAX_COMPARED, settings.top)
        log.warning("near-duplicates were looked for among the %d most anomalous of %d images", limit, more)
    if folder:
        _save_pictures(settings, rows, records, folder)


def _found(settings: QuerySettings, records: list[RunRecord]) -> tuple[list[dict[str, Any]], int]:
    """The rows to show; and how many match, if that is more than are looked at for near-duplicates."""
    connection = _runs.connect(settings.results)
    _runs.view_scores(connection, settings.results, records)
    # By the night: rows that a run took over from another one have the other one's id.
    lists = pa.table(
        {"date": [r.day for r in records], "fdr_p_value": [r.fdr_p_value for r in records]},
        pa.schema([("date", pa.date32()), ("fdr_p_value", pa.float64())]),
    )
    connection.register("lists", lists)
    if settings.group is not None:
        _check_group(connection, settings.group)
    conditions = ["is_anomalous"] * settings.alarms + ["p_value <= fdr_p_value"] * settings.discoveries
    conditions += ["p_value <= $alpha"] * (settings.alpha is not None)
    conditions += ["image_group = $group"] * (settings.group is not None)
    given = {"alpha": settings.alpha, "group": settings.group}
    matching = connection.sql(
        f"SELECT {', '.join(COLUMNS)}, {', '.join(_HIDDEN)} FROM scores JOIN lists USING (date) "
        f"WHERE {' AND '.join(conditions) or 'true'}",
        params={name: value for name, value in given.items() if value is not None},
    )
    limit = settings.top if settings.duplicates else max(MAX_COMPARED, settings.top)
    relation = matching.order("anomaly_score DESC, image_uri").limit(limit)
    rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    if settings.duplicates:
        return rows, 0
    more = matching.count("*").fetchall()[0][0] if len(rows) == limit else 0
    return _without_duplicates(rows)[: settings.top], more if more > limit else 0


def _check_group(connection: duckdb.DuckDBPyConnection, group: str) -> None:
    known = [row[0] for row in connection.sql("SELECT DISTINCT image_group FROM scores ORDER BY 1 LIMIT 30").fetchall()]
    if connection.execute("SELECT count(*) FROM scores WHERE image_group = ?", [group]).fetchall()[0][0] == 0:
        there = ", ".join(repr(each) for each in known)
        raise ConfigError(f"there is no image of the group {group!r}; there are: {there or 'no images'}")


def _without_duplicates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst row of each group of near-duplicates, with `num_alike`, the size of the group."""
    maps = [heatmap.decode(row["heatmap"]) for row in rows]
    first = duplicates.group([row["image_hash"] for row in rows], maps)
    sizes = Counter(first.tolist())
    return [row | {"num_alike": sizes[index]} for index, row in enumerate(rows) if first[index] == index]


def _print_table(rows: list[dict[str, Any]], settings: QuerySettings) -> None:
    night = settings.date or "all nights"
    table = Table(title=f"{settings.collection}, {night}: top {len(rows)} by anomaly score", box=box.SIMPLE_HEAD)
    for name, justify in (("rank", "right"), ("image", "left"), ("score", "right"), ("max", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    names = ("p-value", "anomalous", "regions") if settings.duplicates else ("p-value", "anomalous", "regions", "alike")
    for name in names:
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
            *([] if settings.duplicates else [str(row["num_alike"])]),
        )
    # Without a terminal nothing may be cut: a URI is there to be copied.
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def _save_pictures(settings: QuerySettings, rows: list[dict[str, Any]], records: list[RunRecord], folder: Path) -> None:
    """One PNG per row, original beside heatmap overlay."""
    overlay, out = _pictures.Overlays(), sys.stderr if settings.output == "json" else sys.stdout
    by_model = {record.bundle_digest: record for record in records}
    for rank, row in enumerate(rows, start=1):
        if picture := _pictures.original(row):
            shown = overlay(picture, row["heatmap"], by_model[row["model_digest"]])
            path = folder / _pictures.file_name(rank, len(rows), row["image_uri"])
            _pictures.side_by_side([picture, shown]).save(path)
            print(f"picture {rank:2d}  {path}", file=out)


if __name__ == "__main__":
    _console.leave(main())
