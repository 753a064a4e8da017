"""The edge of a process: logging, exit codes, and the one place that turns errors into sentences."""

import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import Any

from fcdd.errors import BundleError, ConfigError, FCDDError

DONE, FAILED, USER_MUST_ACT, TOO_MANY_BAD_IMAGES, INTERRUPTED = 0, 1, 2, 3, 130


class TooManyBadImages(FCDDError):
    """The share of unreadable images is above the limit: the input is plainly wrong."""


def run(job: Callable[[], None]) -> int:
    """Run a job and return its exit code; every error a user can cause becomes one sentence on stderr."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    try:
        job()
    except (ConfigError, BundleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_MUST_ACT
    except TooManyBadImages as error:
        print(f"error: {error}", file=sys.stderr)
        return TOO_MANY_BAD_IMAGES
    except FCDDError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted; nothing was committed, the same command starts or goes on again", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough: `fcdd query ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


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
