"""What a training says of the size of its cells."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from jobs.sources import listing
from jobs.training import chosen
from jobs.training.settings import TrainSettings

OPEN = "whitened:efficientnet_lite0"


def said(network: str, size: str, caplog: pytest.LogCaptureFixture) -> str:
    given = TrainSettings.parse(["--images", "i", "--bundle", "b", "--network", network, "--image-size", size])
    with caplog.at_level(logging.INFO):
        chosen.with_stages(given)
    return caplog.text


def test_a_size_that_makes_cells_coarse_names_one_whose_cells_are_smaller_on_the_image(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = said(OPEN, "304x416", caplog)
    assert "at 304x416 the map has cells of 16 pixels, at 240x336 of 8" in text
    assert "--image-size 240x336 may find more small defects" in text


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (OPEN, "256x320"),  # fine already
        (OPEN, "896x896"),  # cells of 8 pixels at a third of the size are larger
        (f"{OPEN}:2", "320x320"),  # several variants have coarse cells at any size
        (f"{OPEN}:anywhere", "320x320"),
        (f"{OPEN}:stage4+stage3+stage5", "320x320"),  # asked for
    ],
)
def test_nothing_is_said_of_cells_where_another_size_would_not_help(
    network: str, size: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert "has cells of 16 pixels" not in said(network, size, caplog)


def test_images_of_different_shapes_are_pointed_out(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    given = TrainSettings.parse(["--images", str(tmp_path), "--bundle", "b"])

    def seen(*sizes: tuple[int, int]) -> str:
        for number, size in enumerate(sizes):
            Image.new("RGB", size, "grey").save(tmp_path / f"{number}.png")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            chosen.with_image_size(given, listing.list_images(f"file://{tmp_path}"))
        return caplog.text

    assert "images of different shapes, 400x300 and 300x400 pixels (height x width)" in seen((400, 300), (300, 400))
    assert seen((400, 300), (800, 600)) == ""
