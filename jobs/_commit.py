"""The commit protocol: prove, compact, place, and write the record last.

    staged parts -> ranges of the manifest, each row exactly once -> a few sorted parts, put once under names with
    their content hash -> runs/<run_id>.json by a conditional put -> staging removed

Whatever dies before the record leaves a run that no reader sees and that the same command finishes.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fcdd import storage
from fcdd.bundle import BundleSpec
from fcdd.errors import TRANSIENT_REASONS, FCDDError
from jobs import _listing, _manifest, _records, _staging
from jobs._console import TooManyBadImages
from jobs._staging import Bitmap, Coverage, Staged
from schemas import DELETED, Layout, Part, RunRecord, conform
from schemas.runs import Intent, ManifestPart, Plan

# Manifest rows of one published part: about 110 MB of scores with 28x28 heatmaps.
PART_ROWS = 200_000
_READS_IN_FLIGHT = 16

log = logging.getLogger(__name__)


class IncompleteRun(FCDDError):
    """Manifest rows without a staged row: the pipeline lost them, or is not finished."""


class Range(NamedTuple):
    """Positions [start, stop) of the manifest: what becomes one published part of each table."""

    results: str
    intent: Intent
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


Map = Callable[[Callable[[Range], Published], Iterable[Range]], Iterable[Published]]


def commit(
    layout: Layout,
    plan: Plan,
    spec: BundleSpec,
    *,
    before: RunRecord | None,
    run: Map,
    check: Callable[[], None],
    now: Callable[[], datetime],
    facts: Callable[[], dict[str, Any]],
) -> RunRecord:
    """Publish a staged run. `before` is the run whose scores are kept, when its quarantine was tried again.

    `run` maps a function over ranges, here or on a cluster; `check` raises when another process has taken over;
    `facts()` are fields of the record that only the job knows. Raises IncompleteRun unless every manifest row is
    published exactly once; staging is kept then.
    """
    intent = plan.intent
    scores, quarantine, anomalous, proof = _kept(layout, before, plan.num_images)
    duplicates, reasons = 0, Counter[str]()
    for published in run(publish, ranges(layout, plan)):
        if twice := proof.add(published.row_ids):
            raise IncompleteRun(f"{twice} rows of run {intent.run_id} came twice; this is a bug, nothing was committed")
        scores += [published.scores] if published.scores else []
        quarantine += [published.quarantine] if published.quarantine else []
        anomalous += published.anomalous
        duplicates += published.duplicates
        reasons += published.reasons
    if missing := plan.num_images - proof.count():
        raise IncompleteRun(f"{missing} of {plan.num_images} images of run {intent.run_id} were not published")
    deleted = _publish_deleted(layout, intent) if plan.num_deleted else []
    check()
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
        committed_at=now(),
        num_listed=plan.num_images,
        num_scored=sum(part.rows for part in scores),
        num_quarantined=sum(part.rows for part in quarantine),
        num_anomalous=anomalous,
        num_deleted=plan.num_deleted,
        num_listed_twice=plan.num_duplicates,
        num_duplicates_dropped=duplicates,
        num_bytes=plan.num_bytes,
        skipped=plan.skipped,
        quarantine_reasons=dict(reasons),
        manifest_digest=plan.manifest_digest,
        threshold=spec.calibration.threshold,
        map_threshold=spec.calibration.map_threshold,
        alpha=spec.calibration.alpha,
        scores=tuple(scores),
        quarantine=tuple(quarantine),
        deleted=tuple(deleted),
        **facts(),
    )
    if record.num_scored + record.num_quarantined != record.num_listed:
        raise IncompleteRun(f"{record.num_listed} listed, but {record.num_scored} + {record.num_quarantined} published")
    try:
        storage.create(layout.record(intent.run_id), record.model_dump_json(indent=1).encode())
    except FileExistsError:
        log.warning("run %s was committed by another process meanwhile; its record stands", intent.run_id)
        return _records.parse(layout.record(intent.run_id))
    clean_up(layout, intent.run_id)
    return record


def clean_up(layout: Layout, run_id: str) -> None:
    """Remove the staging of a committed run. What cannot be removed is no reason to call the run failed."""
    try:
        storage.delete_prefix(layout.staging(run_id))
    except (FCDDError, FileNotFoundError) as error:
        log.warning("run %s is committed, but its staging is left: %s; `fcdd gc` removes it", run_id, error)


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
            f"{done.reasons()}. Nothing was committed, and what was scored is kept; correct the images or raise "
            "--max-quarantine-share or --max-quarantine, and run the same command again"
        )
    return True


def ranges(layout: Layout, plan: Plan) -> Iterator[Range]:
    """The manifest cut into published parts, each with the parts of manifest and staging that hold it."""
    covered = Coverage.read(layout, plan.intent.run_id).parts
    starts = np.array([part.start for part in covered], np.int64)
    longest = max((part.stop - part.start for part in covered), default=0)
    for start in range(0, plan.num_rows, PART_ROWS):
        stop = min(start + PART_ROWS, plan.num_rows)
        first, last = np.searchsorted(starts, start - longest), np.searchsorted(starts, stop)
        staged = tuple(part for part in covered[first:last] if part.stop > start)
        manifest = tuple((i, p) for i, p in enumerate(plan.parts) if p.start < stop and p.start + p.rows > start)
        yield Range(layout.results, plan.intent, start, stop, manifest, staged)


def publish(part: Range) -> Published:
    """Place the rows of one range, each once, checked against the manifest. Raises IncompleteRun, DamagedPart.

    A row staged as scored and as quarantined (a retry that succeeded) counts as scored.
    """
    layout, intent = Layout(part.results), part.intent
    listed = _manifest_rows(layout, part)
    rows, copies = _deduplicated(_staged_rows(part), listed, part)
    staged = int(copies.sum())
    failed = _staging.failed(rows)
    constant = {
        "collection": pa.scalar(intent.collection),
        "date": pa.scalar(intent.day),
        "run_id": pa.scalar(intent.run_id),
        "model_digest": pa.scalar(intent.bundle_digest),
        "scored_at": pa.scalar(intent.started_at),
    }
    for name, value in constant.items():
        rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
    attempts = rows.column_names.index("attempts")
    rows = rows.set_column(attempts, "attempts", pa.array(copies, pa.int32()))
    order = pc.sort_indices(rows["image_uri"])
    rows, failed = rows.take(order), failed.take(order)
    placed: dict[str, Part | None] = {}
    tables: dict[str, pa.Table] = {}
    for table, chosen in (("scores", pc.invert(failed)), ("quarantine", failed)):
        schema = _staging.TABLES[table]
        tables[table] = conform(rows.filter(chosen).select(schema.names), schema)
        placed[table] = _place(layout, intent, table, part.start, tables[table]) if tables[table].num_rows else None
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
        rows = _manifest.read_part(layout, part.intent.run_id, index)
        rows = rows.append_column("position", pa.array(range(each.start, each.start + each.rows), pa.int64()))
        tables.append(rows.slice(max(0, part.start - each.start), part.stop - max(part.start, each.start)))
    return pa.concat_tables(tables).replace_schema_metadata(None)


def _staged_rows(part: Range) -> pa.Table:
    """ROW table of everything staged within the range."""
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        tables = list(pool.map(Staged.read, part.staged))
    rows = pa.concat_tables([_staging.ROW.empty_table(), *tables])
    inside = pc.and_(pc.greater_equal(rows["position"], part.start), pc.less(rows["position"], part.stop))
    return rows.filter(inside)


def _deduplicated(rows: pa.Table, listed: pa.Table, part: Range) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The best staged row of every position, in order, and how often each was staged."""
    failed = _staging.failed(rows).to_numpy(zero_copy_only=False)
    transient = pc.fill_null(pc.is_in(rows["reason"], pa.array(TRANSIENT_REASONS)), False).to_numpy()
    positions = rows["position"].to_numpy()
    best_first = np.lexsort((transient, failed, positions))
    found, first, copies = np.unique(positions[best_first], return_index=True, return_counts=True)
    if missing := part.stop - part.start - len(found):
        raise IncompleteRun(
            f"{missing} of {part.stop - part.start} images of run {part.intent.run_id} from position {part.start} on "
            "are not staged; run the same command again"
        )
    chosen = rows.take(pa.array(best_first[first]))
    known = pc.not_equal(listed["image_bytes"], _listing.UNKNOWN_SIZE)
    for name in ("row_id", "image_uri", "image_etag", "image_bytes"):
        same = pc.equal(chosen[name], listed[name])
        if name in ("image_etag", "image_bytes"):
            same = pc.or_(same, pc.invert(known))
        if not pc.all(same).as_py():
            raise IncompleteRun(f"staged rows of run {part.intent.run_id} have another {name} than its manifest")
    sizes = pc.if_else(pc.less(chosen["image_bytes"], 0), 0, chosen["image_bytes"])  # of images that were never found
    return chosen.set_column(chosen.column_names.index("image_bytes"), "image_bytes", sizes), copies


def _place(layout: Layout, intent: Intent, table: str, start: int, rows: pa.Table) -> Part:
    data = _staging.to_parquet(rows)
    sha = hashlib.sha256(data).hexdigest()
    name = f"part-{start // PART_ROWS:05d}-{sha[:16]}.parquet"
    path = layout.part(table, intent.collection, intent.day, intent.run_id, name)
    storage.write(storage.join(layout.results, path), data)
    return Part(path=path, rows=rows.num_rows, bytes=len(data), sha256=sha)


def _kept(layout: Layout, before: RunRecord | None, num_images: int) -> tuple[list[Part], list[Part], int, Bitmap]:
    """What an earlier run of the night contributes: its scores, their alarms, their row ids as a start of the proof."""
    proof = Bitmap(num_images)
    if before is None:
        return [], [], 0, proof
    for part in before.scores:
        rows = read_published(layout, part, ["row_id"])
        if proof.add(rows["row_id"].to_numpy()):
            raise IncompleteRun(f"{part.path} holds rows twice; this is a bug, nothing was committed")
    return list(before.scores), [], before.num_anomalous, proof


def read_published(layout: Layout, part: Part, columns: list[str] | None = None) -> pa.Table:
    """A published part. Raises FCDDError when it is not what the commit record says."""
    import pyarrow.parquet as pq

    try:
        data = storage.read(storage.join(layout.results, part.path))
    except FileNotFoundError as error:
        raise FCDDError(f"the published part {part.path} is gone") from error
    if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
        raise FCDDError(f"the published part {part.path} is not what its commit record says: damaged or replaced")
    return pq.read_table(pa.BufferReader(data), columns=columns, partitioning=None)


def _publish_deleted(layout: Layout, intent: Intent) -> list[Part]:
    import pyarrow.parquet as pq

    rows = pq.read_table(pa.BufferReader(storage.read(layout.deleted(intent.run_id))))
    for name, value in (
        ("collection", intent.collection),
        ("date", intent.day),
        ("run_id", intent.run_id),
        ("model_digest", intent.bundle_digest),
        ("scored_at", intent.started_at),
    ):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value), rows.num_rows))
    return [_place(layout, intent, "deleted", 0, conform(rows, DELETED))]
