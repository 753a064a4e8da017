"""The only way to a URI: list, read, write, create-once, delete; one interface for all stores.

`s3://`, `gs://`, `az://` (`object_store`) and local paths (`local_store`). Keys are data: they are never interpreted
beyond the prefix the caller gave.

What is read is whole and as it was stored: S3 clients return shortened and flipped bodies without an error
(docs/facts.md). The length is compared, and the MD5 where the store's ETag is one; a body that fits
neither is read again, and believed when the store says that its ETag is no MD5, or all of several reads agree.
"""

import functools
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import tenacity
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fcdd.errors import ConfigError, ImageError
from fcdd.io import object_store
from fcdd.io.foreign_store import Foreign
from fcdd.io.local_store import Disk
from fcdd.io.object_store import Bucket
from fcdd.io.storage_errors import (
    CONDITION_FAILED,
    NOT_THERE,
    STORE_ERRORS,
    explained,
    first_line,
    is_final,
    is_refusal,
    spelled,
)
from fcdd.io.stored import Damaged, ObjectInfo, Store, Unreadable, contradicts, looks_like_md5, md5, plain_etag

__all__ = ["AbstractFileSystem", "ObjectInfo", "Unreadable", "plain_etag", "spelled"]

CLOUD_SCHEMES = ("s3", "gs", "az")
_HALF_A_SCHEME = re.compile(r"(s3|gs|az|file|https?):")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# DuckDB takes them for patterns, in the documented SQL as well as in ours.
_WILD = "*?[\\"
# Our tries of one object, each of which the client already tries several times, and their time in all.
ATTEMPTS, GIVE_UP_AFTER_S = 4, 120.0

T = TypeVar("T")


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts appended."""
    return "/".join((uri.rstrip("/"), *(part.strip("/") for part in parts)))


def read(uri: str) -> bytes:
    """The whole object, checked. Raises FileNotFoundError when it does not exist, ConfigError otherwise."""
    with explained(uri, "read"):
        for attempt in _attempts(again=lambda error: not isinstance(error, NOT_THERE)):
            with attempt:
                return _get(uri)[0]
    raise AssertionError("the last attempt returns or raises")


def read_checked(info: ObjectInfo) -> bytes:
    """The object exactly as it was listed; ImageError vanished, changed, truncated, forbidden, fetch_failed.

    Tried several times, with growing pauses, before it is given up.
    """
    return _checked(lambda: _as_listed(info))


def stat_checked(uri: str) -> ObjectInfo:
    """`stat` of an image: ImageError vanished, forbidden or fetch_failed, after several tries."""

    def look() -> ObjectInfo:
        store, key = _locate(uri)
        return store.head(key)

    return _checked(look)


def _checked(read: Callable[[], T]) -> T:
    """What `read` returns, tried several times; every failure of the store is an ImageError."""
    try:
        for attempt in _attempts(again=_may_pass):
            with attempt:
                return read()
    except ImageError:
        raise
    except Damaged as error:
        raise ImageError("truncated", f"{error}, {ATTEMPTS} times") from error
    except NOT_THERE as error:
        raise ImageError("vanished", "deleted since it was listed") from error
    except STORE_ERRORS as error:
        raise ImageError("forbidden" if is_refusal(error) else "fetch_failed", first_line(error)) from error
    raise AssertionError("the last attempt returns or raises")


def _as_listed(info: ObjectInfo) -> bytes:
    data, etag = _get(info.uri)
    if etag != plain_etag(info.etag):
        raise ImageError("changed", f"listed with ETag {info.etag}, read with {etag}")
    if len(data) != info.size:
        raise Damaged(f"listed with {info.size} bytes, read {len(data)}")
    return data


def _get(uri: str) -> tuple[bytes, str]:
    """Body and ETag; Damaged when the body contradicts the answer's own length or the MD5 in its ETag."""
    store, key = _locate(uri)
    info, data = store.get(key)
    if len(data) != info.size:
        raise Damaged(f"{info.size} bytes were announced, {len(data)} came")
    if looks_like_md5(info.etag) and not store.etags.agree(info.etag, digest := md5(data)):
        _believe_none_but_agreeing(store, key, digest, lambda: md5(store.get(key)[1]))
    return data, info.etag


def _believe_none_but_agreeing(store: Store, key: str, digest: str, read_again: Callable[[], str]) -> None:
    """A body whose MD5 is not its ETag. Raises Damaged unless the ETag is no MD5: the store says so, or reads agree."""
    if not store.is_encrypted(key):
        for _ in range(ATTEMPTS - 1):
            if read_again() != digest:
                raise Damaged("two reads of it differ")
    store.etags.learn_opaque()


def _may_pass(error: BaseException) -> bool:
    """Whether the next try of an image may succeed: a change is final, all the rest may be the store's mood."""
    return not isinstance(error, ImageError)


def _attempts(again: Callable[[BaseException], bool] = lambda error: True) -> tenacity.Retrying:
    """Tries of one object; a fault of this program itself is raised at once."""
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(GIVE_UP_AFTER_S),
        wait=tenacity.wait_exponential(multiplier=0.1, max=10) + tenacity.wait_random(0, 0.2),
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, (Damaged, *STORE_ERRORS)) and again(e)),
        reraise=True,
    )


def write(uri: str, data: bytes) -> None:
    """Put the whole object at once, replacing what was there. Raises ConfigError when it cannot.

    The ETag of the answer must be that of the bytes, where it is an MD5: they may be flipped on their way out, too.
    """
    with explained(uri, "write"):
        for attempt in _attempts():
            with attempt:
                _put(uri, data)


def _put(uri: str, data: bytes) -> None:
    store, key = _locate(uri)
    if contradicts(store.put(key, data), md5(data)) and _get(uri)[0] != data:
        raise Damaged("what was stored is not what was sent")


def create(uri: str, data: bytes) -> None:
    """Put the object only if none is there; FileExistsError if there is one with other bytes.

    A lost answer to a conditional put looks like a lost race, and a broken connection like a failure, so
    whatever went wrong is settled by reading back (docs/facts.md: a lost answer).
    """
    store, key = _locate(uri)
    with explained(uri, "write"):
        for attempt in _attempts(again=lambda error: not isinstance(error, FileExistsError)):
            with attempt:
                try:
                    store.create(key, data)
                except STORE_ERRORS as error:
                    _settle(uri, data, error)


def _settle(uri: str, data: bytes, error: Exception) -> None:
    """After a create that did not succeed: nothing if ours is there, FileExistsError if another, else the error."""
    try:
        stored = _get(uri)[0]
    except NOT_THERE:
        raise error from None
    if stored != data:
        raise FileExistsError(uri) from error


def replace(uri: str, data: bytes, etag: str) -> str:
    """Put the object in place of the one with this ETag, and return the new ETag.

    Raises FileNotFoundError when no object is there any more, FileExistsError when it is another one: an object that
    was deleted is never created again by a request that comes late.
    """
    store, key = _locate(uri)
    with explained(uri, "replace"):
        for attempt in _attempts(again=lambda error: not isinstance(error, (FileExistsError, *NOT_THERE))):
            with attempt:
                try:
                    return store.replace(key, data, etag)
                except CONDITION_FAILED as error:  # an answer that got lost looks like this, too
                    stored, now = _get(uri)
                    if stored != data:
                        raise FileExistsError(uri) from error
                    return now
    raise AssertionError("the last attempt returns or raises")


def check_writable(prefix: str) -> None:
    """Write and delete a probe below `prefix`. Raises ConfigError when the location cannot be written."""
    probe = join(prefix, f"_probe-{uuid.uuid4().hex}")
    write(probe, b"")
    # A policy may allow to write and not to delete: an empty probe left behind harms nobody.
    with suppress(*STORE_ERRORS):
        store, key = _locate(probe)
        store.delete([key])


def exists(uri: str) -> bool:
    """Whether the object is there."""
    store, key = _locate(uri)
    with explained(uri, "read"):
        try:
            store.head(key)
        except NOT_THERE:
            return False
        return True


def stat(uri: str) -> ObjectInfo:
    """What the store knows of one object. Raises FileNotFoundError when it does not exist."""
    store, key = _locate(uri)
    with explained(uri, "read"):
        return store.head(key)


def pages(prefix: str, *, after: str | None = None) -> Iterator[list[ObjectInfo]]:
    """Objects under a prefix (treated as a folder), recursively, page by page in the store's order.

    With `after`, a URI below the prefix, only those that come later by name. Nothing for a prefix that does not
    exist. What no client can name is an `Unreadable` entry. Raises ConfigError when the location cannot be listed.
    """
    store, key = _locate(prefix)
    key, root = key.rstrip("/"), _root(prefix)
    offset, failures = after.removeprefix(root) if after else None, 0
    with explained(prefix, "list"):
        while True:
            try:
                for page in store.pages(key, offset):
                    yield page
                    offset, failures = page[-1].uri.removeprefix(root), 0
                return
            except STORE_ERRORS as error:
                # A page that came damaged is asked for again; only stores that list by name can go on where they were.
                failures += 1
                if failures == ATTEMPTS or is_final(error) or not store.in_order:
                    raise
                time.sleep(0.1 * 2**failures)


def lists_in_order(uri: str) -> bool:
    """Whether listings of this store come sorted by name; files of a disk come as they lie."""
    return _locate(uri)[0].in_order


def download(uri: str, path: str) -> None:
    """Copy an object to a local file, piece by piece and checked: for objects that may be larger than memory."""
    with explained(uri, "read"):
        for attempt in _attempts(again=lambda error: not isinstance(error, NOT_THERE)):
            with attempt:
                _download(uri, path)


def _download(uri: str, path: str) -> None:
    store, key = _locate(uri)
    info, digest, size = _save(store, key, path)
    if size != info.size:
        raise Damaged(f"{info.size} bytes were announced, {size} came")
    if not store.etags.agree(info.etag, digest):
        _believe_none_but_agreeing(store, key, digest, lambda: _save(store, key, path)[1])


def _save(store: Store, key: str, path: str) -> tuple[ObjectInfo, str, int]:
    """Write the body to a file as it comes: what the store says of it, its MD5 and its length."""
    info, pieces = store.stream(key)
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    return info, digest.hexdigest(), size


def delete(uri: str) -> None:
    """Delete an object; nothing happens if it is not there."""
    store, key = _locate(uri)
    with explained(uri, "delete"), suppress(*NOT_THERE):
        for attempt in _attempts(again=lambda error: not isinstance(error, NOT_THERE)):
            with attempt:
                store.delete([key])


def delete_prefix(prefix: str) -> None:
    """Delete every object under a prefix."""
    for page in pages(prefix):
        delete_all([info.uri for info in page])


def delete_all(uris: list[str]) -> None:
    """Delete objects of one bucket, many at a time; nothing happens for those that are not there."""
    for start in range(0, len(uris), 1000):
        some = uris[start : start + 1000]
        store, _ = _locate(some[0])
        try:
            with explained(some[0], "delete"):
                for attempt in _attempts(again=lambda error: not isinstance(error, NOT_THERE)):
                    with attempt:
                        store.delete([_locate(uri)[1] for uri in some])
        except NOT_THERE:  # one of them, and those behind it may be there still
            for uri in some:
                delete(uri)


def normalize(uri: str) -> str:
    """The URI that names the same place on every machine: local paths become absolute file:// URIs.

    Raises ConfigError for a scheme that is not supported, and for a name that is not UTF-8.
    """
    _check_utf8(uri)
    if _foreign_root(uri):
        return uri.rstrip("/")
    scheme, separator, rest = uri.partition("://")
    if not separator and uri and "::" not in uri and not _HALF_A_SCHEME.match(uri):
        return "file://" + os.path.abspath(os.path.expanduser(uri))
    if scheme == "file" and rest.startswith("/"):
        return "file://" + os.path.abspath(rest)
    bucket = rest.partition("/")[0]
    if scheme in CLOUD_SCHEMES and _BUCKET.fullmatch(bucket) and ".." not in rest.split("/"):
        return uri.rstrip("/")
    known = ", ".join(f"{scheme}://<bucket>" for scheme in CLOUD_SCHEMES)
    raise ConfigError(f"expected a location like {known}, file:///<path> or a local path, got {uri!r}")


def object_uri(uri: str) -> str:
    """The URI of one object that a list names: its key is data and stays as it is, a local path becomes a URI.

    Raises ConfigError for a scheme that is not supported.
    """
    _check_utf8(uri)
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return uri if scheme in CLOUD_SCHEMES and _BUCKET.fullmatch(bucket) and key else normalize(uri)


def _check_utf8(uri: str) -> None:
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{uri!r} is not UTF-8, so no table can name what is there; rename it") from error


def check_results(uri: str) -> str:
    """The normalised location of results. Raises ConfigError for one that not every reader of Parquet can name."""
    uri = normalize(uri)
    if wild := sorted(set(uri) & set(_WILD)):
        raise ConfigError(
            f"results cannot be at {uri!r}: it holds {' '.join(wild)}, which DuckDB takes for a pattern; choose "
            "another location, or move what is there"
        )
    if not object_store.is_path(uri.partition("://")[2].lstrip("/")):
        raise ConfigError(
            f"results cannot be at {uri!r}: it holds an empty part or a control character, which readers of Parquet "
            "do not take; choose another location"
        )
    return uri


def filesystem(scheme: str) -> AbstractFileSystem:
    """The fast client as an fsspec filesystem, for libraries that read many URIs of one scheme; "file" is the disk."""
    return LocalFileSystem() if scheme == "file" else object_store.filesystem(scheme)


@functools.lru_cache(maxsize=256)
def _store(scheme: str, bucket: str, environment: tuple[str | None, ...]) -> Store:
    """Clients are kept as long as the environment, which says where they lead and who asks, stays the same."""
    return Disk() if scheme == "file" else Bucket(scheme, bucket)


@contextmanager
def reading_through(location: str, filesystem: AbstractFileSystem | None) -> Iterator[None]:
    """Meanwhile what lies below `location` is read through this filesystem, by every thread; None: by our own doors."""
    if filesystem is None:
        yield
        return
    location = location.rstrip("/")
    _foreign[f"{location}/"] = Foreign(location, filesystem)
    try:
        yield
    finally:
        _foreign.pop(f"{location}/", None)


# Locations, with a "/" at their end, that a caller reads through a filesystem of their own.
_foreign: dict[str, Foreign] = {}


def _foreign_root(uri: str) -> str | None:
    return next((root for root in _foreign if f"{uri}/".startswith(root)), None)


def _root(uri: str) -> str:
    """What stands before the key: of a local file only the scheme."""
    if foreign := _foreign_root(uri):
        return foreign
    scheme, _, rest = _absolute(uri).partition("://")
    return "file://" if scheme == "file" else f"{scheme}://{rest.partition('/')[0]}/"


def _absolute(uri: str) -> str:
    """What a listing found stays as it is, what a person may have written is checked."""
    return uri if uri.startswith("file:///") or _foreign_root(uri) else object_uri(uri)


def _locate(uri: str) -> tuple[Store, str]:
    """The store and the key."""
    uri = _absolute(uri)
    root = _root(uri)
    if root in _foreign:
        return _foreign[root], uri[len(root) :]
    scheme, _, bucket = root.rstrip("/").partition("://") if root != "file://" else ("file", "", "")
    who = object_store.environment(scheme) if scheme != "file" else ()
    return _store(scheme, bucket, who), uri[len(root) :]
