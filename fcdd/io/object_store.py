"""A bucket as a store, through two doors: obstore, and s3fs for what obstore cannot name.

obstore costs 7-16 times less CPU per object than s3fs (docs/facts.md), and takes keys for paths: one with an empty
part, a "." or "..", or a control character stops its listing, and cannot be asked for. s3fs sends any key as it
stands. Both find the store, its credentials and its endpoint in the environment that every S3 client reads.
"""

import functools
import itertools
import logging
import os
import re
from collections.abc import Coroutine, Iterator
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from fsspec import AbstractFileSystem
from obstore import exceptions
from obstore.fsspec import FsspecStore
from obstore.store import ObjectStore, from_url

from fcdd.errors import ConfigError
from fcdd.io.storage_errors import first_line, no_client_can
from fcdd.io.stored import Etags, ObjectInfo, plain_etag

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, RetryConfig
    from s3fs import S3FileSystem

# Variables that say which server clients ask, as whom, and how long they wait.
_VARIABLES = {
    "s3": (
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_SKIP_SIGNATURE",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
        "FCDD_REQUEST_TIMEOUT_S",
    ),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "FCDD_REQUEST_TIMEOUT_S"),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_ID", "FCDD_REQUEST_TIMEOUT_S"),
}

T = TypeVar("T")
# A body in one piece: its ETag is then its MD5, and nothing unfinished can stay behind.
_LARGEST_SINGLE_PUT = 4 * 1024**3
_PAGE = 1000
# Empty parts (also before the first "/" and behind the last), "." and "..", and control characters.
_NO_PATH = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f]")
_TRIES, _CONNECT_TIMEOUT_S = 4, 5


def is_path(key: str) -> bool:
    """Whether obstore, which takes keys for paths, can name this one."""
    return not _NO_PATH.search(key)


class Bucket:
    """One bucket of S3, Google or Azure; only S3 has the second door."""

    in_order = True

    def __init__(self, scheme: str, name: str) -> None:
        self._root, self.etags = f"{scheme}://{name}/", Etags()
        self._client = _client(scheme, name)
        self._second = _ThroughS3fs(name) if scheme == "s3" else None

    def _needs_second(self, key: str) -> "_ThroughS3fs | None":
        """The second door, if the key needs it. Raises OSError when there is none."""
        if is_path(key):
            return None
        if self._second is None:
            raise no_client_can(f"name the key {key!r}")
        return self._second

    def head(self, key: str) -> ObjectInfo:
        """What is known of an object."""
        second = self._needs_second(key)
        return second.head(key) if second else self._info(obstore.head(self._client, key))

    def get(self, key: str) -> tuple[ObjectInfo, bytes]:
        """An object and its body, as it came."""
        if second := self._needs_second(key):
            return second.get(key)
        result = obstore.get(self._client, key)
        return self._info(result.meta), bytes(result.bytes())

    def stream(self, key: str) -> tuple[ObjectInfo, Iterator[bytes]]:
        """An object and its body in pieces; what only the second door can name comes in one."""
        if second := self._needs_second(key):
            info, data = second.get(key)
            return info, iter([data])
        result = obstore.get(self._client, key)
        return self._info(result.meta), map(bytes, result)

    def put(self, key: str, data: bytes) -> str:
        """Store an object; the ETag of the answer."""
        if second := self._needs_second(key):
            return second.put(key, data)
        result = obstore.put(self._client, key, data, use_multipart=len(data) > _LARGEST_SINGLE_PUT)
        return plain_etag(result["e_tag"] or "")

    def create(self, key: str, data: bytes) -> None:
        """Store an object if there is none; any error may mean that there is one."""
        if second := self._needs_second(key):
            second.put(key, data, IfNoneMatch="*")
        else:
            obstore.put(self._client, key, data, mode="create", use_multipart=False)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Store an object in place of the one with this ETag. Raises PreconditionError, or that there is none."""
        if second := self._needs_second(key):
            return second.put(key, data, IfMatch=etag)
        return plain_etag(obstore.put(self._client, key, data, mode={"e_tag": etag})["e_tag"] or "")

    def delete(self, keys: list[str]) -> None:
        """Delete objects, many with one request."""
        paths = [key for key in keys if is_path(key)]
        if paths:
            obstore.delete(self._client, paths if len(paths) > 1 else paths[0])
        for key in keys:
            if second := self._needs_second(key):
                second.delete(key)

    def pages(self, prefix: str, after: str | None) -> Iterator[list[ObjectInfo]]:
        """Objects below a folder, page by page, by name.

        A page that obstore cannot list is asked for through the second door, and so are those behind it as long as
        obstore cannot name where they begin.
        """
        slow = prefix == "" and self._second is not None and self._second.has_rooted_keys()
        while True:
            try:
                if not slow and all(is_path(key) for key in (prefix, after) if key):
                    for page in self._fast_pages(prefix, after):
                        yield page
                        after = self._key(page[-1])
                    return
            except (exceptions.InvalidPathError, exceptions.GenericError) as error:
                if not _is_about_keys(error):
                    raise
                if self._second is None:
                    raise no_client_can(f"list a page with such a key: {first_line(error)}") from error
            if self._second is None:
                raise no_client_can(f"list below {prefix!r}")
            page, more = self._second.page(f"{prefix}/" if prefix else "", after)
            if page:
                yield page
                after = self._key(page[-1])
            if not more:
                return

    def _fast_pages(self, prefix: str, after: str | None) -> Iterator[list[ObjectInfo]]:
        last = after or ""
        for listed in obstore.list(self._client, prefix or None, offset=after, chunk_size=_PAGE):
            keys = _with_lost_slashes([meta["path"] for meta in listed], last)
            page = [
                self._info(meta)._replace(uri=self._root + key)
                for key, meta in zip(keys, listed, strict=True)
                if key != prefix  # the marker of the folder itself
            ]
            if page:
                last = self._key(page[-1])
                yield page

    def is_encrypted(self, key: str) -> bool:
        """Whether S3 says that a key of KMS, or of the customer, encrypts the object: its ETag is then no MD5."""
        return self._second is not None and self._second.is_encrypted(key)

    def _key(self, info: ObjectInfo) -> str:
        return info.uri.removeprefix(self._root)

    def _info(self, meta: "ObjectMeta") -> ObjectInfo:
        return ObjectInfo(
            self._root + meta["path"], plain_etag(meta["e_tag"] or ""), meta["size"], meta["last_modified"]
        )


def _with_lost_slashes(keys: list[str], last: str) -> list[str]:
    """Keys of a page as the store has them: obstore drops a "/" at the end of one, which then comes out of order.

    `last` is the key before them. A page that is in no order at all is left as it is.
    """
    repaired = []
    for key in keys:
        last = f"{key}/" if key <= last < f"{key}/" else key
        repaired.append(last)
    in_order = all(key < following for key, following in itertools.pairwise(repaired))
    return repaired if in_order else keys


def _is_about_keys(error: Exception) -> bool:
    """Whether a page could not be understood; the second door asks for the names in another spelling."""
    return isinstance(error, exceptions.InvalidPathError) or "invalid list response" in str(error)


class _ThroughS3fs:
    """The second door. Every request has a time limit of its own, which s3fs alone has not (docs/facts.md)."""

    def __init__(self, bucket: str) -> None:
        self._bucket, self._root = bucket, f"s3://{bucket}/"

    @functools.cached_property
    def _client(self) -> "S3FileSystem":
        """Made when it is needed: importing it takes longer than most commands."""
        import s3fs

        logging.getLogger("aiobotocore.credentials").setLevel(logging.WARNING)  # it would say where it found them
        style = "virtual" if os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("1", "true") else "path"
        endpoint = _endpoint("s3")
        client = s3fs.S3FileSystem(
            anon=os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"),
            endpoint_url=endpoint or None,
            client_kwargs={"region_name": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")},
            config_kwargs={
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "read_timeout": _request_timeout_s(),
                "retries": {"total_max_attempts": 1},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
                **({"s3": {"addressing_style": style}} if endpoint else {}),
            },
            skip_instance_cache=True,
        )
        client.retries = _TRIES
        return client

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:  # whatever S3 answers
        async def ask() -> dict[str, Any]:
            return dict(await self._client._call_s3(method, Bucket=self._bucket, **parameters))

        return self._run(ask())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises OSError, also for the errors of botocore that s3fs passes on."""
        from botocore.exceptions import BotoCoreError, ClientError
        from fsspec.asyn import sync

        try:
            result: T = sync(self._client.loop, lambda: work, timeout=_TRIES * _request_timeout_s())
        except (BotoCoreError, ClientError) as error:
            raise OSError(str(error)) from error
        return result

    def head(self, key: str) -> ObjectInfo:
        answer = self._call("head_object", Key=key)
        return self._info(key, answer, answer["ContentLength"])

    def get(self, key: str) -> tuple[ObjectInfo, bytes]:
        async def fetch() -> tuple[dict[str, Any], bytes]:
            answer = await self._client._call_s3("get_object", Bucket=self._bucket, Key=key)
            async with answer["Body"] as body:
                return answer, await body.read()

        answer, data = self._run(fetch())
        return self._info(key, answer, answer["ContentLength"]), data

    def put(self, key: str, data: bytes, **conditions: str) -> str:
        return plain_etag(self._call("put_object", Key=key, Body=data, **conditions)["ETag"])

    def delete(self, key: str) -> None:
        self._call("delete_object", Key=key)

    def page(self, prefix: str, after: str | None) -> tuple[list[ObjectInfo], bool]:
        """The next objects whose keys begin with `prefix`, and whether there are more."""
        behind = {"StartAfter": after} if after else {}
        answer = self._call("list_objects_v2", Prefix=prefix, MaxKeys=_PAGE, **behind)
        found = [self._info(each["Key"], each, each["Size"]) for each in answer.get("Contents", [])]
        return found, bool(answer.get("IsTruncated")) and bool(found)

    def has_rooted_keys(self) -> bool:
        """Whether a key of the bucket begins with "/": obstore would list it as another."""
        try:
            return bool(self.page("/", None)[0])
        except OSError:
            return False  # whoever lists next finds out why

    def is_encrypted(self, key: str) -> bool:
        try:
            answer = self._call("head_object", Key=key)
        except OSError:
            return False
        return answer.get("ServerSideEncryption", "").startswith("aws:kms") or "SSECustomerAlgorithm" in answer

    def _info(self, key: str, answer: dict[str, Any], size: int) -> ObjectInfo:
        return ObjectInfo(self._root + key, plain_etag(answer["ETag"]), size, answer["LastModified"].astimezone(UTC))


def environment(scheme: str) -> tuple[str | None, ...]:
    """What the environment says of the server and the account: another answer means another client."""
    return tuple(map(os.environ.get, _VARIABLES[scheme]))


def filesystem(scheme: str) -> AbstractFileSystem:
    """A filesystem of fsspec through obstore, for libraries that read many URIs of one scheme."""
    options, retry = _client_settings(scheme)
    return FsspecStore(scheme, client_options=options, retry_config=retry, **_where(scheme))  # type: ignore[call-overload]


def _client(scheme: str, bucket: str) -> ObjectStore:
    options, retry = _client_settings(scheme)
    try:
        return from_url(f"{scheme}://{bucket}", client_options=options, retry_config=retry, **_where(scheme))  # type: ignore[call-overload, no-any-return]
    except (exceptions.BaseError, ValueError) as error:
        raise ConfigError(
            f"cannot use {scheme}://{bucket}: {first_line(error)}; set the account and credentials in the environment"
        ) from error


def _endpoint(scheme: str) -> str:
    """The server of S3 that the user's environment names, "" for Amazon's own."""
    if scheme != "s3":
        return ""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(name, ""):
            if not endpoint.startswith(("http://", "https://")):
                raise ConfigError(f"expected {name} to start with http:// or https://, got {endpoint!r}")
            return endpoint
    return ""


def _where(scheme: str) -> dict[str, str]:
    endpoint = _endpoint(scheme)
    return {"endpoint": endpoint} if endpoint else {}


def _request_timeout_s() -> float:
    """Of a whole answer: a body that drips in is given up as well."""
    return float(os.environ.get("FCDD_REQUEST_TIMEOUT_S", "60"))


def _client_settings(scheme: str) -> tuple["ClientConfig", "RetryConfig"]:
    """Timeouts and one retry budget; plain http only where the user's endpoint asks for it."""
    return (
        {
            "allow_http": _endpoint(scheme).startswith("http://"),
            "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
            "timeout": timedelta(seconds=_request_timeout_s()),
        },
        # A job must not wait for ever on a store that is gone.
        {"max_retries": 4, "retry_timeout": timedelta(seconds=60)},
    )
