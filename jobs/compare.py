"""`fcdd compare RUN_A RUN_B`: what another bundle changes, on the images that both runs scored.

Scores of two bundles have different scales, so images are compared by their ranks, the most anomalous first.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import duckdb
import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from fcdd import heatmap
from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.catalog import commit_records, views
from jobs.shell import formatting, process
from jobs.shell.settings import JobSettings
from jobs.sources.locations import Locations
from jobs.viewing import rendering
from schemas import IDENTITY, Layout, RunRecord


class CompareSettings(JobSettings):
    """Compare two committed runs on the same images: superseded ones too, as `fcdd runs` lists them."""

    verb: ClassVar[str] = "compare"

    run_a: CliPositionalArg[str] = Field(description="id of one run")
    run_b: CliPositionalArg[str] = Field(description="id of the other run")
    results: str = Field(description="location of the results")
    top: int = Field(10, ge=1, le=1000, description="how many images that moved most")
    output: Literal["table", "json"] = Field("table", description="what to print")
    images: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    pictures: str | None = Field(
        None, description="local folder for pictures of what moved most (else of flips): original, heatmap of each run"
    )


class Comparison(NamedTuple):
    """What both runs say of the images they have in common. Costs are by run."""

    run_a: str
    run_b: str
    num_common: int
    num_only_a: int
    num_only_b: int
    num_changed: int
    rank_correlation: float
    alarms_both: int
    alarms_only_a: int
    alarms_only_b: int
    flips: list[dict[str, Any]]
    movers: list[dict[str, Any]]
    costs: list[dict[str, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: show(CompareSettings.parse(argv)))


def show(settings: CompareSettings) -> None:
    """Print the comparison; save pictures if asked."""
    layout = Layout(storage.normalize(settings.results))
    a, b = (commit_records.named(layout, run_id) for run_id in (settings.run_a, settings.run_b))
    locations = Locations.of(layout.results, (a, b), settings.images)
    if settings.pictures:
        rendering.check_apart(settings.pictures, locations)
    folder = rendering.folder(settings.pictures) if settings.pictures else None
    found = compare(settings, a, b)
    maps = {
        id(row): (row.pop("heatmap_a"), row.pop("heatmap_b")) for rows in (found.flips, found.movers) for row in rows
    }
    if settings.output == "json":
        print(json.dumps(formatting.plain(found), indent=1, default=str))
    else:
        _print(found, a, b)
    if folder:
        heatmaps, out = rendering.Heatmaps(), sys.stderr if settings.output == "json" else sys.stdout
        drawn = found.movers or found.flips  # another calibration moves nothing, and flips alarms
        for rank, row in enumerate(drawn, start=1):
            if picture := rendering.original_or_warn(row, locations):
                both = zip(maps[id(row)], (a, b), strict=True)
                shown = [heatmap.overlay(picture, heatmaps(each, run), run.map_threshold) for each, run in both]
                path = folder / rendering.file_name(rank, len(drawn), row["image_uri"])
                rendering.side_by_side([picture, *shown]).save(path)
                print(f"picture {rank:2d}  {path}", file=out)


@views.readable()
def compare(settings: CompareSettings, a: RunRecord, b: RunRecord) -> Comparison:
    """Join on name and ETag, and measure. Raises ConfigError when the runs have fewer than two images in common."""
    connection = views.connect(settings.results)
    for name, record in (("a", a), ("b", b)):
        views.scores(connection, settings.results, [record], name)
    columns = ", ".join(f"{t}.{c} AS {c}_{t}" for t in "ab" for c in ("anomaly_score", "p_value", "is_anomalous"))
    ranks = ", ".join(f"rank() OVER (ORDER BY {t}.anomaly_score DESC) AS rank_{t}" for t in "ab")
    identity = ", ".join(f"a.{name}" for name in IDENTITY)
    connection.sql(
        f"SELECT {identity}, {columns}, {ranks}, a.heatmap AS heatmap_a, b.heatmap AS heatmap_b "
        "FROM a JOIN b USING (image_uri, image_etag)"
    ).create_view("common")
    scores = connection.sql("SELECT anomaly_score_a, anomaly_score_b FROM common").fetchnumpy()
    first, second = (np.asarray(scores[name]) for name in ("anomaly_score_a", "anomaly_score_b"))
    if len(first) < 2:
        raise ConfigError(
            f"runs {a.run_id} and {b.run_id} have {len(first)} images in common; compare runs of the same images "
            "(`fcdd score --rescore` with another bundle)"
        )
    return Comparison(
        run_a=a.run_id,
        run_b=b.run_id,
        num_common=len(first),
        num_only_a=_count(connection, "FROM a ANTI JOIN b USING (image_uri)"),
        num_only_b=_count(connection, "FROM b ANTI JOIN a USING (image_uri)"),
        num_changed=_count(connection, "FROM a JOIN b USING (image_uri) WHERE a.image_etag != b.image_etag"),
        rank_correlation=float(stats.spearmanr(first, second).statistic),
        alarms_both=_count(connection, "FROM common WHERE is_anomalous_a AND is_anomalous_b"),
        alarms_only_a=_count(connection, "FROM common WHERE is_anomalous_a AND NOT is_anomalous_b"),
        alarms_only_b=_count(connection, "FROM common WHERE is_anomalous_b AND NOT is_anomalous_a"),
        flips=_rows(connection, "WHERE is_anomalous_a != is_anomalous_b ORDER BY least(rank_a, rank_b)", settings.top),
        # By the ratio of ranks: from place 500 to place 1 is a long way, from 6,000 to 5,000 is none.
        movers=_rows(connection, "WHERE rank_a != rank_b ORDER BY abs(ln(rank_a / rank_b)) DESC", settings.top),
        costs=[_cost(record) for record in (a, b)],
    )


def _count(connection: duckdb.DuckDBPyConnection, what: str) -> int:
    return int(connection.sql(f"SELECT count(*) {what}").fetchall()[0][0])


def _rows(connection: duckdb.DuckDBPyConnection, which: str, top: int) -> list[dict[str, Any]]:
    relation = connection.sql(f"SELECT * FROM common {which}, image_uri LIMIT {top}")
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def _cost(record: RunRecord) -> dict[str, float]:
    """What a run took, per image where that makes sense."""
    images = max(1, record.num_scored)
    seconds = {
        name.removeprefix("workers_"): 1e3 * value / images
        for name, value in record.stage_seconds.items()
        if name.startswith("workers_")
    }
    return {
        "images_per_second": record.images_per_second,
        **{f"{name}_ms": round(value, 3) for name, value in seconds.items()},
        "bytes_per_image": sum(part.bytes for part in record.scores) / images,
    }


def _print(found: Comparison, a: RunRecord, b: RunRecord) -> None:
    for name, record, cost in (("A", a, found.costs[0]), ("B", b, found.costs[1])):
        spent = ", ".join(f"{key.removesuffix('_ms')} {value:.3g} ms" for key, value in cost.items() if "_ms" in key)
        print(f"run {name}   {record.run_id}  ({record.collection}, {record.day}; bundle {record.bundle_digest[:12]})")
        print(
            f"        {cost['images_per_second']:.1f} images/s; each image: {spent}; "
            f"{cost['bytes_per_image']:.0f} bytes written"
        )
    others = f"{found.num_only_a} only in A, {found.num_only_b} only in B, {found.num_changed} changed between them"
    print(f"images  {found.num_common} in common; {others}")
    print(f"ranks   Spearman correlation {found.rank_correlation:.4f}")
    print(f"alarms  {found.alarms_both} in both, {found.alarms_only_a} only in A, {found.alarms_only_b} only in B")
    _print_rows(f"alarms that flip, the most anomalous {len(found.flips)}", found.flips)
    _print_rows(f"the {len(found.movers)} that moved most", found.movers)


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("image", overflow="fold")
    for name in ("place in A", "place in B", "p in A", "p in B", "alarm"):
        table.add_column(name, justify="right")
    for row in rows:
        alarm = {(True, True): "both", (True, False): "A", (False, True): "B"}.get(
            (row["is_anomalous_a"], row["is_anomalous_b"]), ""
        )
        values = (str(row["rank_a"]), str(row["rank_b"]), f"{row['p_value_a']:.4f}", f"{row['p_value_b']:.4f}", alarm)
        table.add_row(formatting.printable(row["image_uri"]), *values)
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


if __name__ == "__main__":
    process.leave(main())
