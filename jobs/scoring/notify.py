"""Telling others of a committed run: a webhook, a command. Each is told once, and by the next attempt if it was not."""

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

# From the first connection to the last answer, of all tries together: whoever is told holds the night's lease.
_WEBHOOK_S, _COMMAND_S = 60.0, 300.0

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
            raise ConfigError("webhook: expected an address that starts with https:// or http://")
    if command is not None:
        try:
            words = shlex.split(command)
        except ValueError as error:  # the command itself may hold a secret
            raise ConfigError(f"command: {error}") from error
        if not words:
            raise ConfigError("the command is empty")


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
    with leases.hold(layout.lease(record.collection, record.day), "notification"):
        for way in untold(layout, record, ways):
            try:
                if way == "webhook":
                    _post(webhook or "", payload, exit_code)
                else:
                    _run(command or "", payload, record, exit_code)
            except (OSError, NotTold) as error:
                # A command may carry a secret, and so may the text of an error about it.
                why = str(error) if isinstance(error, NotTold) else type(error).__name__
                failures.append(f"run {record.run_id} is committed, but the {way} could not be told: {why}")
            else:
                storage.write(layout.notified(record.run_id, way), b"")
    return failures


def _post(webhook: str, payload: bytes, exit_code: int) -> None:
    host = urlsplit(webhook).hostname
    headers = {"Content-Type": "application/json", "X-FCDD-Exit-Code": str(exit_code)}
    asked = json.dumps({"address": webhook, "headers": headers, "body": payload.decode()}).encode()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = _within(_WEBHOOK_S, [sys.executable, "-m", "jobs.scoring.post"], asked, env, stdout=subprocess.PIPE)
    said = done.stdout.decode().strip()
    if not said.isdecimal():  # the class of an error
        raise NotTold(said or f"its process ended with exit code {done.returncode}")
    if int(said) >= 300:
        raise NotTold(f"{host} answered {said}")
    log.info("told %s of the run", host)


def _run(command: str, payload: bytes, record: RunRecord, exit_code: int) -> None:
    told = {"FCDD_RUN_ID": record.run_id, "FCDD_VERDICT": record.drift.verdict, "FCDD_EXIT_CODE": str(exit_code)}
    try:
        done = _within(_COMMAND_S, shlex.split(command), payload, os.environ | told)
    except FileNotFoundError as error:  # its first word may be a secret: TOKEN=... program
        raise NotTold("there is no program here of the name that it begins with") from error
    if done.returncode:
        raise NotTold(f"it ended with exit code {done.returncode}")


def _within(
    seconds: float, arguments: list[str], data: bytes, env: dict[str, str], stdout: int | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program on `data`; when time is up, or we are interrupted, it is ended with all that it started.

    Raises NotTold when time is up, OSError when it cannot be started.
    """
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=stdout, env=env, start_new_session=True) as process:
        try:
            said, _ = process.communicate(data, seconds)
        except subprocess.TimeoutExpired as error:
            raise NotTold(f"it was not done within {seconds:g} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(arguments, process.returncode, said)
