"""Two runs on the images that both scored.

Scores of two bundles have different scales, so images are compared by their ranks, the most anomalous first.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from fcdd import heatmap
from fcdd.errors import ConfigError
from jobs.catalog import views
from jobs.shell import formatting
from jobs.viewing import rendering
from schemas import IDENTITY, RunRecord


class Comparison(NamedTuple):
    """The scores of two runs for the images they have in common. Costs are by run."""

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


@views.readable()
def compare(results: str, a: RunRecord, b: RunRecord, top: int) -> Comparison:
    """Join on name and ETag, and measure. Raises ConfigError when the runs have fewer than two images in common."""
    connection = views.connect(results)
    for name, record in (("a", a), ("b", b)):
        views.scores(connection, results, [record], name)
    columns = ", ".join(f"{t}.{c} AS {c}_{t}" for t in "ab" for c in ("anomaly_score", "p_value", "is_anomalous"))
    ranks = ", ".join(f"rank() OVER (ORDER BY {t}.anomaly_score DESC) AS rank_{t}" for t in "ab")
    identity = ", ".join(f"a.{name}" for name in IDENTITY)
    connection.sql(
        f"SELECT {identity}, a.image_group, {columns}, {ranks}, a.width, a.height, a.heatmap AS heatmap_a, "
        "b.heatmap AS heatmap_b "
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
        flips=_rows(connection, "WHERE is_anomalous_a != is_anomalous_b ORDER BY least(rank_a, rank_b)", top),
        # By the ratio of ranks: from place 500 to place 1 is a long way, from 6,000 to 5,000 is none.
        movers=_rows(connection, "WHERE rank_a != rank_b ORDER BY abs(ln(rank_a / rank_b)) DESC", top),
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


def picture(
    original: Image.Image, row: dict[str, Any], runs: Sequence[tuple[str, RunRecord, npt.NDArray[np.float32]]]
) -> Image.Image:
    """An image, and over it the heatmap of each run ("a" or "b", its record, the heatmap), each with a title."""
    name = formatting.printable(" / ".join(filter(None, (row["image_group"], row["image_uri"].rpartition("/")[2]))))
    shown = [rendering.titled(original, name)]
    for letter, record, values in runs:
        alarm = "alarm" if row[f"is_anomalous_{letter}"] else "no alarm"
        text = (
            f"{letter.upper()}, {record.day}: place {row[f'rank_{letter}']}, "
            f"score {row[f'anomaly_score_{letter}']:.4g}, p {row[f'p_value_{letter}']:.4g}, {alarm}; "
            f"red at {record.map_threshold:.3g}"
        )
        shown.append(rendering.titled(heatmap.overlay(original, values, record.map_threshold), text))
    return rendering.side_by_side(shown)


def print_comparison(found: Comparison, a: RunRecord, b: RunRecord) -> None:
    """Print the comparison as text and tables."""
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
