"""The only module that opens a URI: list, read, write, create-once, delete; one client for all stores.

`s3://`, `gs://`, `az://` and local paths, through obstore, which costs 7-16 times less CPU per object
than s3fs (LIMITS) and reads credentials and AWS_ENDPOINT_URL from the usual environment. Keys are data:
they are never interpreted beyond the prefix the caller gave.
"""

import functools
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import obstore
from fsspec import AbstractFileSystem
from obstore import exceptions
from obstore.fsspec import FsspecStore
from obstore.store import LocalStore, ObjectStore, from_url

from fcdd.errors import ConfigError, ImageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CLOUD_SCHEMES = ("s3", "gs", "az")
_HALF_A_SCHEME = re.compile(r"(s3|gs|az|file|https?):")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_THERE = (exceptions.NotFoundError, FileNotFoundError)
_FORBIDDEN = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)
_STORE_ERRORS = (exceptions.BaseError, OSError)


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
    """The whole object. Raises FileNotFoundError when it does not exist, ConfigError otherwise."""
    store, key = _locate(uri)
    with _explained(uri, "read"):
        return bytes(obstore.get(store, key).bytes())


def read_checked(info: ObjectInfo) -> bytes:
    """The object exactly as it was listed; ImageError vanished, changed, truncated, forbidden, fetch_failed.

    S3 clients return silently shortened bodies (RELIABILITY finding 5), so the length and the ETag of
    the answer are compared with the listing.
    """
    store, key = _locate(info.uri)
    try:
        result = obstore.get(store, key)
        etag, data = result.meta["e_tag"] or "", bytes(result.bytes())
    except _NOT_THERE as error:
        raise ImageError("vanished", "deleted since it was listed") from error
    except _FORBIDDEN as error:
        raise ImageError("forbidden", _first_line(error)) from error
    except _STORE_ERRORS as error:
        raise ImageError("fetch_failed", _first_line(error)) from error
    # Azure quotes the tag in one answer and not in the other.
    if etag.strip('"') != info.etag.strip('"'):
        raise ImageError("changed", f"listed with ETag {info.etag}, read with {etag}")
    if len(data) != info.size:
        raise ImageError("truncated", f"listed with {info.size} bytes, read {len(data)}")
    return data


def write(uri: str, data: bytes) -> None:
    """Put the whole object at once, replacing what was there. Raises ConfigError when it cannot."""
    store, key = _locate(uri)
    with _explained(uri, "write"):
        obstore.put(store, key, data)


def create(uri: str, data: bytes) -> None:
    """Put the object only if none is there; FileExistsError if there is one with other bytes.

    A lost answer to a conditional put looks like a lost race, so a refusal is settled by reading back.
    """
    store, key = _locate(uri)
    with _explained(uri, "write"):
        try:
            obstore.put(store, key, data, mode="create")
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            if bytes(obstore.get(store, key).bytes()) != data:
                raise FileExistsError(uri) from error


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
    return ObjectInfo(normalize(uri), meta["e_tag"] or "", meta["size"], meta["last_modified"])


def pages(prefix: str) -> Iterator[list[ObjectInfo]]:
    """Objects under a prefix (treated as a folder), recursively, page by page in the store's order.

    Nothing for a prefix that does not exist. Raises ConfigError when the location cannot be listed.
    """
    store, key = _locate(prefix)
    prefix = normalize(prefix)
    root = prefix.removesuffix(key) if key else f"{prefix}/"
    with _explained(prefix, "list"):
        for page in obstore.list(store, key or None, chunk_size=1000):
            yield [
                ObjectInfo(root + meta["path"], meta["e_tag"] or "", meta["size"], meta["last_modified"])
                for meta in page
            ]


def delete(uri: str) -> None:
    """Delete an object; nothing happens if it is not there."""
    store, key = _locate(uri)
    with _explained(uri, "delete"), suppress(*_NOT_THERE):
        obstore.delete(store, key)


def delete_prefix(prefix: str) -> None:
    """Delete every object under a prefix."""
    for page in pages(prefix):
        with _explained(prefix, "delete"):
            obstore.delete(_locate(prefix)[0], [_locate(info.uri)[1] for info in page])


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
            "timeout": timedelta(seconds=60),
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
    except _STORE_ERRORS as error:
        # Listing reports every refusal as a generic error, so the server's own words decide.
        if "NoSuchBucket" in str(error):
            raise ConfigError(f"cannot {action} {uri}: the bucket does not exist; create it or correct it") from error
        if isinstance(error, _NOT_THERE):
            raise FileNotFoundError(uri) from error
        if isinstance(error, _FORBIDDEN) or "403 Forbidden" in str(error):
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


def _first_line(error: BaseException) -> str:
    """What went wrong, without the client's debug dump behind it."""
    return str(error).split("\n")[0].split("<?xml")[0].strip(" :")[:300]
