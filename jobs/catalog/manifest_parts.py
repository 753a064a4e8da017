"""The parts of a run's manifest as files: what was listed, in the order in which it is scored."""

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from fcdd.errors import FCDDError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from schemas import MANIFEST, Layout, conform


def read(layout: Layout, run_id: str, index: int) -> pa.Table:
    """MANIFEST rows of one part. Raises FileNotFoundError, or FCDDError when it is none, or of another version."""
    data = storage.read(uri := layout.manifest_part(run_id, index))
    try:
        table = pq.read_table(pa.BufferReader(data))
        int(table.schema.metadata[b"source"])
        return conform(table, MANIFEST).replace_schema_metadata(table.schema.metadata)
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise FCDDError(
            f"{uri} is damaged, or of another version; delete {layout.staging(run_id)} and run the same command again"
        ) from error


def rows_of(table: pa.Table) -> list[ObjectInfo]:
    """MANIFEST rows as listed objects."""
    return [ObjectInfo(*row) for row in zip(*(column.to_pylist() for column in table.columns[1:]), strict=True)]


def to_bytes(rows: list[ObjectInfo], row_ids: Iterable[int], source: int) -> bytes:
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
