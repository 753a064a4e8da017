"""On a real Ray cluster: `ray start` with token authentication, several nodes, jobs that are submitted to it."""

import datetime as dt
import itertools
import re
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests
import torch

from cluster import local_ray
from cluster.local_ray import LocalRay, Node
from cluster.local_s3 import LocalS3
from fcdd import bundle
from fcdd.detector import Detector
from fcdd.io import storage
from jobs.catalog import commit_records, leases
from jobs.training.checkpoints import Checkpoints
from schemas import Layout
from tests import jpegs
from tests.conftest import Fcdd
from tests.integration.conftest import Trained
from tests.line import run_verb
from tests.places import NUM_IMAGES, Place, picture

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]
RAY = Path(sysconfig.get_path("scripts"), "ray")
NIGHT = "2026-11-01"


@pytest.fixture(scope="module")
def running(s3: LocalS3) -> Iterator[LocalRay]:
    """A head that computes nothing, as on a large cluster, and a machine with CPUs."""
    with local_ray.serve(cpus=0) as cluster:
        cluster.add_node(cpus=2)
        yield cluster


@pytest.fixture
def cluster(running: LocalRay, monkeypatch: pytest.MonkeyPatch) -> LocalRay:
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    return running


@pytest.fixture
def machines(cluster: LocalRay) -> Iterator[Callable[..., Node]]:
    """Adds machines to the cluster for one test."""
    with ExitStack() as stack:

        def add(**has: int) -> Node:
            node = cluster.add_node(**has)
            stack.callback(node.stop)
            return node

        yield add


@pytest.fixture
def place(prefix: str, fcdd: Fcdd) -> Place:
    return Place(prefix, fcdd)


def ray(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([RAY, *arguments], capture_output=True, text=True, timeout=200)


def places(place: Place) -> list[str]:
    where = ["--bundle", f"{place.root}/bundle", "--images", place.images, "--results", place.results]
    return [*where, "--collection", "c", "--date", NIGHT]


def until(happened: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Scraper(threading.Thread):
    """What Prometheus would see of our metrics, over a while."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.names, self.over = address, set[str](), threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.3):
            with suppress(requests.RequestException):
                self.names |= set(
                    re.findall(r"^ray_(fcdd_\w+)", requests.get(self.address, timeout=5).text, re.MULTILINE)
                )

    def seen(self) -> set[str]:
        self.over.set()
        return self.names


def upload(place: Place, count: int) -> None:
    pictures = [picture(index) for index in range(5)]
    with ThreadPoolExecutor(16) as pool:
        uris = (f"{place.images}/more/{index:04d}.png" for index in range(count))
        list(pool.map(storage.write, uris, itertools.islice(itertools.cycle(pictures), count)))


def staged(place: Place) -> int:
    return sum("/rows/" in info.uri for page in storage.pages(f"{place.results}/_staging") for info in page)


def test_a_machine_lost_while_scoring_costs_nothing(machines: Callable[..., Node], place: Place) -> None:
    """Decoding on CPUs, scoring beside two GPUs (taken on trust), one of whose machines is taken away."""
    upload(place, 2000)
    spot = [machines(cpus=1, gpus=1) for _ in range(2)]
    command = ["job", "submit", "--submission-id", "spot", "--no-wait", "--", "python", "-m", "jobs.score"]
    wanted = ("--workers", "2", "--gpu", "--cluster-wait-s", "60")
    submitted = ray(*command, *places(place), *wanted)
    assert submitted.returncode == 0, submitted.stderr
    follow = subprocess.Popen([RAY, "job", "logs", "--follow", "spot"], stdout=subprocess.PIPE, text=True)
    until(lambda: staged(place) > 2, follow)
    spot[1].kill()
    follow.communicate(timeout=200)
    assert "Job 'spot' succeeded" in ray("job", "status", "spot").stdout
    record = place.record()
    assert (record.num_scored, record.num_quarantined) == (NUM_IMAGES + 2000, 0)
    assert "each once" in place.around("verify", "--sample", "20").stdout


def test_two_processes_share_a_gpu_and_score_what_one_without_any_does(
    machines: Callable[..., Node], place: Place
) -> None:
    """The GPU is taken on trust; decoding, the threads beside it and the joining of shards are as with a real one.

    JPEGs are left to it, and come back to the CPUs when its decoder fails.
    """
    machines(cpus=2, gpus=1)
    upload(place, 600)
    for index in range(40):
        storage.write(f"{place.images}/a{index:02d}.jpg", jpegs.jpeg(jpegs.picture(index)))
    command = ["job", "submit", "--submission-id", "shared", "--", "python", "-m", "jobs.score"]
    submitted = ray(*command, *places(place), "--workers", "2", "--gpu", "--decode", "gpu")
    assert submitted.returncode == 0, submitted.stdout
    record = place.record()
    assert (record.num_scored, record.num_quarantined) == (NUM_IMAGES + 640, 0)
    assert record.gpu_decoding
    if not torch.cuda.is_available():
        assert "the decoder failed" in (record.gpu_decoding.refused or "")
        assert "from here on CPUs decode the images of this run: the decoder failed" in submitted.stdout
    seconds = record.stage_seconds
    assert 0 < seconds["workers_gpu_wait"] < seconds["workers_gpu"]
    place.score("--backend", "torch", day=2)
    shared, alone = place.rows("scores"), place.rows("scores", day=2)
    assert shared.keys() == alone.keys()
    measured = ("anomaly_score", "score_mean", "score_max", "score_top1pct", "p_value")
    for uri, row in shared.items():
        for name in ("is_anomalous", "image_etag", "image_hash", "image_group", "width", "height", "brightness"):
            assert row[name] == alone[uri][name]
        # How many images are computed together decides the last bit.
        assert [row[name] for name in measured] == pytest.approx([alone[uri][name] for name in measured], rel=1e-5)


def test_more_processes_than_may_share_a_gpu_do_not_fit(machines: Callable[..., Node], place: Place) -> None:
    machines(cpus=2, gpus=1)
    command = ["job", "submit", "--submission-id", "many", "--", "python", "-m", "jobs.score"]
    said = ray(*command, *places(place), "--workers", "5", "--gpu").stdout
    assert "5 workers do not fit: the cluster has 4 CPUs and 1 GPUs, room for 1" in said


def test_submitted_jobs_are_stopped_finished_and_end_with_their_own_exit_code(
    cluster: LocalRay, place: Place, trained: Trained, fcdd: Fcdd
) -> None:
    for name in bundle.FILES:  # a network that takes its time
        storage.write(f"{place.root}/bundle/{name}", storage.read(f"{trained.bundle}/{name}"))
    count = 6000  # on a busy machine `ray job stop` takes seconds to start
    upload(place, count)
    options = [*places(place), "--workers", "1"]
    command = [RAY, "job", "submit", "--submission-id", "stopped", "--", "python", "-m", "jobs.score", *options]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: staged(place), job)
    assert ray("job", "stop", "stopped").returncode == 0
    said, _ = job.communicate(timeout=60)
    assert "Job 'stopped' was stopped" in said
    layout = Layout(place.results)
    assert commit_records.history(layout, "c") == []
    # It was told politely, and gives its lease back: the next one need not wait until that is old.
    deadline, lease = time.monotonic() + 15, layout.lease("c", dt.date.fromisoformat(NIGHT))
    while leases.state(lease) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert leases.state(lease) is None
    assert "interrupted; the same command" in ray("job", "logs", "stopped").stdout

    again = fcdd("submit", "--submission-id", "stopped", "score", *options, check=False)
    assert (again.returncode, "there has been a job 'stopped'" in again.stderr) == (2, True)

    metrics = Scraper(f"http://127.0.0.1:{cluster.metrics_port}/metrics")
    done = fcdd("submit", "score", *options)
    assert done.stdout.startswith(f"ray job submit --address {cluster.dashboard} --submission-id fcdd-score-")
    assert f"{NUM_IMAGES + count}" in done.stdout
    assert place.record().num_scored == NUM_IMAGES + count
    assert {"fcdd_images_scored_total", "fcdd_stage_seconds_total", "fcdd_queue_images"} <= metrics.seen()

    # All of these noisy pictures are alarms for a network that knows cells: `ray job submit` would only say 1.
    told = fcdd("submit", "nightly", *places(place), "--no-report", "--max-alarms", "1", check=False)
    assert told.returncode == 5, told.stdout
    assert f"exit code 5: {NUM_IMAGES + count} alarms, the limit is 1" in told.stdout


def test_nobody_is_let_in_without_the_token(cluster: LocalRay, monkeypatch: pytest.MonkeyPatch) -> None:
    address, body = f"{cluster.dashboard}/api/jobs/", b'{"entrypoint": "touch pwned"}'
    headers = {"Content-Type": "application/json"}
    examined = run_verb("doctor", check=False).stdout
    assert "nobody is let in without it" in examined
    assert "reached from this machine only" in examined
    for token in (None, "0" * 64):
        tried = requests.post(
            address, body, headers=headers | ({"Authorization": f"Bearer {token}"} if token else {}), timeout=30
        )
        assert tried.status_code in (401, 403)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    refused = subprocess.run([sys.executable, "-m", "jobs.cli", "submit", "runs"], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "oken" in refused.stdout + refused.stderr


def test_a_machine_lost_while_training_costs_a_few_epochs(
    machines: Callable[..., Node], trained: Trained, prefix: str
) -> None:
    spot = machines(cpus=1)
    recipe = ("--network", "cnn32_s", "--image-size", "32", "--optimizer", "sgd", "--alpha", "0.1", "--epochs", "40")
    where = ("--images", trained.images, "--bundle", f"{prefix}/b", "--batch-size", "12")
    how = ("--workers", "3", "--cluster-wait-s", "60")  # one more than fit on one machine
    command = [RAY, "job", "submit", "--", "python", "-m", "jobs.train", *where, *recipe, *how]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    store = Checkpoints(f"{prefix}/b/_checkpoints", 2)
    until(lambda: any(each.epoch >= 3 for each in store.list()), job)
    spot.kill()
    machines(cpus=1)  # as an autoscaler would
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 0, said
    assert "resuming after epoch" in said, said
    Detector.load(f"{prefix}/b")
