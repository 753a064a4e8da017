"""Published parts: how they are written, and read back only as what their record says."""

import hashlib
import io
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from fcdd.errors import FCDDError
from fcdd.io import storage
from schemas import Layout, Part
from schemas.runs import Intent

# 5,000 rows are a good middle between scans and point look-ups (docs/facts.md).
ROW_GROUP_ROWS = 5_000
# Local files of so many bytes together are read whole to compare their digests: a fifth of a second.
CHEAP_BYTES, _LOOKS_IN_FLIGHT = 256 * 1024**2, 16
# Constant within a run: written when the run is published.
RUN_COLUMNS = ("collection", "date", "run_id", "model_digest", "scored_at")
_CONSTANT_COLUMNS = [*RUN_COLUMNS, "image_group", "image_format", "heatmap_height", "heatmap_width", "num_frames"]


def to_parquet(table: pa.Table) -> bytes:
    """The table as one Parquet file: zstd, dictionaries only where a column is (almost) constant (docs/facts.md)."""
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


def publish(layout: Layout, path: str, rows: pa.Table) -> Part:
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


def check(results: str, parts: Sequence[Part]) -> bool:
    """Whether the digests were compared, too: where that is cheap. Raises FCDDError for a part that is another file.

    The sizes always are: a part that was damaged or exchanged must not be answered from without a word.
    """
    uris = [storage.join(storage.normalize(results), part.path) for part in parts]
    whole = all(uri.startswith("file:") for uri in uris) and sum(part.bytes for part in parts) <= CHEAP_BYTES
    with ThreadPoolExecutor(_LOOKS_IN_FLIGHT) as pool:
        for part, same in zip(parts, pool.map(_is_published, uris, parts, itertools.repeat(whole)), strict=True):
            if not same:
                raise _other(part)
    return whole


def _is_published(uri: str, part: Part, whole: bool) -> bool:
    try:
        if storage.stat(uri).size != part.bytes:
            return False
    except FileNotFoundError as error:
        raise FCDDError(f"the published part {part.path} is gone") from error
    if not whole:
        return True
    with open(uri.removeprefix("file://"), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == part.sha256


def _other(part: Part) -> FCDDError:
    return FCDDError(f"the published part {part.path} is not what its commit record says: damaged or replaced")


def read_published(layout: Layout, part: Part, columns: list[str] | None = None) -> pa.Table:
    """A published part. Raises FCDDError when it is not what the commit record says."""
    try:
        data = storage.read(storage.join(layout.results, part.path))
    except FileNotFoundError as error:
        raise FCDDError(f"the published part {part.path} is gone") from error
    if len(data) != part.bytes or hashlib.sha256(data).hexdigest() != part.sha256:
        raise _other(part)
    return pq.read_table(pa.BufferReader(data), columns=columns, partitioning=None)
