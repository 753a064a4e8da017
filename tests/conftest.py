"""Fixtures: a clean environment, a real S3 server, ELPV images."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch

from cluster import local_s3
from cluster.local_s3 import LocalS3
from fcdd.io import storage
from fcdd.paper import datasets
from fcdd.paper.datasets import LabelledImage
from tests import awkward_s3
from tests.awkward_s3 import AwkwardS3

# Converted networks of a session are kept for it alone, and shared by its processes, which inherit the environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fcdd-cache-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

_MEMORY, _S3_BYTES = "/dev/shm", 2 * 1024**3

Fcdd = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """No test may depend on the credentials or the Ray cluster of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "FCDD_", "RAY_")):
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and on a busy machine threads wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_power_cuts() -> Iterator[None]:
    """Nothing that a test writes has to survive one, and waiting for the disk would cost minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: None)
        yield


@pytest.fixture(scope="session")
def s3(_clean_environment: None) -> Iterator[LocalS3]:
    """A server for the whole session; the environment of this process and its children points to it.

    What it holds lies in memory where there is room: it takes no writes on a disk that is nearly full.
    """
    in_memory = os.path.isdir(_MEMORY) and shutil.disk_usage(_MEMORY).free >= _S3_BYTES
    with (
        tempfile.TemporaryDirectory(prefix="s3-", dir=_MEMORY if in_memory else None) as folder,
        local_s3.serve("test", Path(folder)) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test that used the S3 server shows what the server complained of, and how full the disk was."""
    report = yield
    server = getattr(item, "funcargs", {}).get("s3")
    if report.failed and isinstance(server, LocalS3):
        lines = [line for line in server.log.read_text(errors="replace").splitlines() if line[:1] in ("W", "E", "F")]
        disk = shutil.disk_usage(server.log.parent)
        lines.append(f"{disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB of its disk are free")
        report.sections.append(("S3 server", "\n".join(lines[-20:])))
    return report


@pytest.fixture
def prefix(s3: LocalS3) -> Iterator[str]:
    """A fresh place in the bucket, emptied after the test."""
    uri = f"s3://{s3.bucket}/{uuid.uuid4().hex}"
    yield uri
    storage.delete_prefix(uri)


@pytest.fixture
def awkward(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwkwardS3]:
    """A server that lists and stores keys as Amazon's does; the environment points to it for one test."""
    with awkward_s3.serve() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def cells() -> list[LabelledImage]:
    return datasets.elpv()


@pytest.fixture(scope="session")
def nominal_cells(cells: list[LabelledImage]) -> list[LabelledImage]:
    return [cell for cell in cells if cell.probability == 0]


@pytest.fixture(scope="session")
def anomalous_cells(cells: list[LabelledImage]) -> list[LabelledImage]:
    return [cell for cell in cells if cell.probability == 1]


@pytest.fixture(scope="session")
def fcdd() -> Fcdd:
    """Run `fcdd <verb> ...` as a user does, with this interpreter and the environment of this process."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, timeout=240
        )
        assert not check or done.returncode == 0, f"{arguments} exited {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    return run
