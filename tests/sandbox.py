"""What systemd makes of a unit's sandbox, for where no systemd runs: a mount namespace, and a user without rights."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

# The directives that `run` enforces; a unit with others, or other values, is not what is tested.
ENFORCED = {"NoNewPrivileges": "true", "PrivateTmp": "true", "ProtectSystem": "strict", "ProtectHome": "true"}
USER_ID = 41_234  # nobody's: it owns nothing
_STASH = "/mnt"

# $1: folders to keep as they are, where they are; everything else of the file system can only be read.
_SCRIPT = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 stash {stash}
for folder in $1; do mkdir -p {stash}/$folder; mount --rbind $folder {stash}/$folder; done
for hidden in /home /root /run/user; do
    if [ -d $hidden ]; then mount -t tmpfs -o mode=755 hidden $hidden; fi
done
for private in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 private $private; done
for folder in $1; do mkdir -p $folder; mount --rbind {stash}/$folder $folder; done
awk '$5 !~ "^/(dev|proc|sys|tmp|var/tmp)(/|$)" {{print $5}}' /proc/self/mountinfo | while read -r place; do
    if mountpoint -q "$place"; then mount -o remount,bind,ro "$place"; fi  # else it lies below one that hides it
done
shift
exec setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""


def forbidden() -> str:
    """Why no sandbox can be made here; empty where one can."""
    if os.geteuid() != 0:
        return "only root can make a mount namespace with a read-only file system"
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "x", _STASH], capture_output=True, text=True)
    return f"the kernel refuses it: {tried.stderr.strip()}" if tried.returncode else ""


def service(path: Path) -> configparser.SectionProxy:
    """The [Service] of a unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text())
    return parser["Service"]


def run(
    command: list[str], environment: dict[str, str], *, keep: list[Path], timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    """Run a command as a service with `ENFORCED`. `keep` are folders that it can read where they are.

    What this Python needs can be read, too, also where it lies in somebody's home.
    """
    needed = [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[1], *keep]
    folders = " ".join(sorted({str(path.resolve()) for path in needed}))
    script = _SCRIPT.format(stash=_STASH, user=USER_ID)
    user = {"HOME": "/home/fcdd", "USER": "fcdd", "LOGNAME": "fcdd", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", folders, *command],
        env=user | environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
