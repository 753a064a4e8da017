"""Converted networks in the user's cache folder: the next process does not convert them again.

Nobody but the user may write there; a file that is damaged is made again.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Bundles whose networks are kept, by the time of their last use; each takes as much as its weights.
KEPT = 16
# Seconds after which what a process began to write is taken for that of a dead one.
_ABANDONED_S = 86_400.0


def folder() -> Path:
    """Where they are: `fcdd/networks` below XDG_CACHE_HOME, or ~/.cache. Raises OSError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fcdd", "networks")
    except RuntimeError as error:
        raise FileNotFoundError("this user has no home folder") from error


def find(key: str) -> Path | None:
    """The folder of what was put under `key`; None if there is none, or somebody else might have written it."""
    try:
        found = folder() / key
        if any(_is_open_to_others(path) for path in (found.parent, found)):
            return None
    except OSError:
        return None
    with suppress(OSError):  # an image may hold one that cannot be written to
        os.utime(found)
    return found


def put(key: str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder and keep it under `key`; nothing happens where the user's cache cannot be written."""
    with suppress(OSError, RuntimeError):  # the second is how OpenVINO says that it cannot write
        root = folder()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=root, prefix="."))
        try:
            write(made)
            made.rename(root / key)
        except BaseException:  # another process was first, or the disk is full
            shutil.rmtree(made, ignore_errors=True)
            raise
        for old in sorted(root.glob("[!.]*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        for begun in root.glob(".*"):
            if time.time() - begun.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(begun, ignore_errors=True)


def drop(key: str) -> None:
    """Forget what cannot be read."""
    with suppress(OSError):
        shutil.rmtree(folder() / key)


def _is_open_to_others(path: Path) -> bool:
    status = path.stat()
    return status.st_uid != os.getuid() or bool(status.st_mode & 0o022)
