"""`fcdd submit`: hand a job to a Ray cluster, follow its log, and end with its exit code.

    fcdd submit [options] VERB [options of VERB]

It runs one `ray job submit`, which it prints. What it adds: the exit code is the job's own, where `ray job submit`
knows only 0 and 1, and a configuration that would not be where the job looks for it is noticed here.
"""

import os
import re
import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field

from fcdd.errors import ConfigError
from jobs.on_ray import submission
from jobs.shell import errors, process
from jobs.shell.settings import JobSettings, refuse_secrets
from jobs.shell.verbs import VERBS

# Where `ray start` puts the dashboard, and with it the job server.
LOCAL_DASHBOARD = "http://127.0.0.1:8265"
# They serve, or wait for someone at a browser of this machine.
NOT_THERE = ("submit", "review", "metrics")


class SubmitSettings(JobSettings):
    """Run a job on a Ray cluster: fcdd submit [options] VERB [options of VERB].

    The cluster's token comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. The job gets no variable of
    this shell: what it needs (credentials, FCDD_WEBHOOK) is in the cluster's own environment. The exit code is the
    job's; Ctrl-C leaves it running.
    """

    verb: ClassVar[str] = "submit"

    address: str | None = Field(
        None, description=f"the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else {LOCAL_DASHBOARD}"
    )
    working_dir: Path | None = Field(
        None, description="folder to send along, for --config or the code; paths of the job are relative to it"
    )
    runtime_env: Path | None = Field(None, description="YAML file with the runtime environment of the job (Ray's own)")
    submission_id: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_.-]+$", description="name of the job; default: the verb and a random number"
    )
    wait: bool = Field(True, description="follow the log until the job ends; --no-wait returns once it is accepted")
    dry_run: bool = Field(False, description="print the command and do not run it")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: submit(list(sys.argv[1:] if argv is None else argv)))


def submit(argv: list[str]) -> int:
    """Run the command; the exit code of the job."""
    start = _verb_at(argv)
    settings = SubmitSettings.parse(argv[:start])
    verb, arguments = "".join(argv[start : start + 1]), argv[start + 1 :]
    if verb not in VERBS:
        raise ConfigError(
            f"which job? fcdd submit [options] VERB [options of VERB], one of: {', '.join(VERBS)}; got {verb!r}"
        )
    if verb in NOT_THERE:
        raise ConfigError(f"`fcdd {verb}` runs on your machine, not on a cluster")
    refuse_secrets(arguments, " in the environment of the cluster's nodes")
    _check_config(settings, arguments)
    command = command_line(settings, verb, arguments)
    print(shlex.join(command), flush=True)
    if settings.dry_run:
        return errors.DONE
    return submission.submit(command, is_named=settings.submission_id is not None, wait=settings.wait)


def _verb_at(argv: list[str]) -> int:
    """Where the job begins: at the first word that is neither an option of ours nor the value of one."""
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        field = SubmitSettings.model_fields.get(argv[at].removeprefix("--").replace("-", "_"))
        at += 1 if field is None or field.annotation is bool else 2
    return min(at, len(argv))


def command_line(settings: SubmitSettings, verb: str, arguments: list[str]) -> list[str]:
    """The `ray job submit` that does it."""
    command = ["ray", "job", "submit", "--address", _address(settings)]
    command += ["--submission-id", settings.submission_id or f"fcdd-{verb}-{uuid.uuid4().hex[:8]}"]
    if settings.working_dir:
        command += ["--working-dir", str(settings.working_dir)]
    if settings.runtime_env:
        command += ["--runtime-env", str(settings.runtime_env)]
    if not settings.wait:
        command += ["--no-wait"]
    return [*command, "--", "python", "-m", f"jobs.{verb.replace('-', '_')}", *arguments]


def _address(settings: SubmitSettings) -> str:
    address = settings.address or os.environ.get("RAY_API_SERVER_ADDRESS") or LOCAL_DASHBOARD
    if not re.match(r"https?://", address):
        raise ConfigError(f"expected the address of the dashboard, like {LOCAL_DASHBOARD}, got {address!r}")
    if "@" in urlsplit(address).netloc:
        raise ConfigError("--address holds a user's name, and others see a command line; the token is what lets you in")
    return address


def _check_config(settings: SubmitSettings, arguments: list[str]) -> None:
    """Raises ConfigError for a configuration file that will not be where the job looks for it."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        name, equals, given = word.partition("=")
        value = word if before.lower() == "--config" else given if equals and name.lower() == "--config" else None
        if value is None or Path(value).is_absolute():  # a file of the cluster's machines
            continue
        if settings.working_dir is None:
            raise ConfigError(
                f"--config {value} is a file of this machine: give --working-dir, the folder that has it (before the "
                "verb), or the path that it has on the cluster"
            )
        if not (settings.working_dir / value).is_file():
            raise ConfigError(f"--config {value} is not in {settings.working_dir}, the --working-dir")


if __name__ == "__main__":
    process.exit_with(main())
