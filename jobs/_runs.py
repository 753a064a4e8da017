"""Committed runs as DuckDB relations; what is not named by a commit record is never read."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import duckdb

from fcdd import storage
from fcdd.errors import ConfigError
from jobs import _records
from schemas import SCORES, Layout, Part, RunRecord

_READS_IN_FLIGHT = 16

log = logging.getLogger(__name__)


def records(layout: Layout, collection: str | None = None) -> list[RunRecord]:
    """All commit records (of a collection), oldest first, superseded ones too."""
    prefix = f"{layout.runs()}/"
    uris = [info.uri for page in storage.pages(layout.runs()) for info in page if _is_record(info.uri, prefix)]
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        found = list(pool.map(_records.parse, uris))
    return sorted(
        (record for record in found if collection in (None, record.collection)),
        key=lambda record: (record.committed_at, record.run_id),
    )


def _is_record(uri: str, prefix: str) -> bool:
    """Beside a record lies a folder of what belongs to it."""
    return uri.endswith(".json") and "/" not in uri.removeprefix(prefix)


def committed(results: str, collection: str, day: date | None = None) -> list[RunRecord]:
    """Commit records of a collection, of one night if `day` is given, one per night, oldest night first.

    A night that was scored more than once counts with its latest run; the others are named in the log. Raises
    ConfigError when there is none.
    """
    layout = Layout(storage.normalize(results))
    everything = records(layout)
    matching = [r for r in everything if r.collection == collection and day in (None, r.day)]
    if not matching:
        known = sorted({f"{r.collection} {r.day}" for r in everything})
        night = f" on {day}" if day else ""
        raise ConfigError(
            f"no committed run of {collection!r}{night} under {layout.results}; "
            + (f"there are: {', '.join(known)}" if known else "score a collection with `fcdd score` first")
        )
    latest = current(matching)
    for record in matching:
        if record not in latest:
            log.info("left out run %s of %s: the night was scored again later", record.run_id, record.day)
    return latest


def current(records: list[RunRecord]) -> list[RunRecord]:
    """Of every night of every collection the run that counts, oldest night first.

    That is the one whose place no other took; if several are left, since clocks differ or two were begun at the same
    time, the one that was committed last.
    """
    superseded = {record.supersedes for record in records}
    standing = sorted(
        (record for record in records if record.run_id not in superseded),
        key=lambda record: (record.committed_at, record.run_id),
    )
    nights = {(record.collection, record.day): record for record in standing}
    return [nights[night] for night in sorted(nights)]


def connect(results: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection that reads the results location with the environment's credentials.

    DuckDB's own httpfs is an extension it downloads; obstore needs no network but the store's.
    """
    connection = duckdb.connect()
    scheme, _, _ = storage.normalize(results).partition("://")
    if scheme in storage.CLOUD_SCHEMES:
        connection.register_filesystem(storage.filesystem(scheme))
    return connection


def staged(layout: Layout) -> list[str]:
    """Ids of all runs that have staging."""
    prefix = f"{layout.all_staging()}/"
    names = (info.uri.removeprefix(prefix).split("/", 1)[0] for p in storage.pages(layout.all_staging()) for info in p)
    return sorted(set(names))


def part_paths(results: str, parts: Iterable[Part]) -> list[str]:
    """Published parts as DuckDB reads them, each once."""
    root = storage.normalize(results).removeprefix("file://")
    return list(dict.fromkeys(f"{root}/{part.path}" for part in parts))


def view_scores(
    connection: duckdb.DuckDBPyConnection, results: str, records: list[RunRecord], name: str = "scores"
) -> None:
    """Make the published scores of the runs readable as a view, which may be empty."""
    paths = part_paths(results, (part for record in records for part in record.scores))
    if paths:
        try:
            # Runs of an older schema version lack columns that came later.
            connection.read_parquet(paths, union_by_name=True).create_view(name)
        except duckdb.Error as error:
            raise ConfigError(f"a published part under {results} is missing or damaged: {error}") from error
    else:
        connection.register(name, SCORES.empty_table())
