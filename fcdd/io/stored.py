"""What a store says of one object, and whether a body is what the store holds: shared by the doors of `storage`."""

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

_MD5 = re.compile(r"[0-9a-f]{32}")
# So many ETags that look like an MD5 and are none, and not one that is: those of this bucket are none.
_OPAQUE_AFTER = 3
_EPOCH = datetime.fromtimestamp(0, UTC)


class Damaged(Exception):
    """A body that is not what the store holds; worth another read."""


class ObjectInfo(NamedTuple):
    """One listed object; `etag` is "" where the store has none."""

    uri: str
    etag: str
    size: int
    last_modified: datetime


class Unreadable(ObjectInfo):
    """A listed entry that no client can name or open: `uri` is only for people; a folder's ends in "/"."""

    __slots__ = ()

    @classmethod
    def named(cls, uri: str) -> "Unreadable":
        """With what cannot be written as UTF-8 written as an escape."""
        return cls(uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"), "", 0, _EPOCH)


class Store(Protocol):
    """One bucket, or the local disk. Errors are those of obstore and OSError; keys are never interpreted."""

    # Whether listings come sorted by name.
    in_order: bool
    etags: "Etags"

    def head(self, key: str) -> ObjectInfo:
        """What is known of an object."""

    def get(self, key: str) -> tuple[ObjectInfo, bytes]:
        """An object and its body, as it came."""

    def stream(self, key: str) -> tuple[ObjectInfo, Iterator[bytes]]:
        """An object and its body in pieces, as they come."""

    def put(self, key: str, data: bytes) -> str:
        """Store an object; the ETag that the answer names."""

    def create(self, key: str, data: bytes) -> None:
        """Store an object if there is none, else fail."""

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Store an object in place of the one with this ETag, else fail; the new ETag."""

    def delete(self, keys: list[str]) -> None:
        """Delete objects."""

    def pages(self, prefix: str, after: str | None) -> Iterator[list[ObjectInfo]]:
        """Objects below the folder `prefix` (all of them if it is empty), and behind the key `after`."""

    def is_encrypted(self, key: str) -> bool:
        """Whether the store says that the object's ETag is no MD5, since a key of the user's encrypts it."""


def plain_etag(etag: str) -> str:
    """An entity tag without its quotes: Azure quotes it in one answer and not in another, inventories never do."""
    return etag.removeprefix("W/").strip('"')


def md5(data: bytes) -> str:
    """As an ETag has it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def looks_like_md5(etag: str) -> bool:
    """Whether an ETag may be the MD5 of the body: of no file on a disk, and of no upload in several parts."""
    return _MD5.fullmatch(etag) is not None


def contradicts(etag: str, digest: str) -> bool:
    """Whether an ETag looks like an MD5, and like another than this one."""
    return looks_like_md5(etag) and etag != digest


class Etags:
    """What reading has taught of the ETags of one store: whether those that look like an MD5 are one."""

    def __init__(self) -> None:
        self._md5_seen, self._opaque = False, 0

    def agree(self, etag: str, digest: str) -> bool:
        """Whether nothing speaks against a body with this MD5: where not one ETag ever was one, they say nothing."""
        self._md5_seen |= etag == digest
        return not contradicts(etag, digest) or (not self._md5_seen and self._opaque >= _OPAQUE_AFTER)

    def learn_opaque(self) -> None:
        """An ETag looked like an MD5, was another than that of the body, and this was no damage."""
        self._opaque += 1
