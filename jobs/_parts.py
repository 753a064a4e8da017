"""Published parts: how they are written, and read back only as what their record says."""

import hashlib
import io

import pyarrow as pa
import pyarrow.parquet as pq

from fcdd import storage
from fcdd.errors import FCDDError
from schemas import Layout, Part
from schemas.runs import Intent

# 5,000 rows are a good middle between scans and point look-ups (LIMITS).
ROW_GROUP_ROWS = 5_000
# Constant within a run: written when the run is published.
RUN_COLUMNS = ("collection", "date", "run_id", "model_digest", "scored_at")
_CONSTANT_COLUMNS = [*RUN_COLUMNS, "image_group", "image_format", "heatmap_height", "heatmap_width", "num_frames"]


def to_parquet(table: pa.Table) -> bytes:
    """The table as one Parquet file: zstd, dictionaries only where a column is (almost) constant (LIMITS)."""
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


def with_run(rows: pa.Table, intent: Intent) -> pa.Table:
    """The rows with the columns that are constant within a run."""
    values = (intent.collection, intent.day, intent.run_id, intent.bundle_digest, intent.started_at)
    for name, value in zip(RUN_COLUMNS, values, strict=True):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value), rows.num_rows))
    return rows


def place(layout: Layout, path: str, rows: pa.Table) -> Part:
    """Create a table, at `path` below the results; "{}" in it becomes a hash of the content.

    An earlier attempt may have placed it. Nothing is ever replaced: a role that may create parts need not be one that
    may replace them. Raises FCDDError when there is something else of that name.
    """
    data = to_parquet(rows)
    sha = hashlib.sha256(data).hexdigest()
    path = path.replace("{}", sha[:16])
    try:
        storage.create(storage.join(layout.results, path), data)
    except FileExistsError as error:
        raise FCDDError(
            f"there is a part {path} with another content than its name says: damaged or replaced; delete it and run "
            "the same command again"
        ) from error
    return Part(path=path, rows=rows.num_rows, bytes=len(data), sha256=sha)


def read_published(layout: Layout, part: Part, columns: list[str] | None = None) -> pa.Table:
    """A published part. Raises FCDDError when it is not what the commit record says."""
    try:
        data = storage.read(storage.join(layout.results, part.path))
    except FileNotFoundError as error:
        raise FCDDError(f"the published part {part.path} is gone") from error
    if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
        raise FCDDError(f"the published part {part.path} is not what its commit record says: damaged or replaced")
    return pq.read_table(pa.BufferReader(data), columns=columns, partitioning=None)
