"""A row, a record or a label that names a place is no permission to open it."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcdd.io import storage
from jobs.results import Results
from schemas import RunRecord
from tests.line import Line, picture, run_verb


@pytest.fixture
def crafted(line: Line) -> Line:
    """Results whose worst row names a picture that the run never saw; record and part agree."""
    line.upload("nights/2026-11-01", 10, seed=1, defects=2)
    storage.write(f"{line.root}/private/secret.png", picture(7, defect=True))
    line.nightly(check=False)
    [record] = line.records()
    [part] = record.scores
    path = Path(line.results, part.path)
    table = pq.read_table(path, partitioning=None)
    info = storage.stat(f"{line.root}/private/secret.png")
    rows = sorted(table.to_pylist(), key=lambda row: -row["anomaly_score"])
    rows[0] |= {"image_uri": info.uri, "image_etag": info.etag, "image_bytes": info.size, "is_anomalous": True}
    rows[0]["image_last_modified"] = info.last_modified
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    data = path.read_bytes()
    changed = part.model_copy(update={"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    forged = record.model_copy(update={"scores": (changed,)})
    Path(line.results, "runs", f"{record.run_id}.json").write_text(f"{forged.model_dump_json()}\n")
    return line


SAID = "lies outside the locations of its run"


def test_a_report_does_not_open_what_a_row_names_elsewhere(crafted: Line) -> None:
    page = Path(crafted.root, "report.html")
    done = crafted.around("report", "--output", str(page))
    assert SAID in done.stderr
    without = page.read_text()
    crafted.around("report", "--output", str(page), "--locations", f"{crafted.root}/private")
    assert page.read_text().count("data:image/webp") > without.count("data:image/webp")


def test_pictures_exports_and_checks_do_not_either(crafted: Line) -> None:
    secret = f"file://{crafted.root}/private/secret.png"
    drawn = crafted.around("heatmap", "--uri", secret, "--output", f"{crafted.root}/pictures", check=False)
    assert (drawn.returncode, SAID in drawn.stderr) == (2, True)
    assert not list(Path(crafted.root, "pictures").glob("*.png"))
    crafted.around(
        "heatmap", "--uri", secret, "--output", f"{crafted.root}/pictures", "--images", f"{crafted.root}/private"
    )
    exported = crafted.around("export", "fiftyone", "--output", f"{crafted.root}/out")
    assert SAID in exported.stderr
    samples = json.loads(Path(crafted.root, "out/samples.json").read_text())["samples"]
    assert all(sample["image_uri"] != secret for sample in samples)
    assert SAID in crafted.around("verify", "--date", "2026-11-01", check=False).stderr
    crafted.around("audit", "--sample", "20")


def test_part_paths_of_a_record_do_not_lead_out_of_the_results(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(check=True)
    [record] = line.records()
    fields = record.model_dump(mode="json")
    elsewhere = Path(line.root, "elsewhere.parquet")
    elsewhere.write_bytes(Path(line.results, record.scores[0].path).read_bytes())
    for path in (
        "../elsewhere.parquet",
        "/etc/x.parquet",
        "scores/../../elsewhere.parquet",
        str(elsewhere),
        "a://b.parquet",
    ):
        fields["scores"][0]["path"] = path
        with pytest.raises(ValueError, match="scores"):
            RunRecord.model_validate(fields)
        Path(line.results, "runs", f"{record.run_id}.json").write_text(json.dumps(fields))
        done = run_verb("query", "--results", line.results, check=False)
        assert (done.returncode, "is not a run record of this version" in done.stderr) == (2, True)


def test_masks_that_were_not_drawn_in_a_review_are_not_opened(line: Line) -> None:
    line.upload("nights/2026-11-01", 10, seed=1, defects=3)
    line.nightly(check=False)
    found = Results(f"file://{line.results}", tuple(line.records()))
    [worst, *_] = found.images()
    Image.new("L", (worst.width, worst.height), 255).save(f"{line.root}/secret.png")
    from jobs.labels.label_store import Labels, Verdict
    from schemas import LABELS, Layout

    layout = Layout(f"file://{line.results}")
    labels = Labels(layout, "c")
    row = next(iter(found.rows("SELECT * FROM scores ORDER BY anomaly_score DESC")))
    verdict = Verdict.model_validate({"label": 1, "boxes": [{"x0": 0, "y0": 0, "x1": 5, "y1": 5}]})
    labels.set(row, verdict, reviewer="", now=worst.scored_at)
    path = Path(layout.labels("c").removeprefix("file://"))
    forged = pq.read_table(path, partitioning=None).to_pylist()
    forged[0]["mask_uri"] = f"file://{line.root}/secret.png"
    pq.write_table(pa.Table.from_pylist(forged, LABELS), path)
    of_row = Labels(layout, "c").get(row)
    assert of_row is not None
    assert of_row["mask_uri"] == ""
    done = run_verb(
        *("train", "--images", f"{line.root}/nights/2026-11-01", "--bundle", f"{line.root}/new", "--workers", "0"),
        *("--network", "cnn32_s", "--image-size", "32", "--anomalous", str(path)),
        check=False,
    )
    assert (done.returncode, "which is not below" in done.stderr) == (2, True)


def test_a_retry_does_not_open_what_a_quarantine_names_elsewhere(line: Line) -> None:
    line.upload("nights/2026-11-01", 10, seed=1)
    for name in ("a", "b"):
        storage.write(f"{line.root}/nights/2026-11-01/{name}.png", b"broken")
    storage.write(f"{line.root}/private/secret.png", picture(7))
    line.nightly(check=True)
    [record] = line.records()
    [part] = record.quarantine
    path = Path(line.results, part.path)
    table = pq.read_table(path, partitioning=None)
    rows = sorted(table.to_pylist(), key=lambda row: row["image_uri"])
    rows[0]["image_uri"] = f"file://{line.root}/private/secret.png"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    data = path.read_bytes()
    changed = part.model_copy(update={"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    forged = record.model_copy(update={"quarantine": (changed,)})
    Path(line.results, "runs", f"{record.run_id}.json").write_text(f"{forged.model_dump_json()}\n")
    storage.write(f"{line.root}/nights/2026-11-01/b.png", picture(8))
    line.around("retry-quarantine", "--date", "2026-11-01", "--workers", "0")
    [after] = line.records()
    assert (after.num_scored, after.num_quarantined, after.quarantine_reasons) == (11, 1, {"forbidden": 1})
    line.around("retry-quarantine", "--date", "2026-11-01", "--workers", "0", "--locations", f"{line.root}/private")
    [after] = line.records()
    assert (after.num_scored, after.num_quarantined) == (12, 0)


def test_pictures_are_not_put_where_the_next_night_would_score_them(line: Line) -> None:
    line.upload("nights/2026-11-01", 10, seed=1, defects=2)
    line.nightly(check=False)
    below = f"{line.root}/nights/2026-11-01/pictures"
    for verb, *options in (("heatmap", "--output", below), ("audit", "--pictures", below)):
        done = line.around(verb, *options, check=False)
        assert (done.returncode, "lies below the images of the run" in done.stderr) == (2, True)
    done = line.around("export", "fiftyone", "--output", below, check=False)
    assert (done.returncode, "lies below the images of the run" in done.stderr) == (2, True)
    assert not Path(below).exists()
