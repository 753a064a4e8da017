"""A real Ray cluster on this machine, with token authentication: to try `ray job submit`, and for tests of many nodes.

python -m cluster.local_ray [--cpus 3]      prints the environment to export, serves until Ctrl-C

Each node is what a machine of its own would be: a `ray start` with processes, ports and a folder of its own.
"""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from cluster.local_s3 import free_ports

START_TIMEOUT_S, STOP_TIMEOUT_S = 60.0, 3.0
OBJECT_STORE_BYTES = 200 * 1024**2
# Below three CPUs the stages of scoring could starve each other.
CPUS = 3
_SCRIPTS = sysconfig.get_path("scripts")
# A lost machine is noticed within seconds instead of a minute; metrics are there before a short job is over.
_BRISK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_metrics_report_interval_ms": "1000",
    "RAY_JOB_STOP_WAIT_TIME_S": "20",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One `ray start`."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """Take the machine away at once, as a spot market does: SIGKILL to all of its processes."""
        _kill(self.process)
        self.process.wait()

    def stop(self) -> None:
        """A polite end, then the other one."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        _kill(self.process)
        self.process.wait()


@dataclass(frozen=True, slots=True)
class LocalRay:
    """A running cluster."""

    dashboard: str
    gcs_port: int
    metrics_port: int
    token: str
    folder: Path
    stack: ExitStack
    nodes: list[Node] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Variables by which `ray job submit` finds the cluster, and is let in."""
        return {
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def _node_environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.environment(),
            "PATH": f"{_SCRIPTS}:{os.environ.get('PATH', '')}",  # jobs run the python that is first there
            **_BRISK,
        }

    def add_node(self, *, cpus: int, gpus: int = 0) -> Node:
        """Another machine; `gpus` are taken on trust, as Ray takes them."""
        agent, metrics = free_ports(2)
        flags = [
            *(f"--address=127.0.0.1:{self.gcs_port}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"),
            *(f"--metrics-export-port={metrics}", f"--dashboard-agent-listen-port={agent}"),
        ]
        node = self._start(f"node-{len(self.nodes)}", flags)
        _wait_for(node, lambda: "Ray runtime started." in node.log.read_text(errors="replace"))
        return node

    def _start(self, name: str, flags: list[str]) -> Node:
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(f"{_SCRIPTS}/ray", "start", "--block", *flags),
                    *(f"--object-store-memory={OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"),
                    f"--temp-dir={self.folder / 'ray'}",
                ],
                env=self._node_environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                # Its own session: a Ctrl-C of the terminal reaches it only through this module.
                start_new_session=True,
            )
        node = Node(process, log)
        self.stack.callback(node.stop)
        self.nodes.append(node)
        return node


@contextmanager
def serve(*, cpus: int = CPUS) -> Iterator[LocalRay]:
    """Start a cluster of one node with `cpus`, wait until it takes jobs, and stop it on leaving.

    Jobs see this process's environment. Raises RuntimeError with Ray's last lines when it does not start.
    """
    dashboard, agent, gcs, client, metrics = free_ports(5)
    with ExitStack() as stack:
        # Ray's sockets have short names only, so they are never in a folder of the caller's.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)))
        cluster = LocalRay(
            dashboard=f"http://127.0.0.1:{dashboard}",
            gcs_port=gcs,
            metrics_port=metrics,
            token=secrets.token_hex(32),
            folder=folder,
            stack=stack,
        )
        flags = [
            *("--head", f"--port={gcs}", f"--num-cpus={cpus}", f"--ray-client-server-port={client}"),
            *(f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agent}"),
            f"--metrics-export-port={metrics}",
        ]
        head = cluster._start("head", flags)
        _wait_until_it_answers(cluster, head)
        yield cluster


def _wait_until_it_answers(cluster: LocalRay, head: Node) -> None:
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {cluster.token}"}
    )

    def takes_jobs() -> bool:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5):
            return True
        return False

    _wait_for(head, takes_jobs)


def _wait_for(node: Node, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and node.process.poll() is None:
        if ready():
            return
        time.sleep(0.2)
    tail = "\n".join(node.log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"Ray did not come up within {START_TIMEOUT_S:.0f} s:\n{tail}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """To the process and whatever it started, also in sessions of their own."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", type=int, default=CPUS, help=f"logical CPUs of the node (default: {CPUS})")
    arguments = parser.parse_args()

    def interrupt(_: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell starts background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        with serve(cpus=arguments.cpus) as cluster:
            print("\n".join(f"export {name}={value}" for name, value in cluster.environment().items()))
            print("# the token lets anyone in this machine's network run code: keep it to yourself   (Ctrl-C stops)")
            sys.stdout.flush()
            signal.pause()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


if __name__ == "__main__":
    main()
