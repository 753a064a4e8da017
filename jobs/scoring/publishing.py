"""The commit protocol: prove, compact, place, and write the record last.

    staged parts -> ranges of the manifest, each row exactly once -> a few sorted parts, put once under names with
    their content hash -> decisions over them -> runs/<run_id>.json by a conditional put -> staging removed

Whatever dies before the record leaves a run that no reader sees and that the same command finishes.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcdd.calibration import Calibration
from fcdd.errors import FCDDError
from fcdd.io import storage
from jobs.catalog import commit_records, intents, manifest_parts, part_files, staging
from jobs.catalog.staging import Coverage, Staged
from jobs.scoring import decisions, kept_rows
from jobs.scoring.decisions import Map
from jobs.scoring.kept_rows import Tables
from jobs.shell.errors import TooManyBadImages
from schemas import DELETED, Layout, Part, RunRecord, conform
from schemas.runs import DecodedOnGpu, Intent, ManifestPart, Plan

# Manifest rows of one published part, fewer where maps are large: of 28x28 cells about 110 MB.
PART_ROWS, PART_MAP_BYTES = 200_000, 256 * 1024**2
_READS_IN_FLIGHT = 16

log = logging.getLogger(__name__)


class IncompleteRun(FCDDError):
    """Manifest rows without a staged row: the pipeline lost them, or is not finished."""


class Range(NamedTuple):
    """Positions [start, stop) of the manifest: what becomes one published part of each table."""

    results: str
    intent: Intent
    number: int
    start: int
    stop: int
    manifest: tuple[tuple[int, ManifestPart], ...]
    staged: tuple[Staged, ...]


class Published(NamedTuple):
    """What came of a range. `row_ids` are those of the two parts, as they were published."""

    scores: Part | None
    quarantine: Part | None
    row_ids: npt.NDArray[np.int64]
    anomalous: int
    duplicates: int
    reasons: Counter[str]


class Night(Protocol):
    """The night that a run is about to be committed for."""

    def check(self) -> None:
        """Raises when another process has taken over, or another run was committed meanwhile."""

    def commit_time(self) -> datetime:
        """The time of the commit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What only the attempt that commits a run knows of it, for the record."""

    images_per_second: float
    # Seconds of the stages until the rows were staged.
    stage_seconds: Mapping[str, float]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    # Of the bundle, for those who look at the images.
    full_scale: float | None = None
    gpu_decoding: DecodedOnGpu | None = None


def commit(
    layout: Layout, plan: Plan, fitted: Calibration, *, before: RunRecord | None, run: Map, night: Night, facts: Facts
) -> RunRecord:
    """Publish a staged run, and make it exist for readers.

    `before` is the run whose rows are kept, in part if its quarantine was tried again; `run` maps a function over
    ranges, here or on a cluster. Raises IncompleteRun unless every manifest row is published exactly once; staging is
    kept then.
    """
    began = time.perf_counter()
    tables = _publish_tables(layout, plan, before, run)
    published = time.perf_counter()
    decided = decisions.decide(layout, plan.intent, fitted, tables.scores, run)
    seconds = {"publish": published - began, "decide": time.perf_counter() - published}
    night.check()
    record = _record(plan, tables, decided, facts, seconds, night.commit_time())
    return _create(layout, record)


def _publish_tables(layout: Layout, plan: Plan, before: RunRecord | None, run: Map) -> Tables:
    """Publish every range of the manifest and prove that all rows are there once. Raises IncompleteRun."""
    intent = plan.intent
    tables = kept_rows.kept(layout, before, plan)
    for published in run(publish, ranges(layout, plan)):
        if twice := tables.proof.add(published.row_ids):
            raise IncompleteRun(f"{twice} rows of run {intent.run_id} came twice; this is a bug, nothing was committed")
        tables.scores += [published.scores] if published.scores else []
        tables.quarantine += [published.quarantine] if published.quarantine else []
        tables.anomalous += published.anomalous
        tables.duplicates += published.duplicates
        tables.reasons += published.reasons
    if missing := plan.num_images - tables.proof.count():
        raise IncompleteRun(f"{missing} of {plan.num_images} images of run {intent.run_id} were not published")
    tables.deleted += _publish_deleted(layout, intent) if plan.num_deleted else []
    return tables


def _record(
    plan: Plan,
    tables: Tables,
    decided: Mapping[str, Any],
    facts: Facts,
    seconds: Mapping[str, float],
    committed_at: datetime,
) -> RunRecord:
    """The commit record. Raises IncompleteRun when its counts do not add up."""
    intent = plan.intent
    record = RunRecord(
        run_id=intent.run_id,
        collection=intent.collection,
        day=intent.day,
        images=intent.images,
        selection=intent.selection,
        bundle=intent.bundle,
        bundle_digest=intent.bundle_digest,
        supersedes=intent.supersedes,
        started_at=intent.started_at,
        committed_at=committed_at,
        num_listed=plan.num_images,
        num_scored=sum(part.rows for part in tables.scores),
        num_quarantined=sum(part.rows for part in tables.quarantine),
        num_anomalous=tables.anomalous,
        num_deleted=sum(part.rows for part in tables.deleted),
        num_listed_twice=plan.num_duplicates,
        num_duplicates_dropped=tables.duplicates,
        num_bytes=plan.num_bytes + tables.kept_bytes,
        skipped=plan.skipped,
        quarantine_reasons=dict(tables.reasons),
        manifest_digest=plan.manifest_digest,
        scores=tuple(tables.scores),
        quarantine=tuple(tables.quarantine),
        deleted=tuple(tables.deleted),
        images_per_second=facts.images_per_second,
        stage_seconds={name: round(value, 3) for name, value in {**facts.stage_seconds, **seconds}.items()},
        settings=dict(facts.settings),
        versions=dict(facts.versions),
        full_scale=facts.full_scale,
        gpu_decoding=facts.gpu_decoding,
        **decided,
    )
    if record.num_scored + record.num_quarantined != record.num_listed:
        raise IncompleteRun(f"{record.num_listed} listed, but {record.num_scored} + {record.num_quarantined} published")
    return record


def _create(layout: Layout, record: RunRecord) -> RunRecord:
    """Create the record and remove the staging; the record that stands, if another process was first."""
    try:
        commit_records.write(layout, record)
    except FileExistsError:
        log.warning("run %s was committed by another process meanwhile; its record stands", record.run_id)
        record = commit_records.parse(layout.record(record.run_id))
    clean_up(layout, record.run_id)
    return record


def clean_up(layout: Layout, run_id: str) -> None:
    """Remove the staging of a committed run. What cannot be removed is no reason to call the run failed."""
    try:
        intents.remove_staging(layout, run_id)
    except (FCDDError, FileNotFoundError, KeyboardInterrupt) as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else error
        log.warning("run %s is committed, but its staging is left: %s; `fcdd gc` removes it", run_id, why)


def check_quarantine(done: Coverage, limit: int | None, intent: Intent, *, final: bool) -> bool:
    """Raises TooManyBadImages when more images failed than `limit`.

    Before the end (not `final`) only failures count that another try does not mend. Returns whether the limit is
    near, and had to be looked at closely.
    """
    if limit is None or done.most_failed(transient=final) <= limit:
        return False
    if (failed := done.count_failed(transient=final)) > limit:
        raise TooManyBadImages(
            f"{failed} of the images under {', '.join(intent.images)} cannot be scored, the limit is {limit}: "
            f"{done.reasons()}. Nothing was committed, and what was scored is kept. If this is the right place, run "
            "the same command again with a higher --max-quarantine-share or --max-quarantine; `fcdd retry-quarantine` "
            "tries the others when they are corrected"
        )
    return True


def ranges(layout: Layout, plan: Plan) -> Iterator[Range]:
    """The manifest cut into published parts, each with the parts of manifest and staging that hold it."""
    covered = Coverage.read(layout, plan.intent.run_id).parts
    starts = np.array([part.start for part in covered], np.int64)
    longest = max((part.stop - part.start for part in covered), default=0)
    rows = min(PART_ROWS, max(1, PART_MAP_BYTES // (_map_bytes(covered) + 200)))
    for index, start in enumerate(range(0, plan.num_rows, rows)):
        stop = min(start + rows, plan.num_rows)
        first, last = np.searchsorted(starts, start - longest), np.searchsorted(starts, stop)
        staged = tuple(part for part in covered[first:last] if part.stop > start)
        manifest = tuple((i, p) for i, p in enumerate(plan.parts) if p.start < stop and p.start + p.rows > start)
        yield Range(layout.results, plan.intent, index, start, stop, manifest, staged)


def _map_bytes(staged: list[Staged]) -> int:
    """Cells of the maps of a run, by the first that was staged."""
    for part in staged:
        if part.failed < part.stop - part.start:
            rows = _read_or_delete(part)
            return int(pc.max(pc.multiply(rows["heatmap_height"], rows["heatmap_width"])).as_py())
    return 0


def publish(part: Range) -> Published:
    """Place the rows of one range, each once, checked against the manifest. Raises IncompleteRun, DamagedPart.

    A row staged as scored and as quarantined (a retry that succeeded) counts as scored.
    """
    layout, intent = Layout(part.results), part.intent
    listed = _manifest_rows(layout, part)
    rows, copies = _deduplicated(_staged_rows(part), listed, part)
    staged = int(copies.sum())
    failed = staging.failed(rows)
    rows = part_files.with_run(rows, intent)
    attempts = rows.column_names.index("attempts")
    rows = rows.set_column(attempts, "attempts", pa.array(copies, pa.int32()))
    order = pc.sort_indices(rows["image_uri"])
    rows, failed = rows.take(order), failed.take(order)
    placed: dict[str, Part | None] = {}
    tables: dict[str, pa.Table] = {}
    for table, chosen in (("scores", pc.invert(failed)), ("quarantine", failed)):
        schema = staging.TABLES[table]
        tables[table] = conform(rows.filter(chosen).select(schema.names), schema)
        placed[table] = _place(layout, intent, table, part.number, tables[table]) if tables[table].num_rows else None
    return Published(
        scores=placed["scores"],
        quarantine=placed["quarantine"],
        row_ids=np.concatenate([tables[name]["row_id"].to_numpy() for name in tables]),
        anomalous=int(pc.sum(tables["scores"]["is_anomalous"]).as_py() or 0),
        duplicates=staged - rows.num_rows,
        reasons=Counter(tables["quarantine"]["reason"].to_pylist()),
    )


def _manifest_rows(layout: Layout, part: Range) -> pa.Table:
    """MANIFEST rows of the range, with their positions."""
    tables = []
    for index, each in part.manifest:
        rows = manifest_parts.read(layout, part.intent.run_id, index)
        rows = rows.append_column("position", pa.array(range(each.start, each.start + each.rows), pa.int64()))
        tables.append(rows.slice(max(0, part.start - each.start), part.stop - max(part.start, each.start)))
    return pa.concat_tables(tables).replace_schema_metadata(None)


def _staged_rows(part: Range) -> pa.Table:
    """ROW table of everything staged within the range."""
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        tables = list(pool.map(_read_or_delete, part.staged))
    rows = pa.concat_tables([staging.ROW.empty_table(), *tables])
    inside = pc.and_(pc.greater_equal(rows["position"], part.start), pc.less(rows["position"], part.stop))
    return rows.filter(inside)


def _read_or_delete(part: Staged) -> pa.Table:
    """What is damaged is worthless, and would be in the way of the next attempt."""
    try:
        return part.read()
    except staging.DamagedPart:
        storage.delete(part.uri)
        raise


def _deduplicated(rows: pa.Table, listed: pa.Table, part: Range) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The best staged row of every position, in order, and how often each was staged."""
    failed = staging.failed(rows).to_numpy(zero_copy_only=False)
    transient = staging.is_transient(rows).to_numpy(zero_copy_only=False)
    positions = rows["position"].to_numpy()
    best_first = np.lexsort((transient, failed, positions))
    found, first, copies = np.unique(positions[best_first], return_index=True, return_counts=True)
    if missing := part.stop - part.start - len(found):
        raise IncompleteRun(
            f"{missing} of {part.stop - part.start} images of run {part.intent.run_id} from position {part.start} on "
            "are not staged; run the same command again"
        )
    chosen = rows.take(pa.array(best_first[first]))
    known = pc.greater_equal(listed["image_bytes"], 0)  # others were looked up when they were fetched
    for name in ("row_id", "image_uri", "image_etag", "image_bytes"):
        same = pc.equal(chosen[name], listed[name])
        if name in ("image_etag", "image_bytes"):
            same = pc.or_(same, pc.invert(known))
        if not pc.all(same).as_py():
            folder = Layout(part.results).staging(part.intent.run_id)
            raise IncompleteRun(
                f"staged rows of run {part.intent.run_id} have another {name} than its manifest; delete {folder} "
                "and run the same command again"
            )
    return chosen, copies


def _place(layout: Layout, intent: Intent, table: str, index: int, rows: pa.Table) -> Part:
    name = f"part-{index:05d}-{{}}.parquet"
    return part_files.publish(layout, layout.part(table, intent.collection, intent.day, intent.run_id, name), rows)


def _publish_deleted(layout: Layout, intent: Intent) -> list[Part]:
    data = storage.read(uri := layout.deleted(intent.run_id))
    try:
        rows = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        folder = layout.staging(intent.run_id)
        raise FCDDError(f"{uri} is damaged; delete {folder} and run the same command again") from error
    return [_place(layout, intent, "deleted", 0, conform(part_files.with_run(rows, intent), DELETED))]
