"""The only module that opens a URI: list, read, write, create-once, delete; one client for all stores.

`s3://`, `gs://`, `az://` and local paths, through obstore, which costs 7-16 times less CPU per object
than s3fs (LIMITS) and reads credentials and AWS_ENDPOINT_URL from the usual environment. Keys are data:
they are never interpreted beyond the prefix the caller gave.

What is read is whole and as it was stored: S3 clients return shortened and flipped bodies without an error
(RELIABILITY finding 5). The length is compared, and the MD5 where the store's ETag is one; a body that fits
neither is read again, and believed when all of several reads agree.
"""

import functools
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import obstore
import tenacity
from fsspec import AbstractFileSystem
from obstore import exceptions
from obstore.fsspec import FsspecStore
from obstore.store import LocalStore, ObjectStore, from_url

from fcdd.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

CLOUD_SCHEMES = ("s3", "gs", "az")
_HALF_A_SCHEME = re.compile(r"(s3|gs|az|file|https?):")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_THERE = (exceptions.NotFoundError, FileNotFoundError)
_FORBIDDEN = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)
_STORE_ERRORS = (exceptions.BaseError, OSError)
_MD5 = re.compile(r"[0-9a-f]{32}")
# Our tries of one object, each of which the client already tries several times, and their time in all.
ATTEMPTS, GIVE_UP_AFTER_S = 4, 120.0
# A body in one piece: its ETag is then its MD5, and nothing unfinished can stay behind.
_LARGEST_SINGLE_PUT = 4 * 1024**3
# Buckets whose ETags are not MD5s (encrypted with a key of KMS, say): buckets -> mismatches that were no damage.
_opaque_etags: dict[str, int] = {}
_md5_etags: set[str] = set()
_OPAQUE_AFTER = 3


T = TypeVar("T")


class Damaged(Exception):
    """A body that is not what the store holds; worth another read."""


class ObjectInfo(NamedTuple):
    """One listed object; `etag` is "" where the store has none."""

    uri: str
    etag: str
    size: int
    last_modified: datetime


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts appended."""
    return "/".join((uri.rstrip("/"), *(part.strip("/") for part in parts)))


def read(uri: str) -> bytes:
    """The whole object, checked. Raises FileNotFoundError when it does not exist, ConfigError otherwise."""
    with _explained(uri, "read"):
        for attempt in _attempts(again=lambda error: not isinstance(error, _NOT_THERE)):
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
        meta = obstore.head(store, key)
        return _info(normalize(uri), meta)

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
    except _NOT_THERE as error:
        raise ImageError("vanished", "deleted since it was listed") from error
    except _STORE_ERRORS as error:
        raise ImageError("forbidden" if _is_refusal(error) else "fetch_failed", _first_line(error)) from error
    except ValueError as error:  # a key that the client does not take
        raise ImageError("fetch_failed", _first_line(error)) from error
    raise AssertionError("the last attempt returns or raises")


def _as_listed(info: ObjectInfo) -> bytes:
    data, etag = _get(info.uri)
    if etag != plain_etag(info.etag):
        raise ImageError("changed", f"listed with ETag {info.etag}, read with {etag}")
    if len(data) != info.size:
        raise Damaged(f"listed with {info.size} bytes, read {len(data)}")
    return data


def _get(uri: str) -> tuple[bytes, str]:
    """Body and ETag; Damaged when the body is not what the answer's own length or the MD5 in its ETag say."""
    store, key = _locate(uri)
    result = obstore.get(store, key)
    etag, data = plain_etag(result.meta["e_tag"] or ""), bytes(result.bytes())
    if len(data) != result.meta["size"]:
        raise Damaged(f"{result.meta['size']} bytes were announced, {len(data)} came")
    if not _MD5.fullmatch(etag) or _is_opaque(uri):
        return data, etag
    bucket = _bucket(uri)
    if not _contradicts(etag, data):
        _md5_etags.add(bucket)
        return data, etag
    for _ in range(ATTEMPTS - 1):
        if bytes(obstore.get(store, key).bytes()) != data:
            raise Damaged("two reads of it differ")
    if bucket not in _md5_etags:  # where some are MD5s, the others are looked at closely each time
        _opaque_etags[bucket] = _opaque_etags.get(bucket, 0) + 1
    return data, etag


def _contradicts(etag: str, data: bytes) -> bool:
    """Whether an ETag that looks like an MD5 is not that of `data`."""
    tag = plain_etag(etag)
    return _MD5.fullmatch(tag) is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != tag


def plain_etag(etag: str) -> str:
    """An entity tag without its quotes: Azure quotes it in one answer and not in another, inventories never do."""
    return etag.removeprefix("W/").strip('"')


def _is_opaque(uri: str) -> bool:
    """Whether the ETags of this bucket are known to be no MD5s."""
    return _opaque_etags.get(_bucket(uri), 0) >= _OPAQUE_AFTER


def _may_pass(error: BaseException) -> bool:
    """Whether the next try of an image may succeed: a change is final, all the rest may be the store's mood."""
    return not isinstance(error, ImageError)


def _attempts(again: Callable[[BaseException], bool] = lambda error: True) -> tenacity.Retrying:
    """Tries of one object; a fault of this program itself is raised at once."""
    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(GIVE_UP_AFTER_S),
        wait=tenacity.wait_exponential(multiplier=0.1, max=10) + tenacity.wait_random(0, 0.2),
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, (Damaged, *_STORE_ERRORS)) and again(e)),
        reraise=True,
    )


def write(uri: str, data: bytes) -> None:
    """Put the whole object at once, replacing what was there. Raises ConfigError when it cannot.

    The ETag of the answer must be that of the bytes, where it is an MD5: they may be flipped on their way out, too.
    """
    with _explained(uri, "write"):
        for attempt in _attempts():
            with attempt:
                _put(uri, data)


def _put(uri: str, data: bytes) -> None:
    store, key = _locate(uri)
    result = obstore.put(store, key, data, use_multipart=len(data) > _LARGEST_SINGLE_PUT)
    if _contradicts(result["e_tag"] or "", data) and _get(uri)[0] != data:
        raise Damaged("what was stored is not what was sent")


def create(uri: str, data: bytes) -> None:
    """Put the object only if none is there; FileExistsError if there is one with other bytes.

    A lost answer to a conditional put looks like a lost race, and a broken connection like a failure, so
    whatever went wrong is settled by reading back (RELIABILITY finding 7).
    """
    store, key = _locate(uri)
    with _explained(uri, "write"):
        for attempt in _attempts(again=lambda error: not isinstance(error, FileExistsError)):
            with attempt:
                try:
                    obstore.put(store, key, data, mode="create", use_multipart=False)
                except _STORE_ERRORS as error:
                    _settle(uri, data, error)


def _settle(uri: str, data: bytes, error: Exception) -> None:
    """After a create that did not succeed: nothing if ours is there, FileExistsError if another, else the error."""
    try:
        stored = _get(uri)[0]
    except _NOT_THERE:
        raise error from None
    if stored != data:
        raise FileExistsError(uri) from error


def replace(uri: str, data: bytes, etag: str) -> str:
    """Put the object in place of the one with this ETag, and return the new ETag.

    Raises FileNotFoundError when no object is there any more, FileExistsError when it is another one: an object that
    was deleted is never created again by a request that comes late.
    """
    store, key = _locate(uri)
    with _explained(uri, "write"):
        for attempt in _attempts(again=lambda error: not isinstance(error, (FileExistsError, *_NOT_THERE))):
            with attempt:
                if isinstance(store, LocalStore):
                    return _replace_local(uri, f"/{key}", data, etag)
                try:
                    return plain_etag(obstore.put(store, key, data, mode={"e_tag": etag})["e_tag"] or "")
                except exceptions.PreconditionError as error:  # an answer that got lost looks like this, too
                    stored, now = _get(uri)
                    if stored != data:
                        raise FileExistsError(uri) from error
                    return now
    raise AssertionError("the last attempt returns or raises")


def _replace_local(uri: str, path: str, data: bytes, etag: str) -> str:
    """Write into the file that is there: a new file of that name would bring a deleted one back."""
    if stat(uri).etag != etag:
        raise FileExistsError(uri)
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()
    return stat(uri).etag


def check_writable(prefix: str) -> None:
    """Write and delete a probe below `prefix`. Raises ConfigError when the location cannot be written."""
    probe = join(prefix, f"_probe-{uuid.uuid4().hex}")
    write(probe, b"")
    # A policy may allow to write and not to delete: an empty probe left behind harms nobody.
    with suppress(*_STORE_ERRORS):
        store, key = _locate(probe)
        obstore.delete(store, key)


def exists(uri: str) -> bool:
    """Whether the object is there."""
    store, key = _locate(uri)
    with _explained(uri, "read"):
        try:
            obstore.head(store, key)
        except _NOT_THERE:
            return False
        return True


def stat(uri: str) -> ObjectInfo:
    """What the store knows of one object. Raises FileNotFoundError when it does not exist."""
    store, key = _locate(uri)
    with _explained(uri, "read"):
        meta = obstore.head(store, key)
    return _info(normalize(uri), meta)


def pages(prefix: str, *, after: str | None = None) -> Iterator[list[ObjectInfo]]:
    """Objects under a prefix (treated as a folder), recursively, page by page in the store's order.

    With `after`, a URI below the prefix, only those that come later by name. Nothing for a prefix that does not
    exist. Raises ConfigError when the location cannot be listed.
    """
    store, key = _locate(prefix)
    prefix = normalize(prefix)
    root = prefix.removesuffix(key) if key else f"{prefix}/"
    offset, failures = after.removeprefix(root) if after else None, 0
    with _explained(prefix, "list"):
        while True:
            try:
                for page in obstore.list(store, key or None, offset=offset, chunk_size=1000):
                    yield [_info(root + meta["path"], meta) for meta in page]
                    if page:
                        offset, failures = page[-1]["path"], 0
                return
            except _STORE_ERRORS as error:
                # A page that came damaged is asked for again; only stores that list by name can go on where they were.
                failures += 1
                if failures == ATTEMPTS or _is_final(error) or not lists_in_order(prefix):
                    raise
                time.sleep(0.1 * 2**failures)


def _info(uri: str, meta: "ObjectMeta") -> ObjectInfo:
    return ObjectInfo(uri, plain_etag(meta["e_tag"] or ""), meta["size"], meta["last_modified"])


def lists_in_order(uri: str) -> bool:
    """Whether listings of this store come sorted by name; files of a disk come as they lie."""
    return not normalize(uri).startswith("file:")


def download(uri: str, path: str) -> None:
    """Copy an object to a local file, piece by piece and checked: for objects that may be larger than memory."""
    with _explained(uri, "read"):
        for attempt in _attempts(again=lambda error: not isinstance(error, _NOT_THERE)):
            with attempt:
                _download(uri, path)


def _download(uri: str, path: str) -> None:
    store, key = _locate(uri)
    result = obstore.get(store, key)
    md5, size = hashlib.md5(usedforsecurity=False), 0
    with open(path, "wb") as file:
        for piece in result:
            file.write(piece)
            md5.update(piece)
            size += len(piece)
    tag = plain_etag(result.meta["e_tag"] or "")
    if size != result.meta["size"] or (_MD5.fullmatch(tag) and tag != md5.hexdigest() and not _is_opaque(uri)):
        raise Damaged(
            f"{result.meta['size']} bytes with ETag {tag} were announced, {size} came with MD5 {md5.hexdigest()}"
        )


def delete(uri: str) -> None:
    """Delete an object; nothing happens if it is not there."""
    store, key = _locate(uri)
    with _explained(uri, "delete"), suppress(*_NOT_THERE):
        for attempt in _attempts(again=lambda error: not isinstance(error, _NOT_THERE)):
            with attempt:
                obstore.delete(store, key)


def delete_prefix(prefix: str) -> None:
    """Delete every object under a prefix."""
    for page in pages(prefix):
        delete_all([info.uri for info in page])


def delete_all(uris: list[str]) -> None:
    """Delete objects of one bucket, many at a time."""
    for start in range(0, len(uris), 1000):
        some = uris[start : start + 1000]
        store, _ = _locate(some[0])
        with _explained(some[0], "delete"):
            for attempt in _attempts(again=lambda error: not isinstance(error, _NOT_THERE)):
                with attempt:
                    obstore.delete(store, [_locate(uri)[1] for uri in some])


def normalize(uri: str) -> str:
    """The URI that names the same place on every machine: local paths become absolute file:// URIs.

    Raises ConfigError for a scheme that is not supported.
    """
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


def filesystem(scheme: str) -> AbstractFileSystem:
    """The same client as an fsspec filesystem, for libraries that read many URIs of one scheme."""
    options, retry = _client_settings(scheme)
    return FsspecStore(scheme, client_options=options, retry_config=retry)  # type: ignore[call-overload]


def _client_settings(scheme: str) -> tuple["ClientConfig", "RetryConfig"]:
    """Timeouts and one retry budget; plain http only where the user's AWS_ENDPOINT_URL asks for it."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if scheme == "s3" else ""
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"expected AWS_ENDPOINT_URL to start with http:// or https://, got {endpoint!r}")
    return (
        {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            # Of a whole answer: a body that drips in is given up as well.
            "timeout": timedelta(seconds=float(os.environ.get("FCDD_REQUEST_TIMEOUT_S", "60"))),
        },
        # A job must not wait for ever on a store that is gone.
        {"max_retries": 4, "retry_timeout": timedelta(seconds=60)},
    )


@functools.cache
def _store(scheme: str, bucket: str) -> ObjectStore:
    if scheme == "file":
        return LocalStore(mkdir=True)
    options, retry = _client_settings(scheme)
    try:
        return from_url(f"{scheme}://{bucket}", client_options=options, retry_config=retry)
    except (exceptions.BaseError, ValueError) as error:
        raise ConfigError(
            f"cannot use {scheme}://{bucket}: {_first_line(error)}; set the account and credentials in the environment"
        ) from error


def _bucket(uri: str) -> str:
    return "/".join(normalize(uri).split("/", 3)[:3])


def _locate(uri: str) -> tuple[ObjectStore, str]:
    scheme, _, rest = normalize(uri).partition("://")
    bucket, _, key = rest.partition("/")
    return _store(scheme, bucket), key


@contextmanager
def _explained(uri: str, action: str) -> Iterator[None]:
    """Storage errors as one sentence that names the place and the remedy."""
    try:
        yield
    except FileExistsError:
        raise
    except Damaged as error:
        raise ConfigError(
            f"cannot {action} {uri}: {error}, {ATTEMPTS} times; look at the network and the store"
        ) from error
    except _STORE_ERRORS as error:
        # Listing reports every refusal as a generic error, so the server's own words decide.
        if "NoSuchBucket" in str(error):
            raise ConfigError(f"cannot {action} {uri}: the bucket does not exist; create it or correct it") from error
        if isinstance(error, _NOT_THERE):
            raise FileNotFoundError(uri) from error
        if _is_refusal(error):
            raise ConfigError(
                f"cannot {action} {uri}: access denied; check the credentials in the environment, their policy, and "
                "AWS_ENDPOINT_URL for S3 servers other than Amazon's"
            ) from error
        if "invalid path" in str(error):
            raise ConfigError(
                f"cannot {action} {uri}: it holds a key that cannot be read ({_first_line(error)}); rename that object"
            ) from error
        remedy = (
            "check AWS_ENDPOINT_URL, the region and the network"
            if not normalize(uri).startswith("file:")
            else "check the path"
        )
        raise ConfigError(f"cannot {action} {uri}: {_first_line(error)}; {remedy}") from error


def _is_final(error: BaseException) -> bool:
    """Whether a listing would fail again in the same way."""
    words = ("NoSuchBucket", "invalid path")
    return _is_refusal(error) or isinstance(error, _NOT_THERE) or any(word in str(error) for word in words)


def _is_refusal(error: BaseException) -> bool:
    """Whether the store refuses these credentials; S3 answers 400 to a token that expired."""
    words = ("403 Forbidden", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")
    return isinstance(error, _FORBIDDEN) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    """What went wrong, without the client's debug dump behind it."""
    return str(error).split("\n")[0].split("<?xml")[0].strip(" :")[:300]
