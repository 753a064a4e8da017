"""A job on a Ray cluster by `ray job submit`, and how it ended."""

import contextlib
import io
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

from fcdd.errors import ConfigError, FCDDError
from jobs.shell import errors


def submit(command: list[str], *, is_named: bool, wait: bool) -> int:
    """Run a `ray job submit`; returns the exit code of the job, or of the submission if it is not waited for.

    `is_named`: somebody chose the name of the job, which must be new. Raises FCDDError when the job cannot be asked
    how it ended.
    """
    try:
        from ray.job_submission import JobStatus, JobSubmissionClient
    except ImportError as error:
        raise ConfigError("to submit jobs, install Ray's client: pip install 'fcdd-at-scale[cluster]'") from error
    program = str(Path(sysconfig.get_path("scripts"), command[0]))
    address, job = command[command.index("--address") + 1], command[command.index("--submission-id") + 1]
    if is_named and _is_known(address, job):
        raise ConfigError(f"there has been a job {job!r} on this cluster; choose another --submission-id, or none")
    with subprocess.Popen([program, *command[1:]]) as running:
        # Ctrl-C reaches the client, too; the job goes on.
        try:
            code = running.wait()
        except KeyboardInterrupt:
            running.send_signal(signal.SIGINT)
            running.wait()
            stop = shlex.join(["ray", "job", "stop", "--address", address, job])
            print(f"the job goes on; to stop it: {stop}", file=sys.stderr)
            raise
    if not wait:
        return errors.DONE if code == 0 else errors.FAILED
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            info = JobSubmissionClient(address).get_job_info(job)
    except (RuntimeError, ConnectionError, ValueError) as error:  # said by `ray job submit` above
        raise FCDDError(f"the job {job} could not be asked how it ended: {str(error).splitlines()[0]}") from error
    if info.status == JobStatus.STOPPED:
        return errors.INTERRUPTED
    if info.status == JobStatus.SUCCEEDED and code == 0:
        return errors.DONE
    if not info.status.is_terminal():
        raise FCDDError(f"the connection to the log of {job} broke off while it was {info.status}; it may go on")
    return info.driver_exit_code or errors.FAILED


def _is_known(address: str, job: str) -> bool:
    from ray.job_submission import JobSubmissionClient

    try:
        JobSubmissionClient(address).get_job_info(job)
    except (RuntimeError, ConnectionError, ValueError):  # what is wrong with the cluster is said by `ray job submit`
        return False
    return True
