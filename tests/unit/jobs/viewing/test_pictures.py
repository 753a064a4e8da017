"""What pictures and charts say of themselves: names, captions, the colour scale, ticks, the model card."""

import datetime as dt

import numpy as np
import pytest
from PIL import Image

from fcdd import heatmap
from jobs.viewing import charts, colour_scale, pages, rendering


@pytest.mark.parametrize(
    ("uri", "group", "name"),
    [
        ("s3://b/cam-1/board_0123.png", "cam-1", "07-cam-1-board_0123.png"),
        ("s3://b/flat.tar.gz", "", "07-flat_tar.png"),
        ("s3://b/x/../../etc/passwd", "..", "07-passwd.png"),
        ("s3://b/Prüfung 4/ä b%20c.jpg", "Prüfung 4", "07-Prüfung_4-ä_b_20c.png"),
        ("s3://b/\u202e\n.png", "", "07.png"),
    ],
)
def test_a_picture_is_named_by_rank_group_and_file_and_never_by_a_path(uri: str, group: str, name: str) -> None:
    found = rendering.file_name(7, 10, uri, group)
    assert found.replace("07-.png", "07.png") == name
    assert "/" not in found


def test_a_long_name_is_cut_to_what_a_disk_takes() -> None:
    found = rendering.file_name(1, 100_000, f"s3://b/{'ß' * 500}.png", "東" * 300)
    assert found.startswith("000001-東")
    assert len(found.encode()) <= 255


def test_a_caption_says_which_image_it_is() -> None:
    row = {"image_group": "cam-1", "image_uri": "s3://b/cam-1/a\n.png", "date": dt.date(2026, 11, 24)}
    assert rendering.title(row) == "cam-1 / a\N{REPLACEMENT CHARACTER}.png   2026-11-24"
    assert rendering.title(row | {"image_group": "", "image_uri": f"s3://b/{'x' * 99}.png"}).startswith("...xxx")


def test_a_caption_is_below_the_picture_whatever_its_size() -> None:
    for size in ((20, 30), (640, 480), (3000, 200)):
        picture = Image.new("RGB", size, "blue")
        shown = rendering.captioned(picture, "one line\nand another", 0.3)
        assert shown.crop((0, 0, *size)).tobytes() == picture.tobytes()
        assert shown.width >= size[0]
        assert shown.height > size[1] + 20


def test_titled_pictures_stand_side_by_side_at_one_height() -> None:
    first = rendering.titled(Image.new("RGB", (200, 100), "red"), "short")
    second = rendering.titled(Image.new("RGB", (200, 100), "lime"), "a title of so many words that it needs more lines")
    both = rendering.side_by_side([first, second])
    assert second.height > first.height
    assert np.asarray(both)[-100:, :200].reshape(-1, 3).tolist() == [[255, 0, 0]] * 20_000
    assert np.asarray(both)[-100:, 200:].reshape(-1, 3).tolist() == [[0, 255, 0]] * 20_000


def test_the_colour_beside_a_number_is_the_colour_of_that_value() -> None:
    bar, threshold = np.asarray(colour_scale.bar(1000))[0].astype(int), 0.4
    for mark, times in zip(colour_scale.marks(threshold), (0, 1 / 3, 1, 3, 9), strict=True):
        shown = heatmap.display_scale(np.float32([times * threshold]), threshold)[0]
        colour = np.asarray(heatmap.colours(256))[0][round(float(shown) * 255)].astype(int)
        assert np.abs(bar[min(round(mark.at * 1000), 999)] - colour).max() <= 6
        assert mark.text == f"{times * threshold:.2g}" + "+" * (times == 9)
        assert mark.is_threshold == (times == 1)


def test_ticks_are_round_numbers_within_the_axis() -> None:
    assert charts.round_values(0.013, 0.31, 5) == pytest.approx([0.1, 0.2, 0.3])
    assert charts.round_values(3, 3) == [3]
    ends = charts.ticks_and_ends(0.034, 7.96, 640, count=8)
    assert [tick.text for tick in ends] == ["0.034", "1", "2", "3", "4", "5", "6", "7", "7.96"]
    assert (ends[0].at, ends[-1].at) == (0, 640)
    assert [tick.text for tick in charts.share_ticks(0.04, 120)] == ["0 %", "1 %", "2 %", "3 %", "4 %"]
    assert [tick.at for tick in charts.share_ticks(0.04, 120)] == pytest.approx([120, 90, 60, 30, 0])
    assert [tick.text for tick in charts.log_share_ticks(0.001, 150)] == ["100 %", "10 %", "1 %", "0.1 %"]
    assert [tick.at for tick in charts.log_share_ticks(0.001, 150)] == pytest.approx([0, 50, 100, 150])
    nights = [f"11-{day:02d}" for day in range(1, 31)]
    assert [tick.text for tick in charts.name_ticks(nights, 20, room=38)] == nights[::-2]


def test_the_model_card_is_html_in_which_names_stay_text() -> None:
    card = pages.markdown(
        "# Card `x`\n\n- of `<script>`\n- <b>[a](javascript:b)</b> ![c](http://d)\n\n"
        "| a | b |\n|-|-|\n| 1 | \u202e2 |\n"
    )
    assert "<h3>Card <code>x</code></h3>" in card
    assert "<td>1</td>" in card
    assert "<script>" not in card
    assert "<b>" not in card
    assert "<a" not in card
    assert "<img" not in card
    assert "\u202e" not in card
