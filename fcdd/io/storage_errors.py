"""The errors of stores as one sentence each, which names the place and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

from obstore import exceptions

from fcdd.errors import ConfigError
from fcdd.io.stored import Damaged

NOT_THERE = (exceptions.NotFoundError, FileNotFoundError)
_FORBIDDEN = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError)
CONDITION_FAILED = exceptions.PreconditionError
STORE_ERRORS = (exceptions.BaseError, OSError)
_NO_BUCKET = ("NoSuchBucket", "specified bucket does not exist")
_CLOUD = ("s3://", "gs://", "az://")
_UNNAMEABLE = "no client can "


def no_client_can(what: str) -> OSError:
    """The error of a name that none of our doors takes."""
    return OSError(_UNNAMEABLE + what)


@contextmanager
def explained(uri: str, action: str) -> Iterator[None]:
    """Storage errors as one sentence that names the place and the remedy."""
    try:
        yield
    except FileExistsError:
        raise
    except Damaged as error:
        raise ConfigError(
            f"cannot {action} {spelled(uri)}: {error}, several times; look at the network and the store"
        ) from error
    except STORE_ERRORS as error:
        what, local = f"cannot {action} {spelled(uri)}", not uri.startswith(_CLOUD)
        # Listing reports every refusal as a generic error, so the server's own words decide.
        if any(words in str(error) for words in _NO_BUCKET):
            raise ConfigError(f"{what}: the bucket does not exist; create it or correct it") from error
        if _UNNAMEABLE in str(error):
            raise ConfigError(f"{what}: {first_line(error)}; rename what is named so") from error
        if isinstance(error, NOT_THERE) and action != "write":  # where nothing can be written, nothing is missing
            raise FileNotFoundError(uri) from error
        if is_refusal(error):
            remedy = (
                "check who may read and write there"
                if local
                else "check the credentials in the environment, their policy, and AWS_ENDPOINT_URL for S3 servers "
                "other than Amazon's"
            )
            raise ConfigError(f"{what}: access denied; {remedy}") from error
        remedy = "check the path" if local else "check AWS_ENDPOINT_URL, the region and the network"
        raise ConfigError(f"{what}: {first_line(error)}; {remedy}") from error


def spelled(uri: str) -> str:
    """A URI for a message: as it is, or with escapes if a key in it would break the line or the terminal."""
    return uri if uri.isprintable() else repr(uri)


def is_final(error: BaseException) -> bool:
    """Whether a listing would fail again in the same way."""
    words = (*_NO_BUCKET, _UNNAMEABLE)
    return is_refusal(error) or isinstance(error, NOT_THERE) or any(word in str(error) for word in words)


def is_refusal(error: BaseException) -> bool:
    """Whether the store refuses these credentials; S3 answers 400 to a token that expired."""
    words = ("403 Forbidden", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")
    return isinstance(error, _FORBIDDEN) or any(word in str(error) for word in words)


def first_line(error: BaseException) -> str:
    """What went wrong, without the client's debug dump behind it, and without the line breaks of a key in it."""
    text = str(error).split("\n\nDebug source")[0].split("<?xml")[0].split("\n\nCaused by")[0]
    return " ".join(text.split()).strip(" :")[:300]
