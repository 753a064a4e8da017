"""Telling others of a committed run: a webhook, a command. Each is told once, and again by a retry if it was not."""

import logging
import os
import shlex
import subprocess
from collections.abc import Callable
from urllib.parse import urlsplit

import requests
import tenacity

from fcdd import storage
from fcdd.errors import ConfigError, FCDDError
from schemas import Layout, RunRecord

_TIMEOUT_S, _COMMAND_TIMEOUT_S, _TRIES = 10.0, 300.0, 4
# Worth another try: everything else the receiver means as it says.
_PASSING = (408, 425, 429, 500, 502, 503, 504)

log = logging.getLogger(__name__)


class NotTold(FCDDError):
    """The run is committed, but whoever should know of it could not be told."""


def check(webhook: str | None, command: str | None) -> None:
    """Raises ConfigError for a webhook that is no address or a command that is none, before anything is scored."""
    if webhook and (urlsplit(webhook).scheme not in ("http", "https") or not urlsplit(webhook).netloc):
        raise ConfigError("--webhook: expected an address that starts with https:// or http://")
    if command:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"--command {command!r}: {error}") from error
        if not words:
            raise ConfigError("--command is empty")


def tell(layout: Layout, record: RunRecord, exit_code: int, *, webhook: str | None, command: str | None) -> None:
    """Tell who has not been told of this run. Raises NotTold; the same call tries again."""
    payload = record.model_dump_json().encode()
    if webhook:
        _once(layout, record, "webhook", lambda: _post(webhook, payload, exit_code))
    if command:
        _once(layout, record, "command", lambda: _run(command, payload, record, exit_code))


def _once(layout: Layout, record: RunRecord, way: str, act: Callable[[], None]) -> None:
    mark = layout.notified(record.run_id, way)
    if storage.exists(mark):
        log.info("the %s was told of run %s before", way, record.run_id)
        return
    try:
        act()
    except (requests.RequestException, OSError, subprocess.SubprocessError, NotTold) as error:
        # An address may carry a secret, and so may the text of an error about it.
        why = str(error) if isinstance(error, NotTold) else type(error).__name__
        raise NotTold(
            f"run {record.run_id} is committed, but the {way} could not be told: {why}; the same command tries again"
        ) from None
    storage.write(mark, b"")


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
