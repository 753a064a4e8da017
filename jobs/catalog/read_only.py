"""The file system under DuckDB: it opens files of the results for reading, and refuses everything else."""

import io
import threading
from typing import Any, NoReturn

from fcdd.io import storage
from fcdd.io.storage import AbstractFileSystem

PROTOCOL = "results"


def path(uri: str) -> str:
    """A normalised location as it is named under this file system."""
    return f"{PROTOCOL}://{uri.partition('://')[2]}"


class ReadOnly(AbstractFileSystem):  # type: ignore[misc]
    """Another file system, of one scheme, without its ways to write. Names are never taken for patterns."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, location: str, filesystem: AbstractFileSystem | None = None) -> None:
        """For results at `location`, through the caller's filesystem if there is one.

        Raises ConfigError for a location that not every reader can name.
        """
        super().__init__()
        location = location if filesystem else storage.check_results(location)
        self._scheme = location.partition("://")[0]
        self._files = filesystem if filesystem is not None else storage.filesystem(self._scheme)

    def _inner(self, path: str) -> str:
        rest = path.removeprefix(f"{PROTOCOL}://")
        return rest if self._scheme == "file" else f"{self._scheme}://{rest}"

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """A file to read, by many threads at once."""
        if mode != "rb":
            self._refuse()
        return _SharedFile(self._files.open(self._inner(path), "rb", **options))

    def glob(self, path: str, **_: Any) -> list[str]:
        """The one file of that name, whatever signs are in it."""
        return [path] if self.exists(path) else []

    def exists(self, path: str, **_: Any) -> bool:
        """Whether the file is there."""
        return bool(self._files.exists(self._inner(path)))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and kind."""
        return dict(self._files.info(self._inner(path)))

    def modified(self, path: str) -> Any:
        """When it was written."""
        return self._files.modified(self._inner(path))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise PermissionError("results are only read here")

    mkdir = makedirs = rmdir = rm = rm_file = _rm = mv = cp_file = copy = touch = put_file = pipe_file = _refuse
    created = sign = _refuse


class _SharedFile(io.RawIOBase):
    """A file whose every thread has a position of its own.

    DuckDB's threads share one handle of a file: each calls seek, then read, and another thread's seek may come between.
    """

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file, self._lock, self._thread = file, threading.Lock(), threading.local()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(getattr(self._thread, "position", 0))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._lock:
            if whence == io.SEEK_CUR:
                offset, whence = self.tell() + offset, io.SEEK_SET
            self._thread.position = int(self._file.seek(offset, whence))
        return self.tell()

    def read(self, size: int | None = -1) -> bytes:
        with self._lock:
            self._file.seek(self.tell())
            data = bytes(self._file.read(-1 if size is None else size))
            self._thread.position = self.tell() + len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()
