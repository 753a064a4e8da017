"""The ready questions about results, as SQL over the views of `jobs.results`, and the answer about near-duplicates."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fcdd import duplicates, heatmap
from fcdd.errors import ConfigError
from jobs.catalog import views
from jobs.results import Results

log = logging.getLogger(__name__)

# Of so many images, the most anomalous first, near-duplicates are found.
MAX_COMPARED = 2_000
# Where all images are shown, near-duplicates are found among so many of each night.
_COMPARED_AT_MOST = 10_000
TOP_COLUMNS = (
    "image_uri, anomaly_score, score_max, p_value, is_anomalous, len(regions) AS num_regions, image_group, date, run_id"
)


class Question(NamedTuple):
    """One SELECT and the values in it."""

    sql: str
    params: dict[str, Any]


def top(
    *,
    count: int | None,
    columns: str = TOP_COLUMNS,
    alarms: bool = False,
    alpha: float | None = None,
    discoveries: bool = False,
    group: str | None = None,
    in_thresholds: bool = False,
) -> Question:
    """The most anomalous images among those that a person wants to see; all of them without a count.

    Scores of several bundles are compared `in_thresholds` of their runs.
    """
    conditions = ["is_anomalous"] * alarms
    conditions += ["p_value <= $alpha"] * (alpha is not None) + ["image_group = $group"] * (group is not None)
    # By the night: rows that a run took over from another one have the other one's id.
    needs_runs = discoveries or in_thresholds
    lists = (
        "JOIN (SELECT collection, date, fdr_p_value, threshold FROM runs) USING (collection, date)"
        if needs_runs
        else ""
    )
    score = "anomaly_score / nullif(threshold, 0)" if in_thresholds else "anomaly_score"
    conditions += ["p_value <= fdr_p_value"] * discoveries
    given = {"alpha": alpha, "group": group}
    return Question(
        f"SELECT {columns} FROM scores {lists} WHERE {' AND '.join(conditions) or 'true'} "
        f"ORDER BY {score} DESC, image_uri{'' if count is None else f' LIMIT {count}'}",
        {name: value for name, value in given.items() if value is not None},
    )


def alike(rows: pa.Table) -> npt.NDArray[np.int64]:
    """For each row the index of the first that it is a near-duplicate of.

    Images of different nights are none of each other, and beyond `_COMPARED_AT_MOST` none is looked for. Needs
    `image_hash`, `heatmap` and `date`.
    """
    maps, hashes = [heatmap.decode(each) for each in rows["heatmap"].to_pylist()], rows["image_hash"].to_pylist()
    nights, first = np.array(rows["date"].to_pylist(), dtype=object), np.arange(rows.num_rows)
    for night in dict.fromkeys(nights):
        own = np.flatnonzero(nights == night)[:_COMPARED_AT_MOST]  # the time grows with the square of their number
        first[own] = own[duplicates.group([hashes[i] for i in own], [maps[i] for i in own])]
    return first


class Top(NamedTuple):
    """Rows, with `num_alike`, how many look like each, itself included; how many groups and images there are."""

    rows: pa.Table
    num_groups: int
    num_images: int


def with_duplicates_counted(rows: pa.Table, count: int | None, *, all_shown: bool) -> Top:
    """The first `count` rows that are near-duplicates of none before them, or, if all are shown, of all rows.

    Without a count it is no limit.

    Alarms are all shown: two products with a defect at the same place may look alike, and both are bad.
    """
    leaders, which, sizes = np.unique(alike(rows), return_inverse=True, return_counts=True)
    chosen = np.arange(rows.num_rows) if all_shown else leaders
    alike_each = pa.array(sizes[which][chosen][:count], pa.int64())
    return Top(rows.take(chosen[:count]).append_column("num_alike", alike_each), len(leaders), rows.num_rows)


def history(uris: Sequence[str], *, located: bool = False) -> Question:
    """One image, night by night: its scores, or why it had none, or that it was gone.

    It has several locations where every night has a folder of its own; `located`: they are shown.
    """
    params = {f"uri{number}": uri for number, uri in enumerate(uris)}
    where = f"WHERE image_uri IN ({', '.join(f'${name}' for name in params)})"
    rest = "image_etag, collection" + ", image_uri" * located
    return Question(
        f"SELECT date, run_id, 'scored' AS state, anomaly_score, p_value, is_anomalous, '' AS reason, {rest} "
        f"FROM scores {where} "
        f"UNION ALL SELECT date, run_id, 'quarantined', NULL, NULL, NULL, reason || ': ' || detail, {rest} "
        f"FROM quarantine {where} "
        f"UNION ALL SELECT date, run_id, 'deleted', NULL, NULL, NULL, '', {rest} FROM deleted {where} "
        "ORDER BY collection, date, state DESC",
        params,
    )


def alarms(by: str, group: str | None = None) -> Question:
    """Images, alarms and unreadable images per night and camera, folder or collection."""
    what = {"group": "image_group", "folder": "regexp_extract(image_uri, '^(.*)/', 1, 's')"}
    named = f', {what[by]} AS "{by}"' if by in what else ""
    shown = f', "{by}"' if by in what else ""
    counted = "count(*) AS scored, count_if(is_anomalous) AS alarms, 0 AS quarantined"
    where, params = _of(group)
    return Question(
        f"SELECT date, collection{shown}, sum(scored)::BIGINT AS scored, sum(alarms)::BIGINT AS alarms, "
        "round(sum(alarms) / nullif(sum(scored), 0), 5) AS share, sum(quarantined)::BIGINT AS quarantined FROM ("
        f"SELECT date, collection{named}, {counted} FROM scores {where} GROUP BY ALL UNION ALL "
        f"SELECT date, collection{named}, 0, 0, count(*) FROM quarantine {where} GROUP BY ALL"
        ") GROUP BY ALL ORDER BY ALL",
        params,
    )


def quarantine(group: str | None = None) -> Question:
    """Why images were not scored: how many, with an example of each reason."""
    where, params = _of(group)
    return Question(
        "SELECT date, collection, stage, reason, count(*) AS images, min(image_uri) AS example, "
        f"arg_min(detail, image_uri) AS detail FROM quarantine {where} GROUP BY ALL "
        "ORDER BY date, collection, images DESC",
        params,
    )


def _of(group: str | None) -> tuple[str, dict[str, Any]]:
    return ("", {}) if group is None else ("WHERE image_group = $group", {"group": group})


def changes(results: Results) -> Question:
    """What is different in the last of the nights, of the images that the one before had too."""
    if len({record.collection for record in results.records}) > 1:
        raise ConfigError("changes are those of one collection; add --collection")
    if len(results.records) < 2:
        raise ConfigError("there is one night, so nothing can have changed; choose nights with --since and --until")
    before, now = results.records[-2].day, results.records[-1].day
    state = (
        "SELECT image_uri, any_value(state) AS state, max(score) AS score FROM ("
        "SELECT image_uri, if(is_anomalous, 'alarm', 'no alarm') AS state, anomaly_score AS score FROM scores "
        "WHERE date = {night} UNION ALL SELECT image_uri, 'quarantined', NULL FROM quarantine WHERE date = {night} "
        "UNION ALL SELECT image_uri, 'deleted', NULL FROM deleted WHERE date = {night}) GROUP BY image_uri"
    )
    return Question(
        f"WITH a AS ({state.format(night='$before')}), b AS ({state.format(night='$now')}) "
        "SELECT image_uri, a.state AS before, b.state AS now, a.score AS score_before, b.score AS score_now "
        "FROM a JOIN b USING (image_uri) WHERE a.state != b.state "
        "ORDER BY b.state, greatest(coalesce(a.score, 0), coalesce(b.score, 0)) DESC, image_uri",
        {"before": before, "now": now},
    )


def num_common(results: Results) -> int:
    """How many images the last two nights both account for."""
    nights = {"before": results.records[-2].day, "now": results.records[-1].day}
    images = (
        "(SELECT image_uri FROM scores WHERE date = {0} UNION ALL SELECT image_uri FROM quarantine WHERE date = {0})"
    )
    question = f"SELECT count(*) FROM {images.format('$before')} SEMI JOIN {images.format('$now')} b USING (image_uri)"
    return int(results.sql(question, nights).fetchall()[0][0])


def run_totals(results: Results) -> pa.Table:
    """The last two nights side by side."""
    names = ["date", "run_id", "num_listed", "num_scored", "num_anomalous", "num_quarantined", "drift_verdict"]
    return results.runs().select(names).slice(max(0, len(results.records) - 2))


def most_anomalous(found: Results, question: Question, count: int | None, *, all_shown: bool) -> Top:
    """`with_duplicates_counted` of the answer; a warning where not all could be compared.

    `question` is `top` with `image_hash` and `heatmap` among its columns, of all images if all are shown, else of
    max(MAX_COMPARED, count).
    """
    with views.readable():
        rows = found.sql(*question).to_arrow_table()
    if count is not None and not all_shown and rows.num_rows == max(MAX_COMPARED, count):
        log.warning("near-duplicates were looked for among the %d most anomalous images", rows.num_rows)
    found_rows = with_duplicates_counted(rows, count, all_shown=all_shown)
    return found_rows._replace(rows=found_rows.rows.drop_columns(["image_hash", "heatmap"]))


def check_group(found: Results, group: str) -> None:
    """Raises ConfigError when no image is of that group."""
    groups = "SELECT image_group FROM scores UNION SELECT image_group FROM quarantine ORDER BY 1"
    known = [name for (name,) in found.sql(groups).fetchall()]
    if group not in known:
        there = ", ".join(map(repr, known[:30])) + (", ..." if len(known) > 30 else "")
        raise ConfigError(f"there is no image of the group {group!r}; there are: {there or 'no images'}")


def history_of_known(found: Results, image: str) -> Question:
    """`history` of an image, named by its location or by the end of it.

    Where every night has a folder of its own, the end may name an image of each. Raises ConfigError when it names
    several of one night, or none.
    """
    question = history([image])
    if found.sql(*question).fetchall():
        return question
    matching = _ending(found, image)
    nights = [night for _, nights in matching for night in nights if night is not None]
    if len(set(nights)) < len(nights):
        raise _several(image, [uri for uri, _ in matching])
    if len(matching) > 1:
        log.warning("%d images of different folders end in %r; they may show different objects", len(matching), image)
    return history([uri for uri, _ in matching], located=True)


def by_its_end(found: Results, end: str) -> str:
    """The one image whose location ends in these path parts. Raises ConfigError unless it is one."""
    uris = [uri for uri, _ in _ending(found, end)]
    if len(uris) > 1:
        raise _several(end, uris)
    return uris[0]


def _ending(found: Results, end: str) -> list[tuple[str, list[str | None]]]:
    """Images whose locations end in these path parts, with the nights that have them: not those that found them gone.

    Raises ConfigError when there is none.
    """
    tables = " UNION ".join(
        f"SELECT image_uri, {night} AS night FROM {table}"
        for table, night in (
            ("scores", "collection || ' ' || date"),
            ("quarantine", "collection || ' ' || date"),
            ("deleted", "NULL"),
        )
    )
    matching = (
        f"SELECT image_uri, list(night) FROM ({tables}) WHERE ends_with(image_uri, '/' || $end) "
        "GROUP BY image_uri ORDER BY 1"
    )
    rows = found.sql(matching, {"end": end.removeprefix("./")}).fetchall()
    if not rows:
        raise ConfigError(
            f"these runs know no image {end!r}; an image is named by its location, or the end of it, as `fcdd query` "
            "shows it"
        )
    return [(str(uri), nights) for uri, nights in rows]


def _several(end: str, uris: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{len(uris)} images end in {end!r}, among them {uris[0]} and {uris[1]}; name more of one, or its night by "
        "--date"
    )
