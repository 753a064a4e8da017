"""Listed images on this machine's disk, in any order, and the questions about them: what is new, what is gone.

DuckDB sorts and joins with bounded memory, however many there are.
"""

import io
import threading
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from fcdd.errors import TRANSIENT_REASONS
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import commit_records, read_only, views
from schemas import IDENTITY, MANIFEST, Layout, RunRecord
from schemas.runs import Intent

# Rows that are written, or fetched, at once.
_BATCH_ROWS = 50_000
# What sorting may take of this machine's memory; the rest goes to its disk.
SORT_MEMORY = "400MB"
# Quarantined while it was listed or fetched for what is no fault of the image: an incremental run tries it again.
WORTH_ANOTHER_NIGHT = ("vanished", "changed", *TRANSIENT_REASONS)

_UNREADABLE = "what was published or listed before cannot be read"
_SPOOLED = pa.schema([*(MANIFEST.field(name) for name in IDENTITY), pa.field("chosen", pa.bool_())])


# What an empty view selects, so that questions can be asked of it.
_NO_IMAGE = "'' image_uri"
_NO_ROW = (
    "'' image_uri, '' image_etag, -1 row_id, 0 image_bytes, today() date, '' run_id, '' model_digest, '' stage, "
    "'' reason, now() scored_at"
)


class Found(NamedTuple):
    """What a listing found: images, their bytes, and how many of them are scored."""

    images: int
    bytes: int
    scored: int


class Spool:
    """Takes images in any order, from several threads; `database` asks about them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file = folder / "spool.parquet"
        self._writer = pq.ParquetWriter(self._file, _SPOOLED, compression="zstd")
        self._waiting: list[tuple[object, ...]] = []
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, infos: Iterable[ObjectInfo], *, chosen: bool = True) -> None:
        """Keep some images; of those that are not `chosen` only that they exist."""
        with self._lock:
            before = len(self._waiting)
            self._waiting += [(*info, chosen) for info in infos]
            self.rows += len(self._waiting) - before
            if len(self._waiting) >= _BATCH_ROWS:
                self._write()

    def _write(self) -> None:
        if self._waiting:
            columns = zip(*self._waiting, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SPOOLED, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=_SPOOLED))
            self._waiting = []

    def database(self, results: str) -> "Database":
        """The spool as a table; nothing can be added any more."""
        with self._lock:
            self._write()
            self._writer.close()
        return Database(views.connect(results), self._folder, self._file)


class Database:
    """Queries over a spool, with bounded memory.

    Views: `spool` what was listed, `sealed` what is in the manifest, `known` the rows of runs, `gone` what they found
    deleted. Raises ConfigError when a published part cannot be read.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path, file: Path) -> None:
        self._connection = connection
        for option, value in (
            ("memory_limit", SORT_MEMORY),
            ("temp_directory", str(folder / "sort")),
            ("preserve_insertion_order", False),
            ("threads", 2),
            ("TimeZone", "UTC"),
        ):
            connection.execute(f"SET {option} = $value", {"value": value})
        self._view("spool", [str(file)], "")
        self._view("sealed", [], _NO_IMAGE)
        self._view("known", [], _NO_ROW)
        self._view("gone", [], _NO_ROW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def use_sealed(self, layout: Layout, run_id: str, count: int) -> None:
        """The first `count` parts of the manifest."""
        uris = [read_only.path(layout.manifest_part(run_id, index)) for index in range(count)]
        self._view("sealed", uris, _NO_IMAGE)

    def use_history(self, results: str, history: list[RunRecord]) -> None:
        """The rows that readers see of these runs, and what any of them found deleted: that stays true when a run is
        superseded.
        """
        seen = commit_records.current(history)
        rows = views.part_paths(results, [part for record in seen for part in (*record.scores, *record.quarantine)])
        self._view("known", rows, _NO_ROW)
        if "reason" not in self._connection.table("known").columns:  # not one image was ever quarantined
            question = "CREATE OR REPLACE VIEW known AS SELECT *, NULL stage, NULL reason FROM known_parts"
            self._connection.execute(question)
        deleted = views.part_paths(results, [part for record in history for part in record.deleted])
        self._view("gone", deleted, _NO_ROW)

    def _view(self, name: str, paths: list[str], nothing: str) -> None:
        with views.readable(_UNREADABLE):
            if paths:
                self._connection.read_parquet(paths, union_by_name=True).create_view(f"{name}_parts", replace=True)
                self._connection.execute(f"CREATE OR REPLACE VIEW {name} AS FROM {name}_parts")
            else:
                self._connection.execute(f"CREATE OR REPLACE VIEW {name} AS SELECT {nothing} WHERE false")

    def to_do(self, digest: str | None, night: date) -> Iterator[list[tuple[ObjectInfo, int | None]]]:
        """Chosen images that are neither sealed nor scored by this bundle (None: by any), sorted.

        With the row id of each that the night has already, as another file. Listed twice, they come twice. Those that
        the night's own run could not read are none: its rows are kept.
        """
        question = (
            "WITH before AS (SELECT image_uri, max(row_id) row_id FROM known WHERE date = $night GROUP BY image_uri) "
            f"SELECT {', '.join(_SPOOLED.names[:-1])}, before.row_id FROM spool LEFT JOIN before USING (image_uri) "
            "WHERE chosen AND image_uri NOT IN (SELECT image_uri FROM sealed) AND (image_uri, image_etag) NOT IN "
            f"({_SCORED}) ORDER BY image_uri"
        )
        with views.readable(_UNREADABLE):
            reader = self._connection.sql(question, params=_scored_by(digest, night)).to_arrow_reader(_BATCH_ROWS)
            for batch in reader:
                *columns, ids = (column.to_pylist() for column in batch.columns)
                yield [(ObjectInfo(*row), row_id) for row, row_id in zip(zip(*columns, strict=True), ids, strict=True)]

    def num_under_other_names(self, digest: str | None, night: date) -> int:
        """How many images to do have the file name and the size of an image of the night that is not listed."""
        question = (
            f"WITH own AS (FROM known WHERE date = $night), lost AS (SELECT {_NAME} name, image_bytes FROM own WHERE "
            "image_uri NOT IN (SELECT image_uri FROM spool)) SELECT count(DISTINCT image_uri) FROM spool WHERE chosen "
            f"AND ({_NAME}, image_bytes) IN (SELECT name, image_bytes FROM lost) AND image_uri NOT IN (SELECT "
            f"image_uri FROM own) AND (image_uri, image_etag) NOT IN ({_SCORED})"
        )
        with views.readable(_UNREADABLE):
            [(count,)] = self._connection.execute(question, _scored_by(digest, night)).fetchall()
        return int(count)

    def num_scored_before(self, digest: str | None, night: date) -> int:
        """How many chosen images runs of other nights have scored with this bundle (None: with any)."""
        question = (
            f"SELECT count(DISTINCT image_uri) FROM spool WHERE chosen AND (image_uri, image_etag) IN ({_SCORED} AND "
            "known.date != $night)"
        )
        with views.readable(_UNREADABLE):
            [(count,)] = self._connection.execute(question, _scored_by(digest, night)).fetchall()
        return int(count)

    def survey(self, digest: str | None, night: date) -> Found:
        """Count chosen images, and those that are scored by this bundle (None: by any)."""
        question = (
            "WITH listed AS (SELECT DISTINCT ON (image_uri) * FROM spool WHERE chosen) "
            "SELECT count(*), coalesce(sum(greatest(image_bytes, 0)), 0), "
            f"count(*) FILTER ((image_uri, image_etag) IN ({_SCORED})) FROM listed"
        )
        with views.readable(_UNREADABLE):
            row = self._connection.execute(question, _scored_by(digest, night)).fetchone()
        assert row is not None
        return Found(*map(int, row))

    def write_deleted(self, layout: Layout, intent: Intent, prefixes: list[str]) -> int:
        """Stage the known images below `prefixes` that were not listed and are not known as gone; their number.

        Nobody knows of those in a folder that could not be opened.
        """
        if not prefixes:
            return 0
        below = " OR ".join(f"starts_with(image_uri, $p{index})" for index in range(len(prefixes)))
        question = (
            "WITH closed AS (SELECT image_uri folder FROM spool WHERE image_etag = '' AND ends_with(image_uri, '/')), "
            "dead AS (SELECT image_uri, max(scored_at) since FROM gone GROUP BY image_uri), "
            "lost AS (SELECT image_uri, arg_max(image_etag, scored_at) image_etag, arg_max(run_id, scored_at) "
            f"last_run_id, max(scored_at) last_seen FROM known WHERE ({below}) AND image_uri NOT IN (SELECT image_uri "
            "FROM spool) AND NOT EXISTS (SELECT 1 FROM closed WHERE starts_with(known.image_uri || '/', folder)) "
            "GROUP BY image_uri) SELECT image_uri, image_etag, last_run_id FROM lost LEFT JOIN dead USING "
            "(image_uri) WHERE since IS NULL OR last_seen > since ORDER BY image_uri"
        )
        values = {f"p{index}": f"{prefix}/" for index, prefix in enumerate(prefixes)}
        with views.readable(_UNREADABLE):
            table = self._connection.sql(question, params=values).to_arrow_table()
        if table.num_rows:
            sink = io.BytesIO()
            pq.write_table(table, sink)
            storage.write(layout.deleted(intent.run_id), sink.getvalue())
        return int(table.num_rows)


# The file of an image.
_NAME = "regexp_extract(image_uri, '[^/]*$')"
# Rows of the bundle that count as done: not those that another night may mend, nor of images that went and came back. A
# night keeps its own rows, so an image that it could not read would be in it twice: that is `fcdd retry-quarantine`'s.
_SCORED = (
    "SELECT image_uri, image_etag FROM known WHERE model_digest = coalesce($digest, model_digest) AND (reason IS NULL "
    "OR known.date = $night OR NOT (stage IN ('list', 'fetch') AND list_contains($again, reason))) AND NOT EXISTS "
    "(SELECT 1 FROM gone WHERE gone.image_uri = known.image_uri AND gone.scored_at > known.scored_at)"
)


def _scored_by(digest: str | None, night: date) -> dict[str, object]:
    return {"digest": digest, "again": list(WORTH_ANOTHER_NIGHT), "night": night}
