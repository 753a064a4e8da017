"""The local disk as a store: listed as it lies, written so that what was reported as written survives a power cut."""

import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from fcdd.io.stored import Damaged, Etags, ObjectInfo, Unreadable

T = TypeVar("T")
# A folder to be listed, and the folders above it (device, inode), by which a link that leads back up is found.
_Folder = tuple[str, tuple[tuple[int, int], ...]]
_EPOCH = datetime.fromtimestamp(0, UTC)
_PAGE, _PIECE_BYTES = 1000, 8 * 1024**2
# Names of files that are being written; a process that was killed may leave some, which are no objects.
_UNFINISHED = (".fcdd-", ".part")
# What is wrong with one name, and not with the disk.
_OF_THE_NAME = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
# Folders need not be synced where the file system has no such thing.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)


class Disk:
    """Files by their absolute paths. Links are followed; ETags are made of inode, time of change and size."""

    in_order = False

    def __init__(self) -> None:
        self.etags = Etags()

    def head(self, key: str) -> ObjectInfo:
        """A file. Raises FileNotFoundError for anything else."""
        return _info(key, _regular(key, _there(os.stat, key)))

    def get(self, key: str) -> tuple[ObjectInfo, bytes]:
        """A file and its content. Raises Damaged when it is written meanwhile."""
        info, pieces = self.stream(key)
        return info, b"".join(pieces)

    def stream(self, key: str) -> tuple[ObjectInfo, Iterator[bytes]]:
        """A file and its content in pieces. Raises Damaged when it is written meanwhile."""
        # Not to wait for the other end of a pipe that somebody put there.
        number = _there(lambda path: os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), key)
        try:
            info = _info(key, _regular(key, os.fstat(number)))
        except BaseException:
            os.close(number)
            raise
        return info, _pieces(number, info)

    def put(self, key: str, data: bytes) -> str:
        """Replace a file as a whole; a device or a pipe, like /dev/null, stays what it is and is written into."""
        if is_stream(key):
            with open(key, "wb") as stream:
                stream.write(data)
            return ""
        with _written(key, data) as unfinished:
            os.replace(unfinished, key)
        return ""

    def create(self, key: str, data: bytes) -> None:
        """Write a file. Raises FileExistsError."""
        with _written(key, data) as unfinished:
            os.link(unfinished, key)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Write into the file that is there: a new one of that name would bring a deleted one back.

        Raises FileNotFoundError, or FileExistsError for another file than that of `etag`.
        """
        with _there(lambda path: open(path, "r+b"), key) as file:
            if _info(key, os.fstat(file.fileno())).etag != etag:
                raise FileExistsError(key)
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
            return _info(key, os.fstat(file.fileno())).etag

    def delete(self, keys: list[str]) -> None:
        """Remove files; the first that is not there ends it with FileNotFoundError if it is the only one."""
        for key in keys:
            try:
                os.unlink(key)
            except (FileNotFoundError, NotADirectoryError):
                if len(keys) == 1:
                    raise FileNotFoundError(key) from None

    def pages(self, prefix: str, after: str | None) -> Iterator[list[ObjectInfo]]:
        """Every file below a folder, those of each folder by name and before the folders in it.

        Nothing if there is no such folder; `after` is not supported, since files come in no order.
        """
        page: list[ObjectInfo] = []
        for info in _walk(prefix.rstrip("/")):
            page.append(info)
            if len(page) == _PAGE:
                yield page
                page = []
        if page:
            yield page

    def is_encrypted(self, key: str) -> bool:
        """Its ETags are never MD5s, and never look like one."""
        return False


def is_stream(path: str) -> bool:
    """Whether a device, a pipe or a socket is there: something that content is written into, and that has no whole."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def _walk(root: str) -> Iterator[ObjectInfo]:
    """Files below a folder. What cannot be opened or named, and links that lead back up, are `Unreadable`."""
    waiting: list[_Folder] = [(root, ())]
    while waiting:
        folder, above = waiting.pop()
        try:
            status = os.stat(folder or "/")
            with os.scandir(folder or "/") as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed meanwhile
        except OSError as error:
            if folder == root or error.errno not in _OF_THE_NAME:
                raise
            yield Unreadable.named(f"file://{folder}/")
            continue
        above = (*above, (status.st_dev, status.st_ino))
        folders: list[_Folder] = []
        for entry in entries:
            yield from _entry(entry, above, folders)
        waiting += reversed(folders)


def _entry(entry: os.DirEntry[str], above: tuple[tuple[int, int], ...], folders: list[_Folder]) -> Iterator[ObjectInfo]:
    """A file; a folder is added to `folders`, to be opened later."""
    path = entry.path
    try:
        path.encode()
        status = entry.stat()
    except FileNotFoundError:
        if entry.is_symlink():  # to a disk that is not mounted, say: nobody knows what lies there
            yield Unreadable.named(f"file://{path}/")
        return
    except UnicodeEncodeError:
        yield Unreadable.named(f"file://{path}")
        return
    except OSError as error:
        if error.errno not in _OF_THE_NAME:
            raise
        yield Unreadable.named(f"file://{path}")
        return
    if stat.S_ISDIR(status.st_mode):
        if (status.st_dev, status.st_ino) in above:
            yield Unreadable.named(f"file://{path}/")
        else:
            folders.append((path, above))
    elif stat.S_ISREG(status.st_mode) and not _is_unfinished(entry.name):
        yield _info(path, status)


def _is_unfinished(name: str) -> bool:
    return name.startswith(_UNFINISHED[0]) and name.endswith(_UNFINISHED[1])


def _info(path: str, status: os.stat_result) -> ObjectInfo:
    changed_us = max(0, status.st_mtime_ns // 1000)
    etag = f"{status.st_ino:x}-{changed_us:x}-{status.st_size:x}"
    return ObjectInfo(f"file://{path}", etag, status.st_size, _EPOCH + timedelta(microseconds=changed_us))


def _regular(path: str, status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a file", path)
    return status


def _there(look: Callable[[str], T], path: str) -> T:
    """A path through a file, or with a NUL in it, leads nowhere, as on any other store."""
    try:
        return look(path)
    except (NotADirectoryError, ValueError) as error:
        raise FileNotFoundError(errno.ENOENT, "not there", path) from error


def _pieces(number: int, info: ObjectInfo) -> Iterator[bytes]:
    piece_bytes = min(_PIECE_BYTES, info.size + 1)  # memory is taken for all that is asked for
    with os.fdopen(number, "rb", buffering=0) as file:
        while piece := file.read(piece_bytes):
            yield piece
        if _info("", os.fstat(number)).etag != info.etag:
            raise Damaged("it was written while it was read")


@contextmanager
def _written(path: str, data: bytes) -> Iterator[str]:
    """Where the content lies until it gets its name in the body of the context; both are on the disk at the end."""
    folder = os.path.dirname(path)
    _make(folder)
    unfinished = f"{folder}/{uuid.uuid4().hex.join(_UNFINISHED)}"
    try:
        with open(unfinished, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield unfinished
        _sync(folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(unfinished)


def _make(folder: str) -> None:
    """Create a folder and those above it, for good."""
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        _make(parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        _sync(parent)


def _sync(folder: str) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(number)
