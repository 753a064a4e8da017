"""Committed runs as DuckDB relations; what is not named by a commit record is never read."""

import logging
from datetime import date

import duckdb

from fcdd import storage
from fcdd.errors import ConfigError
from jobs import _records
from schemas import SCORES, Layout, RunRecord

log = logging.getLogger(__name__)


def committed(results: str, collection: str, day: date | None = None) -> list[RunRecord]:
    """Commit records of a collection, of one night if `day` is given, one per night, oldest night first.

    A night that was scored more than once (by another bundle, say) counts with its latest run; the others are
    named in the log. Raises ConfigError when there is none.
    """
    layout = Layout(storage.normalize(results))
    uris = [info.uri for page in storage.pages(layout.runs()) for info in page if info.uri.endswith(".json")]
    records = [_records.parse(uri) for uri in uris]
    matching = [r for r in records if r.plan.collection == collection and day in (None, r.plan.day)]
    if not matching:
        known = sorted({f"{r.plan.collection} {r.plan.day}" for r in records})
        night = f" on {day}" if day else ""
        raise ConfigError(
            f"no committed run of {collection!r}{night} under {layout.results}; "
            + (f"there are: {', '.join(known)}" if known else "score a collection with `fcdd score` first")
        )
    latest = {record.plan.day: record for record in sorted(matching, key=lambda record: record.committed_at)}
    for record in matching:
        if latest[record.plan.day] is not record:
            log.info("left out run %s of %s: the night was scored again later", record.plan.run_id, record.plan.day)
    return [latest[night] for night in sorted(latest)]


def connect(results: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection that reads the results location with the environment's credentials.

    DuckDB's own httpfs is an extension it downloads; obstore needs no network but the store's.
    """
    connection = duckdb.connect()
    scheme, _, _ = storage.normalize(results).partition("://")
    if scheme in storage.CLOUD_SCHEMES:
        connection.register_filesystem(storage.filesystem(scheme))
    return connection


def view_scores(connection: duckdb.DuckDBPyConnection, results: str, records: list[RunRecord]) -> None:
    """Make the published scores of the runs readable as the view `scores`, which may be empty."""
    root = storage.normalize(results).removeprefix("file://")
    paths = [f"{root}/{part.path}" for record in records for part in record.scores]
    if paths:
        try:
            connection.read_parquet(paths).create_view("scores")
        except duckdb.IOException as error:
            raise ConfigError(f"a published part under {root} is missing or damaged: {error}") from error
    else:
        connection.register("scores", SCORES.empty_table())
