"""The errors of jobs, and the exit code that each error ends a command with."""

from fcdd.errors import BundleError, ConfigError, FCDDError

DONE, FAILED, USER_MUST_ACT, TOO_MANY_BAD_IMAGES = 0, 1, 2, 3
DRIFTED, ALARMS_ABOVE_LIMIT, BUSY, INTERRUPTED = 4, 5, 6, 130


class TooManyBadImages(FCDDError):
    """The share of unreadable images is above the limit: the input is plainly wrong."""


class LeaseHeld(FCDDError):
    """Another process is at work on the same night."""


_EXIT_CODES: dict[type[FCDDError], int] = {
    ConfigError: USER_MUST_ACT,
    BundleError: USER_MUST_ACT,
    TooManyBadImages: TOO_MANY_BAD_IMAGES,
    LeaseHeld: BUSY,
}


def exit_code(error: FCDDError) -> int:
    """The exit code of a command that ends with this error."""
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), FAILED)
