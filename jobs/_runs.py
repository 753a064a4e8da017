"""Committed runs as DuckDB relations; what is not named by a commit record is never read."""

import logging
from datetime import date

import duckdb

from fcdd import storage
from fcdd.errors import ConfigError
from schemas import Layout, Part, RunRecord

log = logging.getLogger(__name__)


def committed(results: str, collection: str, day: date | None = None) -> list[RunRecord]:
    """Commit records of a collection, of one night if `day` is given, oldest first.

    Raises ConfigError when there is none.
    """
    layout = Layout(storage.normalize(results))
    infos = [info for page in storage.pages(layout.runs()) for info in page]
    records = [RunRecord.model_validate_json(storage.read(info.uri)) for info in infos]
    matching = [r for r in records if r.plan.collection == collection and day in (None, r.plan.day)]
    if not matching:
        known = sorted({f"{r.plan.collection} {r.plan.day}" for r in records})
        night = f" on {day}" if day else ""
        raise ConfigError(
            f"no committed run of {collection!r}{night} under {layout.results}; "
            + (f"there are: {', '.join(known)}" if known else "score a collection with `fcdd score` first")
        )
    return sorted(matching, key=lambda record: record.committed_at)


def connect(results: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection that reads the results location with the environment's credentials.

    DuckDB's own httpfs is an extension it downloads; obstore needs no network but the store's.
    """
    connection = duckdb.connect()
    scheme, _, _ = storage.normalize(results).partition("://")
    if scheme in storage.CLOUD_SCHEMES:
        connection.register_filesystem(storage.filesystem(scheme))
    return connection


def view(connection: duckdb.DuckDBPyConnection, name: str, results: str, parts: list[Part]) -> None:
    """Make the published parts readable as view `name`; an empty list gives no view."""
    if parts:
        root = storage.normalize(results).removeprefix("file://")
        connection.read_parquet([f"{root}/{part.path}" for part in parts]).create_view(name)
