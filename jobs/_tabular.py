"""Answers as a table for people, or as CSV, JSON, Parquet and Arrow for programs; streamed, but for the table.

Keys are data: in a table control characters are replaced, and in CSV a text that a spreadsheet would take for a formula
gets an apostrophe before it.
"""

import base64
import csv
import decimal
import io
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from fcdd import storage
from fcdd.errors import ConfigError
from jobs import _console, _files

Format = Literal["table", "csv", "json", "parquet", "arrow"]
# Beyond it a table helps nobody.
MAX_SHOWN = 1_000
_WIDTH_WITHOUT_TERMINAL = 200
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(answer: pa.RecordBatchReader, kind: Format, to: str | None, title: str = "") -> None:
    """All rows, to the output or to a file (a local one or an object).

    Raises ConfigError where they cannot go, or for a value that the format has no words for.
    """
    reader = _unique(answer)
    try:
        _write(reader, kind, to, title)
    except (OverflowError, pa.ArrowException) as error:
        raise ConfigError(f"the answer holds a value that {kind} cannot have: {error}") from error


def _unique(reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Columns of the same name are told apart: a, a_1, a_2."""
    names: list[str] = []
    for name in reader.schema.names:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        names.append(next(each for each in itertools.chain([name], numbered) if each not in names))
    schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
    return pa.RecordBatchReader.from_batches(schema, (batch.rename_columns(names) for batch in reader))


def _write(reader: pa.RecordBatchReader, kind: Format, to: str | None, title: str) -> None:
    if kind == "table":
        if to:
            raise ConfigError("a table is for the screen; with --to choose --output csv, json, parquet or arrow")
        show(reader, title)
        return
    if to:
        _save(reader, kind, storage.normalize(to))
        return
    if kind in ("parquet", "arrow") and sys.stdout.isatty():
        raise ConfigError(f"{kind} is no text; add --to FILE, or send the output into a file")
    _encode(reader, kind, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _save(reader: pa.RecordBatchReader, kind: Format, uri: str) -> None:
    """A local file is written as the rows come, and has its name when it is whole; an object is sent in one piece."""
    scheme, _, path = uri.partition("://")
    if scheme != "file":
        sink = io.BytesIO()
        _encode(reader, kind, sink)
        storage.write(uri, sink.getvalue())
        return
    with _files.appearing(path) as unfinished, unfinished.open("wb") as file:
        _encode(reader, kind, file)


def _encode(reader: pa.RecordBatchReader, kind: Format, sink: IO[bytes]) -> None:
    if kind == "parquet":
        with pq.ParquetWriter(pa.PythonFile(sink, "w"), reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
    elif kind == "arrow":
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), reader.schema) as stream:
            for batch in reader:
                stream.write_batch(batch)
    elif kind == "csv":
        text = io.TextIOWrapper(sink, "utf-8", newline="", write_through=True)
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(reader.schema.names)
        lines.writerows([_cell(value) for value in row.values()] for row in _rows(reader))
        text.detach()
    else:
        first = True
        for row in _rows(reader):
            sink.write(b"[\n" if first else b",\n")
            sink.write(json.dumps(_plain(row), ensure_ascii=False).encode())
            first = False
        sink.write(b"[]\n" if first else b"\n]\n")


def _rows(reader: pa.RecordBatchReader) -> Iterator[dict[str, Any]]:
    for batch in reader:
        yield from batch.to_pylist()


def _cell(value: Any) -> Any:
    """A value as one cell of CSV."""
    plain = _plain(value)
    if isinstance(plain, dict | list):
        return json.dumps(plain, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if plain is None else plain


def _plain(value: Any) -> Any:
    """A value as JSON has it: bytes in base64, times in ISO 8601, NaN and infinity null, maps as objects or pairs."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list) and value and all(isinstance(each, tuple) for each in value):
        pairs = [(_plain(key), _plain(each)) for key, each in value]
        return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else [list(pair) for pair in pairs]
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if isinstance(value, bool | int | str | None) else _iso(value)


def _iso(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def show(reader: pa.RecordBatchReader, title: str = "") -> None:
    """At most MAX_SHOWN rows for a person."""
    table = Table(title=_console.printable(title) or None, box=box.SIMPLE_HEAD, title_justify="left")
    for field in reader.schema:
        right = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        table.add_column(_console.printable(field.name), justify="right" if right else "left", overflow="fold")
    more = False
    for row in _rows(reader):
        if more := table.row_count == MAX_SHOWN:
            break
        table.add_row(*(_console.printable(_shown(value)) for value in row.values()))
    # Without a terminal nothing may be cut: a URI is there to be copied.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL, markup=False, highlight=False)
    console.print(table)
    if more:
        console.print(f"the first {MAX_SHOWN} rows; --output csv or json has all of them")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict | list):
        return json.dumps(_plain(value), ensure_ascii=False)
    return "" if value is None else str(value)
