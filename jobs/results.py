"""Committed results from Python: tables, SQL, and images with their anomaly maps.

    from jobs import results

    night = results.open("s3://factory/results", collection="line-4", date="2026-11-24")
    night.sql("SELECT image_group, count(*) FROM scores WHERE is_anomalous GROUP BY ALL").df()
    night.dataset().to_table(columns=["image_uri", "anomaly_score"], filter=...)
    for image in night.images("is_anomalous"):
        image.image_uri, image.heatmap.max()

Of every night only the run that counts is seen, and of it only what its commit record names. Nothing is ever written.
Loads neither torch nor Ray.
"""

import datetime as dt
import functools
import importlib.util
import json
import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from fcdd import heatmap
from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import AbstractFileSystem
from fcdd.regions import Region
from jobs.catalog import allowed_sql, commit_records, part_files, read_only, views
from jobs.shell import temporary
from schemas import DELETED, DRIFT, LABELS, QUARANTINE, RUNS, SCORES, Layout, Part, RunRecord

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

TABLES = {
    "scores": SCORES,
    "quarantine": QUARANTINE,
    "deleted": DELETED,
    "drift": DRIFT,
    "labels": LABELS,
    "runs": RUNS,
}
_ROWS_AT_ONCE = 1_000
# Questions about the views themselves.
_CATALOG = r"\b(show|describe|summarize|information_schema|duckdb_\w+)\b"
_NO_ANSWER = "the question cannot be answered"


def open(
    location: str,
    *,
    collection: str | None = None,
    date: dt.date | str | None = None,
    since: dt.date | str | None = None,
    until: dt.date | str | None = None,
    filesystem: AbstractFileSystem | None = None,
) -> "Results":
    """The committed runs of a results location: of one collection, one night or a range of nights (both ends in).

    With a filesystem of fsspec everything is read through that, and the location is whatever it understands. Raises
    ConfigError when there is no such run, or the location cannot be read.
    """
    if date and (since or until):
        raise ConfigError("a date is one night, since and until are a range; give one or the other")
    first, last = (_day(date or since), _day(date or until))
    location = filesystem.unstrip_protocol(filesystem._strip_protocol(location)) if filesystem else location
    with storage.reading_through(location, filesystem):
        records = commit_records.committed(location, collection, first=first, last=last)
        return Results(storage.normalize(location), tuple(records), filesystem)


def open_run(location: str, run_id: str) -> "Results":
    """One run by its id, superseded ones too. Raises ConfigError when it is not committed."""
    return Results(storage.normalize(location), (commit_records.named(Layout(storage.normalize(location)), run_id),))


def _day(value: dt.date | str | None) -> dt.date | None:
    try:
        value = dt.date.fromisoformat(value) if isinstance(value, str) else value
        return value.date() if isinstance(value, dt.datetime) else value
    except ValueError as error:
        raise ConfigError(f"expected a date like 2026-11-24, got {value!r}") from error


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """A row of the scores table; the anomaly map is decoded on access. Units: see `schemas.SCORES`."""

    row_id: int
    image_uri: str
    image_etag: str
    image_bytes: int
    image_last_modified: dt.datetime
    image_group: str
    width: int
    height: int
    num_frames: int
    image_format: str
    image_hash: bytes
    anomaly_score: float
    score_mean: float
    score_max: float
    score_top1pct: float
    p_value: float
    is_anomalous: bool
    encoded_heatmap: bytes
    heatmap_height: int
    heatmap_width: int
    regions: tuple[Region, ...]
    brightness: float
    contrast: float
    sharpness: float
    collection: str
    date: dt.date
    run_id: str
    model_digest: str
    scored_at: dt.datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "ScoredImage":
        """From a row with all columns of the scores table."""
        regions = tuple(Region(**region) for region in row["regions"])
        others = {name: value for name, value in row.items() if name not in ("heatmap", "regions")}
        return cls(**others, encoded_heatmap=row["heatmap"], regions=regions)

    @property
    def heatmap(self) -> npt.NDArray[np.float32]:
        """The low-resolution anomaly map (U,V). Raises ValueError when its bytes are damaged."""
        return heatmap.decode(self.encoded_heatmap)


@dataclass(frozen=True, repr=False)
class Results:
    """Committed runs of one location, oldest night first: at most one per night and collection."""

    location: str
    records: tuple[RunRecord, ...]
    filesystem: AbstractFileSystem | None = None
    memory_gb: float = views.MEMORY_GB

    def __repr__(self) -> str:
        nights = ", ".join(
            f"{record.collection} {record.day}" for record in (*self.records[:1], *self.records[1:][-1:])
        )
        return f"<Results of {self.location}: {len(self.records)} runs, {nights}>"

    def paths(self, table: str = "scores") -> list[str]:
        """URIs of the Parquet files of a table, for any engine. Raises ConfigError for a table that has none."""
        return [f"{self.location}/{part.path}" for part in self.parts(table)] + self._label_files(table)

    def dataset(self, table: str = "scores") -> ds.Dataset:
        """A table as a pyarrow dataset, which reads only the columns and row groups that it needs.

        Raises FCDDError for a file that is not what was published.
        """
        schema, paths = _schema(table), self.paths(table) if table != "runs" else []
        if not paths:
            return ds.dataset(self.runs() if table == "runs" else schema.empty_table())
        self.check(table)
        scheme, _, _ = self.location.partition("://")
        if scheme == "file" and self.filesystem is None:
            return ds.dataset([path.removeprefix("file://") for path in paths], schema=schema, format="parquet")
        return ds.dataset(
            paths, schema=schema, format="parquet", filesystem=self.filesystem or storage.filesystem(scheme)
        )

    def runs(self) -> pa.Table:
        """The commit records as a table (`schemas.RUNS`)."""
        return pa.Table.from_pylist([_row(record) for record in self.records], RUNS)

    def sql(self, query: str, params: Mapping[str, Any] | None = None) -> duckdb.DuckDBPyRelation:
        """The answer to one SELECT over the views of `TABLES`; `$name` in it stands for a parameter.

        The relation becomes what you need: `.df()`, `.pl()`, `.to_arrow_table()`, `.to_arrow_reader()`, `.fetchall()`.
        Raises ConfigError for anything but one SELECT, and for one that makes no sense; what fails while rows are
        fetched is an error of DuckDB. Files other than the published ones, and the network, are out of its reach.
        """
        question = allowed_sql.select_only(query, list(TABLES))
        with views.readable(_NO_ANSWER):
            return self._database.cursor(question).sql(question, params=dict(params or {}))

    def explain(self, query: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """How a SELECT was answered: DuckDB's profile, with the files, row groups and bytes that were read."""
        question = allowed_sql.select_only(query, list(TABLES))
        with views.readable(_NO_ANSWER):
            cursor = self._database.cursor(question)
            [(_, profile)] = cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {question}", dict(params or {})).fetchall()
        return dict(json.loads(profile))

    def pandas(self, table: str = "scores", columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """A table, or some columns of it, as a pandas frame."""
        frame: pd.DataFrame = self._table(table, columns).df()
        return frame

    def polars(self, table: str = "scores", columns: Sequence[str] | None = None) -> "pl.DataFrame":
        """A table, or some columns of it, as a polars frame; needs `pip install polars`."""
        if not importlib.util.find_spec("polars"):
            raise ConfigError("polars is not installed; run: pip install polars")
        frame: pl.DataFrame = self._table(table, columns).pl()
        return frame

    def images(self, where: str = "true", params: Mapping[str, Any] | None = None) -> Iterator[ScoredImage]:
        """Scored images for which a SQL condition holds, the most anomalous first; memory is that of their rows.

        Raises ConfigError as `sql` does.
        """
        question = f"SELECT * FROM scores WHERE ({where}\n) ORDER BY anomaly_score DESC, image_uri"
        for row in self.rows(question, params):
            yield ScoredImage.of(row)

    def rows(self, query: str, params: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a SELECT as dictionaries, a thousand in memory at a time."""
        with views.readable(_NO_ANSWER):
            for batch in self.sql(query, params).to_arrow_reader(_ROWS_AT_ONCE):
                yield from batch.to_pylist()

    def only_collection(self) -> "Results":
        """Itself. Raises ConfigError when the runs are of several collections."""
        commit_records.of_one_collection(self.records)
        return self

    def of_latest_bundle(self) -> "Results":
        """The runs of the latest night's bundle: ranks across bundles mean nothing. The others are named in the log."""
        records = tuple(commit_records.of_latest_bundle(self.records))
        return self if records == self.records else replace(self, records=records)

    @property
    def has_several_bundles(self) -> bool:
        """Whether scores of the runs cannot be compared as they are."""
        return len({record.bundle_digest for record in self.records}) > 1

    def record_of(self, model_digest: str) -> RunRecord:
        """A run that was scored with this bundle."""
        for record in reversed(self.records):
            if record.bundle_digest == model_digest:
                return record
        raise ConfigError(f"a row says that it was scored with bundle {model_digest[:12]!r}, and none of the runs was")

    def _table(self, table: str, columns: Sequence[str] | None) -> duckdb.DuckDBPyRelation:
        schema = _schema(table)
        if unknown := set(columns or ()) - set(schema.names):
            raise ConfigError(f"{table} has no columns {sorted(unknown)}; it has: {', '.join(schema.names)}")
        return self.sql(f"SELECT {', '.join(columns or schema.names)} FROM {table}")

    def check(self, table: str) -> None:
        """Raises FCDDError for a file of a table that is not what was published."""
        with storage.reading_through(self.location, self.filesystem):
            part_files.check(self.location, self.parts(table))

    def interrupt(self) -> None:
        """Stop whatever is being answered, from another thread; the answer ends with KeyboardInterrupt."""
        if database := vars(self).get("_database"):
            database.interrupt()

    def parts(self, table: str) -> list[Part]:
        """The published files of a table as the commit records name them. Raises ConfigError as `paths`."""
        parts = {
            "scores": lambda record: record.scores,
            "quarantine": lambda record: record.quarantine,
            "deleted": lambda record: record.deleted,
            "drift": lambda record: (record.drift.part,) if record.drift.part else (),
        }.get(table, lambda record: ())
        if table == "runs":
            raise ConfigError("the table runs is made of the commit records, which are JSON; ask for `runs()`")
        _schema(table)
        return list({part.path: part for record in self.records for part in parts(record)}.values())

    def _label_files(self, table: str) -> list[str]:
        if table != "labels":
            return []
        places = [Layout(self.location).labels(name) for name in sorted({r.collection for r in self.records})]
        with storage.reading_through(self.location, self.filesystem):
            return [place for place in places if storage.exists(place)]

    @functools.cached_property
    def _database(self) -> "_Database":
        return _Database(self)


class _Database:
    """A database with nothing within reach but the files of some results: no other file, no extension, no variable.

    A view is made when a question names it, so that a damaged file is in the way of those only that need it.
    """

    def __init__(self, of: Results) -> None:
        # Removed with these results, or at the end of the process: DuckDB's own would lie in the current folder.
        self._spill = temporary.ScratchFolder("query")
        self._connection, self._made = views.connect(of.location, of.filesystem), threading.Lock()
        self._of, self._cursors = of, weakref.WeakSet[duckdb.DuckDBPyConnection]()
        names = [name for name in TABLES if name != "runs"]
        self._paths = {name: [read_only.path(path) for path in of.paths(name)] for name in names}
        self._missing = set(self._paths)
        views.table(self._connection, "runs", of.runs())
        allowed = [path for paths in self._paths.values() for path in paths]
        views.lock(self._connection, allowed, self._spill.name, of.memory_gb)

    def cursor(self, query: str) -> duckdb.DuckDBPyConnection:
        """A cursor of its own for one question: several may be read at the same time."""
        with self._made:
            named = [name for name in self._missing if re.search(rf"\b{name}\b|{_CATALOG}", query, re.IGNORECASE)]
            for name in named:
                self._of.check(name)
                views.view(self._connection, name, self._paths[name], TABLES[name])
                self._missing.remove(name)
            cursor = self._connection.cursor()
            self._cursors.add(cursor)
        return cursor

    def interrupt(self) -> None:
        """Stop whatever is being answered."""
        for cursor in list(self._cursors):
            cursor.interrupt()


def _schema(table: str) -> pa.Schema:
    if table not in TABLES:
        raise ConfigError(f"there is no table {table!r}; there are: {', '.join(TABLES)}")
    return TABLES[table]


def _row(record: RunRecord) -> dict[str, Any]:
    renamed = {
        "date": record.day,
        "model_digest": record.bundle_digest,
        "drift_verdict": record.drift.in_words,
        "drift_reasons": list(record.drift.reasons),
        "quarantine_reasons": list(record.quarantine_reasons.items()),
        "stage_seconds": list(record.stage_seconds.items()),
    }
    return {name: renamed[name] if name in renamed else getattr(record, name) for name in RUNS.names}
