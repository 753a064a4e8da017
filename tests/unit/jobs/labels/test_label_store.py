"""Labels as they are kept: every verdict at once, nothing else touched."""

import base64
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcdd.errors import ConfigError
from jobs.catalog import views
from jobs.catalog.leases import LeaseLost
from jobs.labels import label_files
from jobs.labels.label_drawings import BadDrawing, Box
from jobs.labels.label_store import Labels, Outdated, Verdict
from schemas import LABELS, Layout
from tests.labelling import NOW, say


def image(number: int, size: tuple[int, int] = (56, 40)) -> dict[str, Any]:
    return {
        "image_uri": f"s3://b/{number:03d}.png",
        "image_etag": f"{number:032x}",
        "width": size[0],
        "height": size[1],
        "date": NOW.date(),
        "run_id": "run",
        "anomaly_score": 1.5,
        "p_value": 0.01,
    }


def painted(size: tuple[int, int], box: tuple[int, int, int, int]) -> str:
    picture, sink = Image.new("RGBA", size), io.BytesIO()
    picture.paste("#ff2d55", box)
    picture.save(sink, "PNG")
    return base64.b64encode(sink.getvalue()).decode()


def _bomb() -> bytes:
    """A PNG that says it has 30,000 x 30,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def mask_of(row: dict[str, Any] | None) -> np.ndarray:
    assert row is not None
    return np.asarray(Image.open(row["mask_uri"].removeprefix("file://")))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(f"file://{tmp_path}")


def test_verdicts_of_many_threads_are_all_kept(layout: Layout) -> None:
    labels = Labels(layout, "c")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: labels.set(image(n), Verdict(label=n % 3 - 1), reviewer="ann", now=NOW), range(60)))
    again = Labels(layout, "c")
    assert all(again.get(image(n))["label"] == n % 3 - 1 for n in range(60))  # type: ignore[index]
    table = pq.read_table(labels.uri.removeprefix("file://"), partitioning=None)
    assert table.schema.equals(LABELS, check_metadata=True)
    assert table["image_uri"].to_pylist() == [f"s3://b/{n:03d}.png" for n in range(60)]


def test_the_latest_verdict_counts_and_can_be_taken_back(layout: Layout) -> None:
    labels = Labels(layout, "c")
    say(labels, image(1), Verdict(label=1), "ann")
    row = say(labels, image(1), Verdict(label=0), "bob")
    assert row is not None
    assert (row["label"], row["reviewer"]) == (0, "bob")
    assert say(labels, image(1), Verdict(label=None)) is None
    assert Labels(layout, "c").get(image(1)) is None


def test_nobody_overwrites_what_they_have_not_seen(layout: Layout) -> None:
    labels = Labels(layout, "c")
    say(labels, image(1), Verdict(label=1, boxes=(Box(x0=1, y0=2, x1=3, y1=4),)))
    with pytest.raises(Outdated):
        labels.set(image(1), Verdict(label=0), reviewer="", now=NOW)
    row = labels.get(image(1))
    assert row is not None
    assert (row["label"], len(row["boxes"])) == (1, 1)


def test_a_label_is_of_the_image_that_was_looked_at(layout: Layout) -> None:
    """The next night's image of the same name is another one."""
    labels = Labels(layout, "c")
    say(labels, image(1), Verdict(label=1, boxes=(Box(x0=1, y0=2, x1=3, y1=4),)))
    replaced = image(1) | {"image_etag": "another"}
    assert labels.get(replaced) is None
    row = say(labels, replaced, Verdict(label=1))
    assert row is not None
    assert (row["boxes"], row["mask_uri"]) == ([], "")  # nor is the drawing


def test_a_review_that_was_taken_over_writes_nothing(layout: Layout) -> None:
    def lost() -> None:
        raise LeaseLost("another process took over")

    labels = Labels(layout, "c", check=lost)
    with pytest.raises(LeaseLost):
        labels.set(image(1), Verdict(label=1), reviewer="", now=NOW)
    assert not Path(labels.uri.removeprefix("file://")).exists()


def test_boxes_and_paint_become_one_mask_of_the_images_size(layout: Layout) -> None:
    labels = Labels(layout, "c")
    box = Box(x0=100, y0=50, x1=140, y1=80)
    verdict = Verdict(label=1, boxes=(box,), mask=painted((400, 300), (10, 20, 30, 40)))
    wanted = np.zeros((600, 800), np.uint8)
    wanted[50:80, 100:140] = 255
    wanted[40:80, 20:60] = 255  # twice as large as it was painted
    np.testing.assert_array_equal(mask_of(say(labels, image(1, (800, 600)), verdict)), wanted)
    # More paint is added; what was there before stays exactly as it was.
    say(labels, image(1, (800, 600)), Verdict(label=1, mask=painted((80, 60), (70, 50, 71, 51))))
    wanted[500:510, 700:710] = 255
    np.testing.assert_array_equal(mask_of(labels.get(image(1))), wanted)


def test_a_drawing_stays_until_it_is_cleared(layout: Layout) -> None:
    """Also when it counts for nothing meanwhile, since a slip of the hand must not cost it."""
    labels = Labels(layout, "c")
    box = Box(x0=1, y0=2, x1=3, y1=4)
    first = say(labels, image(1), Verdict(label=1, boxes=(box,)))
    say(labels, image(1), Verdict(label=0))
    again = say(labels, image(1), Verdict(label=1))
    assert first is not None
    assert again is not None
    assert (again["boxes"], again["mask_uri"]) == (first["boxes"], first["mask_uri"])
    cleared = say(labels, image(1), Verdict(label=1, clear=True))
    assert cleared is not None
    assert (cleared["boxes"], cleared["mask_uri"]) == ([], "")


def test_a_drawing_that_is_none_is_refused_and_nothing_changes(layout: Layout) -> None:
    labels = Labels(layout, "c")
    say(labels, image(1), Verdict(label=0))
    for verdict, message in (
        (Verdict(label=1, boxes=(Box(x0=60, y0=0, x1=70, y1=5),)), "expected a box within 56 x 40 pixels"),
        (Verdict(label=1, boxes=(Box(x0=5, y0=5, x1=5, y1=9),)), "expected a box within 56 x 40 pixels"),
        (Verdict(label=1, mask="%%%"), "no PNG in base64"),
        (Verdict(label=1, mask=base64.b64encode(b"GIF89a").decode()), "no PNG in base64"),
        (Verdict(label=1, mask=base64.b64encode(_bomb()).decode()), "at most 4000000 pixels"),
        (Verdict(label=1, mask=painted((2100, 2000), (0, 0, 1, 1))), "at most 4000000 pixels"),
    ):
        with pytest.raises(BadDrawing, match=message):
            say(labels, image(1), verdict)
    assert Labels(layout, "c").get(image(1))["label"] == 0  # type: ignore[index]


def test_a_file_that_holds_no_labels_is_not_overwritten(layout: Layout, tmp_path: Path) -> None:
    path = tmp_path / "labels/collection=c/labels.parquet"
    path.parent.mkdir(parents=True)
    for content in (b"not parquet", b""):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="does not hold labels of this version"):
            Labels(layout, "c")
        assert path.read_bytes() == content


def test_bad_images_are_neither_for_every_reader(layout: Layout) -> None:
    labels = Labels(layout, "c")
    for number, label in enumerate((1, 0, -1)):
        labels.set(image(number), Verdict(label=label), reviewer="", now=NOW)  # type: ignore[arg-type]
    assert label_files.read(labels.uri)["label"].to_pylist() == [1, 0, -1]
    assert label_files.read_decided(labels.uri)["label"].to_pylist() == [1, 0]
    assert label_files.read_anomalies(labels.uri) == [("s3://b/000.png", None, f"{0:032x}")]
    assert label_files.read_uris(labels.uri) == [f"s3://b/00{n}.png" for n in range(3)]


def test_a_class_and_a_note_stay_until_they_are_changed_and_a_class_is_of_defects_only(layout: Layout) -> None:
    labels = Labels(layout, "c")

    def texts(verdict: Verdict) -> tuple[str | None, str | None]:
        row = say(labels, image(1), verdict)
        assert row is not None
        return row["defect_class"], row["note"]

    assert texts(Verdict(label=1)) == (None, None)
    assert texts(Verdict(label=1, defect_class="  deep \n scratch ", note=" at the\nedge ")) == (
        "deep scratch",
        "at the\nedge",
    )
    assert texts(Verdict(label=1)) == ("deep scratch", "at the\nedge")
    assert texts(Verdict(label=0)) == (None, "at the\nedge")
    assert texts(Verdict(label=0, defect_class="scratch", note="")) == (None, None)
    say(labels, image(2), Verdict(label=1, defect_class="dent"))
    say(labels, image(3), Verdict(label=1, defect_class="dent"))
    say(labels, image(4), Verdict(label=1, defect_class="crack"))
    assert Labels(layout, "c").classes() == ["dent", "crack"]


def test_undo_brings_back_exactly_what_was_said_before_also_a_drawing(layout: Layout) -> None:
    labels = Labels(layout, "c")
    box = Box(x0=1, y0=2, x1=3, y1=4)
    said = [
        say(labels, image(1), verdict, reviewer)
        for verdict, reviewer in (
            (Verdict(label=1, boxes=(box,), defect_class="dent", note="here"), "ann"),
            (Verdict(label=0, clear=True), "bob"),
            (Verdict(label=None), "bob"),
        )
    ]
    for before in (said[1], said[0], None):
        assert labels.undo(image(1), labels.label_time(image(1)["image_uri"]))
        assert labels.get(image(1)) == before
        assert Labels(layout, "c").get(image(1)) == before
        assert before is None or not before["mask_uri"] or mask_of(before).sum() == 4 * 255
    assert not labels.undo(image(1), None)


def test_nobody_undoes_what_they_have_not_seen(layout: Layout) -> None:
    labels = Labels(layout, "c")
    say(labels, image(1), Verdict(label=1))
    with pytest.raises(Outdated):
        labels.undo(image(1), None)
    assert labels.get(image(1)) is not None


def test_labels_from_before_there_were_classes_are_read_and_kept(layout: Layout) -> None:
    labels = Labels(layout, "c")
    say(labels, image(1), Verdict(label=1))
    path = labels.uri.removeprefix("file://")
    older = pq.read_table(path, partitioning=None).drop_columns(["defect_class", "note"])
    pq.write_table(older, path)
    connection = duckdb.connect()
    views.view(connection, "labels", [path], LABELS)
    assert connection.sql("SELECT label, defect_class, note FROM labels").fetchall() == [(1, None, None)]
    again = Labels(layout, "c")
    assert again.get(image(1))["defect_class"] is None  # type: ignore[index]
    say(again, image(2), Verdict(label=1, defect_class="dent"))
    assert pq.read_table(path, partitioning=None).schema.equals(LABELS, check_metadata=True)
    assert Labels(layout, "c").get(image(1))["label"] == 1  # type: ignore[index]
    connection = duckdb.connect()  # those of another collection may still be older
    pq.write_table(older, f"{path}-older")
    views.view(connection, "labels", [f"{path}-older", path], LABELS)
    counted = connection.sql("SELECT defect_class, count(*) FROM labels GROUP BY ALL ORDER BY ALL").fetchall()
    assert counted == [("dent", 1), (None, 2)]
