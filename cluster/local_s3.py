"""A real S3 server for demonstrations and tests: SeaweedFS on free loopback ports.

python -m cluster.local_s3        prints the environment to export, serves until Ctrl-C
"""

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

START_TIMEOUT_S = 60.0
# Open connections can hold its shutdown up.
STOP_TIMEOUT_S = 5.0
# SeaweedFS refuses every write while less of the disk is free, which `weed mini` has no option for.
MIN_FREE_SHARE = 0.01


class NoServer(RuntimeError):
    """The server cannot run here, or did not come up; the text says why."""


@dataclass(frozen=True, slots=True)
class LocalS3:
    """A running server with one bucket."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    log: Path

    def environment(self) -> dict[str, str]:
        """Variables by which every S3 client finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def serve(bucket: str, folder: Path | None = None) -> Iterator[LocalS3]:
    """Start a server with `bucket`, wait until it answers, and stop it on leaving, also by Ctrl-C.

    What it holds is kept in `folder` for the next server, or thrown away. Raises NoServer where the disk is too full
    for it, and with the server's last lines when it does not come up.
    """
    names = ("master", "volume", "filer", "s3", "admin")
    ports = free_ports(2 * len(names))
    flags = [f"-{name}.port={ports[2 * i]}" for i, name in enumerate(names)]
    flags += [f"-{name}.port.grpc={ports[2 * i + 1]}" for i, name in enumerate(names)]
    with ExitStack() as stack:
        # Sockets have short names only, so they are never in a folder of the caller's.
        temporary = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="local-s3-", ignore_cleanup_errors=True))
        )
        data = temporary / "data" if folder is None else folder.absolute()
        data.mkdir(parents=True, exist_ok=True)
        if reason := why_too_full(data):
            raise NoServer(reason)
        server = LocalS3(
            endpoint=f"http://127.0.0.1:{ports[2 * names.index('s3')]}",
            access_key=secrets.token_hex(8),
            secret_key=secrets.token_hex(16),
            bucket=bucket,
            log=temporary / "server.log",
        )
        log = stack.enter_context(server.log.open("wb"))
        process = subprocess.Popen(
            [
                str(Path(sysconfig.get_path("scripts"), "weed")),
                *("mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *("-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.autoCreateBucket=false"),
                *(f"-s3.localSocket={temporary / 's3.sock'}", f"-filer.localSocket={temporary / 'filer.sock'}"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", *flags),
            ],
            # Go keeps freed memory by default. Near what it needs its garbage collector works all the time:
            # with 256 MiB, 4,000 objects took 15.7 s of CPU to write and 30 % of a core for nothing after they were
            # deleted; with 512 MiB 6.0 s and 0.3 % (measured on two cores, 2026-11-26).
            env={**os.environ, "GOMEMLIMIT": "512MiB", "S3_BUCKET": bucket, **server.environment()},
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its own session: a Ctrl-C of the terminal reaches it only through this context manager.
            start_new_session=True,
        )
        stack.callback(_stop, process)
        _wait_until_healthy(server, process)
        yield server


def why_too_full(folder: Path) -> str | None:
    """One sentence if the disk that holds `folder` has too little space for a server to take a write."""
    disk = shutil.disk_usage(folder)
    if disk.free >= MIN_FREE_SHARE * disk.total:
        return None
    return (
        f"the S3 server takes no writes on a disk of which less than {MIN_FREE_SHARE:.0%} is free: "
        f"{disk.free / 1e9:.1f} of the {disk.total / 1e9:.1f} GB of the disk of {folder} are; make room"
    )


def _wait_until_healthy(server: LocalS3, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if _bucket_answers(server):
            return
        time.sleep(0.1)
    tail = "\n".join(server.log.read_text(errors="replace").splitlines()[-15:])
    raise NoServer(f"the S3 server did not come up within {START_TIMEOUT_S:.0f} s:\n{tail}")


def _bucket_answers(server: LocalS3) -> bool:
    """Whether the bucket, which the server creates last, takes and gives an object."""
    store = S3Store(
        server.bucket,
        endpoint=server.endpoint,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region="us-east-1",
        client_options={"allow_http": True, "timeout": timedelta(seconds=5)},
        retry_config={"max_retries": 0},
    )
    try:
        obstore.put(store, "_healthy", b"")
        obstore.delete(store, "_healthy")
    except (BaseError, OSError):
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def main() -> None:
    """Serve until interrupted."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()

    def interrupt(_: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell starts background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        with serve("local") as server:
            print("\n".join(f"export {name}={value}" for name, value in server.environment().items()))
            print(f"# bucket: s3://{server.bucket}   (Ctrl-C stops the server)", flush=True)
            signal.pause()
    except NoServer as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
