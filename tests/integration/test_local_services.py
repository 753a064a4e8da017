"""The embedded S3 server and the demo leave nothing behind, however they end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest

from benchmarks import result_tables
from cluster import demo, local_s3
from tests import sandbox

ROOT = str(Path(__file__).parents[2])

pytestmark = pytest.mark.s3


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], signal.Signals]]:
    process = subprocess.Popen([sys.executable, "-m", "cluster.local_s3"], stdout=subprocess.PIPE, text=True)
    yield process, request.param
    if process.poll() is None:
        process.kill()


def test_the_server_prints_what_to_export_and_stops_when_interrupted(
    served: tuple[subprocess.Popen[str], signal.Signals],
) -> None:
    process, interrupt = served
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    assert lines[0].startswith("export AWS_ENDPOINT_URL=http://127.0.0.1:")
    [server] = psutil.Process(process.pid).children()
    [folder] = [argument.removeprefix("-dir=") for argument in server.cmdline() if argument.startswith("-dir=")]
    assert os.path.isdir(folder)
    process.send_signal(interrupt)
    assert process.wait(timeout=30) == 0
    assert not server.is_running()
    assert not os.path.exists(folder)


def test_two_servers_live_side_by_side() -> None:
    with local_s3.serve("one") as first, local_s3.serve("two") as second:
        assert first.endpoint != second.endpoint


@pytest.mark.skipif(bool(sandbox.forbidden()), reason=sandbox.forbidden())
def test_on_a_full_disk_the_server_says_that_it_would_take_no_writes(tmp_path: Path) -> None:
    full = "mount -t tmpfs -o size=20m full $1; head -c 20400k /dev/zero > $1/filler"
    serve = f"TMPDIR=$1 {sys.executable} -m cluster.local_s3"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{full}; {serve}", "sh", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: the S3 server takes no writes on a disk of which less than 1% is free: 0.0 of"
    )
    assert done.stderr.endswith("; make room\n")


@pytest.mark.slow
def test_the_demo_shell_goes_on_with_what_the_demo_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of another day, with its objects, and commands that are set up to use it."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "cluster.demo", "--shell"]
    nothing = subprocess.run(command, capture_output=True, text=True)
    assert (nothing.returncode, nothing.stderr) == (
        2,
        "error: there is nothing of a demo here; run `make demo` first\n",
    )
    with local_s3.serve("demo", demo.DATA) as server, mock.patch.dict(os.environ, server.environment()):
        result_tables.generate("s3://demo/results", nights=1, images=5, cells=4)
    ask = "python -m jobs.cli query --top 3 --format json"
    done = subprocess.run(
        command, input=ask, capture_output=True, text=True, env=os.environ | {"SHELL": "/bin/sh", "PYTHONPATH": ROOT}
    )
    assert done.returncode == 0, done.stderr
    assert "fcdd review" in done.stdout
    assert len(re.findall("image_uri", done.stdout)) == 3


@pytest.mark.slow
def test_an_interrupted_demo_stops_everything_it_started(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C of a terminal goes to the whole process group, here while Ray trains."""
    monkeypatch.chdir(str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.demo"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    started: set[psutil.Process] = set()
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not any("raylet" in p.name() for p in started if p.is_running()):
        started |= set(psutil.Process(process.pid).children(recursive=True))
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, output
    assert "interrupted" in output
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []


@pytest.mark.slow
def test_the_large_demo_shows_defects_of_modules_closer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one: modules of 900 pixels, whose report has a picture of the hottest region of each."""
    monkeypatch.chdir(tmp_path)
    few = ("--side", "3", "--nominal", "100", "--test", "2", "--smallest-defect", "24")
    done = subprocess.run(
        [sys.executable, "-m", "cluster.large_demo", *few],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ROOT},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "images of 900x900 pixels are seen at 304x304" in done.stderr
    page = Path("demo-output/large/report.html").read_text()
    assert page.count('class="detail"') > 0
    assert "AUPRO" in Path("demo-output/large/evaluation.html").read_text()
    assert len(list(Path("demo-output/large/pictures").glob("*.png"))) == 4
