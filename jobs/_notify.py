"""Telling others of a committed run: a webhook, a command. Each is told once, and by the next attempt if it was not."""

import logging
import os
import shlex
import subprocess
from collections.abc import Iterable
from urllib.parse import urlsplit

import requests
import tenacity

from fcdd import storage
from fcdd.errors import ConfigError, FCDDError
from jobs import _lease
from schemas import Layout, RunRecord

_TIMEOUT_S, _COMMAND_TIMEOUT_S, _TRIES = 10.0, 300.0, 4
# Worth another try: everything else the receiver means as it says.
_PASSING = (408, 425, 429, 500, 502, 503, 504)

log = logging.getLogger(__name__)


class NotTold(FCDDError):
    """The run is committed, but whoever should know of it could not be told."""


def check(webhook: str | None, command: str | None) -> None:
    """Raises ConfigError for a webhook that is no address or a command that is none, before anything is scored."""
    if webhook:
        try:
            parts = urlsplit(webhook)
            good = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ConfigError("--webhook: expected an address that starts with https:// or http://")
    if command is not None:
        try:
            words = shlex.split(command)
        except ValueError as error:  # the command itself may hold a secret
            raise ConfigError(f"--command: {error}") from error
        if not words:
            raise ConfigError("--command is empty")


def untold(layout: Layout, record: RunRecord, ways: Iterable[str]) -> list[str]:
    """The ways in which nobody has been told of a run yet."""
    return [way for way in ways if not storage.exists(layout.notified(record.run_id, way))]


def tell(layout: Layout, record: RunRecord, exit_code: int, *, webhook: str | None, command: str | None) -> list[str]:
    """Tell who has not been told of this run; why somebody could not be. The same call tries again.

    The night's lease is held meanwhile, so that two attempts do not tell twice.
    """
    ways = [way for way, target in (("webhook", webhook), ("command", command)) if target]
    if not untold(layout, record, ways):
        return []
    payload, failures = record.model_dump_json().encode(), []
    with _lease.hold(layout.lease(record.collection, record.day), "notification"):
        for way in untold(layout, record, ways):
            try:
                if way == "webhook":
                    _post(webhook or "", payload, exit_code)
                else:
                    _run(command or "", payload, record, exit_code)
            except (requests.RequestException, OSError, subprocess.SubprocessError, NotTold) as error:
                # An address may carry a secret, and so may the text of an error about it.
                why = str(error) if isinstance(error, NotTold) else type(error).__name__
                failures.append(f"run {record.run_id} is committed, but the {way} could not be told: {why}")
            else:
                storage.write(layout.notified(record.run_id, way), b"")
    return failures


def _post(webhook: str, payload: bytes, exit_code: int) -> None:
    host = urlsplit(webhook).hostname
    headers = {"Content-Type": "application/json", "X-FCDD-Exit-Code": str(exit_code)}

    def send() -> int:
        return requests.post(webhook, payload, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False).status_code

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(requests.RequestException)
        | tenacity.retry_if_result(lambda status: status in _PASSING),
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    status = retrying(send)
    if status is None or status >= 300:
        raise NotTold(f"{host} answered {status}")
    log.info("told %s of the run", host)


def _run(command: str, payload: bytes, record: RunRecord, exit_code: int) -> None:
    told = {"FCDD_RUN_ID": record.run_id, "FCDD_VERDICT": record.drift.verdict, "FCDD_EXIT_CODE": str(exit_code)}
    try:
        done = subprocess.run(
            shlex.split(command), input=payload, env=os.environ | told, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise NotTold(f"{shlex.split(command)[0]!r} is not a command here") from error
    except subprocess.TimeoutExpired as error:
        raise NotTold(f"it did not end within {_COMMAND_TIMEOUT_S:g} s") from error
    if done.returncode:
        raise NotTold(f"it ended with exit code {done.returncode}")
