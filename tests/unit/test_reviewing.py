"""Labels as they are kept: every verdict at once, nothing else touched."""

import base64
import datetime as dt
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcdd.errors import ConfigError
from jobs import _labels
from jobs._reviewing import BadDrawing, Box, Labels, Verdict
from schemas import LABELS, Layout

NOW = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


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


def mask_of(row: dict[str, Any] | None) -> np.ndarray:
    assert row is not None
    return np.asarray(Image.open(row["mask_uri"].removeprefix("file://")))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(f"file://{tmp_path}")


def test_verdicts_of_many_threads_are_all_kept(layout: Layout) -> None:
    labels = Labels(layout, "c")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: labels.say(image(n), Verdict(label=n % 3 - 1), reviewer="ann", now=NOW), range(60)))
    again = Labels(layout, "c")
    assert len(again) == 60
    assert all(again.of(f"s3://b/{n:03d}.png")["label"] == n % 3 - 1 for n in range(60))  # type: ignore[index]
    table = pq.read_table(labels.uri.removeprefix("file://"), partitioning=None)
    assert table.schema.equals(LABELS, check_metadata=True)
    assert table["image_uri"].to_pylist() == sorted(table["image_uri"].to_pylist())


def test_the_latest_verdict_counts_and_can_be_taken_back(layout: Layout) -> None:
    labels = Labels(layout, "c")
    labels.say(image(1), Verdict(label=1), reviewer="ann", now=NOW)
    labels.say(image(1), Verdict(label=0), reviewer="bob", now=NOW)
    assert [labels.of("s3://b/001.png")[name] for name in ("label", "reviewer")] == [0, "bob"]  # type: ignore[index]
    assert labels.say(image(1), Verdict(label=None), reviewer="bob", now=NOW) is None
    assert len(Labels(layout, "c")) == 0


def test_boxes_and_paint_become_one_mask_of_the_images_size(layout: Layout) -> None:
    labels = Labels(layout, "c")
    box = Box(x0=100, y0=50, x1=140, y1=80)
    verdict = Verdict(label=1, boxes=(box,), mask=painted((400, 300), (10, 20, 30, 40)))
    mask = mask_of(labels.say(image(1, (800, 600)), verdict, reviewer="", now=NOW))
    wanted = np.zeros((600, 800), np.uint8)
    wanted[50:80, 100:140] = 255
    wanted[40:80, 20:60] = 255  # twice as large as it was painted
    np.testing.assert_array_equal(mask, wanted)


def test_a_verdict_without_a_drawing_keeps_the_one_there_is_and_an_empty_one_removes_it(layout: Layout) -> None:
    labels = Labels(layout, "c")
    box = Box(x0=1, y0=2, x1=3, y1=4)
    first = labels.say(image(1), Verdict(label=1, boxes=(box,)), reviewer="", now=NOW)
    again = labels.say(image(1), Verdict(label=1), reviewer="", now=NOW)
    assert first is not None
    assert again is not None
    assert (again["boxes"], again["mask_uri"]) == (first["boxes"], first["mask_uri"])
    cleared = labels.say(image(1), Verdict(label=1, boxes=()), reviewer="", now=NOW)
    assert cleared is not None
    assert (cleared["boxes"], cleared["mask_uri"]) == ([], "")
    labels.say(image(1), Verdict(label=1, boxes=(box,)), reviewer="", now=NOW)
    false_alarm = labels.say(image(1), Verdict(label=0, boxes=(box,)), reviewer="", now=NOW)
    assert false_alarm is not None
    assert (false_alarm["boxes"], false_alarm["mask_uri"]) == ([], "")


def test_a_drawing_that_is_none_is_refused_and_nothing_changes(layout: Layout) -> None:
    labels = Labels(layout, "c")
    labels.say(image(1), Verdict(label=0), reviewer="", now=NOW)
    for verdict, message in (
        (Verdict(label=1, boxes=(Box(x0=60, y0=0, x1=70, y1=5),)), "expected a box within 56 x 40 pixels"),
        (Verdict(label=1, boxes=(Box(x0=5, y0=5, x1=5, y1=9),)), "expected a box within 56 x 40 pixels"),
        (Verdict(label=1, mask="%%%"), "no PNG in base64"),
        (Verdict(label=1, mask=base64.b64encode(b"GIF89a").decode()), "no PNG in base64"),
        (Verdict(label=1, mask=painted((2100, 2000), (0, 0, 1, 1))), "at most 4000000 pixels"),
    ):
        with pytest.raises(BadDrawing, match=message):
            labels.say(image(1), verdict, reviewer="", now=NOW)
    assert Labels(layout, "c").of("s3://b/001.png")["label"] == 0  # type: ignore[index]


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
        labels.say(image(number), Verdict(label=label), reviewer="", now=NOW)  # type: ignore[arg-type]
    assert _labels.read(labels.uri)["label"].to_pylist() == [1, 0, -1]
    assert _labels.read_decided(labels.uri)["label"].to_pylist() == [1, 0]
    assert _labels.read_anomalies(labels.uri) == [("s3://b/000.png", None)]
    assert _labels.read_uris(labels.uri) == [f"s3://b/00{n}.png" for n in range(3)]
