"""What `fcdd nightly` and the commands that work on its runs promise, by the real commands, without Ray."""

import http.server
import io
import json
import os
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcdd import bundle, calibration, heatmap
from fcdd.detector import Detector
from fcdd.errors import ImageError
from fcdd.io import storage
from jobs import query
from jobs.catalog import part_files
from jobs.scoring import manifests, nights, notifications, publishing
from jobs.viewing import heatmap_files
from schemas import DRIFT, Layout, RunRecord
from tests.detectors import make
from tests.line import NUM_CALIBRATION, NUM_IMAGES, SIZE, Line, picture, run_verb
from tests.nominal import nominal
from tests.places import number


class Receiver(http.server.ThreadingHTTPServer):
    """A webhook that can be told to fail."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], dict[str, object]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?token=canary-secret"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = server.answers.pop(0) if server.answers else 200
        if status == 200:
            server.got.append((dict(self.headers), json.loads(body)))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_night_like_the_calibration_is_fine_and_a_brighter_one_has_drifted(line: Line) -> None:
    line.upload("nights/2026-11-01", seed=1)
    line.upload("nights/2026-11-02", seed=2, brighter=25)
    fine = line.nightly(day=1)
    assert fine.returncode == 0, fine.stdout
    drifted = line.nightly(day=2)
    assert drifted.returncode == 4
    assert "exit code 4: the images are not those that the bundle was calibrated for" in drifted.stdout
    first, second = line.records()
    assert (first.drift.verdict, first.drift.reasons, first.num_scored) == ("ok", (), NUM_IMAGES)
    assert second.drift.verdict == "drifted"
    why = next(reason for reason in second.drift.reasons if reason.startswith("brightness"))
    assert why in " ".join(drifted.stdout.split())
    # The same commands again: nothing is scored, the codes stay.
    assert [line.nightly(day=day).returncode for day in (1, 2)] == [0, 4]
    assert line.records() == [first, second]
    assert re_run_verbs(line) == ["ok", "drifted"]


def re_run_verbs(line: Line) -> list[str]:
    return [run["drift"] for run in json.loads(run_verb("runs", "--results", line.results, "--format", "json").stdout)]


def test_the_drift_table_lies_beside_the_scores_and_any_engine_reads_it(line: Line) -> None:
    line.upload("nights/2026-11-01", seed=1, brighter=25)
    line.nightly()
    [record] = line.records()
    assert record.drift.part is not None
    assert record.drift.part.path.startswith(
        f"drift/collection={record.collection}/date={record.day}/run={record.run_id}/part-00000-"
    )
    found = duckdb.sql(
        "SELECT scope, image_group, num_images, num_calibration, num_alarms, verdict, findings, average_map "
        f"FROM '{line.results}/drift/**/*.parquet' ORDER BY image_group"
    ).fetchall()
    assert [row[:4] for row in found] == [
        ("collection", "", 60, 200),
        ("group", "cam-0", 30, 100),
        ("group", "cam-1", 30, 100),
    ]
    assert sum(row[4] for row in found[1:]) == found[0][4] == record.num_anomalous
    table = part_files.read_published(Layout(f"file://{line.results}"), record.drift.part)
    assert table.schema.equals(DRIFT)
    scores = pa.concat_tables(
        part_files.read_published(Layout(f"file://{line.results}"), part) for part in record.scores
    )
    maps = heatmap.decode_each(scores["heatmap"].to_pylist())
    average = heatmap.decode(found[0][7])
    np.testing.assert_allclose(average, maps.mean(0), atol=float(np.ptp(maps.mean(0))) / 510 + 1e-5)
    brightness = next(each for each in found[0][6] if each["what"] == "brightness" and each["test"] == "ks")
    assert brightness["verdict"] == "drifted"
    # 30 images of a camera are too few to judge it by itself.
    assert [len(row[6]) for row in found[1:]] == [0, 0]


def test_a_fixed_spot_of_dirt_is_seen_in_the_average_map_at_its_place(line: Line) -> None:
    for index in range(NUM_IMAGES):
        pixels = np.array(Image.open(io.BytesIO(picture(1000 + index))))
        pixels[4:14, 38:50] = [0, 255, 0]
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        storage.write(f"{line.root}/nights/2026-11-01/{index}.png", sink.getvalue())
    assert line.nightly().returncode == 4
    [record] = line.records()
    assert record.drift.part is not None
    [row] = part_files.read_published(Layout(f"file://{line.results}"), record.drift.part).to_pylist()
    average, before = heatmap.decode(row["average_map"]), heatmap.decode(row["nominal_map"])
    y, x = np.unravel_index((average - before).argmax(), average.shape)
    assert 4 / 40 <= (y + 0.5) / average.shape[0] <= 14 / 40 + 0.1
    assert 38 / 56 - 0.1 <= (x + 0.5) / average.shape[1] <= 50 / 56
    assert any(reason.startswith("average map: ") for reason in record.drift.reasons)


def test_alarms_above_the_limit_end_with_code_5_and_drift_comes_first(line: Line) -> None:
    line.upload("nights/2026-11-01", 40, seed=1, defects=8)
    few = line.nightly("--max-alarms", "100")
    assert few.returncode == 0, few.stdout  # fewer than 50 images are not judged
    assert "only 40 images and 200 calibration images: from 50 each on distributions are compared" in few.stdout
    [record] = line.records()
    assert record.num_anomalous >= 8
    assert line.nightly().returncode == (5 if record.num_anomalous > 10 else 0)
    above = line.nightly("--max-alarms", "3")
    assert above.returncode == 5
    assert f"{record.num_anomalous} alarms, the limit is 3" in above.stdout
    line.upload("nights/2026-11-02", seed=2, defects=30)
    both = line.nightly("--max-alarms", "3", day=2)
    assert both.returncode == 4
    # More alarms alone are no sign of another camera.
    record = line.records()[-1]
    defects = ("alarms: 11 of 150 images, 0 to 6 expected", "most anomalous images: 11 are above 0.5")
    alone = record.drift.model_copy(update={"reasons": defects})
    options: Any = SimpleNamespace(alarm_limit=lambda _: 3)
    code, why = nights.verdict(options, record.model_copy(update={"drift": alone}))
    assert (code, why.split(",")[0]) == (5, "more anomalous images")
    # For a scheduler that would only repeat it; what is told, and the metrics, say the same.
    quiet = line.nightly("--max-alarms", "3", "--no-verdict-codes", day=2)
    assert (quiet.returncode, "exit code 4: the images are not" in quiet.stdout) == (0, True)


def test_the_history_of_a_name_goes_through_the_folders_of_the_nights(line: Line) -> None:
    for day in (1, 2):
        line.upload(f"nights/2026-11-0{day}", 4, seed=day)
        line.nightly(day=day, check=True)
    asked = line.around("query", "history", "--uri", "cam-0/002.png", "--format", "json")
    assert [(row["date"], row["image_uri"]) for row in json.loads(asked.stdout)] == [
        (f"2026-11-0{day}", f"file://{line.root}/nights/2026-11-0{day}/cam-0/002.png") for day in (1, 2)
    ]
    assert "2 images of different folders end in 'cam-0/002.png'; they may show different objects" in asked.stderr
    one_night = line.around("query", "history", "--uri", "cam-0/002.png", "--date", "2026-11-02", "--format", "json")
    assert [row["date"] for row in json.loads(one_night.stdout)] == ["2026-11-02"]
    # Of a night that has it twice there is no history of one image.
    for folder in ("left", "right"):
        line.upload(f"nights/2026-11-03/{folder}", 4, seed=3)
    line.nightly(day=3, check=True)
    several = line.around("query", "history", "--uri", "cam-0/002.png", check=False)
    assert (several.returncode, "4 images end in 'cam-0/002.png', among them" in several.stderr) == (2, True)


def test_images_that_come_after_an_empty_night_are_added_by_the_same_command(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(day=1, check=True)
    empty = line.nightly(day=2, check=True)
    assert "the same command with --date 2026-11-02 adds those that come" in empty.stderr
    assert line.nightly(day=2, check=True).stdout.split("run ")[1] == empty.stdout.split("run ")[1]
    line.upload("nights/2026-11-02", 4, seed=2)
    line.nightly(day=2, check=True)
    assert [record.num_scored for record in line.records()] == [5, 4]


def test_an_incremental_command_adds_what_came_since_as_often_as_it_is_given(line: Line) -> None:
    places = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/images", "--workers", "0")
    for added, total in ((5, 5), (3, 8), (4, 12)):
        line.upload(f"images/{total}", added, seed=total)
        planned = line.around("score", *places, "--date", "2026-11-01", "--since-last", "--dry-run")
        assert f"to do        {added}  (those that are not scored)" in planned.stdout
        line.around("score", *places, "--date", "2026-11-01", "--since-last")
        assert [record.num_scored for record in line.records()] == [total]
    again = line.around("score", *places, "--date", "2026-11-01", "--since-last")
    assert "nothing to do (no image is new)" in again.stderr
    line.around("score", *places, "--date", "2026-11-02")
    line.upload("images/more", 1, seed=13)
    plain = line.around("score", *places, "--date", "2026-11-02")
    assert "nothing to do (--rescore does it again, --since-last adds images that came later)" in plain.stderr


def test_an_image_that_is_another_file_by_now_takes_the_place_of_its_row(line: Line, tmp_path: Path) -> None:
    line.upload("images", 30, seed=1, defects=4)
    folder = tmp_path / "images"
    (folder / "cam-0/006.png").write_bytes(b"no image")
    (folder / "cam-1/007.png").write_bytes(b"no image either")
    places = ("--bundle", f"{line.root}/bundle", "--images", str(folder), "--workers", "0", "--date", "2026-11-01")
    line.around("score", *places)
    [before] = line.records()
    assert f"no image is new; run {before.run_id} stays" in line.around("score", *places, "--since-last").stderr
    assert [record.run_id for record in line.records()] == [before.run_id]
    (folder / "cam-0/000.png").write_bytes(picture(77))  # an alarm that was photographed again
    (folder / "cam-0/006.png").write_bytes(picture(78))  # a file that has arrived whole by now
    (folder / "cam-0/008.png").write_bytes(b"broken")
    shutil.copy2(folder / "cam-0/010.png", tmp_path / "copy")  # restored from a backup: another file, the same image
    (tmp_path / "copy").replace(folder / "cam-0/010.png")
    (folder / "cam-0/new.png").write_bytes(picture(79, defect=True))
    line.around("score", *places, "--since-last")
    [record] = line.records()
    assert (record.num_listed, record.num_scored, record.num_quarantined) == (31, 29, 2)
    assert record.num_anomalous == before.num_anomalous  # one less, one more
    assert record.quarantine_reasons == {"not_an_image": 2}
    assert record.num_bytes == sum(path.stat().st_size for path in folder.rglob("*.png"))
    rows = {row["image_uri"].removeprefix(f"file://{folder}/"): row for row in line.rows()}
    assert len(rows) == len(line.rows()) == 29
    assert not rows["cam-0/000.png"]["is_anomalous"]
    assert rows["cam-0/new.png"]["is_anomalous"]
    assert {name for name in ("cam-0/006.png", "cam-0/008.png", "cam-0/010.png") if name in rows} == {
        "cam-0/006.png",
        "cam-0/010.png",
    }
    kept = {row["run_id"] for row in rows.values()}
    assert kept == {before.run_id, record.run_id}
    said = line.around("verify", "--date", "2026-11-01").stdout
    assert "proof      31 of 31 images are there, each once" in said
    assert "29 scored again" in said
    history = line.around("query", "history", "--uri", "cam-0/000.png", "--format", "json").stdout
    assert len(json.loads(history)) == 1
    assert "nothing to do (no image is new)" in line.around("score", *places, "--since-last").stderr


def test_rows_are_replaced_in_a_listing_of_several_parts(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "FIRST_ROWS", 2)
    monkeypatch.setattr(publishing, "PART_ROWS", 7)
    line.upload("images", 20, seed=1)
    folder = tmp_path / "images"
    names = tmp_path / "list.txt"
    names.write_text("\n".join(str(path) for path in sorted(folder.rglob("*.png"))))
    common = ("--bundle", f"{line.root}/bundle", "--workers", "0", "--date", "2026-11-01")
    line.around("score", *common, "--image-list", str(names))  # a list without sizes
    for index in (3, 4, 11, 19):
        (folder / f"cam-{index % 2}/{index:03d}.png").write_bytes(picture(500 + index))
    line.upload("images/more", 5, seed=2)
    line.around("score", *common, "--images", str(folder), "--since-last")
    [record] = line.records()
    assert (record.num_listed, record.num_scored) == (25, 25)
    rows = line.rows()
    assert len({row["image_uri"] for row in rows}) == len(rows) == 25
    again = {Path(row["image_uri"]).name for row in rows if row["run_id"] == record.run_id}
    assert {"003.png", "004.png", "011.png", "019.png"} <= again
    assert "25 scored again" in line.around("verify", "--date", "2026-11-01").stdout
    kept = [part.path for part in record.scores if "part-kept-" in part.path]
    assert 1 <= len(kept) <= 3
    run_verb("gc", "--results", line.results, "--older-than-days", "0")
    assert "proof      25 of 25" in line.around("verify", "--date", "2026-11-01").stdout


def test_images_that_were_moved_within_a_night_are_warned_of(line: Line, tmp_path: Path) -> None:
    line.upload("images", 6, seed=1)
    common = ("--bundle", f"{line.root}/bundle", "--workers", "0", "--date", "2026-11-01")
    line.around("score", *common, "--images", f"{line.root}/images")
    shutil.copytree(f"{line.root}/images", f"{line.root}/archive")
    said = line.around("score", *common, "--images", f"{line.root}/archive", "--since-last").stderr
    assert "6 images that are added have the name and the size of images of this night that were not listed" in said


def test_a_run_of_other_images_does_not_take_the_place_of_a_night_unless_that_is_asked_for(line: Line) -> None:
    for day in (1, 2):
        line.upload(f"nights/2026-11-0{day}", 4 + day, seed=day)
    places = [("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/nights/2026-11-0{day}") for day in (1, 2)]
    line.around("score", *places[0], "--date", "2026-11-01", "--workers", "0")
    wrong = (*places[1], "--date", "2026-11-01", "--workers", "0")
    for options in ((), ("--dry-run",)):
        refused = line.around("score", *wrong, *options, check=False)
        assert refused.returncode == 2
        assert "the night of 2026-11-01 has run" in refused.stderr
        assert f"of the images under file://{line.root}/nights/2026-11-01" in refused.stderr
        assert "nights/2026-11-02 are scored as the night of 2026-11-01: is that --date right?" in refused.stderr
    assert [record.num_scored for record in line.records()] == [5]
    line.around("score", *wrong, "--rescore")
    assert [record.num_scored for record in line.records()] == [6]
    # The night that these images are of has none left, and says so instead of being empty.
    theirs = line.nightly(day=2, check=True)
    assert "has no new images: 6 are there that other nights have" in theirs.stderr
    assert "not new          6  (other nights have them)" in theirs.stdout
    line.around("report", "--date", "2026-11-02", "--output", f"{line.root}/none.html")
    assert (
        "This night has no new images: other nights have the 6 that are there."
        in Path(line.root, "none.html").read_text()
    )
    assert "listed 0 images (0.0 GB)" in theirs.stderr


def test_an_image_that_cannot_be_read_is_in_a_night_once_however_often_it_is_added_to(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.upload("images", 5, seed=1)
    read = storage.read_checked

    def refusing(info: storage.ObjectInfo) -> bytes:
        if info.uri.endswith("cam-0/002.png"):
            raise ImageError("forbidden", "access denied")
        return read(info)

    places = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/images", "--workers", "0")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_checked", refusing)
        line.around("score", *places, "--date", "2026-11-01")
        assert (line.records()[0].num_scored, line.records()[0].num_quarantined) == (4, 1)
        for _ in range(3):
            line.around("score", *places, "--date", "2026-11-01", "--since-last")
            assert line.records()[0].num_listed == 5
    line.upload("images/more", 1, seed=9)
    line.around("score", *places, "--date", "2026-11-01", "--since-last")
    [record] = line.records()
    assert (record.num_listed, record.num_scored, record.num_quarantined) == (6, 5, 1)
    line.around("score", *places, "--date", "2026-11-02", "--since-last")  # another night tries it again
    assert [each.num_scored for each in line.records()] == [5, 1]


def test_a_night_of_several_places_is_replaced_by_none_of_them_alone(line: Line, tmp_path: Path) -> None:
    for folder, count in (("a", 5), ("b", 3)):
        line.upload(folder, count, seed=count)
    common = ("--bundle", f"{line.root}/bundle", "--workers", "0", "--date", "2026-11-01")
    a, b = (("--images", f"{line.root}/{folder}") for folder in "ab")
    line.around("score", *common, *a)
    line.around("score", *common, *b, "--since-last")
    [record] = line.records()
    assert (record.num_listed, record.images) == (8, (f"file://{line.root}/a", f"file://{line.root}/b"))
    assert line.around("heatmap", "--top", "8", "--output", str(tmp_path)).stdout.count("/a/") >= 1
    for options in (b, (*a, "--include", "cam-0/*")):
        refused = line.around("score", *common, *options, check=False)
        assert (refused.returncode, "the night of 2026-11-01 has run" in refused.stderr) == (2, True)
    assert [each.num_listed for each in line.records()] == [8]
    # By another bundle the same images are scored again; others are not added to what the first one has scored.
    other = f"{line.root}/other"
    run_verb("calibrate", "--bundle", f"{line.root}/bundle", "--alpha", "0.05", "--output", other)
    again = ("--bundle", other, "--workers", "0", "--date", "2026-11-01")
    refused = line.around("score", *again, *b, "--since-last", check=False)
    assert (refused.returncode, "--since-last to add" in refused.stderr) == (2, False)
    line.around("score", *again, *a, *b)
    assert [(each.num_listed, each.alpha) for each in line.records()] == [(8, 0.05)]


def test_another_selection_of_the_same_place_is_another_run(line: Line) -> None:
    line.upload("images", 6, seed=1)
    common = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/images", "--workers", "0")
    line.around("score", *common, "--date", "2026-11-01", "--include", "cam-0/*")
    refused = line.around("score", *common, "--date", "2026-11-01", "--include", "cam-1/*", check=False)
    assert refused.returncode == 2
    assert f"of the images under file://{line.root}/images by another --include" in refused.stderr
    assert [each.num_listed for each in line.records()] == [3]


def test_a_forgotten_placeholder_is_named_and_the_corrected_command_scores_the_night(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    forgotten = line.nightly("--images", f"{line.root}/nights", check=True)
    assert f"did you mean --images '{line.root}/nights/{{date}}'?" in forgotten.stderr
    line.nightly(check=True)
    assert [record.num_scored for record in line.records()] == [5]


def test_a_night_that_has_not_begun_is_refused(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    refused = line.nightly("--date", "2999-01-01")
    assert (refused.returncode, line.records()) == (2, [])
    assert "the night of 2999-01-01 has not begun; correct --date" in refused.stderr
    places = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/nights", "--date", "2999-01-01")
    assert "the night of 2999-01-01 has not begun" in line.around("score", *places, check=False).stderr


def test_a_first_evening_whose_images_are_of_today_names_the_option(line: Line) -> None:
    line.upload("images", 5, seed=1)
    done = line.nightly("--images", f"{line.root}/images", "--date", "2026-11-01", check=True)
    assert "the night of 2026-11-01 is empty: 5 images were written after it; did you mean --date today?" in done.stderr


def test_a_night_without_images_is_a_committed_empty_run(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(day=1, check=True)
    nothing = line.nightly(day=2, check=True)
    assert "has no images; the same command with --date 2026-11-02 adds those that come" in nothing.stderr
    assert number(nothing.stdout, "listed") == 0
    line.around("report", "--date", "2026-11-02", "--output", f"{line.root}/empty.html")
    shown = Path(line.root, "empty.html").read_text()
    assert '<span class="verdict watch">no images</span>' in shown
    assert "This night has no images: the cameras were off, or its folder or date is another one." in shown
    page = line.around("report", "--output", f"{line.root}/report.html")  # not of the empty night
    assert "(c, 2026-11-01;" in page.stdout
    assert "the nights after 2026-11-01 are empty; --date shows them" in page.stderr
    assert (line.records()[1].num_listed, line.records()[1].drift.reasons) == (0, ("nothing was scored",))
    again = line.nightly("--images", f"{line.root}/nights", day=3, check=True)
    assert number(again.stdout, "listed") == 0
    mistyped = line.nightly("--images", f"{line.root}/night/{{date}}", day=4)
    assert mistyped.returncode == 2
    assert (
        f"there is nothing under file://{line.root}/night, where the folders of the nights should be" in mistyped.stderr
    )
    assert line.nightly("--images", f"{line.root}/nothing", day=4).returncode == 2


def test_missed_nights_are_caught_up_each_with_its_own_images(line: Line) -> None:
    for day in (1, 2, 4):
        line.upload(f"nights/2026-11-{day:02d}", day, seed=day)
    line.nightly(day=1, check=True)
    line.nightly("--catch-up", day=4, check=True)
    assert [(record.day.day, record.num_scored) for record in line.records()] == [(1, 1), (2, 2), (3, 0), (4, 4)]
    before = line.records()
    line.nightly("--catch-up", day=4, check=True)
    assert line.records() == before


def test_without_folders_of_nights_images_belong_to_the_night_they_were_written_in(line: Line) -> None:
    line.upload("images", 6, seed=1)
    for index in range(6):
        written = datetime(2026, 11, 1 + index // 2, 12, tzinfo=UTC).timestamp()
        os.utime(f"{line.root}/images/cam-{index % 2}/{index:03d}.png", (written, written))
    images = ("--images", f"{line.root}/images")
    line.nightly(*images, day=1, check=True)
    line.nightly(*images, "--catch-up", day=3, check=True)
    assert [(record.day, record.num_scored) for record in line.records()] == [
        (date(2026, 11, day), 2) for day in (1, 2, 3)
    ]


def test_a_webhook_and_a_command_get_the_record_once(line: Line, receiver: Receiver, tmp_path: Path) -> None:
    line.upload("nights/2026-11-01", seed=1, brighter=25)
    told = tmp_path / "told"
    script = f"import os, sys; open({str(told)!r}, 'a').write(os.environ['FCDD_EXIT_CODE'] + sys.stdin.read())"
    hooks = {"webhook": receiver.address, "command": shlex.join([sys.executable, "-c", script])}
    receiver.answers = [503, 500]  # tried again at once
    assert line.nightly(**hooks).returncode == 4
    [(headers, payload)] = receiver.got
    [record] = line.records()
    assert RunRecord.model_validate(payload) == record
    assert headers["X-FCDD-Exit-Code"] == "4"
    assert told.read_text() == f"4{record.model_dump_json()}"
    assert line.nightly(**hooks).returncode == 4
    assert len(receiver.got) == 1
    assert "canary-secret" not in record.model_dump_json()
    assert "canary-secret" not in "".join(path.read_text() for path in Path(line.results).rglob("*.json"))


def test_who_could_not_be_told_is_told_by_the_next_attempt(line: Line, receiver: Receiver) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    receiver.answers = [404]
    refused = line.nightly(webhook=receiver.address)
    assert refused.returncode == 1
    assert "is committed, but the webhook could not be notified: 127.0.0.1 answered 404" in refused.stderr
    assert "canary-secret" not in refused.stdout + refused.stderr
    assert line.nightly(webhook=receiver.address).returncode == 0
    assert len(receiver.got) == 1
    failing = line.nightly(command="false")
    assert failing.returncode == 1
    assert (
        "the command could not be notified: it ended with exit code 1; the same command tries again" in failing.stderr
    )
    missing = line.nightly(command="canary-secret --now").stderr
    assert "could not be notified: there is no program here of the name that it begins with" in missing
    assert "canary-secret" not in missing


class Endless(socketserver.ThreadingTCPServer):
    """A receiver whose answer never ends: it sends one piece again and again until nobody listens."""

    daemon_threads = True

    def __init__(self, head: bytes, piece: bytes, pause_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Endless)
        self.head, self.piece, self.pause_s, self.sent = head, piece, pause_s, 0
        self.over = threading.Event()


class _Endless(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, Endless)
        with suppress(OSError):
            self.request.sendall(server.head)
            while True:
                self.request.sendall(server.piece)
                server.sent += len(server.piece)
                time.sleep(server.pause_s)
        server.over.set()


@pytest.mark.parametrize(
    ("head", "piece", "pause_s", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"z", 0.2, 1),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.2, 1),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"z" * 2**20, 0, 0),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", b"z", 0.2, 0),
    ],
    ids=["a header that drips", "patience asked for again and again", "a body without an end", "a body that drips"],
)
def test_an_answer_that_never_ends_neither_hangs_the_night_nor_fills_memory(
    line: Line, monkeypatch: pytest.MonkeyPatch, head: bytes, piece: bytes, pause_s: float, code: int
) -> None:
    monkeypatch.setattr(notifications, "_WEBHOOK_S", 4.0)
    line.upload("nights/2026-11-01", 2, seed=1)
    with Endless(head, piece, pause_s) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = line.nightly(webhook=f"http://127.0.0.1:{server.server_address[1]}/canary-secret")
        assert server.over.wait(60)  # the connection is closed, whoever is at its other end
        server.shutdown()
    assert done.returncode == code, done.stderr
    assert ("the webhook could not be notified: it was not done within 4 s" in done.stderr) == (code == 1)
    assert server.sent < 64 * 2**20
    assert len(line.records()) == 1


def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(notifications, "_COMMAND_S", 2.0)
    line.upload("nights/2026-11-01", 2, seed=1)
    child = tmp_path / "child"
    done = line.nightly(command=shlex.join(["sh", "-c", f"sleep 1000 & echo $! > {child}; wait"]))
    assert done.returncode == 1
    assert "the command could not be notified: it was not done within 2 s" in done.stderr
    sleeper = int(child.read_text())
    assert not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE


def test_one_that_cannot_be_told_keeps_neither_the_others_nor_the_nights_waiting(
    line: Line, receiver: Receiver, tmp_path: Path
) -> None:
    for day in (1, 2, 3):
        line.upload(f"nights/2026-11-{day:02d}", day, seed=day)
    line.nightly(day=1, check=True)
    command = f"tee -a {tmp_path}/told"
    dead = line.nightly("--catch-up", webhook="http://127.0.0.1:9/x", command=command, day=3)
    assert dead.returncode == 1
    assert dead.stderr.count("the webhook could not be notified: ConnectionError") == 2
    assert [record.num_scored for record in line.records()] == [1, 2, 3]
    assert (tmp_path / "told").read_text().count('"run_id"') == 2
    # The next night's attempt tells what is left, and nobody twice; of the first night nobody was to be told.
    assert line.nightly(webhook=receiver.address, command=command, day=4).returncode == 0
    told = [payload["day"] for _, payload in receiver.got]
    assert sorted(map(str, told)) == ["2026-11-02", "2026-11-03", "2026-11-04"]
    assert (tmp_path / "told").read_text().count('"run_id"') == 3


def test_a_new_calibration_is_no_reason_to_score_everything_again(line: Line) -> None:
    line.upload("images", 5, seed=1)
    images = ("--images", f"{line.root}/images")
    today = datetime.now(UTC).date()
    line.nightly(*images, "--date", "yesterday", day=1)
    line.nightly(*images, "--date", "today", check=True)
    line.upload("fresh", 120, seed=5)
    where = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/fresh", "--output", f"{line.root}/bundle")
    run_verb("calibrate", *where, "--overwrite")
    line.upload("images/new", 1, seed=2)
    line.nightly(*images, "--date", str(today + timedelta(days=1)), check=True)
    assert [record.num_scored for record in line.records()][-2:] == [5, 1]


def test_a_committed_night_is_not_taken_for_that_of_another_bundle(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(check=True)
    assert "was scored by the bundle" not in line.nightly(check=True).stderr
    line.upload("fresh", 120, seed=5)
    where = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/fresh", "--output", f"{line.root}/other")
    run_verb("calibrate", *where)
    again = line.nightly("--bundle", f"{line.root}/other", check=True)
    [record] = line.records()
    assert f"was scored by the bundle {record.bundle_digest[:12]}, not by file://{line.root}/other" in again.stderr
    assert line.nightly("--bundle", f"{line.root}/gone").returncode == 0  # there is nothing to do with it


def test_a_committed_night_is_not_taken_for_one_of_other_images(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.upload("elsewhere", 3, seed=2)
    line.nightly(check=True)
    assert "none under" not in line.nightly(check=True).stderr
    again = line.nightly("--images", f"{line.root}/elsewhere", check=True)
    assert f"none under file://{line.root}/elsewhere are scored by this command" in again.stderr
    [record] = line.records()
    assert record.num_scored == 5
    # A plain command of the same images does not put a run of others in its place: some may be gone by now.
    where = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/nights/{{date}}", "--date", "2026-11-01")
    refused = line.around("score", *where, "--workers", "0", check=False)
    assert refused.returncode == 2
    assert "or --rescore to put a run of these in its place" in refused.stderr
    assert line.records() == [record]


def test_a_dry_run_says_what_each_night_would_do(line: Line) -> None:
    line.upload("nights/2026-11-01", 3, seed=1)
    line.nightly(day=1, check=True)
    line.upload("nights/2026-11-02", 2, seed=2)
    said = line.nightly("--dry-run", "--catch-up", day=3, check=True).stdout
    assert re.findall(r"to do +(\d+)", said) == ["2", "0"]
    assert "is committed: nothing to do" in line.nightly("--dry-run", day=1, check=True).stdout
    undated = line.nightly("--dry-run", "--images", f"{line.root}/nights", day=2, check=True)
    assert re.search(r"images +0 .*\nleft out +5 by rule 'newer'", undated.stdout)
    assert "5 images were written after it; some lie in a folder of this night" in undated.stderr
    assert len(line.records()) == 1


def test_a_mistyped_location_beside_a_dated_one_is_noticed(line: Line) -> None:
    line.upload("nights/2026-11-01", 3, seed=1)
    both = ("--images", f"{line.root}/nights/{{date}}", "--images", f"{line.root}/mistyped")
    done = line.nightly(*both)
    assert done.returncode == 2
    assert f"no images under file://{line.root}/mistyped" in done.stderr


def test_a_run_is_not_added_to_with_another_false_alarm_rate(line: Line) -> None:
    line.upload("nights/2026-11-01", 3, seed=1)
    line.nightly(check=True)
    line.upload("nights/2026-11-01/late", 1, seed=2)
    night = ("--date", "2026-11-01", "--images", f"{line.root}/nights/2026-11-01", "--bundle", f"{line.root}/bundle")
    other = line.around("score", *night, "--since-last", "--alpha", "0.2", "--workers", "0", check=False)
    assert other.returncode == 2
    assert "has alarms for a false-alarm rate of 0.01, not 0.2" in other.stderr
    line.around("score", *night, "--since-last", "--workers", "0")
    [record] = line.records()
    assert (record.num_scored, record.alpha) == (4, 0.01)
    assert line.nightly("--alpha", "0.2").stderr.count("has alarms at 0.01 and a list at 0.1, not 0.2 and 0.1") == 1


def test_drift_tables_and_marks_stay_and_what_no_record_names_goes(line: Line, receiver: Receiver) -> None:
    line.upload("nights/2026-11-01", 4, seed=1)
    storage.write(f"{line.root}/nights/2026-11-01/x.png", b"broken")
    line.nightly(webhook=receiver.address, check=True)
    [first] = line.records()
    storage.write(f"{line.root}/nights/2026-11-01/x.png", picture(5))
    line.around("retry-quarantine", "--date", "2026-11-01", "--workers", "0")
    [record] = line.records()
    assert (record.num_scored, record.supersedes) == (5, first.run_id)
    assert "canary-secret" not in record.model_dump_json()
    stray = f"{line.results}/drift/collection=c/date=2026-11-02/run={record.run_id}/part-00000-0123456789abcdef.parquet"
    storage.write(stray, b"of a dead attempt")
    storage.write(
        f"{line.results}/drift/collection=c/date=2026-11-02/run=20261102-dead/part-00000-0123456789abcdef.parquet",
        b"of a dead run",
    )
    before = {str(path) for path in Path(line.results).rglob("*") if path.is_file()}
    run_verb("gc", "--results", line.results, "--older-than-days", "0")
    after = {str(path) for path in Path(line.results).rglob("*") if path.is_file()}
    gone = {path for path in before - after if "/_leases/" not in path}
    assert {path.rsplit("/run=", 1)[1].split("/")[0] for path in gone} == {record.run_id, "20261102-dead"}
    assert len(gone) == 2
    assert any("notified-webhook" in path for path in after)


def test_an_unreadable_image_of_a_small_night_is_no_reason_to_stop(line: Line) -> None:
    storage.write(f"{line.root}/nights/2026-11-01/x.png", b"broken")
    line.nightly(check=True)
    assert line.records()[0].num_quarantined == 1


def test_the_list_at_a_false_discovery_rate_is_that_of_benjamini_and_hochberg(line: Line) -> None:
    line.upload("nights/2026-11-01", seed=1, defects=15)
    line.nightly("--fdr", "0.2")
    [record] = line.records()
    rows = line.rows()
    p = np.sort([row["p_value"] for row in rows])
    passing = np.flatnonzero(p <= 0.2 * np.arange(1, len(p) + 1) / len(p))
    assert record.num_discoveries == (passing[-1] + 1 if len(passing) else 0) > 0
    listed = json.loads(
        line.around("query", "--discoveries", "--format", "json", "--duplicates", "--top", "100").stdout
    )
    assert len(listed) == record.num_discoveries
    assert max(row["p_value"] for row in listed) == record.fdr_p_value
    assert record.smallest_p_value == 1 / (NUM_CALIBRATION + 1)
    at_once = json.loads(
        line.around("query", "--alpha", "0.3", "--format", "json", "--duplicates", "--top", "99").stdout
    )
    assert len(at_once) == int((p <= 0.3).sum())
    camera = json.loads(
        line.around("query", "--group", "cam-1", "--format", "json", "--duplicates", "--top", "99").stdout
    )
    assert len(camera) == NUM_IMAGES // 2
    unknown = line.around("query", "--group", "cam-9", check=False)
    assert unknown.returncode == 2
    assert "there is no image of the group 'cam-9'; there are: 'cam-0', 'cam-1'" in unknown.stderr


def test_the_same_part_photographed_again_and_again_is_one_line(line: Line) -> None:
    line.upload("nights/2026-11-01", 6, seed=1)
    generator = np.random.default_rng(0)
    for shot in range(10):
        pixels = np.array(Image.open(io.BytesIO(picture(77, defect=True)))) + generator.normal(0, 1, (*SIZE, 3))
        sink = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "PNG")
        storage.write(f"{line.root}/nights/2026-11-01/shot-{shot}.png", sink.getvalue())
    line.nightly()
    rows = json.loads(line.around("query", "--format", "json").stdout)
    [shots] = [row for row in rows if "shot-" in row["image_uri"]]
    assert shots["num_alike"] == 10
    assert sum(row["num_alike"] for row in rows) == 16
    assert line.around("query", "--duplicates", "--top", "50").stdout.count("shot-") == 10
    # All ten are bad, so all ten are among the alarms.
    assert line.around("query", "--alarms", "--format", "json").stdout.count("shot-") == 10
    worst = line.around("heatmap", "--output", f"{line.root}/worst").stdout
    assert f"not drawn   {16 - len(rows)} near-duplicates of these" in worst
    assert len(list(Path(line.root, "worst").glob("*shot-*.png"))) == 1
    line.around("heatmap", "--alarms", "--output", f"{line.root}/alarms")
    assert len(list(Path(line.root, "alarms").glob("*shot-*.png"))) == 10


def test_every_alarm_is_listed_unless_a_number_is_given(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (query, heatmap_files):  # near-duplicates are looked for among so many; alarms are counted all
        monkeypatch.setattr(module, "MAX_COMPARED", 12)
    line.upload("nights/2026-11-01", 40, seed=1, defects=15)
    line.nightly()
    [record] = line.records()
    assert record.num_anomalous >= 15
    table = tmp_path / "alarms.csv"
    line.around("query", "--alarms", "--output", str(table))
    assert len(table.read_text().splitlines()) == 1 + record.num_anomalous
    assert len(json.loads(line.around("query", "--alarms", "--format", "json").stdout)) == record.num_anomalous
    assert line.around("query", "--alarms").stdout.count(".png") == record.num_anomalous
    assert len(json.loads(line.around("query", "--format", "json").stdout)) == 10
    some = line.around("query", "--alarms", "--top", "3", "--format", "csv")
    assert len(some.stdout.splitlines()) == 4
    assert f"of {record.num_anomalous} images these are the worst 3; without --top all" in some.stderr
    every = line.around("query", "--discoveries", "--format", "json").stdout
    assert len(json.loads(every)) == record.num_discoveries > 10
    both = line.around("query", "--alarms", "--duplicates", "--top", "3", "--format", "csv")
    assert "these are the worst 3; without --top all" in both.stderr
    drawn = line.around("heatmap", "--alarms", "--output", str(tmp_path / "h")).stdout
    left = record.num_anomalous - 10
    assert f"not drawn   {left} of {record.num_anomalous} alarms (--top {record.num_anomalous}: all)" in drawn


def test_a_calibration_anew_keeps_the_weights_and_sets_the_threshold(line: Line) -> None:
    before, weights = bundle.load(f"{line.root}/bundle")
    line.upload("fresh", 120, seed=5, brighter=10)
    where = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/fresh", "--output", f"{line.root}/new")
    said = run_verb("calibrate", *where, "--alpha", "0.05").stdout
    after, same = bundle.load(f"{line.root}/new")
    assert same == weights
    assert after.digest != before.digest
    assert after.parent == before.parent
    assert after.calibrated_on == f"file://{line.root}/fresh"
    assert after.calibration.groups.keys() == {"cam-0", "cam-1"}
    files = sorted(Path(f"{line.root}/fresh").rglob("*.png"))
    scored = Detector.load(f"{line.root}/new").score([path.read_bytes() for path in files])
    fitted = after.calibration
    assert fitted.pooled.scores == pytest.approx(np.sort(scored.maximum), rel=1e-5)
    assert fitted.threshold == calibration.conformal_threshold(np.array(fitted.pooled.scores), 0.05)
    assert f"threshold   {fitted.threshold:.6g} for a false-alarm rate of 0.05" in said
    taken = run_verb("calibrate", *where, check=False)
    assert taken.returncode == 2
    assert "add --overwrite" in taken.stderr


@pytest.mark.parametrize("etags", [False, True])
def test_a_reviewed_run_is_a_calibration_without_its_anomalies(line: Line, *, etags: bool) -> None:
    """Also where the labels have a column of ETags that is empty."""
    line.upload("nights/2026-11-01", 150, seed=3, defects=10)
    line.nightly()
    [record] = line.records()
    alarms = line.rows("--alarms")
    assert len(alarms) == record.num_anomalous >= 10
    labels = {row["image_uri"]: int(int(row["image_uri"][-7:-4]) < 10) for row in alarms}
    reviewed = f"{line.root}/labels.parquet"
    where = ("--bundle", f"{line.root}/bundle", "--output", f"{line.root}/new", "--reviewed", reviewed)

    def calibrate(labelled: dict[str, int], *options: str) -> "subprocess.CompletedProcess[str]":
        table = pa.table({"image_uri": list(labelled), "label": list(labelled.values())})
        if etags:
            table = table.append_column("image_etag", pa.nulls(len(labelled), pa.string()))
        pq.write_table(table, reviewed)
        return line.around("calibrate", *where, *options, check=False)

    unseen = calibrate(dict(list(labels.items())[1:]))
    assert unseen.returncode == 2
    assert "1 alarms have no label" in unseen.stderr
    assert "none of the labels" in calibrate({"s3://x/y.png": 0}).stderr
    assert calibrate(labels).returncode == 0
    fitted = bundle.load(f"{line.root}/new")[0]
    scores = pa.concat_tables(
        part_files.read_published(Layout(f"file://{line.results}"), part) for part in record.scores
    )
    kept = [row["anomaly_score"] for row in scores.to_pylist() if not labels.get(row["image_uri"])]
    assert fitted.calibration.pooled.scores == pytest.approx(sorted(kept))
    assert fitted.calibrated_on == f"reviewed run {record.run_id}"
    added = ("--bundle", f"{line.root}/bundle", "--output", f"{line.root}/added", "--reviewed", reviewed, "--add")
    before, _ = bundle.load(f"{line.root}/bundle")
    assert line.around("calibrate", *added).returncode == 0
    both = bundle.load(f"{line.root}/added")[0].calibration.pooled
    assert both.num_images == before.calibration.pooled.num_images + len(kept)
    assert both.scores == pytest.approx(sorted([*before.calibration.pooled.scores, *kept]))
    twice = (*("--bundle", f"{line.root}/added", "--output", f"{line.root}/twice"), *added[4:])
    assert "would count twice" in line.around("calibrate", *twice, check=False).stderr
    make(gaussian_std=3.0).save(f"{line.root}/other")
    other = line.around("calibrate", "--bundle", f"{line.root}/other", *where[2:], "--overwrite", check=False)
    assert "was scored with another bundle" in other.stderr


def test_a_calibration_on_defects_is_said_and_names_what_set_the_threshold(line: Line) -> None:
    line.upload("good", 150, seed=4)
    line.upload("bad", 150, seed=5, defects=30)
    where = ("--bundle", f"{line.root}/bundle", "--output", f"{line.root}/new", "--overwrite")
    assert "times the old one" not in run_verb("calibrate", *where, "--images", f"{line.root}/good").stderr
    said = run_verb("calibrate", *where, "--images", f"{line.root}/bad").stderr
    before, after = (bundle.load(f"{line.root}/{name}")[0].calibration for name in ("bundle", "new"))
    ratio = after.map_threshold / before.map_threshold
    assert ratio > 2
    assert f"the new threshold of regions, {after.map_threshold:.6g}, is {ratio:.1f} times the old one" in said
    [warned] = [text for text in said.splitlines() if "threshold of regions" in text]
    named = re.findall(r"/bad/cam-\d/(\d+)\.png \(", warned)
    assert named
    assert all(int(number) < 30 for number in named)


def test_what_fcdd_calibrate_cannot_do_or_does_not_take_is_said(line: Line) -> None:
    line.upload("good", 120, seed=4)
    where = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/good")
    among = run_verb("calibrate", *where, "--output", f"{line.root}/good/", check=False)
    assert among.returncode == 2
    assert "--output is the location of the images" in among.stderr
    assert not storage.exists(f"{line.root}/good/bundle.json")
    done = run_verb("calibrate", *where, "--output", f"{line.root}/new", "--date", "2026-11-01")
    assert "--date is not taken" in done.stderr


def test_cameras_with_enough_images_decide_by_their_own_calibration(line: Line) -> None:
    for camera, count, first, brighter in (("cam-0", 120, 1000, 0), ("cam-1", 120, 2000, 20), ("few", 20, 3000, 0)):
        for index in range(count):
            data = picture(first + index, brighter=brighter)
            storage.write(f"{line.root}/good/{camera}/{index}.png", data)
    where = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/good", "--output", f"{line.root}/bundle")
    said = run_verb("calibrate", *where, "--decide-by-group", "--overwrite").stdout
    assert "cam-1: 120 images, decides by its own" in said
    line.upload("nights/2026-11-01", seed=1)
    line.nightly()
    [record] = line.records()
    fitted = bundle.load(f"{line.root}/bundle")[0].calibration
    assert record.group_thresholds.keys() == {"cam-0", "cam-1"}
    [part] = record.scores
    for row in part_files.read_published(Layout(f"file://{line.results}"), part).to_pylist():
        own = np.array(fitted.groups[row["image_group"]].scores)
        assert row["p_value"] == calibration.p_values(np.array([row["anomaly_score"]]), own)[0]
        assert row["is_anomalous"] == (row["p_value"] <= 0.01)


def test_two_bundles_are_compared_on_the_same_images(line: Line, tmp_path: Path) -> None:
    line.upload("nights/2026-11-01", seed=1, defects=10)
    line.nightly()
    [first] = line.records()
    line.upload("fresh", 120, seed=5, defects=3)
    make(score="mean").save(f"{line.root}/raw")
    where = ("--images", f"{line.root}/fresh", "--output", f"{line.root}/bundle2")
    run_verb("calibrate", "--bundle", f"{line.root}/raw", *where)
    where = ("--images", f"{line.root}/nights/2026-11-01", "--bundle", f"{line.root}/bundle2", "--workers", "0")
    line.around("score", "--rescore", "--date", "2026-11-01", *where)
    [second] = line.records()
    pictures = tmp_path / "pictures"
    arguments = ("compare", first.run_id, second.run_id, "--results", line.results, "--top", "3")
    said = run_verb(*arguments, "--pictures", str(pictures)).stdout
    found = json.loads(run_verb(*arguments, "--format", "json").stdout)
    rows = [
        {
            row["image_uri"]: row
            for part in record.scores
            for row in part_files.read_published(Layout(f"file://{line.results}"), part).to_pylist()
        }
        for record in (first, second)
    ]
    assert found["num_common"] == NUM_IMAGES
    from scipy import stats

    expected = stats.spearmanr(*([each[uri]["anomaly_score"] for uri in rows[0]] for each in rows)).statistic
    assert found["rank_correlation"] == pytest.approx(expected)
    flips = sum(rows[0][uri]["is_anomalous"] != rows[1][uri]["is_anomalous"] for uri in rows[0])
    assert found["alarms_only_a"] + found["alarms_only_b"] == flips
    assert len(found["movers"]) == 3
    assert len(found["flips"]) == min(3, flips)
    assert all(row["is_anomalous_a"] != row["is_anomalous_b"] for row in found["flips"])
    assert f"Spearman correlation {expected:.4f}" in said
    with Image.open(sorted(pictures.iterdir())[0]) as shown:
        assert shown.width == 3 * SIZE[1]
        assert shown.height > SIZE[0]  # captions say which run each is of
    unknown = run_verb("compare", "nothing", second.run_id, "--results", line.results, check=False)
    assert unknown.returncode == 2
    assert f"there are: {first.run_id}" in unknown.stderr


def test_an_audit_flags_evidence_at_one_spot_and_draws_it(line: Line, tmp_path: Path) -> None:
    for index in range(40):
        pixels = np.array(Image.open(io.BytesIO(picture(4000 + index))))
        if index < 20:
            pixels[:8, :10] = [255, 0, 0]  # a watermark
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        storage.write(f"{line.root}/nights/2026-11-01/{index}.png", sink.getvalue())
    line.nightly()
    uris = [f"file://{line.root}/nights/2026-11-01/{index}.png" for index in range(40)]
    labels = "\n".join(f"{uri},{int(index < 20)}" for index, uri in enumerate(uris))
    storage.write(f"{line.root}/labels.csv", f"image_uri,label\n{labels}".encode())
    options = ("--labels", f"{line.root}/labels.csv", "--pictures", str(tmp_path / "p"))
    said = line.around("audit", *options).stdout
    assert "at one spot" in said
    assert "<-- suspicious" in said
    [drawn] = (tmp_path / "p").iterdir()
    with Image.open(drawn) as shown:
        assert shown.width >= 3 * 48
        assert shown.height > 32  # titles say what each shows
    found = json.loads(line.around("audit", "--labels", f"{line.root}/labels.csv", "--format", "json").stdout)
    assert any(each["flagged"] for each in found["anomalous"]["concentrations"])
    assert not any(each["flagged"] for each in found["nominal"]["concentrations"])
    assert "alarms" in line.around("audit").stdout
    black = io.BytesIO()
    Image.new("L", (10, 10)).save(black, "PNG")
    storage.write(f"{line.root}/mask.png", black.getvalue())
    masked = line.around("audit", "--object-mask", f"{line.root}/mask.png", check=False)
    assert "is black everywhere" in masked.stderr
    inside = io.BytesIO()
    Image.fromarray(np.pad(np.full((40, 30), 255, np.uint8), ((20, 20), (40, 10)))).save(inside, "PNG")
    storage.write(f"{line.root}/mask.png", inside.getvalue())
    said = line.around("audit", *options[:2], "--object-mask", f"{line.root}/mask.png").stdout
    [crop] = re.findall(r"train without it: fcdd train --crop (\d+%,\d+%,\d+%,\d+%) \.\.\., or --ignore MASK", said)
    left, top, width, height = (int(each) for each in crop.replace("%", "").split(","))
    assert 25 <= left < 50
    assert 62 < left + width - 25 <= 75
    assert 5 <= top < 25
    assert top + height > 75


@dataclass
class Wrong:
    """A command that cannot work, and what it must say."""

    arguments: list[str]
    message: str
    files: dict[str, bytes] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


WRONG = {
    "an alpha that the calibration cannot support": Wrong(
        ["nightly", "--alpha", "0.001"],
        "needs at least 999 calibration images, got 200 (smallest possible p-value 0.004975)",
    ),
    "an alpha out of range": Wrong(["nightly", "--alpha", "1.5"], "--alpha: expected less than 1 (got '1.5')"),
    "a false-discovery rate of zero": Wrong(["nightly", "--fdr", "0"], "--fdr: expected greater than 0"),
    "a date that is none": Wrong(["nightly", "--date", "tomorrow"], "--date: expected a date like 2026-11-24"),
    "a webhook without a host": Wrong(
        ["nightly"], "expected an address that starts with https", environment={"FCDD_WEBHOOK": "canary-secret"}
    ),
    "a command with an open quote": Wrong(
        ["nightly"], "No closing quotation", environment={"FCDD_COMMAND": "canary-secret '"}
    ),
    "a webhook that is a list": Wrong(
        ["nightly", "--config", "{root}/a.toml"], "--webhook", {"a.toml": b'[nightly]\nwebhook = ["canary-secret"]'}
    ),
    "a webhook that others see": Wrong(
        ["nightly", "--webhook=https://example.com/canary-secret"], "give it as the variable FCDD_WEBHOOK, or as"
    ),
    "a command that others see": Wrong(["nightly", "--command", "canary-secret"], "as the variable FCDD_COMMAND, or"),
    "a night scored again": Wrong(["nightly", "--rescore"], "to score a night again use `fcdd score --rescore`"),
    "no calibration images": Wrong(["calibrate", "--images", "{root}/none", "--output", "{root}/o"], "no images under"),
    "calibration images that are all the same": Wrong(
        ["calibrate", "--images", "{root}/same", "--output", "{root}/o"],
        "all 120 calibration images have the score",
        {f"same/{index}.png": picture(1) for index in range(120)},
    ),
    "too few calibration images": Wrong(
        ["calibrate", "--images", "{root}/few", "--output", "{root}/o"],
        "needs at least 99 calibration images, got 5",
        {f"few/{index}.png": picture(index) for index in range(5)},
    ),
    "a group pattern that is none": Wrong(
        ["calibrate", "--images", "{root}/few", "--output", "{root}/o", "--group-pattern", "("],
        "the group pattern '(' is not a regular expression",
    ),
    "both ways to calibrate": Wrong(
        ["calibrate", "--images", "{root}/few", "--reviewed", "{root}/x.csv", "--output", "{root}/o"],
        "either --images, or",
    ),
    "a review of nothing": Wrong(
        ["calibrate", "--reviewed", "{root}/x.csv", "--output", "{root}/o"],
        "--reviewed needs --results and --collection",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_one_sentence(line: Line, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = WRONG[case]
    for name, value in wrong.environment.items():
        monkeypatch.setenv(name, value)
    line.upload("nights/2026-11-01", 2, seed=1)
    for name, content in wrong.files.items():
        storage.write(f"{line.root}/{name}", content)
    arguments = [each.format(root=line.root) for each in wrong.arguments]
    verb, *options = arguments
    done = (
        line.nightly(*options)
        if verb == "nightly"
        else run_verb(verb, "--bundle", f"{line.root}/bundle", *options, check=False)
    )
    assert done.returncode == 2, done.stdout + done.stderr
    [error] = [row for row in done.stderr.splitlines() if row.startswith("error: ")]
    assert wrong.message in error
    assert "canary-secret" not in done.stdout + done.stderr


def test_a_bundle_without_a_calibration_says_so(line: Line) -> None:
    line.upload("nights/2026-11-01", 2, seed=1)
    document = json.loads(storage.read(f"{line.root}/bundle/bundle.json"))
    storage.write(f"{line.root}/bundle/bundle.json", json.dumps(document | {"calibration": None}).encode())
    for done in (
        line.nightly(),
        run_verb("calibrate", "--bundle", f"{line.root}/bundle", "--images", "x", "--output", "y", check=False),
    ):
        assert done.returncode == 2
        assert "has no calibration" in done.stderr


def test_scores_that_are_not_finite_are_no_calibration() -> None:
    from fcdd.errors import ConfigError

    with pytest.raises(ConfigError, match="not finite"):
        calibration.Calibration.fit(nominal([*range(200), float("nan")]), alpha=0.01)
    with pytest.raises(ConfigError, match="not one calibration image"):
        calibration.Calibration.fit(nominal([]), alpha=0.01)
