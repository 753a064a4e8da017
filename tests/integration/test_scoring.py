"""What `fcdd score` and the commands around it promise, by the real commands; without Ray where it changes nothing."""

import datetime as dt
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcdd.io import storage
from jobs.catalog import commit_records, part_files
from schemas import Layout
from schemas.runs import Intent
from tests.conftest import Fcdd
from tests.detectors import make
from tests.line import run_verb
from tests.places import NUM_IMAGES, Place, encoded, number, picture

pytestmark = pytest.mark.s3


@pytest.fixture
def place(prefix: str, fcdd: Fcdd) -> Place:
    return Place(prefix, fcdd)


def test_a_dry_run_counts_and_writes_nothing(place: Place) -> None:
    before = place.score("--dry-run").stdout
    assert [number(before, name) for name in ("images", "scored", "to do")] == [NUM_IMAGES, 0, NUM_IMAGES]
    assert "about        unknown" in before
    assert not any(page for page in storage.pages(place.results))
    place.score()
    after = place.score("--dry-run").stdout
    assert [number(after, name) for name in ("images", "scored", "to do")] == [NUM_IMAGES, NUM_IMAGES, 0]
    assert "is committed; --rescore scores again" in after
    storage.write(f"{place.images}/new.png", picture(99))
    another = place.score("--dry-run", "--since-last", day=2).stdout
    assert [number(another, name) for name in ("images", "scored", "to do")] == [NUM_IMAGES + 1, NUM_IMAGES, 1]
    assert re.search(r"about +0 s  \(run 20261101-\w+ did", another)
    # Another bundle means everything again, which is said before it is done.
    make(gaussian_std=3.0).save(f"{place.root}/bundle")
    planned = place.score("--dry-run", "--since-last", day=2).stdout
    assert [number(planned, name) for name in ("scored", "to do")] == [0, NUM_IMAGES + 1]


def test_since_last_scores_what_is_new_or_changed_and_records_what_is_gone(place: Place) -> None:
    place.score("--since-last")
    assert place.record().num_scored == NUM_IMAGES
    storage.write(f"{place.images}/new.png", picture(50))
    storage.write(f"{place.images}/0/00.png", picture(51))
    storage.delete(f"{place.images}/1/01.png")
    shown = place.score("--since-last", day=2).stdout
    assert sorted(place.rows("scores", 2)) == [f"{place.images}/0/00.png", f"{place.images}/new.png"]
    assert number(shown, "deleted") == 1
    [gone] = place.record(2).deleted
    rows = part_files.read_published(Layout(place.results), gone).to_pylist()
    assert [(row["image_uri"], row["last_run_id"]) for row in rows] == [
        (f"{place.images}/1/01.png", place.record().run_id)
    ]
    # Said once, also when the run that said it is superseded: the third night finds nothing, and is a night too.
    storage.write(f"{place.images}/broken.png", b"nothing")
    place.score("--since-last", "--rescore", "--max-quarantine-share", "1", day=2)
    storage.write(f"{place.images}/broken.png", picture(53))
    place.around("retry-quarantine", "--workers", "0", day=2)
    assert place.record(2).num_deleted == 1
    storage.write(f"{place.images}/broken.png", b"nothing")
    place.score("--rescore", day=2)
    assert place.record(2).num_deleted == 0
    place.score("--since-last", day=3)
    assert (place.record(3).num_listed, place.record(3).num_deleted) == (0, 0)
    # An image that comes back and goes again is said again.
    storage.write(f"{place.images}/1/01.png", picture(52))
    place.score("--since-last", day=4)
    assert list(place.rows("scores", 4)) == [f"{place.images}/1/01.png"]
    storage.delete(f"{place.images}/1/01.png")
    place.score("--since-last", day=5)
    assert place.record(5).num_deleted == 1


def test_an_incremental_run_adds_to_the_night_it_is_for(place: Place) -> None:
    place.score()
    first = place.rows("scores")
    storage.write(f"{place.images}/late.png", picture(50))
    storage.write(f"{place.images}/bad.png", b"nothing")
    place.score("--since-last")
    record, now = place.record(), place.rows("scores")
    assert (record.num_listed, record.num_scored, record.num_quarantined) == (NUM_IMAGES + 2, NUM_IMAGES + 1, 1)
    assert {uri: now[uri] for uri in first} == first
    assert f"{NUM_IMAGES + 2} of {NUM_IMAGES + 2} images are there, each once" in place.around("verify").stdout
    storage.write(f"{place.images}/later.png", picture(51))
    place.score("--since-last", "--rescore")
    assert place.record().num_scored == NUM_IMAGES + 2
    assert place.record().quarantine_reasons == {"not_an_image": 1}
    place.score("--rescore")  # everything anew: nothing of the runs before is kept
    assert place.record().num_scored == NUM_IMAGES + 2
    assert {part.path.split("/run=")[1].split("/")[0] for part in place.record().scores} == {place.record().run_id}
    assert "each once" in place.around("verify").stdout


def test_an_empty_place_is_not_a_night_on_which_everything_was_deleted(place: Place) -> None:
    place.score("--since-last")
    storage.delete_prefix(place.images)
    done = place.score("--since-last", day=2, check=False)
    assert done.returncode == 2
    assert f"no images under {place.images} (0 other objects" in done.stderr
    storage.write(f"{place.images}/a.png", picture(1))
    typo = place.score("--images", place.images, "--images", f"{place.root}/imagse", day=3, check=False)
    assert typo.returncode == 2
    assert f"no images under {place.root}/imagse" in typo.stderr


def test_an_image_that_comes_back_as_it_was_is_scored_again(place: Place, tmp_path: Path) -> None:
    """On a disk, where a file that is moved away and back keeps its ETag."""
    images, hidden = tmp_path / "images", tmp_path / "moved.png"
    images.mkdir()
    for index in range(3):
        (images / f"{index}.png").write_bytes(picture(index))
    listed: list[tuple[int, int]] = []
    for day in range(1, 5):
        if day == 2:
            (images / "1.png").rename(hidden)
        if day == 3:
            hidden.rename(images / "1.png")
        place.score("--images", str(images), "--since-last", day=day)
        listed.append((place.record(day).num_listed, place.record(day).num_deleted))
    assert listed == [(3, 0), (0, 1), (1, 0), (0, 0)]


def test_an_incremental_run_tries_again_what_was_no_fault_of_the_image(place: Place) -> None:
    names = ("0/00.png", "half.png", "soon.png")
    storage.write(f"{place.images}/half.png", picture(39)[:300])
    storage.write(f"{place.root}/list.txt", "\n".join(f"{place.images}/{name}" for name in names).encode())
    place.score("--image-list", f"{place.root}/list.txt", "--max-quarantine-share", "0.9")
    assert place.record().quarantine_reasons == {"vanished": 1, "truncated": 1}
    storage.write(f"{place.images}/soon.png", picture(40))
    place.score("--since-last", *(option for name in names for option in ("--include", name)), day=2)
    assert place.record(2).num_listed == 1  # the half picture is as it was
    assert list(place.rows("scores", 2)) == [f"{place.images}/soon.png"]
    refused = place.score("--image-list", f"{place.root}/list.txt", "--since-last", day=3, check=False)
    assert refused.returncode == 2
    assert "--since-last and --modified-since need them in a list" in refused.stderr


def test_rescoring_takes_the_place_of_a_run_and_deletes_nothing(place: Place) -> None:
    place.score()
    first = place.record()
    assert "nothing to do (--rescore does it again, --since-last adds" in place.score().stderr
    storage.write(f"{place.images}/late.png", picture(50))
    place.score("--rescore")
    second = place.record()
    assert (second.supersedes, second.num_scored) == (first.run_id, NUM_IMAGES + 1)
    assert all(storage.exists(f"{place.results}/{part.path}") for part in (*first.scores, *second.scores))
    listed = json.loads(run_verb("runs", "--results", place.results, "--format", "json").stdout)
    assert [(run["run_id"], run["state"]) for run in listed] == [
        (first.run_id, "superseded"),
        (second.run_id, "committed"),
    ]
    shown = json.loads(place.around("query", "--top", "100", "--format", "json", "--duplicates").stdout)
    assert len(shown) == NUM_IMAGES + 1
    assert "nothing to do" in place.score().stderr


def test_what_became_readable_moves_from_the_quarantine_to_the_scores(place: Place) -> None:
    for name in ("a", "b", "c"):
        storage.write(f"{place.images}/bad/{name}.png", b"half a picture")
    place.score()
    before, scores = place.record(), place.rows("scores")
    assert before.num_quarantined == 3
    storage.write(f"{place.images}/bad/a.png", picture(60))
    storage.delete(f"{place.images}/bad/b.png")
    place.around("retry-quarantine", "--workers", "0")
    after = place.record()
    assert (after.num_listed, after.num_scored, after.num_quarantined) == (NUM_IMAGES + 3, NUM_IMAGES + 1, 2)
    assert after.quarantine_reasons == {"vanished": 1, "not_an_image": 1}
    assert after.supersedes == before.run_id
    now = place.rows("scores")
    assert {uri: now[uri] for uri in scores} == scores  # nothing was scored twice
    assert now[f"{place.images}/bad/a.png"]["image_bytes"] == len(picture(60))
    gone = place.rows("quarantine")[f"{place.images}/bad/b.png"]
    assert gone["image_bytes"] == len(b"half a picture")  # what it was when it was listed
    assert gone["image_etag"]
    assert "each once" in place.around("verify").stdout
    nothing = place.around("retry-quarantine", "--workers", "0")
    assert "not one of the 2 images can be scored now" in nothing.stderr
    assert place.record() == after
    storage.write(f"{place.images}/bad/c.png", picture(61))
    place.around("retry-quarantine", "--workers", "0")
    assert (place.record().num_scored, place.record().num_quarantined) == (NUM_IMAGES + 2, 1)
    assert "each once" in place.around("verify").stdout
    assert (
        len(json.loads(place.around("query", "--top", "100", "--format", "json", "--duplicates").stdout))
        == NUM_IMAGES + 2
    )


def test_a_retry_without_a_quarantine_says_so(place: Place) -> None:
    place.score()
    done = place.around("retry-quarantine", check=False)
    assert done.returncode == 2
    assert "has no quarantined images" in done.stderr


def test_verify_finds_what_is_wrong(place: Place) -> None:
    place.score()
    shown = place.around("verify", "--sample", "5").stdout
    assert f"{NUM_IMAGES} of {NUM_IMAGES} images are there, each once" in shown
    assert "5 scored again" in shown
    record = place.record()
    [part] = record.scores
    uri = f"{place.results}/{part.path}"
    data = storage.read(uri)
    storage.write(uri, data[:-1])
    damaged = place.around("verify", check=False)
    assert (damaged.returncode, "damaged or replaced" in damaged.stderr) == (1, True)

    def falsify(change: Callable[[pa.Table], pa.Table]) -> str:
        """Another part, with a record that agrees with it."""
        changed = change(part_files.read_published(Layout(place.results), part))
        sink = pa.BufferOutputStream()
        pq.write_table(changed, sink)
        import hashlib

        content = sink.getvalue().to_pybytes()
        storage.write(uri, content)
        new = part.model_copy(
            update={"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "rows": NUM_IMAGES}
        )
        altered = record.model_copy(update={"scores": (new,)})
        storage.write(Layout(place.results).record(record.run_id), altered.model_dump_json().encode())
        done = place.around("verify", check=False)
        storage.write(uri, data)
        assert done.returncode == 1
        return done.stderr

    storage.write(uri, data)
    assert f"promises {NUM_IMAGES} rows of scores, there are {NUM_IMAGES - 1}" in falsify(lambda t: t.slice(1))
    assert "twice" in falsify(lambda t: pa.concat_tables([t.slice(0, 1), t.slice(0, 1), t.slice(2)]))
    index = part_files.read_published(Layout(place.results), part).column_names.index("anomaly_score")
    wrong = pa.array([1e-3] * NUM_IMAGES, pa.float32())
    assert "and 0.001 in run" in falsify(lambda t: t.set_column(index, t.field("anomaly_score"), wrong))


def test_gc_removes_what_the_dead_left_and_nothing_that_is_named(place: Place) -> None:
    place.score()
    layout = Layout(place.results)
    record = place.record()
    # A run that died while it was published, long ago: staging and an unnamed part.
    dead = Intent(
        run_id="dead",
        collection="c",
        day=dt.date(2026, 11, 1),
        images=(place.images,),
        selection={},
        bundle="b",
        bundle_digest="d",
        alpha=0.01,
        fdr=0.1,
        started_at=dt.datetime(2026, 11, 1, tzinfo=dt.UTC),
    )
    storage.write(layout.intent("dead"), dead.model_dump_json().encode())
    storage.write(f"{place.results}/scores/collection=c/date=2026-11-01/run=dead/part-0.parquet", b"x")
    storage.write(f"{place.results}/scores/collection=c/date=2026-11-01/run=older/part-0.parquet", b"x")
    kept = run_verb("gc", "--results", place.results).stdout
    assert "removed 0 objects" in kept
    planned = run_verb("gc", "--results", place.results, "--older-than-days", "0", "--dry-run").stdout
    assert "would remove 4 objects" in planned  # with the mark of a lease that nobody holds
    assert storage.exists(layout.intent("dead"))
    assert "removed 4 objects" in run_verb("gc", "--results", place.results, "--older-than-days", "0").stdout
    assert not storage.exists(layout.intent("dead"))
    assert place.record() == record
    assert len(place.rows("scores")) == NUM_IMAGES


def test_selections_and_lists(place: Place) -> None:
    place.score("--include", "0/*", "--include", "1/*", "--exclude", "*4.png")
    record = place.record()
    assert record.num_listed == 7
    assert record.skipped == {"not included": 4, "excluded": 1}
    lines = "".join(json.dumps({"source-ref": uri}) + "\n" for uri in sorted(place.rows("scores"))[:3])
    storage.write(f"{place.root}/train.manifest", lines.encode() + b'{"source-ref": "s3://gone-bucket/x.png"}\n')
    place.score("--image-list", f"{place.root}/train.manifest", day=2)
    scores, quarantine = place.rows("scores", 2), place.rows("quarantine", 2)
    assert len(scores) == 3
    first = place.rows("scores")
    for uri, row in scores.items():
        assert (row["image_etag"], row["anomaly_score"]) == (first[uri]["image_etag"], first[uri]["anomaly_score"])
    assert [(row["stage"], row["image_bytes"]) for row in quarantine.values()] == [("list", 0)]
    again = (f"{place.images}/0", f"{place.images}/2", f"{place.images}/0/")
    place.score(*(option for uri in again for option in ("--images", uri)), day=3)
    assert place.record(3).num_listed == 8


def test_limits_cost_the_image_before_it_costs_memory(place: Place) -> None:
    storage.write(f"{place.images}/large.bmp", bytes(3 * 2**20))
    bomb = Image.new("L", (9000, 9000))
    storage.write(f"{place.images}/bomb.png", encoded(bomb))
    place.score("--max-image-mb", "2", "--max-megapixels", "20")
    found = {uri.rsplit("/", 1)[1]: (row["stage"], row["reason"]) for uri, row in place.rows("quarantine").items()}
    assert found == {"large.bmp": ("list", "too_large"), "bomb.png": ("decode", "too_large")}


def test_a_quarantine_beyond_its_count_stops_with_exit_code_3_and_keeps_what_was_scored(place: Place) -> None:
    for index in range(3):
        storage.write(f"{place.images}/bad/{index}.png", b"nothing")
    stopped = place.score("--max-quarantine", "2", check=False)
    assert stopped.returncode == 3
    assert "3 of the images under" in stopped.stderr
    assert "the limit is 2: not_an_image 3" in stopped.stderr
    [run] = json.loads(run_verb("runs", "--results", place.results, "--format", "json").stdout)
    assert (run["state"], run["scored"], run["quarantined"]) == ("interrupted", NUM_IMAGES, 3)
    place.score("--max-quarantine", "3")
    assert place.record().num_duplicates_dropped == 0


def test_the_published_file_answers_a_point_look_up_from_one_row_group(place: Place, tmp_path: Path) -> None:
    place.score()
    [part] = place.record().scores
    uris = part_files.read_published(Layout(place.results), part)["image_uri"].to_pylist()
    assert uris == sorted(uris)
    (tmp_path / "part.parquet").write_bytes(storage.read(f"{place.results}/{part.path}"))
    groups = duckdb.sql(
        f"SELECT stats_min_value, stats_max_value FROM parquet_metadata('{tmp_path}/part.parquet') "
        "WHERE path_in_schema = 'image_uri' ORDER BY row_group_id"
    ).fetchall()
    assert [low for low, _ in groups] == sorted(low for low, _ in groups)


@pytest.mark.parametrize("options", [("--backend", "openvino"), ("--precision", "bfloat16")])
def test_scores_of_another_backend_are_within_its_tolerance(place: Place, options: tuple[str, str]) -> None:
    place.score("--backend", "torch")
    place.score(*options, day=2)
    expected = {uri: row["anomaly_score"] for uri, row in place.rows("scores").items()}
    found = {uri: row["anomaly_score"] for uri, row in place.rows("scores", 2).items()}
    assert found == pytest.approx(expected, rel=5e-2 if "bfloat16" in options else 5e-4)
    assert place.record(2).settings[options[0].removeprefix("--")] == options[1]
    assert "12 scored again" in place.around("verify", "--sample", "12", day=2).stdout


def test_a_run_is_finished_with_the_precision_it_was_begun_with(place: Place) -> None:
    storage.write(f"{place.images}/broken.png", b"nothing")
    assert place.score("--max-quarantine", "0", "--precision", "bfloat16", check=False).returncode == 3
    place.score()
    assert place.record().settings["precision"] == "bfloat16"


# A decoder process that dies of SIGSEGV at one picture, through Python's own hook for start-up code.
SITECUSTOMIZE = """
import sys
if "fcdd.io.decoder_process" in " ".join(sys.orig_argv):
    import ctypes
    from PIL import PngImagePlugin
    class Sabotaged(PngImagePlugin.PngImageFile):
        def __init__(self, file, name):
            if file.getvalue().endswith(b"CRASH"):
                ctypes.string_at(0)
            super().__init__(file, name)
    PngImagePlugin.PngImageFile = Sabotaged
"""


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_a_crashing_decoder_costs_one_image(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for index in range(2):
        storage.write(f"{place.images}/{index}/crash-{index}.png", picture(70) + b"CRASH")
    place.score("--workers", "2")
    reasons = {uri.rsplit("/", 1)[1]: row["reason"] for uri, row in place.rows("quarantine").items()}
    assert reasons == {"crash-0.png": "decoder_crash", "crash-1.png": "decoder_crash"}
    assert all("SIGSEGV" in str(row["detail"]) for row in place.rows("quarantine").values())
    assert len(place.rows("scores")) == NUM_IMAGES


def workers_of(driver: psutil.Process, word: str) -> list[psutil.Process]:
    found = []
    for process in driver.children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


# Scoring processes that die as soon as they have something to score.
DEADLY = """
import sys
if any("default_worker" in word for word in sys.orig_argv):
    import os
    import jobs.engines.stages
    jobs.engines.stages.Score.__call__ = lambda self, rows: os.kill(os.getpid(), 9)
"""


@pytest.mark.ray
@pytest.mark.chaos
def test_on_ray_workers_that_always_die_end_the_run_with_a_sentence(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    done = place.score("--workers", "1", check=False)
    assert done.returncode == 1
    assert "error: scoring processes died" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_killed_workers_cost_nothing(place: Place) -> None:
    """SIGKILL of a decoder, of what Ray Data counts with, then of a scoring actor, while the run is at work."""
    for index in range(2000):
        storage.write(f"{place.images}/more/{index:04d}.png", picture(index % 5))
    command = [sys.executable, "-m", "jobs.cli", "score", "--bundle", f"{place.root}/bundle", "--images", place.images]
    command += ["--results", place.results, "--collection", "c", "--date", "2026-11-01", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    victims, deadline = ["ray::_StatsActor", "fcdd.io.decoder_process", "ray::MapWorker"], time.monotonic() + 120
    try:
        while process.poll() is None and victims and time.monotonic() < deadline:
            staged = [info.uri for page in storage.pages(f"{place.results}/_staging") for info in page]
            found = workers_of(psutil.Process(process.pid), victims[0]) if any("/rows/" in u for u in staged) else []
            for each in found[:1]:
                each.kill()
                victims.pop(0)
            time.sleep(0.02)
        said, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, errors
    assert victims == []
    assert said.lstrip().startswith("run 20261101-")  # what Ray has to say of it is in its log files
    assert not re.search(r"Traceback|KeyError|StatsActor|raylet", said + errors)
    record = place.record()
    assert (record.num_scored, record.num_quarantined) == (NUM_IMAGES + 2000, 0)
    assert "each once" in place.around("verify", "--sample", "20").stdout


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_an_error_of_a_worker_is_one_sentence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of the images refuses every image: nobody wants a million rows of quarantine."""
    lines = "".join(f"s3://bucket-that-is-not-there/{index}.png\n" for index in range(40))
    storage.write(f"{place.root}/list.txt", lines.encode())
    monkeypatch.setenv("FCDD_REQUEST_TIMEOUT_S", "2")
    done = place.score("--image-list", f"{place.root}/list.txt", "--workers", "2", check=False)
    assert done.returncode in (1, 3)
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert "bucket-that-is-not-there" in line or "cannot be scored" in line


@pytest.mark.slow
@pytest.mark.ray
def test_the_number_of_workers_does_not_change_a_score(place: Place) -> None:
    place.score()
    place.score("--workers", "1", day=2)
    assert {uri: row["anomaly_score"] for uri, row in place.rows("scores", 2).items()} == pytest.approx(
        {uri: row["anomaly_score"] for uri, row in place.rows("scores").items()}, rel=1e-5
    )
    too_many = place.score("--workers", "50", day=3, check=False)
    assert too_many.returncode == 2
    assert "50 workers do not fit" in too_many.stderr


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.ray)])
def test_twenty_kills_at_random_end_with_every_image_once(place: Place, workers: str) -> None:
    """SIGKILL of the whole job at random moments of its length, twenty times in a row, then once to the end."""
    for index in range(600):
        storage.write(f"{place.images}/more/{index:04d}.png", picture(index % 5))
    options = ("--rescore", "--workers", workers)
    command = [sys.executable, "-m", "jobs.cli", "score", "--bundle", f"{place.root}/bundle", "--images", place.images]
    command += ["--results", place.results, "--collection", "c", "--date", "2026-11-01", *options]
    started = time.monotonic()
    place.score(*options)
    length = time.monotonic() - started
    generator, committed, killed, attempts = np.random.default_rng(0), 1, 0, 0
    while killed < 20 and attempts < 80:  # what an attempt staged is not scored again: the later ones are shorter
        attempts += 1
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(float(generator.uniform(0.1, 1.0)) * length)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            killed += 1
        records = commit_records.history(Layout(place.results))
        for record in records[committed:]:
            assert (record.num_listed, record.num_scored) == (NUM_IMAGES + 600, NUM_IMAGES + 600), attempts
        committed = len(records)
    assert killed == 20
    print(f"{killed} of {attempts} runs of at most {length:.0f} s were killed, {committed - 1} committed")
    place.score(*options)
    assert place.record().num_scored == NUM_IMAGES + 600
    assert "each once" in place.around("verify", "--sample", "20").stdout
    # Who is killed between the commit and the removal of what was staged leaves garbage that gc knows.
    run_verb("gc", "--results", place.results, "--older-than-days", "0")
    assert not any(page for page in storage.pages(f"{place.results}/_staging"))
