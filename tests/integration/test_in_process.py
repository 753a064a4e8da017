"""Scoring by the threads of one process: what is done once, what is left when it ends, and how it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from fcdd.io import storage
from jobs.catalog.staging import Coverage
from jobs.engines import choice, stages
from jobs.scoring import publishing
from schemas import Layout
from tests.conftest import Fcdd
from tests.line import run_verb
from tests.places import NUM_IMAGES, Place, picture

MANY = 400


@pytest.fixture
def place(tmp_path: Path, fcdd: Fcdd) -> Place:
    return Place(f"file://{tmp_path}", fcdd)


@pytest.mark.parametrize("threads", [1, 5])
def test_any_number_of_threads_scores_each_image_once(
    place: Place, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(NUM_IMAGES, MANY):
        storage.write(f"{place.images}/more/{index:04d}.png", picture(index % 7))
    storage.write(f"{place.images}/broken.png", b"none")
    monkeypatch.setattr(choice, "usable_cpus", lambda: threads)
    said = place.score()
    assert f"scoring in this process with {threads} thread" in said.stderr
    assert len(place.rows("scores")) == MANY
    assert len(place.rows("quarantine")) == 1
    assert "each once" in place.around("verify").stdout


def test_threads_load_while_others_score_and_no_more_than_they_can_hold(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(NUM_IMAGES, MANY):
        storage.write(f"{place.images}/more/{index:04d}.png", picture(index % 7))
    loaded, scored, most, both = 0, 0, 0, False
    load, score, lock, scoring = stages.FetchDecode.load, stages.Score.__call__, threading.Lock(), threading.Event()

    def loading(self: stages.FetchDecode, *arguments: object) -> pa.Table:
        nonlocal loaded, most, both
        both |= scoring.is_set()
        rows = load(self, *arguments)  # type: ignore[arg-type]
        with lock:
            loaded += 1
            most = max(most, loaded - scored)
        return rows

    def slowly(self: stages.Score, rows: pa.Table) -> pa.Table:
        nonlocal scored
        scoring.set()
        time.sleep(0.1)
        result = score(self, rows)
        scoring.clear()
        with lock:
            scored += 1
        return result

    monkeypatch.setattr(stages.FetchDecode, "load", loading)
    monkeypatch.setattr(stages.Score, "__call__", slowly)
    monkeypatch.setattr(choice, "usable_cpus", lambda: 2)
    place.score()
    assert both
    assert 2 <= most <= 5  # two being scored, one more begun, and two loaded ahead
    assert len(place.rows("scores")) == MANY


def test_what_an_interrupted_run_left_is_removed_with_the_lease_of_its_night(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(publishing, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert place.score(check=False).returncode == 130
    results, old = Path(place.results.removeprefix("file://")), time.time() - 20 * 86_400
    for path in results.rglob("*"):
        os.utime(path, (old, old))
    assert any((results / "_staging").rglob("*.parquet"))
    assert run_verb("gc", "--results", place.results).returncode == 0
    assert not any(path.is_file() for path in (results / "_staging").rglob("*"))
    refused = run_verb("gc", "--results", place.results, "--older-than-days", "1e10", check=False)
    assert refused.returncode == 2


def test_what_was_not_judged_or_compared_does_not_look_as_if_it_were(place: Place, tmp_path: Path) -> None:
    place.score()
    page = tmp_path / "report.html"
    place.around("report", "--output", str(page))
    assert '<span class="verdict watch">not judged</span>' in page.read_text()
    storage.delete_prefix(place.images)
    gone = place.around("verify", check=False)
    assert f"sample     0 scored again; {NUM_IMAGES} are not as they were" in gone.stdout
    assert (gone.returncode, "not one image of the sample could be scored again" in gone.stderr) == (2, True)
    assert place.around("verify", "--sample", "0").returncode == 0


def test_a_gpu_that_this_machine_does_not_have_is_refused_before_anything_begins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    for options in (("--gpu",), ("--decode", "gpu"), ("--decode", "gpu", "--dry-run")):
        refused = place.score(*options, check=False)
        assert refused.returncode == 2
        assert options[0] in refused.stderr
    assert not any(page for page in storage.pages(Layout(place.results).all_staging()))


def test_a_network_that_fails_ends_the_run_and_the_same_command_finishes_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(NUM_IMAGES, MANY):
        storage.write(f"{place.images}/more/{index:04d}.png", picture(index % 7))
    score, calls = stages.Score.__call__, iter(range(1000))

    def failing(self: stages.Score, rows: pa.Table) -> pa.Table:
        if next(calls) == 3:
            raise MemoryError("no more of it")
        return score(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(stages.Score, "__call__", failing)
        failed = place.score(check=False)
    assert (failed.returncode, "there is too little memory (no more of it)" in failed.stderr) == (1, True)
    folder = Layout(place.results).all_staging()
    assert any("/rows/" in info.uri for page in storage.pages(folder) for info in page)
    place.score()
    assert len(place.rows("scores")) == MANY
    assert "each once" in place.around("verify").stdout


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_is_finished_by_the_same_command(place: Place, stop: signal.Signals) -> None:
    for index in range(NUM_IMAGES, 4 * MANY):
        storage.write(f"{place.images}/more/{index:04d}.png", picture(index % 7))
    where = ["--bundle", f"{place.root}/bundle", "--images", place.images, "--results", place.results]
    command = [sys.executable, "-m", "jobs.score", *where, "--collection", "c", "--date", "2026-11-01"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    layout = Layout(place.results)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        found = [info.uri for page in storage.pages(layout.all_staging()) for info in page]
        runs = {uri.removeprefix(layout.all_staging()).strip("/").split("/")[0] for uri in found}
        if any(Coverage.read(layout, run).count() for run in runs):
            break
        time.sleep(0.02)
    assert process.poll() is None, "it was over before it could be stopped"
    asked = time.monotonic()
    os.kill(process.pid, stop)
    said = process.communicate(timeout=30)[1]
    assert time.monotonic() - asked < 20
    assert "Traceback" not in said
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGKILL: -9}[stop]
    place.score()
    assert len(place.rows("scores")) == 4 * MANY
