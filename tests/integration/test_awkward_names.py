"""Names that real stores hold, through the whole product: listed, scored, asked for, drawn, exported, verified."""

import json
import os
import shutil
from pathlib import Path

import fsspec
import pandas as pd
import polars as pl
import pyarrow.dataset as pa_dataset
import pytest
import s3fs

from fcdd.io import storage
from jobs import results
from tests.awkward_s3 import AwkwardS3
from tests.line import Line, picture, run_verb

NAMES = [
    "plain.png",
    "b//c.png",
    "/rooted.png",
    "x/../e.png",
    "x/./e.png",
    "../../etc/passwd.png",
    "ctl\x01\x1b[2J.png",
    "line\nbreak.png",
    "nul\x00.png",
    "mid /x.png",
    "%2e%2e.png",
    "plus+ .png",
    "_MG_0001.JPG",
    "\u2028\x85.png",
]
DEFECT = "worst//../defect.png"


@pytest.fixture
def scored(awkward: AwkwardS3, calibrated: str) -> list[str]:
    """A committed night of awkward names; the options that name it."""
    for index, name in enumerate(NAMES):
        awkward.put(f"night/{name}", picture(5000 + index))
    awkward.put(f"night/{DEFECT}", picture(6000, defect=True))
    awkward.put("night/end.png ", b"no image by its extension")
    awkward.put("night/cut//short.png", picture(1)[:200])
    place = ["--results", "s3://awkward/results", "--collection", "c", "--date", "2026-11-01"]
    done = run_verb(
        "score", "--bundle", calibrated, "--images", "s3://awkward/night", *place, "--workers", "0", check=False
    )
    assert done.returncode == 0, done.stderr
    return place


def test_awkward_names_are_scored_asked_for_drawn_exported_and_verified(
    scored: list[str], awkward: AwkwardS3, tmp_path: Path
) -> None:
    night = results.open("s3://awkward/results", collection="c", date="2026-11-01")
    rows = night.pandas(columns=["image_uri", "is_anomalous"])
    assert set(rows["image_uri"]) == {f"s3://awkward/night/{name}" for name in (*NAMES, DEFECT)}
    assert list(night.pandas("quarantine")["image_uri"]) == ["s3://awkward/night/cut//short.png"]
    asked = json.loads(run_verb("query", *scored, "--top", "1", "--format", "json").stdout)
    assert asked[0]["image_uri"] == f"s3://awkward/night/{DEFECT}"
    said = run_verb("query", *scored, "--top", "100").stdout
    assert "\x1b" not in said
    assert len(said.splitlines()) <= 100
    pictures = run_verb("heatmap", *scored, "--top", "100", "--output", str(tmp_path / "pictures"))
    assert "no picture" not in pictures.stderr
    assert len(list((tmp_path / "pictures").glob("*.png"))) == len(NAMES) + 1
    page = run_verb("report", *scored, "--output", str(tmp_path / "report.html"))
    assert "no picture" not in page.stderr
    assert run_verb("verify", *scored).returncode == 0
    run_verb("export", "coco", *scored, "--all", "--output", str(tmp_path / "coco.json"))
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert {each["file_name"] for each in coco["images"]} == set(rows["image_uri"])
    run_verb("export", "fiftyone", *scored, "--all", "--output", str(tmp_path / "fiftyone"))
    assert len(list((tmp_path / "fiftyone/data").iterdir())) == len(NAMES) + 1


def test_a_committed_run_is_read_with_s3fs_through_pandas_pyarrow_and_polars(
    scored: list[str], awkward: AwkwardS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own clients are led astray meanwhile: nothing but the caller's filesystem finds the server."""
    filesystem = s3fs.S3FileSystem(endpoint_url=awkward.endpoint, key="key", secret="secret", skip_instance_cache=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FCDD_REQUEST_TIMEOUT_S", "1")
    night = results.open("s3://awkward/results", collection="c", filesystem=filesystem)
    expected = sorted(f"s3://awkward/night/{name}" for name in (*NAMES, DEFECT))
    assert sorted(night.pandas(columns=["image_uri"])["image_uri"]) == expected
    assert sorted(night.polars(columns=["image_uri"])["image_uri"]) == expected
    assert sorted(night.dataset().to_table(columns=["image_uri"])["image_uri"].to_pylist()) == expected
    assert [row["image_uri"] for row in night.rows("FROM quarantine")] == ["s3://awkward/night/cut//short.png"]
    assert night.dataset("labels").count_rows() == 0
    paths = [path.removeprefix("s3://") for path in night.paths()]
    frames = [
        pd.concat(pd.read_parquet(path, filesystem=filesystem, partitioning=None) for path in paths)["image_uri"],
        pa_dataset.dataset(paths, filesystem=filesystem).to_table()["image_uri"].to_pylist(),
        pl.scan_pyarrow_dataset(pa_dataset.dataset(paths, filesystem=filesystem)).collect()["image_uri"],
        [uri for path in paths for uri in pl.read_parquet(filesystem.open(path))["image_uri"]],
    ]
    assert [sorted(frame) for frame in frames] == [expected] * len(frames)


def test_any_filesystem_of_fsspec_opens_results(scored: list[str], awkward: AwkwardS3) -> None:
    memory = fsspec.filesystem("memory")
    for key, stored in awkward.objects.items():
        if key.startswith("results/"):
            memory.pipe(f"/copy/{key}", stored.body)
    night = results.open("memory://copy/results", filesystem=memory)
    assert len(night.pandas()) == len(NAMES) + 1
    assert night.dataset().count_rows() == len(NAMES) + 1


def test_a_second_night_lists_the_same_names_and_scores_none(
    scored: list[str], calibrated: str, awkward: AwkwardS3
) -> None:
    """What was listed through one door is what is listed through the other: nothing is new, nothing is gone."""
    place = [*scored[:-1], "2026-11-02"]
    del awkward.objects["night/x/../e.png"]
    awkward.put("night/new//one.png", picture(7000))
    run_verb(
        *("score", "--bundle", calibrated, "--images", "s3://awkward/night", *place, "--workers", "0", "--since-last"),
    )
    night = results.open("s3://awkward/results", collection="c", date="2026-11-02")
    assert list(night.pandas()["image_uri"]) == ["s3://awkward/night/new//one.png"]
    assert list(night.pandas("deleted")["image_uri"]) == ["s3://awkward/night/x/../e.png"]


def test_a_list_in_a_bucket_of_kms_names_awkward_keys(awkward: AwkwardS3, calibrated: str) -> None:
    for index, name in enumerate(NAMES):
        awkward.put(f"night/{name}", picture(5000 + index), kms=True)
    lines = "\n".join(json.dumps({"uri": f"s3://awkward/night/{name}"}) for name in NAMES)
    awkward.put("list.jsonl", lines.encode(), kms=True)
    place = ["--results", "s3://awkward/results", "--collection", "c", "--date", "2026-11-01"]
    run_verb("score", "--bundle", calibrated, "--image-list", "s3://awkward/list.jsonl", *place, "--workers", "0")
    assert len(results.open("s3://awkward/results").pandas()) == len(NAMES)


def test_a_disk_with_awkward_names_is_scored(line: Line) -> None:
    line.upload("nights/2026-11-01", 10, seed=3)
    folder = f"{line.root}/nights/2026-11-01"
    for name in ("line\nbreak.png", "end .png", "_MG_0001.JPG"):
        storage.write(f"{folder}/{name}", picture(8))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(picture(9))
    Path(f"{folder}/loop").symlink_to(".")
    done = line.nightly(check=True)
    [record] = line.records()
    assert (record.num_scored, record.skipped) == (13, {"unreadable name": 2})
    assert "\\xff.png: no client can name or open it" in done.stderr


def test_what_lies_in_a_folder_that_cannot_be_opened_is_not_taken_for_deleted(line: Line) -> None:
    line.upload("images", 10, seed=3)

    def score(day: int) -> None:
        where = ["--bundle", f"{line.root}/bundle", "--images", f"{line.root}/images", "--results", line.results]
        run_verb("score", *where, "--collection", "c", "--date", f"2026-11-0{day}", "--since-last", "--workers", "0")

    score(1)
    shutil.rmtree(f"{line.root}/images/cam-1")
    Path(f"{line.root}/images/cam-1").symlink_to(".")
    score(2)
    Path(f"{line.root}/images/cam-1").unlink()
    score(3)
    assert [record.num_deleted for record in line.records()] == [0, 0, 5]


def test_results_where_not_every_reader_finds_them_are_refused_before_anything_is_scored(line: Line) -> None:
    line.upload("nights/2026-11-01", 3, seed=3)
    for verb in ("score", "nightly"):
        done = run_verb(
            *(verb, "--bundle", f"{line.root}/bundle", "--images", f"{line.root}/nights/2026-11-01", "--workers", "0"),
            *("--results", f"{line.root}/results[1]", "--collection", "c", "--date", "2026-11-01"),
            check=False,
        )
        assert done.returncode == 2
        assert "which DuckDB takes for a pattern" in done.stderr
    assert not Path(f"{line.root}/results[1]").exists()
