"""Temporary folders that do not outlive their process, not even one that was killed.

A folder holds a file that is locked as long as its process lives. What a dead one left is removed by the next.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX, _LOCK = "fcdd-", "in-use"
_KINDS = ("listing", "list", "query")
# A folder without the file may have been made just now; older ones were made by versions that had no such file.
_YOUNG_S = 3600.0


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder; `name` is its path. Removed by `cleanup`, at the end of a context, or with the object."""

    def __init__(self, kind: str) -> None:
        """`kind` is one of listing, list, query."""
        assert kind in _KINDS
        _remove_abandoned()
        super().__init__(prefix=f"{_PREFIX}{kind}-", ignore_cleanup_errors=True)
        # Locked before it has its name: nobody may take this process for a dead one meanwhile.
        self._lock = open(f"{self.name}/.{_LOCK}", "wb")  # noqa: SIM115 - open as long as this object
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.rename(f"{self.name}/.{_LOCK}", f"{self.name}/{_LOCK}")


@contextmanager
def folder(kind: str) -> Iterator[Path]:
    """A temporary folder for the length of a context; `kind` as for `ScratchFolder`."""
    with ScratchFolder(kind) as name:
        yield Path(name)


def _remove_abandoned() -> None:
    for kind in _KINDS:
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{kind}-*"):
            with suppress(OSError):  # another process removes it, or it is another user's
                if left.lstat().st_uid == os.geteuid() and left.is_dir() and _is_abandoned(left):
                    shutil.rmtree(left)


def _is_abandoned(left: Path) -> bool:
    try:
        with open(left / _LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return time.time() - left.lstat().st_mtime > _YOUNG_S
