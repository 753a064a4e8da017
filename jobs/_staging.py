"""Rows on their way: the wide row between scoring and writing, and the staged parts of an uncommitted run.

A staged part is one Parquet file of the SCORES or QUARANTINE schema, built whole in memory, put once,
named by its content and the attempt: a retried task overwrites its own file. What staging holds is not redone.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcdd import storage
from fcdd.errors import TRANSIENT_REASONS
from schemas import QUARANTINE, SCORES, Layout, conform
from schemas.runs import Plan

# Rows of a staged part: what a killed writer costs.
PART_ROWS = 1024
# 5,000 rows are a good middle between scans and point look-ups (LIMITS).
ROW_GROUP_ROWS = 5_000

TABLES = {"scores": SCORES, "quarantine": QUARANTINE}
_FAILURE_COLUMNS = ("stage", "reason", "detail", "attempts")
DECODED_COLUMNS = ("width", "height", "brightness", "contrast", *_FAILURE_COLUMNS)
# Every column of both tables, each null in the rows of the other one.
ROW = pa.schema(
    [field.with_nullable(True) for field in (*SCORES, *(QUARANTINE.field(name) for name in _FAILURE_COLUMNS))]
)
_CONSTANT_COLUMNS = ["collection", "date", "run_id", "model_digest", "scored_at", "heatmap_height", "heatmap_width"]


def assemble(rows: pa.Table, results: list[dict[str, object]], plan: Plan) -> pa.Table:
    """ROW table of decoded `rows`; result i overwrites or completes the columns of row i."""
    run: dict[str, object] = {
        "collection": plan.collection,
        "date": plan.day,
        "run_id": plan.run_id,
        "model_digest": plan.bundle_digest,
        "scored_at": plan.started_at,
    }
    merged = [row | run | result for row, result in zip(rows.to_pylist(), results, strict=True)]
    return pa.Table.from_pylist(merged, schema=ROW)


@dataclass(frozen=True, slots=True)
class StageParts:
    """ROW tables -> staged parts of both tables; one receipt row with the counts.

    `attempt` tells passes over the same images apart, so that they can be counted.
    """

    results: str
    run_id: str
    attempt: str

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Puts at most one part of each table."""
        failed = pc.is_valid(rows["reason"])
        counts = {}
        for table, selected in (("scores", pc.invert(failed)), ("quarantine", failed)):
            part = conform(rows.filter(selected).select(TABLES[table].names), TABLES[table])
            counts[table] = [part.num_rows]
            if part.num_rows:
                data = to_parquet(part)
                name = f"{hashlib.sha256(data).hexdigest()[:24]}-{self.attempt}.parquet"
                storage.write(storage.join(Layout(self.results).staged(self.run_id, table), name), data)
        return pa.table(counts)


def to_parquet(table: pa.Table) -> bytes:
    """The table as one Parquet file: zstd, dictionaries only where a column is constant (LIMITS)."""
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression="zstd",
        use_dictionary=[name for name in _CONSTANT_COLUMNS if name in table.column_names],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    )
    return sink.getvalue()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet object, or some of its columns."""
    return pq.read_table(pa.BufferReader(storage.read(uri)), columns=columns)


@dataclass(frozen=True, slots=True)
class StagedPart:
    """One staged file, the manifest rows it holds, and which of them failed for a transient reason."""

    uri: str
    row_ids: npt.NDArray[np.int64]
    transient: npt.NDArray[np.bool_]


def staged_parts(layout: Layout, run_id: str, table: str) -> Iterator[StagedPart]:
    """Every staged part of a table, in any order."""
    for page in storage.pages(layout.staged(run_id, table)):
        for info in page:
            rows = read_table(info.uri, ["row_id"] if table == "scores" else ["row_id", "stage", "reason"])
            transient = np.zeros(rows.num_rows, np.bool_)
            if table == "quarantine":
                of_the_store = pc.is_in(rows["reason"], pa.array(TRANSIENT_REASONS))
                transient = pc.and_(of_the_store, pc.equal(rows["stage"], "fetch")).to_numpy()
            yield StagedPart(info.uri, rows["row_id"].to_numpy(), transient)


def done_rows(layout: Layout, plan: Plan, *, retry: bool) -> npt.NDArray[np.bool_]:
    """(num_images,) which manifest rows are staged, in either table.

    With `retry`, images that failed while being fetched for a reason of the store count as not done.
    """
    done = np.zeros(plan.num_images, np.bool_)
    for part in staged_parts(layout, plan.run_id, "quarantine"):
        done[part.row_ids[~part.transient] if retry else part.row_ids] = True
    for part in staged_parts(layout, plan.run_id, "scores"):
        done[part.row_ids] = True
    return done
