"""Commands that demonstrations run as a user would: printed, then run by this interpreter."""

import shlex
import subprocess
import sys
from collections.abc import Collection


def run(program: str, *arguments: str, expected: Collection[int] = (0,)) -> None:
    """`fcdd VERB ...` or `python ...`. Raises CalledProcessError for an exit code that is not expected."""
    command = [program, *arguments]
    print(f"\n$ {shlex.join(command)}", flush=True)
    module = ["-m", "jobs.cli"] if program == "fcdd" else []
    done = subprocess.run([sys.executable, *module, *arguments])
    if done.returncode not in expected:
        raise subprocess.CalledProcessError(done.returncode, command)
