"""The commit protocol: prove, compact, place, and write the record last.

    staged parts -> each manifest row exactly once -> a few sorted parts, put once under names with their
    content hash -> runs/<run_id>.json by a conditional put -> staging removed

Whatever dies before the record leaves a run that no reader sees and that the same command finishes.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fcdd import storage
from fcdd.bundle import BundleSpec
from fcdd.errors import FCDDError
from jobs import _records, _staging
from jobs._console import TooManyBadImages
from jobs._staging import StagedPart
from schemas import QUARANTINE, Layout, Part, RunRecord, conform
from schemas.runs import Plan

# Manifest rows of one published part: about 135 MB of scores with 28x28 heatmaps.
PART_ROWS = 250_000
_QUARANTINED = list(_staging.TABLES).index("quarantine")

log = logging.getLogger(__name__)


class IncompleteRun(FCDDError):
    """Manifest rows without a staged row: the pipeline lost them, or is not finished."""


def commit(
    layout: Layout,
    plan: Plan,
    spec: BundleSpec,
    *,
    max_quarantine_share: float,
    now: datetime,
    stage_seconds: dict[str, float],
    images_per_second: float,
    versions: dict[str, str],
) -> RunRecord:
    """Publish a staged run.

    Raises IncompleteRun unless every manifest row is staged, TooManyBadImages when more than
    `max_quarantine_share` of them failed; staging is kept in both cases.
    """
    owner, duplicates = _prove(layout, plan)
    _check_quarantine(int(np.count_nonzero(owner == _QUARANTINED)), layout, plan, max_quarantine_share)
    published: dict[str, list[Part]] = {}
    reasons: Counter[str] = Counter()
    anomalous = 0
    for code, table in enumerate(_staging.TABLES):
        published[table] = []
        for part in _compacted(layout, plan, table, owner == code):
            published[table].append(_place(layout, plan, table, len(published[table]), part))
            if table == "scores":
                anomalous += int(np.count_nonzero(part["is_anomalous"].to_numpy()))
            else:
                reasons.update(part["reason"].to_pylist())
    record = RunRecord(
        plan=plan,
        committed_at=now,
        num_listed=plan.num_images,
        num_scored=sum(part.rows for part in published["scores"]),
        num_quarantined=sum(part.rows for part in published["quarantine"]),
        num_anomalous=anomalous,
        num_duplicates_dropped=duplicates,
        quarantine_reasons=dict(reasons),
        threshold=spec.calibration.threshold,
        map_threshold=spec.calibration.map_threshold,
        alpha=spec.calibration.alpha,
        images_per_second=images_per_second,
        stage_seconds=stage_seconds,
        versions=versions,
        scores=published["scores"],
        quarantine=published["quarantine"],
    )
    if record.num_scored + record.num_quarantined != record.num_listed:
        raise IncompleteRun(f"{record.num_listed} listed, but {record.num_scored} + {record.num_quarantined} placed")
    try:
        storage.create(layout.record(plan.run_id), record.model_dump_json(indent=1).encode())
    except FileExistsError:
        log.warning("run %s was committed by another process meanwhile; its record stands", plan.run_id)
        return _records.parse(layout.record(plan.run_id))
    storage.delete_prefix(layout.staging(plan.run_id))
    return record


def _check_quarantine(failed: int, layout: Layout, plan: Plan, max_share: float) -> None:
    if failed > max_share * plan.num_images:
        raise TooManyBadImages(
            f"{failed} of {plan.num_images} images under {plan.images} cannot be scored, more than the limit of "
            f"{max_share:.0%}; nothing was committed, see the staged quarantine under "
            f"{layout.staged(plan.run_id, 'quarantine')}"
        )


def _prove(layout: Layout, plan: Plan) -> tuple[npt.NDArray[np.int8], int]:
    """(num_images,) which table each manifest row belongs to, and how many staged copies are surplus.

    A row staged as scored and as quarantined (a retry that succeeded) counts as scored.
    """
    owner = np.full(plan.num_images, -1, np.int8)
    staged = 0
    for code, table in reversed(list(enumerate(_staging.TABLES))):
        for part in _staging.staged_parts(layout, plan.run_id, table):
            owner[part.row_ids] = code
            staged += len(part.row_ids)
    missing = int(np.count_nonzero(owner < 0))
    if missing:
        raise IncompleteRun(
            f"{missing} of {plan.num_images} images of run {plan.run_id} are not staged; run the same command again"
        )
    return owner, staged - plan.num_images


def _compacted(layout: Layout, plan: Plan, table: str, wanted: npt.NDArray[np.bool_]) -> Iterator[pa.Table]:
    """Tables of wanted rows, each row once, in manifest order, PART_ROWS manifest rows at a time.

    Staged parts follow the manifest's order closely, so only a few are read for each range.
    """
    parts = list(_staging.staged_parts(layout, plan.run_id, table))
    for start in range(0, plan.num_images, PART_ROWS):
        stop = min(start + PART_ROWS, plan.num_images)
        chunks = [_rows(part, start, stop) for part in parts]
        joined = pa.concat_tables(
            [chunk for chunk in chunks if chunk is not None] or [_staging.TABLES[table].empty_table()]
        )
        row_ids, first, copies = np.unique(joined["row_id"].to_numpy(), return_index=True, return_counts=True)
        kept = joined.take(pa.array(first[wanted[row_ids]]))
        if table == "quarantine":
            attempts = pa.array(copies[wanted[row_ids]], pa.int32())
            kept = kept.set_column(kept.column_names.index("attempts"), QUARANTINE.field("attempts"), attempts)
        if kept.num_rows:
            yield conform(kept, _staging.TABLES[table])


def _rows(part: StagedPart, start: int, stop: int) -> pa.Table | None:
    inside = (part.row_ids >= start) & (part.row_ids < stop)
    return _staging.read_table(part.uri).filter(pa.array(inside)) if inside.any() else None


def _place(layout: Layout, plan: Plan, table: str, index: int, rows: pa.Table) -> Part:
    data = _staging.to_parquet(rows)
    sha = hashlib.sha256(data).hexdigest()
    path = layout.part(table, plan.collection, plan.day, plan.run_id, f"part-{index:05d}-{sha[:16]}.parquet")
    storage.write(storage.join(layout.results, path), data)
    return Part(path=path, rows=rows.num_rows, bytes=len(data), sha256=sha)
