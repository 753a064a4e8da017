"""Notifications of a committed run, to a webhook and to a command: each is delivered once, maybe by a later attempt."""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from urllib.parse import urlsplit

from fcdd.errors import ConfigError, FCDDError
from fcdd.io import storage
from jobs.catalog import leases
from schemas import Layout, RunRecord

# From the first connection to the last answer, of all tries together: the sender holds the night's lease.
_WEBHOOK_S, _COMMAND_S = 60.0, 300.0

log = logging.getLogger(__name__)


class NotificationFailed(FCDDError):
    """The run is committed, but a notification of it could not be delivered."""


def check(webhook: str | None, command: str | None) -> None:
    """Raises ConfigError for a webhook that is no address or a command that is none, before anything is scored."""
    if webhook:
        try:
            parts = urlsplit(webhook)
            good = parts.scheme in ("http", "https") and parts.hostname is not None and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise ConfigError("webhook: expected an address that starts with https:// or http://")
    if command is not None:
        try:
            words = shlex.split(command)
        except ValueError as error:  # the command itself may hold a secret
            raise ConfigError(f"command: {error}") from error
        if not words:
            raise ConfigError("the command is empty")


def pending(layout: Layout, record: RunRecord, channels: Iterable[str]) -> list[str]:
    """Those of the channels ("webhook", "command") through which no notification of the run was delivered yet."""
    return [name for name in channels if not storage.exists(layout.notified(record.run_id, name))]


def send(layout: Layout, record: RunRecord, exit_code: int, *, webhook: str | None, command: str | None) -> list[str]:
    """Deliver what was not delivered yet; returns why a notification failed. The same call tries again.

    The night's lease is held meanwhile, so that two attempts do not send twice.
    """
    channels = [name for name, target in (("webhook", webhook), ("command", command)) if target]
    if not pending(layout, record, channels):
        return []
    payload, failures = record.model_dump_json().encode(), []
    with leases.acquire(layout.lease(record.collection, record.day), "notification"):
        for channel in pending(layout, record, channels):
            try:
                if channel == "webhook":
                    _post(webhook or "", payload, exit_code)
                else:
                    _run(command or "", payload, record, exit_code)
            except (OSError, NotificationFailed) as error:
                # A command may carry a secret, and so may the text of an error about it.
                why = str(error) if isinstance(error, NotificationFailed) else type(error).__name__
                failures.append(f"run {record.run_id} is committed, but the {channel} could not be notified: {why}")
            else:
                storage.write(layout.notified(record.run_id, channel), b"")
    return failures


def _post(webhook: str, payload: bytes, exit_code: int) -> None:
    host = urlsplit(webhook).hostname
    headers = {"Content-Type": "application/json", "X-FCDD-Exit-Code": str(exit_code)}
    request = json.dumps({"address": webhook, "headers": headers, "body": payload.decode()}).encode()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = _within(_WEBHOOK_S, [sys.executable, "-m", "jobs.shell.post_webhook"], request, env, stdout=subprocess.PIPE)
    answer = done.stdout.decode().strip()
    if not answer.isdecimal():  # the class of an error
        raise NotificationFailed(answer or f"its process ended with exit code {done.returncode}")
    if int(answer) >= 300:
        raise NotificationFailed(f"{host} answered {answer}")
    log.info("notified %s of the run", host)


def _run(command: str, payload: bytes, record: RunRecord, exit_code: int) -> None:
    variables = {"FCDD_RUN_ID": record.run_id, "FCDD_VERDICT": record.drift.verdict, "FCDD_EXIT_CODE": str(exit_code)}
    try:
        done = _within(_COMMAND_S, shlex.split(command), payload, os.environ | variables)
    except FileNotFoundError as error:  # its first word may be a secret: TOKEN=... program
        raise NotificationFailed("there is no program here of the name that it begins with") from error
    if done.returncode:
        raise NotificationFailed(f"it ended with exit code {done.returncode}")


def _within(
    seconds: float, arguments: list[str], data: bytes, env: dict[str, str], stdout: int | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program on `data`; when time is up, or we are interrupted, it is ended with all that it started.

    Raises NotificationFailed when time is up, OSError when it cannot be started.
    """
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=stdout, env=env, start_new_session=True) as process:
        try:
            output, _ = process.communicate(data, seconds)
        except subprocess.TimeoutExpired as error:
            raise NotificationFailed(f"it was not done within {seconds:g} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(arguments, process.returncode, output)
