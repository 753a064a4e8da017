"""What a training on Ray survives: lost workers, lost drivers, a store that fails. Real processes, real signals."""

import http.client
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psutil
import pytest

from cluster.local_s3 import LocalS3
from fcdd.detector import Detector
from fcdd.io import memory, storage
from jobs.training.checkpoints import Checkpoints
from tests.conftest import Fcdd
from tests.integration.conftest import Trained

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

# Long enough to be hit in the middle: a training of these images takes a tenth of a second an epoch.
EPOCHS = "40"
# SGD: Adam makes full steps of rounding, which another number of workers rounds otherwise (docs/decisions.md).
RECIPE = ("--network", "cnn32_s", "--image-size", "32", "--optimizer", "sgd")
SMALL = (*RECIPE, "--batch-size", "16", "--alpha", "0.1", "--epochs", EPOCHS)


@pytest.fixture(scope="module")
def undisturbed(fcdd: Fcdd, trained: Trained, s3: LocalS3) -> Detector:
    """Without Ray, which gives the same result in less time."""
    bundle = f"s3://{s3.bucket}/faults/undisturbed"
    fcdd("train", "--images", trained.images, "--bundle", bundle, *SMALL, "--workers", "0")
    return Detector.load(bundle)


def _start(trained: Trained, bundle: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.cli", "train", "--images", trained.images, "--bundle", bundle, *SMALL]
    command += ["--workers", "2", *more]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def _wait_for_checkpoint(process: subprocess.Popen[str], bundle: str) -> None:
    store = Checkpoints(f"{bundle}/_checkpoints", 2)
    while process.poll() is None and not any(each.epoch >= 3 for each in store.list()):
        time.sleep(0.05)
    assert process.poll() is None, "it was over before it could be disturbed"


def _equal(bundle: str, undisturbed: Detector) -> None:
    """The same losses to the digit that two workers' sums allow, and nearly the same scores."""
    found = Detector.load(bundle).spec
    for name, value in undisturbed.spec.training.metrics.items():
        assert found.training.metrics[name] == pytest.approx(value, rel=1e-3)
    assert found.calibration.pooled.scores == pytest.approx(undisturbed.spec.calibration.pooled.scores, rel=5e-3)


def test_a_killed_worker_costs_one_checkpoint_interval(trained: Trained, prefix: str, undisturbed: Detector) -> None:
    process = _start(trained, f"{prefix}/b")
    _wait_for_checkpoint(process, f"{prefix}/b")
    workers = _children(process, "RayTrainWorker")
    assert len(workers) == 2
    assert memory.ENVIRONMENT.items() <= workers[0].environ().items()
    workers[1].send_signal(signal.SIGKILL)
    _, log = process.communicate(timeout=200)
    assert process.returncode == 0, log
    assert "resuming after epoch" in log
    _equal(f"{prefix}/b", undisturbed)


def _children(process: subprocess.Popen[str], word: str) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if word in " ".join(child.cmdline())]


def test_a_training_whose_controller_is_killed_for_memory_ends_with_a_sentence(trained: Trained, prefix: str) -> None:
    """Ray's memory monitor ends what it likes with SIGKILL, its own controller too."""
    process = _start(trained, f"{prefix}/b")
    _wait_for_checkpoint(process, f"{prefix}/b")
    [controller] = _children(process, "TrainController")
    controller.send_signal(signal.SIGKILL)
    _, log = process.communicate(timeout=200)
    assert process.returncode == 1, log
    [said] = [line for line in log.splitlines() if line.startswith("error: ")]
    assert "memory was short" in said
    assert "--resume goes on" in said
    assert "Traceback" not in log
    assert len(log.splitlines()) < 30


def test_a_killed_driver_is_continued_by_the_same_command_with_resume(
    fcdd: Fcdd, trained: Trained, prefix: str, undisturbed: Detector
) -> None:
    process = _start(trained, f"{prefix}/b")
    _wait_for_checkpoint(process, f"{prefix}/b")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not storage.exists(f"{prefix}/b/bundle.json")
    done = fcdd("train", "--images", trained.images, "--bundle", f"{prefix}/b", *SMALL, "--resume", "--workers", "2")
    assert "resuming after epoch" in done.stderr
    _equal(f"{prefix}/b", undisturbed)


@pytest.mark.slow  # half a minute
def test_ctrl_c_names_the_last_checkpoint(trained: Trained, prefix: str) -> None:
    process = _start(trained, f"{prefix}/b")
    _wait_for_checkpoint(process, f"{prefix}/b")
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    assert f"stopped; the last checkpoint is {prefix}/b/_checkpoints/epoch-" in log
    assert "the same command with --resume goes on" in log


@contextmanager
def _flaky(endpoint: str, failures: int) -> Iterator[tuple[str, list[str]]]:
    """A proxy before the S3 server that answers the first `failures` uploads of checkpoints with 503."""
    target, failed = urlsplit(endpoint), list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "PUT" and "_checkpoints" in self.path and len(failed) < failures:
                failed.append(self.path)
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(target.hostname or "", target.port)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", failed
    finally:
        server.shutdown()


def test_a_checkpoint_upload_that_fails_twice_is_tried_again(
    fcdd: Fcdd, s3: LocalS3, trained: Trained, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _flaky(s3.endpoint, failures=2) as (endpoint, failed):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        fcdd("train", "--images", trained.images, "--bundle", f"{prefix}/b", *SMALL[:-1], "2", "--workers", "0")
        assert len(failed) == 2
        assert storage.exists(f"{prefix}/b/bundle.json")
