"""The errors a user can meet, and what each one means for a job.

FCDDError
|- ConfigError     the caller must change something: an option, a location, a credential
|- BundleError     a bundle that cannot be trusted or read
|- ImageError      one image that cannot be scored; carries a reason from a closed list
"""

from typing import Literal, get_args

Reason = Literal[
    "vanished",
    "changed",
    "truncated",
    "forbidden",
    "fetch_failed",
    "empty",
    "too_large",
    "not_an_image",
    "corrupt",
    "unsupported",
    "decoder_crash",
    "timeout",
    "non_finite_score",
]
REASONS: tuple[Reason, ...] = get_args(Reason)
# Of the store, not of the image: worth another try by the next attempt at the run.
TRANSIENT_REASONS: tuple[Reason, ...] = ("truncated", "forbidden", "fetch_failed")


class FCDDError(Exception):
    """Base class of every error this project raises on purpose."""


class ConfigError(FCDDError):
    """A wrong option, location or credential: the message says what to change."""


class BundleError(FCDDError):
    """A bundle is missing, damaged, of an unknown version, or not what its digest says."""


class ImageError(FCDDError):
    """One image cannot be scored; `reason` is one of `REASONS`, the message is the detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageError"], tuple[Reason, str]]:
        """Between processes errors are made anew of what they were made of."""
        return type(self), (self.reason, self.detail)
