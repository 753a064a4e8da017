"""Local files and folders that are written whole, or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fcdd.errors import ConfigError
from fcdd.io import local_store


@contextmanager
def atomic_path(location: str) -> Iterator[Path]:
    """A path to write a file or a folder to, which gets its name when all is written; nothing is left of a failure.

    A device or a pipe, like /dev/null, stays what it is and is written into. Raises ConfigError when it is no local
    path, or cannot be written; a folder must not be there, or be empty.
    """
    if "://" in location:
        raise ConfigError(f"expected a local path, got {location!r}")
    path = Path(location).expanduser()
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"{path} is there and not empty; choose another place")
    if local_store.is_stream(str(path)):
        try:
            yield path
        except OSError as error:
            raise _cannot_write(path, error) from error
        return
    target = Path(os.path.realpath(path))  # what a link leads to is replaced, not the link
    unfinished = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, target)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            unfinished.unlink()


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write {path}: {error.strerror or error}; choose another place")
