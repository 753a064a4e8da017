"""Images and a bundle that were moved since they were scored: every command that opens them is told where they lie."""

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fcdd.io import storage
from jobs import results
from jobs.labels import label_files
from jobs.labels.label_drawings import Box
from jobs.labels.label_store import Labels, Verdict
from schemas import Layout
from tests.line import Line, run_verb


@pytest.fixture
def moved(line: Line) -> tuple[Line, list[str]]:
    """A night whose images and bundle lie elsewhere by now, as copies with other times, and the options to say so."""
    line.upload("nights/2026-11-01", 60, seed=3, defects=6)
    line.nightly()
    for old, new in (("nights", "archive"), ("bundle", "bundles/old")):
        shutil.copytree(f"{line.root}/{old}", f"{line.root}/{new}", copy_function=shutil.copyfile)
        shutil.rmtree(f"{line.root}/{old}")
    moves = (f"{line.root}/nights={line.root}/archive", f"{line.root}/bundle={line.root}/bundles/old")
    return line, [word for each in moves for word in ("--moved", each)]


def test_pictures_and_pages_are_made_of_what_was_moved(moved: tuple[Line, list[str]], tmp_path: Path) -> None:
    line, moves = moved
    without = line.around("heatmap", "--alarms", "--output", str(tmp_path / "h"), check=False)
    assert without.returncode == 2
    assert (
        "vanished: it is not there any more: deleted, or moved (then --moved OLD=NEW says where to)" in without.stderr
    )
    assert "images that were moved since they were scored are found by --moved OLD=NEW" in without.stderr
    drawn = line.around("heatmap", "--alarms", "--output", str(tmp_path / "h"), *moves)
    assert len(list((tmp_path / "h").glob("*.png"))) == line.records()[0].num_anomalous >= 6
    assert "no picture of" not in drawn.stderr
    lost = line.around("report", "--images", "5", "--output", str(tmp_path / "lost.html"))
    assert "5 of 5 images cannot be shown" in lost.stderr
    assert "fcdd report --moved OLD=NEW" in (tmp_path / "lost.html").read_text()
    found = line.around("report", "--output", str(tmp_path / "found.html"), *moves)
    assert "cannot be shown" not in found.stderr
    assert "fcdd report --moved" not in (tmp_path / "found.html").read_text()
    labels = tmp_path / "labels.csv"
    labels.write_text("image_uri,label\n" + "".join(f"{i:03d}.png,{int(i < 8)}\n" for i in range(60)))
    page = tmp_path / "e.html"
    line.around("evaluate", "--labels", str(labels), "--output", str(page), *moves)
    assert "data:image/webp" in page.read_text()
    line.around("audit", "--pictures", str(tmp_path / "audit"), *moves)
    lost = line.around("export", "fiftyone", "--output", str(tmp_path / "fiftyone"), check=False)
    assert (lost.returncode, "could be read; --moved OLD=NEW says" in lost.stderr) == (2, True)
    assert not (tmp_path / "fiftyone").exists()
    exported = line.around("export", "fiftyone", "--output", str(tmp_path / "fiftyone"), *moves, check=False)
    assert exported.returncode == 0
    assert len(list((tmp_path / "fiftyone/data").iterdir())) == line.records()[0].num_anomalous


def test_what_was_moved_is_scored_again_and_another_file_of_that_name_is_not_taken(
    moved: tuple[Line, list[str]],
) -> None:
    line, moves = moved
    night = ("--date", "2026-11-01", "--sample", "60")
    said = line.around("verify", *night, *moves).stdout
    assert re.search(r"sample +60 scored again: scores within [\d.e-]+, maps within [\d.e-]+ \(relative\)\n", said)
    changed = Path(f"{line.root}/archive/2026-11-01/cam-0/000.png")
    changed.write_bytes(changed.read_bytes() + b"x")
    said = line.around("verify", *night, *moves).stdout
    assert "sample     59 scored again" in said
    assert "; 1 are not as they were" in said


def test_copies_in_the_old_place_are_the_images_if_size_and_time_are_those(line: Line, tmp_path: Path) -> None:
    """As a backup restores them; with other times only if that is said."""
    line.upload("images", 12, seed=3)
    line.around("score", "--bundle", f"{line.root}/bundle", "--images", f"{line.root}/images", "--date", "2026-11-01")
    images = Path(f"{line.root}/images")
    shutil.copytree(images, tmp_path / "backup")  # with their times
    shutil.rmtree(images)
    shutil.copytree(tmp_path / "backup", images)
    night = ("--date", "2026-11-01", "--sample", "12")
    assert "sample     12 scored again: " in line.around("verify", *night).stdout
    shutil.rmtree(images)
    shutil.copytree(tmp_path / "backup", images, copy_function=shutil.copyfile)
    assert "12 are not as they were" in line.around("verify", *night, check=False).stdout
    assert "sample     12 scored again: " in line.around("verify", *night, "--moved", f"{images}={images}").stdout


def test_masks_go_with_results_that_are_moved_or_copied(line: Line) -> None:
    line.upload("nights/2026-11-01", 60, seed=3, defects=6)
    line.nightly()
    layout, now = Layout(f"file://{line.results}"), datetime(2026, 11, 2, tzinfo=UTC)
    rows = list(results.open(line.results).rows("FROM scores WHERE is_anomalous ORDER BY image_uri"))
    labels = Labels(layout, "c")
    box = Box(x0=1, y0=1, x1=9, y1=9)
    labels.set(rows[0], Verdict(label=1, boxes=(box,)), reviewer="r", now=now)
    drawn = labels.get(rows[0])
    assert drawn is not None
    assert drawn["mask_uri"].startswith(f"{layout.masks('c')}/")
    Path(line.results).rename(f"{line.root}/elsewhere")
    there = Layout(f"file://{line.root}/elsewhere")
    again = Labels(there, "c")
    again.set(rows[1], Verdict(label=0), reviewer="r", now=now)
    kept = Labels(there, "c").get(rows[0])
    assert kept is not None
    assert kept["mask_uri"] == f"{there.masks('c')}/{drawn['mask_uri'].rpartition('/')[2]}"
    assert storage.exists(kept["mask_uri"])
    run_verb("gc", "--results", there.results, "--older-than-days", "0")
    [anomaly] = label_files.read_anomalies(there.labels("c"))
    assert anomaly.mask == kept["mask_uri"]
    assert storage.exists(kept["mask_uri"])
