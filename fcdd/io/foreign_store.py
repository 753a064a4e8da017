"""Any filesystem of fsspec as a store that is only read: for results where none of our own doors leads."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NoReturn

from fsspec import AbstractFileSystem

from fcdd.io.stored import Etags, ObjectInfo, plain_etag

_EPOCH = datetime.fromtimestamp(0, UTC)


class Foreign:
    """What lies below one location, through the caller's filesystem; keys are relative to the location."""

    in_order = False

    def __init__(self, location: str, filesystem: AbstractFileSystem) -> None:
        self._location, self._filesystem, self.etags = location, filesystem, Etags()
        self._root = str(filesystem._strip_protocol(location)).rstrip("/")

    def head(self, key: str) -> ObjectInfo:
        """What the filesystem knows of an object. Raises FileNotFoundError, also for a folder."""
        found = self._filesystem.info(f"{self._root}/{key}")
        if found["type"] != "file":
            raise FileNotFoundError(key)
        return self._info(key, found)

    def get(self, key: str) -> tuple[ObjectInfo, bytes]:
        """An object and its body."""
        return self.head(key), self._filesystem.cat_file(f"{self._root}/{key}")

    def stream(self, key: str) -> tuple[ObjectInfo, Iterator[bytes]]:
        """An object and its body, in one piece."""
        info, data = self.get(key)
        return info, iter([data])

    def pages(self, prefix: str, after: str | None) -> Iterator[list[ObjectInfo]]:
        """Everything below a folder, as it is now, in one page."""
        self._filesystem.invalidate_cache()
        found = self._filesystem.find(f"{self._root}/{prefix}", detail=True)
        page = [self._info(str(name)[len(self._root) + 1 :], each) for name, each in found.items()]
        if page:
            yield page

    def is_encrypted(self, key: str) -> bool:
        """It does not say, so reads have to agree."""
        return False

    def put(self, key: str, data: bytes) -> NoReturn:
        """Nothing is written. Raises OSError."""
        raise io.UnsupportedOperation(f"{self._location} is only read")

    def create(self, key: str, data: bytes) -> NoReturn:
        """Nothing is written. Raises OSError."""
        self.put(key, data)

    def replace(self, key: str, data: bytes, etag: str) -> NoReturn:
        """Nothing is written. Raises OSError."""
        self.put(key, data)

    def delete(self, keys: list[str]) -> NoReturn:
        """Nothing is deleted. Raises OSError."""
        self.put("", b"")

    def _info(self, key: str, found: dict[str, Any]) -> ObjectInfo:
        changed = found.get("LastModified") or found.get("last_modified") or found.get("mtime") or _EPOCH
        moment = changed if isinstance(changed, datetime) else datetime.fromtimestamp(float(changed), UTC)
        etag = plain_etag(str(found.get("ETag") or found.get("e_tag") or found.get("etag") or ""))
        return ObjectInfo(f"{self._location}/{key}", etag, int(found["size"]), moment)
