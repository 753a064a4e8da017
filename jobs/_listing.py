"""Which objects are images: listings of locations and explicit lists, page by page; what is left out is counted.

An image is an object with an image extension whose path below its location has no part that starts with "_" or ".",
and that the selection does not leave out. Shared by training (whole lists in memory) and scoring (streams).
"""

import csv
import fnmatch
import functools
import hashlib
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from fcdd import images, storage
from fcdd.errors import ConfigError
from fcdd.storage import ObjectInfo

_EPOCH = datetime.fromtimestamp(0, UTC)
_PAGE = 10_000
# Names of a column, of ours and of the manifests of Lookout for Vision and SageMaker Ground Truth ("source-ref").
_URI_NAMES = ("image_uri", "uri", "source-ref")
_ETAG_NAMES, _SIZE_NAMES, _TIME_NAMES = (
    ("image_etag", "etag", "e_tag"),
    ("image_bytes", "size"),
    ("image_last_modified", "last_modified", "last_modified_date"),
)

log = logging.getLogger(__name__)


class Selection(BaseModel):
    """Which objects below a location are images of a run. In globs `*` also matches "/"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include: tuple[str, ...] = Field((), description="globs of paths below the location; empty: all")
    exclude: tuple[str, ...] = ()
    extensions: tuple[str, ...] = images.EXTENSIONS
    modified_since: datetime | None = None
    modified_before: datetime | None = None

    @property
    def by_time(self) -> bool:
        """Whether it needs to know when an object was written."""
        return self.modified_since is not None or self.modified_before is not None

    def leaves_out(self, key: str, info: ObjectInfo, *, named: bool = False) -> str | None:
        """The rule by which an object, at `key` below its location, is no image of the run; None if it is one.

        What a list has `named` is never hidden.
        """
        if not key.lower().endswith(self.extensions):
            return "extension"
        if not named and _HIDDEN.search(key):
            return "hidden"
        if self.include and not _matches(self.include, key):
            return "not included"
        if self.exclude and _matches(self.exclude, key):
            return "excluded"
        if self.modified_since and info.last_modified < self.modified_since:
            return "older"
        if self.modified_before and info.last_modified >= self.modified_before:
            return "newer"
        return None


_HIDDEN = re.compile(r"(?:^|/)[_.]")


def _matches(globs: tuple[str, ...], key: str) -> bool:
    return any(_compiled(glob).match(key) for glob in globs)


@functools.cache
def _compiled(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))


def selected(
    prefix: str, page: Iterable[ObjectInfo], selection: Selection, skipped: Counter[str], *, named: bool = False
) -> list[ObjectInfo]:
    """The images of a page; the others are counted in `skipped` by rule. `named`: a list says that they are images.

    Paths are those below `prefix`; whole ones where a list names something elsewhere.
    """
    below, chosen = f"{prefix}/", []
    for info in page:
        rule = selection.leaves_out(info.uri.removeprefix(below), info, named=named)
        if rule is None:
            chosen.append(info)
        else:
            skipped[rule] += 1
    return chosen


def list_images(prefix: str, selection: Selection = Selection()) -> list[ObjectInfo]:  # noqa: B008
    """All images under one location, sorted by URI, each once, in memory: for training.

    Raises ConfigError when there is none, or the location cannot be listed.
    """
    skipped: Counter[str] = Counter()
    found = {info.uri: info for page in storage.pages(prefix) for info in selected(prefix, page, selection, skipped)}
    if not found:
        raise nothing_found((prefix,), skipped, selection)
    if skipped:
        log.info("skipped %s under %s", described(skipped), prefix)
    return [found[uri] for uri in sorted(found)]


def nothing_found(locations: Iterable[str], skipped: dict[str, int], selection: Selection) -> ConfigError:
    """The error of a listing without an image."""
    return ConfigError(
        f"no images under {', '.join(locations)} ({sum(skipped.values())} other objects: {described(skipped)}); "
        f"expected files ending in {', '.join(selection.extensions)}"
    )


def described(skipped: dict[str, int]) -> str:
    """The counts as words."""
    return ", ".join(f"{count} by rule {rule!r}" for rule, count in sorted(skipped.items())) or "nothing"


def digest(infos: Iterable[ObjectInfo]) -> str:
    """sha256 over (uri, etag, size) of every image, in order."""
    sha = hashlib.sha256()
    for info in infos:
        sha.update(digested(info.uri, info.etag, info.size))
    return sha.hexdigest()


def digested(uri: str, etag: str, size: int) -> bytes:
    """What `digest` sees of one image."""
    return f"{uri}\0{etag}\0{size}\n".encode()


def outermost(prefixes: Iterable[str]) -> list[str]:
    """The locations, sorted, without those below another one: nothing is listed twice."""
    kept: list[str] = []
    for prefix in sorted({storage.normalize(each) for each in prefixes}):
        if any(prefix.startswith(f"{outer}/") for outer in kept):
            log.info("left out %s: another location holds it", prefix)
        else:
            kept.append(prefix)
    return kept


def to_look_up(info: ObjectInfo) -> ObjectInfo:
    """The image, to be looked up when it is fetched, with what is known of it until then."""
    return info._replace(size=-1 - info.size)


def is_to_look_up(size: int) -> bool:
    """Whether a listed size says that the image is to be looked up."""
    return size < 0


def last_known(size: int) -> int:
    """The size that was known before; 0 if none was."""
    return -1 - size if size < 0 else size


def entries(list_uri: str, base: str | None, *, must_be_known: bool = False) -> Iterator[list[ObjectInfo]]:
    """Pages of the images that a list names, in its order; relative names are below `base`.

    A list is text (a name per line), CSV, Parquet or JSON Lines with `image_uri`, `uri` or `source-ref`. Where it
    also has the ETag, the size and the time of change, they are believed; else they are unknown, and looked up when
    the image is fetched, which is an error if they `must_be_known`. Raises ConfigError that names an entry which cannot
    be used.
    """
    kind = Path(list_uri).suffix.lower()
    readers = {".txt": _text, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(kind, _json_lines if kind in (".jsonl", ".ndjson", ".json", ".manifest") else None)
    if reader is None:
        raise ConfigError(f"expected a list that ends in .txt, .csv, .parquet, .jsonl or .manifest, got {list_uri}")
    with tempfile.TemporaryDirectory(prefix="fcdd-list-") as folder:
        local = f"{folder}/list"
        try:
            storage.download(list_uri, local)
        except FileNotFoundError as error:
            raise ConfigError(f"the list {list_uri} does not exist") from error
        page: list[ObjectInfo] = []
        try:
            for number, entry in enumerate(reader(local), start=1):
                page.append(_info(entry, base, f"entry {number} of {list_uri}", must_be_known))
                if len(page) == _PAGE:
                    yield page
                    page = []
        except (ValueError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"cannot read the list {list_uri}: {error}") from error
        if page:
            yield page


def _info(entry: dict[str, Any], base: str | None, where: str, must_be_known: bool) -> ObjectInfo:
    uri, etag, size, time = (_first(entry, names) for names in (_URI_NAMES, _ETAG_NAMES, _SIZE_NAMES, _TIME_NAMES))
    if not isinstance(uri, str) or not uri:
        raise ConfigError(f"{where} has none of the columns {', '.join(_URI_NAMES)}")
    if "://" not in uri and not uri.startswith("/"):
        if base is None:
            raise ConfigError(f"{where} names {uri!r}, which is relative; say below what with --images")
        uri = storage.join(base, uri)
    try:
        uri = storage.normalize(uri)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if etag in (None, "") or size in (None, "") or time in (None, ""):
        if must_be_known:
            raise ConfigError(
                f"{where} has no {_ETAG_NAMES[0]}, {_SIZE_NAMES[0]} and {_TIME_NAMES[0]}; --since-last and "
                "--modified-since need them in a list"
            )
        return to_look_up(ObjectInfo(uri, "", 0, _EPOCH))
    try:
        moment = time if isinstance(time, datetime) else datetime.fromisoformat(str(time))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return ObjectInfo(uri, storage.plain_etag(str(etag)), int(size), moment)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _first(entry: dict[str, Any], names: tuple[str, ...]) -> Any:  # whatever type the list has there
    return next((entry[name] for name in names if name in entry), None)


def _text(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        yield from ({"uri": line.rstrip("\r\n")} for line in file if line.strip())


def _csv(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _json_lines(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"line {number} is no JSON object")
                yield entry


def _parquet(path: str) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        known = {*_URI_NAMES, *_ETAG_NAMES, *_SIZE_NAMES, *_TIME_NAMES}
        columns = [name for name in file.schema_arrow.names if name in known]
        for batch in file.iter_batches(_PAGE, columns=columns):
            yield from batch.to_pylist()
