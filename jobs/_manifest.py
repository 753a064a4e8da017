"""The manifest of a run: one row per image, in Parquet parts that are sealed while the listing goes on.

    locations -> pages (one thread each) -> sealed parts -> ... -> plan.json, which completes the manifest

A sealed part is final: what is in it has its row ids, and may be scored. Stores list by name, so a page that goes on
where the last one ended needs no memory of what came before. Whatever comes in another order (files of a disk,
explicit lists, pages out of turn) is spooled to this machine's disk and sorted there by DuckDB, with bounded memory.
An interrupted listing goes on behind its last sealed part.
"""

import hashlib
import io
import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from fcdd import storage
from fcdd.errors import FCDDError
from fcdd.storage import ObjectInfo
from jobs import _listing, _runs
from jobs._listing import Selection
from schemas import MANIFEST, Layout, RunRecord, conform
from schemas.runs import Intent, ManifestPart, Plan

# The first parts are small, so that scoring can begin; the later ones are few.
FIRST_PARTS, FIRST_ROWS, PART_ROWS = 4, 8_192, 65_536
_SPOOL_ROWS = 100_000
# What sorting may take of this machine's memory; the rest goes to its disk.
SORT_MEMORY = "400MB"

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """Where the images of a run come from: locations to list, or one explicit list."""

    prefixes: list[str]
    list_uri: str | None
    selection: Selection
    since_last: bool

    def places(self) -> tuple[str, ...]:
        """What is listed: the explicit list, or the locations."""
        return (self.list_uri,) if self.list_uri else tuple(self.prefixes)


class Progress(NamedTuple):
    """What of the manifest is sealed, and whether that is all."""

    parts: tuple[ManifestPart, ...]
    complete: bool


class Listing:
    """Lists in the background; what is sealed can be read meanwhile. Use it as a context: leaving stops it."""

    def __init__(self, layout: Layout, intent: Intent, source: Source) -> None:
        self._layout, self._intent, self._source = layout, intent, source
        self._sealed = _Sealed(layout, intent.run_id)
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._plan: Plan | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="listing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def wait(self, known: int = 0, patience_s: float = 0.0) -> Progress:
        """What is sealed, as soon as that is more than `known` parts, or all. Raises what the listing raised.

        With patience, a listing that is nearly done is waited for: one round of work is better than two.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._sealed.parts) > known or self._plan or self._error)
            self._changed.wait_for(lambda: self._plan or self._error, timeout=patience_s)
            if self._error:
                raise self._error
            return Progress(tuple(self._sealed.parts), self._plan is not None)

    def plan(self) -> Plan:
        """The complete manifest; waits for it."""
        while True:
            progress = self.wait(known=1 << 62)
            if progress.complete and self._plan:
                return self._plan

    def _work(self) -> None:
        plan, failure = None, None
        try:
            plan = self._list()
        except BaseException as error:  # raised again in the thread that waits
            failure = error
        with self._changed:
            self._plan, self._error = plan, failure
            self._changed.notify_all()

    def _list(self) -> Plan:
        if plan := read_plan(self._layout, self._intent.run_id):
            self._sealed.parts = list(plan.parts)
            return plan
        last = self._sealed.resume()
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fcdd-listing-"))
            spool = stack.enter_context(Spool(Path(folder)))
            tally = _Tally()
            streamed = [] if self._sorts_first() else self._source.prefixes
            workers = [
                threading.Thread(target=self._stream, args=(index, prefix, last.get(index), spool, tally), daemon=True)
                for index, prefix in enumerate(streamed)
            ]
            for worker in workers:
                worker.start()
            if self._sorts_first():
                spool_all(self._source, spool, tally, self._stopped)
            for worker in workers:
                worker.join()
            if tally.error:
                raise tally.error
            deleted = self._sort(spool, tally)
            return self._complete(tally, deleted)

    def _sorts_first(self) -> bool:
        """Whether nothing can be sealed before everything is listed."""
        source = self._source
        return source.since_last or source.list_uri is not None or not all(map(storage.lists_in_order, source.prefixes))

    def _stream(self, index: int, prefix: str, last: str | None, spool: "Spool", tally: "_Tally") -> None:
        """Seal what comes in order; spool what does not."""
        try:
            rows: list[ObjectInfo] = []
            newest = last or ""
            for page in storage.pages(prefix, after=last):
                if self._stopped.is_set():
                    raise KeyboardInterrupt
                with tally.lock:
                    chosen = _listing.selected(prefix, page, self._source.selection, tally.skipped)
                late = []
                for info in chosen:
                    if info.uri > newest:
                        newest = info.uri
                        rows.append(info)
                    else:
                        late.append(info)
                spool.add(late)
                while len(rows) >= (size := self._sealed.next_size()):
                    self._seal(rows[:size], index)
                    rows = rows[size:]
            if rows:
                self._seal(rows, index)
        except BaseException as error:  # raised again by the thread that started this one
            tally.error = error

    def _seal(self, rows: list[ObjectInfo], source: int) -> None:
        self._sealed.add(rows, source)
        with self._changed:
            self._changed.notify_all()

    def _sort(self, spool: "Spool", tally: "_Tally") -> int:
        """Seal what was spooled: sorted, once each, without what is sealed or (incremental) was scored before."""
        if not spool.rows and not self._source.since_last:
            return 0
        with spool.database(self._layout.results) as database:
            database.view_sealed(self._layout, self._intent.run_id, len(self._sealed.parts))
            before = self._records() if self._source.since_last else []
            database.view_scored(self._layout.results, before, self._intent.bundle_digest)
            uri, batch, kept = None, [], 0
            for rows in database.images():
                for info in rows:
                    if info.uri == uri:
                        tally.duplicates += 1
                        continue
                    uri = info.uri
                    batch.append(info)
                    kept += 1
                while len(batch) >= (size := self._sealed.next_size()):
                    self._seal(batch[:size], -1)
                    batch = batch[size:]
            if batch:
                self._seal(batch, -1)
            if not self._source.since_last:
                tally.duplicates = spool.rows - kept  # also those that the sealed parts have
                return 0
            if self._source.list_uri:
                return 0
            return database.write_deleted(self._layout, self._intent, before, self._source.prefixes)

    def _records(self) -> list[RunRecord]:
        return _runs.records(self._layout, self._intent.collection)

    def _complete(self, tally: "_Tally", deleted: int) -> Plan:
        sealed = self._sealed
        rows = sum(part.rows for part in sealed.parts)
        if not rows and not self._source.since_last:
            raise _listing.nothing_found(self._source.places(), tally.skipped, self._source.selection)
        plan = Plan(
            intent=self._intent,
            num_images=rows,
            num_rows=rows,
            num_bytes=sealed.bytes,
            num_duplicates=tally.duplicates,
            num_deleted=deleted,
            skipped=dict(tally.skipped),
            manifest_digest=sealed.sha.hexdigest(),
            parts=tuple(sealed.parts),
        )
        create_plan(self._layout, plan)
        log.info(
            "listed %d images (%.1f GB) for run %s; skipped %s",
            rows,
            sealed.bytes / 1e9,
            self._intent.run_id,
            _listing.described(plan.skipped),
        )
        return plan


class _Tally:
    """What the threads of a listing count together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.skipped: Counter[str] = Counter()
        self.duplicates = 0
        self.error: BaseException | None = None


class _Sealed:
    """The parts that are written; row ids are given here, so that they are dense whichever thread comes first."""

    def __init__(self, layout: Layout, run_id: str) -> None:
        self._layout, self._run_id = layout, run_id
        self._lock = threading.Lock()
        self.parts: list[ManifestPart] = []
        self.bytes = 0
        self.sha = hashlib.sha256()

    def next_size(self) -> int:
        """Rows of the next part."""
        return FIRST_ROWS if len(self.parts) < FIRST_PARTS else PART_ROWS

    def resume(self) -> dict[int, str]:
        """Take up what an interrupted listing sealed; the last image of each of its locations."""
        last: dict[int, str] = {}
        while True:
            try:
                table = read_part(self._layout, self._run_id, len(self.parts))
            except FileNotFoundError:
                return last
            source = int(table.schema.metadata[b"source"])
            infos = rows_of(table)
            last[source] = infos[-1].uri
            self._count(infos, source)

    def add(self, rows: list[ObjectInfo], source: int) -> None:
        """Seal a part."""
        with self._lock:
            start = self.parts[-1].start + self.parts[-1].rows if self.parts else 0
            data = part_bytes(rows, range(start, start + len(rows)), source)
            try:
                storage.create(self._layout.manifest_part(self._run_id, len(self.parts)), data)
            except FileExistsError as error:
                raise FCDDError(f"another process lists for run {self._run_id}; run the same command again") from error
            self._count(rows, source)

    def _count(self, rows: list[ObjectInfo], source: int) -> None:
        start = self.parts[-1].start + self.parts[-1].rows if self.parts else 0
        for info in rows:
            self.sha.update(_listing.digested(info.uri, info.etag, info.size))
            self.bytes += max(0, info.size)
        self.parts.append(ManifestPart(start=start, rows=len(rows), source=source, last_uri=rows[-1].uri))


_SPOOLED = pa.schema([*(MANIFEST.field(name) for name in MANIFEST.names[1:]), pa.field("chosen", pa.bool_())])


class Spool:
    """Listed images on this machine's disk, in any order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def add(self, infos: Iterable[ObjectInfo], *, chosen: bool = True) -> None:
        """Keep some images; those that are not `chosen` only say that they are there."""
        infos = list(infos)
        if not infos:
            return
        columns = [*(list(column) for column in zip(*infos, strict=True)), [chosen] * len(infos)]
        table = pa.Table.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, _SPOOLED, strict=True)], schema=_SPOOLED
        )
        with self._lock:
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._folder / "spool.parquet", _SPOOLED, compression="zstd")
            self._writer.write_table(table)
            self.rows += len(infos)

    def database(self, results: str) -> "_Database":
        """The spool as a table to query; nothing can be added any more."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._folder / "spool.parquet", _SPOOLED)
        self._writer.close()
        self._writer = None
        return _Database(_runs.connect(results), self._folder)


class _Database:
    """The questions about a spool, asked with bounded memory."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self._connection = connection
        for option, value in (
            ("memory_limit", SORT_MEMORY),
            ("temp_directory", str(folder / "sort")),
            ("preserve_insertion_order", False),
            ("threads", 2),
            ("TimeZone", "UTC"),
        ):
            connection.execute(f"SET {option} = $value", {"value": value})
        connection.read_parquet(str(folder / "spool.parquet")).create_view("spool")
        self.view_nothing("sealed")
        self.view_nothing("scored")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def view_nothing(self, name: str) -> None:
        """No sealed or no scored images."""
        self._connection.execute(f"CREATE OR REPLACE VIEW {name} AS SELECT '' image_uri, '' image_etag WHERE false")

    def view_sealed(self, layout: Layout, run_id: str, count: int) -> None:
        """Images that are in the manifest already."""
        uris = [layout.manifest_part(run_id, index).removeprefix("file://") for index in range(count)]
        if uris:
            self._connection.execute("DROP VIEW sealed")
            self._connection.read_parquet(uris).create_view("sealed")

    def view_scored(self, results: str, records: list[RunRecord], digest: str) -> None:
        """Images that committed runs have a row of, by the bundle with this digest."""
        runs = [record for record in records if record.bundle_digest == digest]
        uris = _runs.part_paths(results, [part for record in runs for part in (*record.scores, *record.quarantine)])
        if uris:
            self._connection.execute("DROP VIEW scored")
            self._connection.read_parquet(uris, union_by_name=True).create_view("scored")

    def images(self) -> Iterator[list[ObjectInfo]]:
        """What is left to do, sorted by name; a name that was listed twice comes twice."""
        question = f"SELECT {', '.join(_SPOOLED.names[:-1])} FROM spool {_LEFT} ORDER BY image_uri"
        for batch in self._connection.sql(question).to_arrow_reader(_SPOOL_ROWS):
            yield [ObjectInfo(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]

    def survey(self) -> "Found":
        """Count what is spooled."""
        row = self._connection.execute(
            "WITH listed AS (SELECT DISTINCT ON (image_uri) * FROM spool WHERE chosen) "
            "SELECT count(*), coalesce(sum(greatest(image_bytes, 0)), 0), "
            "count(*) FILTER ((image_uri, image_etag) IN (SELECT image_uri, image_etag FROM scored)) FROM listed"
        ).fetchone()
        assert row is not None
        return Found(*map(int, row))

    def write_deleted(self, layout: Layout, intent: Intent, records: list[RunRecord], prefixes: list[str]) -> int:
        """Stage the images below `prefixes` that runs have rows of and the listing has not; returns their number."""
        rows = _runs.part_paths(layout.results, [p for r in records for p in (*r.scores, *r.quarantine)])
        gone = _runs.part_paths(layout.results, [part for record in records for part in record.deleted])
        if not rows:
            return 0
        self._connection.read_parquet(rows, union_by_name=True).create_view("known")
        if gone:
            self._connection.read_parquet(gone).create_view("gone")
        else:
            self._connection.execute("CREATE VIEW gone AS SELECT '' image_uri, now() scored_at WHERE false")
        below = " OR ".join(f"starts_with(image_uri, $p{index})" for index in range(len(prefixes)))
        table = self._connection.sql(
            "SELECT image_uri, arg_max(image_etag, scored_at) image_etag, arg_max(run_id, scored_at) last_run_id "
            f"FROM known WHERE ({below}) AND image_uri NOT IN (SELECT image_uri FROM spool) GROUP BY image_uri "
            "HAVING max(scored_at) > coalesce((SELECT max(scored_at) FROM gone WHERE gone.image_uri = "
            "known.image_uri), TIMESTAMPTZ '1970-01-01') ORDER BY image_uri",
            params={f"p{index}": f"{prefix}/" for index, prefix in enumerate(prefixes)},
        ).to_arrow_table()
        if table.num_rows:
            sink = io.BytesIO()
            pq.write_table(table, sink)
            storage.write(layout.deleted(intent.run_id), sink.getvalue())
        return int(table.num_rows)


_LEFT = (
    "WHERE chosen AND image_uri NOT IN (SELECT image_uri FROM sealed) "
    "AND (image_uri, image_etag) NOT IN (SELECT image_uri, image_etag FROM scored)"
)


def spool_all(source: Source, spool: Spool, tally: "_Tally", stopped: threading.Event) -> None:
    """Everything that is listed, each location by a thread of its own."""

    def spool_pages(prefix: str, pages: Iterable[list[ObjectInfo]]) -> None:
        try:
            for page in pages:
                if stopped.is_set():
                    raise KeyboardInterrupt
                with tally.lock:
                    chosen = _listing.selected(prefix, page, source.selection, tally.skipped)
                spool.add(chosen)
                if source.since_last and len(chosen) < len(page):
                    spool.add(set(page).difference(chosen), chosen=False)
        except BaseException as error:  # raised again below
            tally.error = error

    if source.list_uri:
        base = source.prefixes[0] if source.prefixes else None
        work = [(base or "", _listing.entries(source.list_uri, base))]
    else:
        work = [(prefix, storage.pages(prefix)) for prefix in source.prefixes]
    threads = [threading.Thread(target=spool_pages, args=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if tally.error:
        raise tally.error


class Found(NamedTuple):
    """What a listing found: images, their bytes, and how many of them are scored."""

    images: int
    bytes: int
    scored: int


def survey(layout: Layout, source: Source, records: list[RunRecord], digest: str) -> Found:
    """List, write nothing, and count; scored is what a committed run has scored with the bundle of this digest.

    Raises ConfigError when nothing is found.
    """
    with tempfile.TemporaryDirectory(prefix="fcdd-listing-") as folder, Spool(Path(folder)) as spool:
        tally = _Tally()
        spool_all(source, spool, tally, threading.Event())
        with spool.database(layout.results) as database:
            database.view_scored(layout.results, records, digest)
            found = database.survey()
    if not found.images:
        raise _listing.nothing_found(source.places(), tally.skipped, source.selection)
    return found


def read_plan(layout: Layout, run_id: str) -> Plan | None:
    """The complete manifest's record, None while there is none."""
    try:
        return Plan.model_validate_json(storage.read(layout.plan(run_id)))
    except FileNotFoundError:
        return None


def create_plan(layout: Layout, plan: Plan) -> None:
    """Complete the manifest. Raises FCDDError when another process did."""
    try:
        storage.create(layout.plan(plan.intent.run_id), plan.model_dump_json(indent=1).encode())
    except FileExistsError as error:
        raise FCDDError(f"another process planned run {plan.intent.run_id}; run the same command again") from error


def read_intent(layout: Layout, run_id: str) -> Intent | None:
    """What a run is to do; None when its staging does not say."""
    try:
        return Intent.model_validate_json(storage.read(layout.intent(run_id)))
    except (FileNotFoundError, ValidationError):
        return None


def fix_intent(layout: Layout, intent: Intent) -> Intent:
    """What the run is to do: what an interrupted attempt at it said, else `intent`."""
    try:
        storage.create(layout.intent(intent.run_id), intent.model_dump_json(indent=1).encode())
    except FileExistsError:
        intent = Intent.model_validate_json(storage.read(layout.intent(intent.run_id)))
        log.info("going on with run %s, which was started at %s", intent.run_id, intent.started_at)
    return intent


def read_part(layout: Layout, run_id: str, index: int) -> pa.Table:
    """MANIFEST rows of one part. Raises FileNotFoundError."""
    return pq.read_table(pa.BufferReader(storage.read(layout.manifest_part(run_id, index))))


def rows_of(table: pa.Table) -> list[ObjectInfo]:
    """MANIFEST rows as listed objects."""
    return [ObjectInfo(*row) for row in zip(*(column.to_pylist() for column in table.columns[1:]), strict=True)]


def part_bytes(rows: list[ObjectInfo], row_ids: Iterable[int], source: int) -> bytes:
    """A part of the manifest as a Parquet file."""
    table = pa.Table.from_arrays(
        [
            pa.array(column, field.type)
            for column, field in zip((list(row_ids), *zip(*rows, strict=True)), MANIFEST, strict=True)
        ],
        schema=MANIFEST,
    )
    table = conform(table, MANIFEST).replace_schema_metadata({**MANIFEST.metadata, b"source": str(source).encode()})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    return sink.getvalue()
