"""The edge of a process: logging, exit codes, and the one place that turns errors into sentences."""

import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from fcdd.errors import FCDDError
from jobs.shell import errors, formatting


def run(job: Callable[[], int | None]) -> int:
    """Run a job and return its exit code (None: done); every error a user can cause becomes one sentence on stderr."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    with suppress(ValueError):  # not in the main thread: whoever started this one handles signals
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return job() or errors.DONE
    except FCDDError as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return errors.exit_code(error)
    except MemoryError as error:
        what = formatting.printable(str(error).partition("\n")[0]) or "it could not be allocated"
        print(
            f"error: there is too little memory ({what}); {_LESS_MEMORY}",
            file=sys.stderr,
        )
        return errors.FAILED
    except KeyboardInterrupt as error:  # a job that knows what is left says it
        message = formatting.printable(str(error)) or "interrupted; the same command starts again, or goes on"
        print(message, file=sys.stderr)
        return errors.INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough: `fcdd query ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return errors.DONE


_LESS_MEMORY = "free some, or use fewer --workers or smaller images; the same command starts again, or goes on"


def sentence(error: FCDDError) -> str:
    """What went wrong, on one line."""
    return formatting.printable(str(error)) or type(error).__name__


def exit_with(code: int) -> NoReturn:
    """End the process with this exit code and no other.

    Threads of a native library have been seen to abort the interpreter while it winds down (once in hundreds of runs,
    "terminate called without an active exception"): a scheduler would take a committed run for one that crashed.
    """
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # whoever read our output may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A polite end, as `ray job stop` and Kubernetes ask for it, is Ctrl-C: leases are given back."""
    raise KeyboardInterrupt
