"""Answers as a table for people, or as CSV, JSON, Parquet and Arrow for programs; streamed, but for the table.

Keys are data: in a table control characters are replaced, and in CSV a text that a spreadsheet would take for a formula
gets an apostrophe before it.
"""

import base64
import csv
import datetime as dt
import decimal
import io
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.shell import formatting, local_files

Format = Literal["table", "csv", "json", "parquet", "arrow"]
# Beyond it a table helps nobody.
MAX_SHOWN = 1_000
_WIDTH_WITHOUT_TERMINAL, _READABLE = 200, 24
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
    """Columns of the same name get numbers: a, a_1, a_2."""
    names: list[str] = []
    for name in reader.schema.names:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        names.append(next(each for each in itertools.chain([name], numbered) if each not in names))
    schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
    return pa.RecordBatchReader.from_batches(schema, (batch.rename_columns(names) for batch in reader))


def _write(reader: pa.RecordBatchReader, kind: Format, to: str | None, title: str) -> None:
    if kind == "table" and to:
        kind = _named(to)
    if kind == "table":
        print_table(reader, title)
        return
    if to:
        _save(reader, kind, storage.normalize(to))
        print(f"written     {to}")
        return
    if kind in ("parquet", "arrow") and sys.stdout.isatty():
        raise ConfigError(f"{kind} is no text; add --output FILE, or send the output into a file")
    _encode(reader, kind, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _named(to: str) -> Format:
    """The format that a name stands for. Raises ConfigError when it stands for none."""
    for kind in get_args(Format):
        if kind != "table" and to.endswith(f".{kind}"):
            return kind  # type: ignore[no-any-return]
    if to in get_args(Format):
        raise ConfigError(f"--output is a file to write, got {to!r}; did you mean --format {to}?")
    raise ConfigError(f"what format should {to} have? name it .csv, .json, .parquet or .arrow, or add --format")


def _save(reader: pa.RecordBatchReader, kind: Format, uri: str) -> None:
    """A local file is written as the rows come, and has its name when it is whole; an object is sent in one piece."""
    scheme, _, path = uri.partition("://")
    if scheme != "file":
        sink = io.BytesIO()
        _encode(reader, kind, sink)
        storage.write(uri, sink.getvalue())
        return
    with local_files.atomic_path(path) as unfinished, unfinished.open("wb") as file:
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
        try:
            lines = csv.writer(text, lineterminator="\n")
            lines.writerow(reader.schema.names)
            lines.writerows([_cell(value) for value in row.values()] for row in _rows(reader))
        finally:
            text.detach()  # or it would close the output
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


def print_table(reader: pa.RecordBatchReader, title: str = "") -> None:
    """At most MAX_SHOWN rows for a person: as a table, or one below the other where the columns do not fit."""
    rows = list(itertools.islice(_rows(reader), MAX_SHOWN + 1))
    more, rows = len(rows) > MAX_SHOWN, rows[:MAX_SHOWN]
    # Without a terminal nothing may be cut: a URI is there to be copied.
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    console = Console(width=width, markup=False, highlight=False)
    cells = [[formatting.printable(_shown(value)) for value in row.values()] for row in rows]
    with console.capture() as captured:
        if title:
            console.print(formatting.printable(title))
        if _least_width(reader.schema, cells) <= console.width:
            console.print(_table(reader.schema, cells))
        else:
            console.print(_cards(reader.schema, cells))
        if more:
            console.print(f"the first {MAX_SHOWN} rows; --format csv or json has all of them")
        if not rows:
            console.print("no rows")
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _is_text(kind: pa.DataType) -> bool:
    """Text may be broken; numbers, dates and truths may not."""
    return not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
        or pa.types.is_boolean(kind)
    )


def _least_width(schema: pa.Schema, cells: list[list[str]]) -> int:
    """Of a table in which whatever may be broken still has room to be read."""
    widths = [max([len(field.name), *(len(row[index]) for row in cells)]) for index, field in enumerate(schema)]
    return sum(
        3 + (min(width, _READABLE) if _is_text(f.type) else width) for f, width in zip(schema, widths, strict=True)
    )


def _table(schema: pa.Schema, cells: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for field in schema:
        number = (
            not _is_text(field.type) and not pa.types.is_temporal(field.type) and not pa.types.is_boolean(field.type)
        )
        name, justify = formatting.printable(field.name), "right" if number else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not _is_text(field.type))  # type: ignore[arg-type]
    for row in cells:
        table.add_row(*row)
    return table


def _cards(schema: pa.Schema, cells: list[list[str]]) -> Table:
    """Each row as lines of name and value."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in cells:
        for name, value in zip(schema.names, row, strict=True):
            table.add_row(formatting.printable(name), value)
        table.add_row("", "")
    return table


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, dt.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, dict | list):
        return json.dumps(_plain(value), ensure_ascii=False)
    return "" if value is None else str(value)
