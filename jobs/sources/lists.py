"""Explicit lists of images: text, CSV, Parquet, JSON Lines, manifests of labelling services, inventories of S3."""

import csv
import gzip
import json
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

import pyarrow.parquet as pq

from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.shell import temporary
from jobs.sources import listing

_EPOCH = datetime.fromtimestamp(0, UTC)
_PAGE = 10_000
# Names of a column, of ours and of the manifests of Lookout for Vision and SageMaker Ground Truth ("source-ref").
_URI_NAMES = ("image_uri", "uri", "source-ref")
# Of an inventory of S3: names in its Parquet files; those of its manifest.json are the same without "_".
_BUCKET, _KEY = "bucket", "key"
_INVENTORY = (_BUCKET, _KEY, "size", "last_modified_date", "e_tag")
_VERSION_NAMES = ("is_latest", "is_delete_marker")
_ETAG_NAMES, _SIZE_NAMES, _TIME_NAMES = (
    ("image_etag", "etag", "e_tag"),
    ("image_bytes", "size"),
    ("image_last_modified", "last_modified", "last_modified_date"),
)
_KNOWN = {_BUCKET, _KEY, *_URI_NAMES, *_ETAG_NAMES, *_SIZE_NAMES, *_TIME_NAMES, *_VERSION_NAMES}

# What readers make of bytes and documents that are no list.
_NOT_A_LIST = (
    *(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, EOFError),
    *(csv.Error, gzip.BadGzipFile, zlib.error),
)
# One entry of a list, with whatever types it has there.
Entry = dict[str, Any]


def entries(list_uri: str, base: str | None, *, must_be_known: bool = False) -> Iterator[list[ObjectInfo]]:
    """Pages of the images that a list names, in its order; relative names are below `base`.

    A list is text (a name per line), CSV, Parquet or JSON Lines with `image_uri`, `uri` or `source-ref`, or with
    `bucket` and `key`: an inventory of S3, which may also be given by its manifest.json. Blanks at the end of a line of
    text are no part of the name; everywhere else a name is taken as it stands. Where a list also has the ETag, the size
    and the time of change, they are believed; else they are unknown, and looked up when the image is fetched, which is
    an error if they `must_be_known`. Only a list on this machine may name files of this machine, but for those below
    `base`.

    Raises ConfigError that names an entry which cannot be used.
    """
    page: list[ObjectInfo] = []
    try:
        for number, entry in enumerate(_read(list_uri), start=1):
            page.append(_info(entry, base, f"entry {number} of {storage.spelled(list_uri)}", list_uri, must_be_known))
            if len(page) == _PAGE:
                yield page
                page = []
    except _NOT_A_LIST as error:
        what = f"{type(error).__name__}: {error}" if isinstance(error, (LookupError, TypeError)) else str(error)
        raise ConfigError(f"cannot read the list {storage.spelled(list_uri)}: {what[:300]}") from error
    if page:
        yield page


def _read(list_uri: str) -> Iterator[Entry]:
    name = posixpath.basename(list_uri).lower()
    if name == "manifest.json":
        yield from _inventory(list_uri)
    else:
        yield from _rows(list_uri, _reader(name, list_uri))


def _reader(name: str, list_uri: str) -> Callable[[str], Iterator[Entry]]:
    readers: dict[tuple[str, ...], Callable[[str], Iterator[Entry]]] = {
        (".txt",): _text,
        (".csv", ".csv.gz"): _csv,
        (".parquet",): _parquet,
        (".jsonl", ".ndjson", ".json", ".manifest"): _json_lines,
    }
    for endings, reader in readers.items():
        if name.endswith(endings):
            return reader
    raise ConfigError(
        "expected a list that ends in .txt, .csv, .csv.gz, .parquet, .jsonl or .manifest, or the manifest.json of an "
        f"inventory, got {storage.spelled(list_uri)}"
    )


def _rows(uri: str, reader: Callable[[str], Iterator[Entry]], what: str = "the list") -> Iterator[Entry]:
    with temporary.folder("list") as folder:
        local = str(folder / "list")
        try:
            storage.download(uri, local)
        except FileNotFoundError as error:
            raise ConfigError(f"{what} {storage.spelled(uri)} does not exist") from error
        yield from reader(local)


def _info(entry: Entry, base: str | None, where: str, list_uri: str, must_be_known: bool) -> ObjectInfo:
    etag, size, time = (_first(entry, names) for names in (_ETAG_NAMES, _SIZE_NAMES, _TIME_NAMES))
    uri = _uri(entry, base, where, list_uri)
    if etag in (None, "") or size in (None, "") or time in (None, ""):
        if must_be_known:
            raise ConfigError(
                f"{where} has no {_ETAG_NAMES[0]}, {_SIZE_NAMES[0]} and {_TIME_NAMES[0]}; --since-last and "
                "--modified-since need them in a list"
            )
        return listing.to_look_up(ObjectInfo(uri, "", 0, _EPOCH))
    try:
        moment = time if isinstance(time, datetime) else datetime.fromisoformat(str(time))
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        if not 0 <= int(size) < 2**63:
            raise ValueError(f"a size of {size} bytes")
        return ObjectInfo(uri, storage.plain_etag(str(etag)), int(size), moment)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _uri(entry: Entry, base: str | None, where: str, list_uri: str) -> str:
    if entry.get(_BUCKET) and entry.get(_KEY):
        return storage.object_uri(f"s3://{entry[_BUCKET]}/{entry[_KEY]}")
    uri = _first(entry, _URI_NAMES)
    if not isinstance(uri, str) or not uri:
        raise ConfigError(f"{where} has none of the columns {', '.join(_URI_NAMES)}, nor {_BUCKET} and {_KEY}")
    is_relative = "://" not in uri and not uri.startswith("/")
    if is_relative and base is None:
        raise ConfigError(f"{where} names {uri!r}, which is relative; say below what with --images")
    try:
        uri = storage.object_uri(f"{base}/{uri}" if is_relative else uri)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    inside = is_relative and uri.startswith(f"{base}/")
    if uri.startswith("file:") and not inside and not list_uri.startswith("file:"):
        raise ConfigError(
            f"{where} names {uri!r}, a file of this machine: only a list that is itself on this machine may do that"
        )
    return uri


def _first(entry: Entry, names: tuple[str, ...]) -> Any:  # whatever type the list has there
    return next((entry[name] for name in names if name in entry), None)


def _text(path: str) -> Iterator[Entry]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        yield from ({"uri": name} for line in file if (name := line.rstrip(" \t\r\n")))


def _csv(path: str) -> Iterator[Entry]:
    """With a header, or a small inventory of S3, which has none."""
    with _opened(path) as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if _looks_like_an_inventory(header):
            yield _decoded(dict(zip(_INVENTORY, header, strict=True)))
            yield from map(_decoded, _entries(_INVENTORY, lines))
        elif not set(_URI_NAMES) & set(header) and not {_BUCKET, _KEY} <= set(header):
            raise ValueError(
                f"its first line has none of the columns {', '.join(_URI_NAMES)}, nor {_BUCKET} and {_KEY}; of an "
                "inventory of S3, which has no such line, give the manifest.json"
            )
        else:
            yield from filter(_is_current, _entries(header, lines))


def _opened(path: str) -> Any:  # a text file, compressed or not
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if compressed else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _entries(names: Iterable[str], lines: Iterable[list[str]]) -> Iterator[Entry]:
    names = list(names)
    for number, line in enumerate(lines, start=2):
        if len(line) > len(names):
            raise ValueError(f"line {number} has {len(line)} columns, there are {len(names)}")
        if line:
            yield dict(zip(names, line, strict=False))


def _looks_like_an_inventory(line: list[str]) -> bool:
    """Whether a first line is an entry of an inventory with the columns of `_INVENTORY`."""
    if len(line) != len(_INVENTORY) or not line[2].isdigit():
        return False
    try:
        datetime.fromisoformat(line[3])
    except ValueError:
        return False
    return True


def _decoded(entry: Entry) -> Entry:
    """The keys of an inventory are URL-encoded where it is CSV."""
    return entry | {_KEY: unquote_plus(entry[_KEY])}


def _json_lines(path: str) -> Iterator[Entry]:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"line {number} is no JSON object")
                yield entry


def _parquet(path: str) -> Iterator[Entry]:
    with pq.ParquetFile(path) as file:
        columns = [name for name in file.schema_arrow.names if name in _KNOWN]
        for batch in file.iter_batches(_PAGE, columns=columns):
            yield from filter(_is_current, batch.to_pylist())


def _is_current(entry: Entry) -> bool:
    """Of an inventory of all versions: whether it is the latest, and no mark that the object was deleted."""
    latest, deleted = (str(entry.get(name)).lower() for name in _VERSION_NAMES)
    return latest != "false" and deleted != "true"


def _inventory(manifest_uri: str) -> Iterator[Entry]:
    """What an inventory of S3 names, by its manifest.json: `fileSchema` names the columns, `files` the data."""
    document = next(_rows(manifest_uri, lambda path: iter([_document(path)])))
    try:
        kind, schema, files = (
            document["fileFormat"],
            document["fileSchema"],
            [each["key"] for each in document["files"]],
        )
        bucket = document["destinationBucket"].removeprefix("arn:aws:s3:::")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not the manifest of an inventory of S3: {error!r} is wrong or missing") from error
    if kind not in ("CSV", "Parquet"):
        raise ValueError(f"it is an inventory in the format {kind!r}; CSV and Parquet can be read")
    names = [_column(name) for name in schema.split(",")] if kind == "CSV" else []
    for key in files:
        uri = _data_file(manifest_uri, bucket, key)
        yield from _rows(uri, _parquet if kind == "Parquet" else lambda path: _headless(path, names), "the data file")


def _document(path: str) -> Entry:
    with open(path, encoding="utf-8-sig") as file:
        document = json.load(file)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def _headless(path: str, names: list[str]) -> Iterator[Entry]:
    with _opened(path) as file:
        yield from filter(_is_current, map(_decoded, _entries(names, csv.reader(file))))


def _column(name: str) -> str:
    """A name of `fileSchema` (LastModifiedDate) as the Parquet files of an inventory have it (last_modified_date)."""
    plain = name.strip().lower()
    return next((known for known in (*_INVENTORY, *_VERSION_NAMES) if known.replace("_", "") == plain), plain)


def _data_file(manifest_uri: str, bucket: str, key: str) -> str:
    """Where a data file is: with a copy of an inventory on this machine, as S3 lays it out, or beside the manifest."""
    folder, name = posixpath.dirname(manifest_uri), posixpath.basename(key)
    if manifest_uri.startswith("file:"):
        for place in (f"{posixpath.dirname(folder)}/data/{name}", f"{folder}/data/{name}", f"{folder}/{name}"):
            if storage.exists(place):
                return place
    return storage.object_uri(f"s3://{bucket}/{key}")
