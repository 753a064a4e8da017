"""The edge of a process: logging, exit codes, and the one place that turns errors into sentences."""

import atexit
import dataclasses
import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from fcdd.errors import BundleError, ConfigError, FCDDError

DONE, FAILED, USER_MUST_ACT, TOO_MANY_BAD_IMAGES = 0, 1, 2, 3
DRIFTED, ALARMS_ABOVE_LIMIT, BUSY, INTERRUPTED = 4, 5, 6, 130


class TooManyBadImages(FCDDError):
    """The share of unreadable images is above the limit: the input is plainly wrong."""


class LeaseHeld(FCDDError):
    """Another process is at work on the same night."""


def run(job: Callable[[], int | None]) -> int:
    """Run a job and return its exit code (None: done); every error a user can cause becomes one sentence on stderr."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    with suppress(ValueError):  # not in the main thread: whoever started this one handles signals
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return job() or DONE
    except FCDDError as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return code_of(error)
    except KeyboardInterrupt as error:  # a job that knows what is left says it
        print(printable(str(error)) or "interrupted; the same command starts again, or goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough: `fcdd query ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def sentence(error: FCDDError) -> str:
    """What went wrong, on one line."""
    return printable(str(error)) or type(error).__name__


def code_of(error: FCDDError) -> int:
    """The exit code of an error."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)


def leave(code: int) -> NoReturn:
    """End the process with this exit code and no other.

    Threads of a native library have been seen to abort the interpreter while it winds down (once in hundreds of runs,
    "terminate called without an active exception"): a scheduler would take a committed run for one that crashed.
    """
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # whoever read our output may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


_CODES: dict[type[FCDDError], int] = {
    ConfigError: USER_MUST_ACT,
    BundleError: USER_MUST_ACT,
    TooManyBadImages: TOO_MANY_BAD_IMAGES,
    LeaseHeld: BUSY,
}


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A polite end, as `ray job stop` and Kubernetes ask for it, is Ctrl-C: leases are given back."""
    raise KeyboardInterrupt


def printable(text: str) -> str:
    """Keys are data: their control characters must not reach a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def number(count: int, what: str) -> str:
    """1 region, 2 regions."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def plain(value: Any) -> Any:
    """NamedTuples and dataclasses as dictionaries, at any depth, and NaN as None: for JSON."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
