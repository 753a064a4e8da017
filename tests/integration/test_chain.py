"""Train, score, query, evaluate: the real commands on real images, a real Ray and a real S3 server."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import schemas
from fcdd import calibration, heatmap
from fcdd.detector import Detector
from fcdd.io import storage
from jobs.catalog import commit_records, part_files
from schemas import Layout
from tests.integration.conftest import COLLECTION, NIGHT, Fcdd, Night, Trained

pytestmark = [pytest.mark.ray, pytest.mark.s3]


def rows(night: Night, table: str) -> list[dict[str, object]]:
    parts = getattr(night.record, table)
    return [row for part in parts for row in part_files.read_published(Layout(night.results), part).to_pylist()]


def test_training_leaves_a_verified_bundle_and_says_what_it_did(trained: Trained) -> None:
    spec = Detector.load(trained.bundle).spec
    assert spec.digest in trained.output
    # One of the 81 files is not an image: it is named, and not counted among those used.
    assert spec.training.num_training + spec.training.num_calibration == 80
    assert re.search(r"left out .*nominal/broken\.png", trained.log)
    assert len(spec.calibration.pooled.scores) == spec.training.num_calibration
    assert "epoch 2/2" in trained.log
    assert "left out outlier" in trained.log
    assert "outliers/broken.png" in trained.log
    assert spec.training.options["outlier_share"] == 0.2
    assert b"Fully Convolutional Data Description" in storage.read(f"{trained.bundle}/README.md")


def test_every_listed_image_is_once_in_the_scores_or_in_the_quarantine(night: Night) -> None:
    scored, quarantined = rows(night, "scores"), rows(night, "quarantine")
    assert sorted(str(row["image_uri"]) for row in scored) == sorted(night.uploaded)
    assert sorted(str(row["image_uri"]) for row in quarantined) == sorted(night.broken)
    assert sorted(int(str(row["row_id"])) for row in scored + quarantined) == list(range(night.record.num_listed))
    record = night.record
    assert (record.num_listed, record.num_scored, record.num_quarantined) == (155, 151, 4)
    assert re.search(rf"listed +{record.num_listed}", night.output)


def test_quarantined_images_have_a_stage_a_reason_and_a_detail(night: Night) -> None:
    found = {
        str(row["image_uri"]).rsplit("/", 1)[1]: (row["stage"], row["reason"]) for row in rows(night, "quarantine")
    }
    assert found == {
        "empty.png": ("list", "empty"),
        "half-uploaded.png": ("decode", "truncated"),
        "error-page.jpg": ("decode", "not_an_image"),
        "scrambled.png": ("decode", "corrupt"),
    }
    assert all(row["detail"] for row in rows(night, "quarantine"))
    assert night.record.quarantine_reasons == {"empty": 1, "truncated": 1, "not_an_image": 1, "corrupt": 1}


def test_scores_and_heatmaps_equal_a_plain_loop_over_the_same_images(night: Night) -> None:
    detector = Detector.load(night.bundle)
    scored = {str(row["image_uri"]): row for row in rows(night, "scores")}
    expected = detector.score(list(night.uploaded.values()))
    nominal = np.array(detector.spec.calibration.pooled.scores)
    for index, uri in enumerate(night.uploaded):
        row = scored[uri]
        assert row["anomaly_score"] == row["score_max"]  # the bundle's choice
        assert row["score_mean"] == pytest.approx(float(expected.mean[index]), rel=1e-5)
        assert row["score_max"] == pytest.approx(float(expected.maximum[index]), rel=1e-5)
        assert row["p_value"] == calibration.p_values(np.array([row["anomaly_score"]]), nominal)[0]
        assert row["is_anomalous"] == (float(str(row["anomaly_score"])) > detector.spec.calibration.threshold)
        stored = heatmap.decode(row["heatmap"])  # type: ignore[arg-type]
        assert stored.shape == (row["heatmap_height"], row["heatmap_width"])
        span = float(np.ptp(expected.maps[index]))
        assert np.abs(stored - expected.maps[index]).max() <= span / 510 + 1e-5
        assert (row["width"], row["height"]) == (300, 300)


def test_published_parts_are_what_the_record_says_and_hold_the_promised_schema(night: Night) -> None:
    for table, parts in (("scores", night.record.scores), ("quarantine", night.record.quarantine)):
        for part in parts:
            data = storage.read(f"{night.results}/{part.path}")
            assert (len(data), hashlib.sha256(data).hexdigest()) == (part.bytes, part.sha256)
            assert part.path.startswith(f"{table}/collection={COLLECTION}/date={NIGHT}/run={night.record.run_id}/")
            stored = pq.read_schema(_reader(data))
            assert stored.equals(getattr(schemas, table.upper()), check_metadata=True)
            uris = pq.read_table(_reader(data))["image_uri"].to_pylist()
            assert uris == sorted(uris)


def _reader(data: bytes) -> object:
    return pa.BufferReader(data)


def test_nothing_is_left_in_staging(night: Night) -> None:
    assert [page for page in storage.pages(f"{night.results}/_staging") if page] == []


def test_heatmaps_are_small_on_disk(night: Night) -> None:
    [part] = night.record.scores
    group = pq.ParquetFile(_reader(storage.read(f"{night.results}/{part.path}"))).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    [column] = [c for c in columns if c.path_in_schema == "heatmap"]
    # These maps have 64 cells, an eighth of the 28x28 for which 1.2 KB are promised.
    assert column.total_compressed_size / group.num_rows < 1200 / 8


def test_plain_duckdb_reads_the_published_files_with_partitions(night: Night, tmp_path: Path) -> None:
    for page in storage.pages(night.results):
        for info in page:
            storage.write(str(tmp_path / info.uri.removeprefix(night.results).lstrip("/")), storage.read(info.uri))
    counts = duckdb.sql(
        f"SELECT collection, date, count(*), max(anomaly_score) FROM read_parquet('{tmp_path}/scores/**/*.parquet', "
        "hive_partitioning = true) GROUP BY ALL"
    ).fetchall()
    assert [(c, str(d), n) for c, d, n, _ in counts] == [(COLLECTION, NIGHT, 151)]
    # The documented way to see committed runs only: parts of another run lie there, but no record names it.
    orphan = tmp_path / "scores" / f"collection={COLLECTION}" / "date=2026-11-09" / "run=unfinished" / "part-0.parquet"
    storage.write(str(orphan), storage.read(f"{night.results}/{night.record.scores[0].path}"))
    setting, committed = _documented_sql(tmp_path)
    connection = duckdb.connect()
    connection.execute(setting)
    assert connection.sql(committed).fetchall() == [(151,)]


def _documented_sql(results: Path) -> list[str]:
    """The query of committed runs in docs/results.md, counting rows: what sets the parts, and what reads them."""
    [text] = re.findall(r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs/results.md").read_text(), re.DOTALL)[:1]
    setting, query = text.replace("'results/", f"'{results}/").split(";")[:2]
    counted = re.sub(r"SELECT .*?\nFROM", "SELECT count(*)\nFROM", query, flags=re.DOTALL)
    return [setting, re.sub(r"\nWHERE collection.*", "", counted, flags=re.DOTALL)]


def test_the_same_command_again_does_nothing_and_says_so(fcdd: Fcdd, night: Night) -> None:
    again = fcdd(*night.arguments())
    assert "nothing to do" in again.stderr
    assert again.stdout == night.output
    assert len(commit_records.committed(night.results, COLLECTION)) == 1


def test_query_shows_the_highest_scores_and_saves_their_pictures(fcdd: Fcdd, night: Night, tmp_path: Path) -> None:
    common = ("query", "--results", night.results, "--collection", COLLECTION, "--date", NIGHT, "--top", "5")
    shown = json.loads(fcdd(*common, "--format", "json").stdout)
    ranked = sorted(rows(night, "scores"), key=lambda row: -float(str(row["anomaly_score"])))
    assert [row["image_uri"] for row in shown] == [row["image_uri"] for row in ranked[:5]]
    table = fcdd(*common).stdout
    assert all(row["image_uri"] in table for row in shown)
    folder = tmp_path / "pictures"
    fcdd("heatmap", *common[1:], "--output", str(folder))
    pictures = sorted(folder.glob("*.png"))
    assert [path.name[:3] for path in pictures] == ["01-", "02-", "03-", "04-", "05-"]
    picture = np.asarray(Image.open(pictures[0]))
    assert picture.shape[0] > 300  # the caption
    original, shown_over = picture[:300, :300].astype(int), picture[:300, 300:600].astype(int)
    assert (original.max(2) == original.min(2)).all()  # ELPV is grey
    assert (shown_over.max(2) - shown_over.min(2)).max() > 20  # and the heatmap is not


def test_evaluate_counts_what_it_measured(fcdd: Fcdd, night: Night) -> None:
    common = ("evaluate", "--results", night.results, "--collection", COLLECTION, "--labels", night.labels)
    result = json.loads(fcdd(*common, "--format", "json").stdout)
    scores = {row["image_uri"]: row["anomaly_score"] for row in rows(night, "scores")}
    lines = storage.read(night.labels).decode().splitlines()[1:]
    labels = {uri: int(label) for uri, label in (line.rsplit(",", 1) for line in lines)}
    pairs = [(scores[a], scores[b]) for a in scores for b in scores if labels.get(a) == 1 and labels.get(b) == 0]  # type: ignore[index]
    wins = np.mean([1.0 if x > y else 0.5 if x == y else 0.0 for x, y in pairs])  # type: ignore[operator]
    metrics = result["metrics"]["anomaly_score"]
    assert metrics["auroc"]["value"] == pytest.approx(wins)
    assert (metrics["num_nominal"], metrics["num_anomalous"], result["num_without_score"]) == (100, 50, 1)
    alarms = {row["image_uri"]: row["is_anomalous"] for row in rows(night, "scores")}
    for label, rate in ((0, "false_alarm_rate"), (1, "detection_rate")):
        expected = np.mean([alarms[uri] for uri in alarms if labels.get(str(uri)) == label])
        assert result[rate] == pytest.approx(expected)
    at_alpha = [each for each in result["rates"] if each["alpha"] == result["alpha"]]
    assert [(each["detection_rate"], each["false_alarm_rate"]) for each in at_alpha] == [
        (pytest.approx(result["detection_rate"]), pytest.approx(result["false_alarm_rate"]))
    ]
    by_label = [
        sum(row["p_value"] <= 0.2 for row in rows(night, "scores") if labels.get(str(row["image_uri"])) == label)
        for label in (0, 1)
    ]  # type: ignore[operator]
    assert result["rates"][-1] == {
        "alpha": 0.2,
        "detection_rate": by_label[1] / 50,
        "false_alarm_rate": by_label[0] / 100,
    }
    assert all(each["alpha"] >= 1 / 101 for each in result["rates"])
    text = fcdd(*("evaluate", "--results", night.results, "--labels", night.labels)).stdout  # the only collection there
    assert "rates       promised  found   false alarms" in text
    assert "100 nominal, 50 anomalous; 1 of 151 labelled images have no score" in text


@pytest.mark.slow
@pytest.mark.timeout(600)  # on a machine that is busy with other things
def test_a_killed_run_leaves_nothing_to_readers_and_the_same_command_finishes_it(
    fcdd: Fcdd, night: Night, tmp_path: Path
) -> None:
    """SIGKILL of the driver as soon as the first rows are staged, several times if it is quick."""
    results = f"{night.results}-killed"
    arguments = [results if value == night.results else value for value in night.arguments()]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *arguments], start_new_session=True, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(
        "/rows/" in info.uri for p in storage.pages(f"{results}/_staging") for info in p
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not storage.exists(f"{results}/runs/{night.record.run_id}.json")
    done = fcdd(*arguments)
    assert "going on with run" in done.stderr
    [record] = commit_records.committed(results, COLLECTION)
    assert (record.num_scored, record.num_quarantined) == (151, 4)
    assert record.num_duplicates_dropped == 0  # what was staged before the kill was not done again
    first = {row["image_uri"]: row["anomaly_score"] for row in rows(night, "scores")}
    [part] = record.scores
    second = part_files.read_published(Layout(results), part).to_pylist()
    assert {row["image_uri"]: row["anomaly_score"] for row in second} == pytest.approx(first, rel=1e-5)
