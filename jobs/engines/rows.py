"""The rows that pass from one stage of scoring to the next, as columns: sources, pixels or why there are none.

A row of an image that is read has its pixels (PIXELS), or its file (ENCODED) where the scoring process decodes it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fcdd.images import DecodedImage
from fcdd.io.storage import ObjectInfo
from fcdd.jpeg_files import JpegFile
from jobs.catalog import staging
from jobs.sources.fetching import Failure
from schemas import IDENTITY, MANIFEST

PIXELS = "pixels"
ENCODED = "encoded"
_JPEG_FILE = pa.struct(
    [("data", pa.large_binary()), *((name, pa.int32()) for name in ("width", "height", "orientation"))]
)
# Column -> attribute of a decoded image.
DECODED = {
    **{name: name for name in ("width", "height", "brightness", "contrast", "sharpness")},
    "num_frames": "frames",
    "image_format": "format",
    "image_hash": "hash",
}
Flags = npt.NDArray[np.bool_]


def source_columns(row_ids: pa.ChunkedArray, infos: Sequence[ObjectInfo]) -> dict[str, Any]:
    """Which rows these are, and of which objects."""
    values = zip(*infos, strict=True)
    return {"row_id": row_ids} | {
        name: pa.array(column, MANIFEST.field(name).type) for name, column in zip(IDENTITY, values, strict=True)
    }


def image_columns(results: Sequence[DecodedImage | Failure | JpegFile]) -> dict[str, Any]:
    """Pixels, properties and failures; the properties that need pixels are null where there are none yet."""
    failures = [result if isinstance(result, Failure) else None for result in results]
    good = [result for result in results if isinstance(result, DecodedImage)]
    readable = np.array([isinstance(result, DecodedImage) for result in results], np.bool_)
    columns = {
        "stage": pa.array([f and f.stage for f in failures], pa.string()),
        "reason": pa.array([f and f.error.reason for f in failures], pa.string()),
        "detail": pa.array([f and f.error.detail for f in failures], pa.string()),
        "attempts": pa.array([f and 1 for f in failures], pa.int32()),
        PIXELS: binary(np.stack([i.pixels for i in good]) if good else np.empty((0, 1), np.uint8), readable),
    }
    for name, attribute in DECODED.items():
        values = [getattr(image, attribute) for image in good]
        columns[name] = spread(pa.array(values, staging.ROW.field(name).type), readable)
    return columns


def encoded_column(results: Sequence[DecodedImage | Failure | JpegFile]) -> pa.Array:
    """The files that are still to be decoded, null for all else."""
    files = [result._asdict() if isinstance(result, JpegFile) else None for result in results]
    return pa.array(files, _JPEG_FILE)


def spread(values: pa.Array, where: Flags) -> pa.Array:
    """`values`, in order, at the rows `where` is true; null elsewhere."""
    if where.all():
        return values
    indices = pa.array(np.cumsum(where) - 1, mask=~where)
    return values.take(indices)


def binary(values: npt.NDArray[np.uint8], where: Flags) -> pa.Array:
    """Each (N, ...) entry of `values` as bytes, at the rows `where` is true, null elsewhere; nothing is copied."""
    size = int(np.prod(values.shape[1:]))
    offsets = np.concatenate(([0], np.cumsum(where))).astype(np.int64) * size
    validity = pa.py_buffer(np.packbits(where, bitorder="little").tobytes())
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.large_binary(), len(where), buffers)


def pixels_of(column: pa.ChunkedArray, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The bytes of all entries that are not null, as one array; they lie one after the other."""
    if not shape[0]:
        return np.empty(shape, np.uint8)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even a single one
    first = np.frombuffer(array.buffers()[1], np.int64)[array.offset]
    return np.frombuffer(array.buffers()[2], np.uint8, count=int(np.prod(shape)), offset=int(first)).reshape(shape)
