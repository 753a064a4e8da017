"""Outlines of what is hot: as the regions are found, in pixels of the image, and to be seen on any ground."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from fcdd import contours, regions
from fcdd.receptive_field import ReceptiveField

FIELD = ReceptiveField(height=7, width=9, stride=16, extent=40, centre=7.5)
WHERE = {"receptive_field": FIELD, "input_size": (112, 144), "image_size": (224, 432)}
MAPS = hnp.arrays(np.float32, (7, 9), elements=st.floats(0, 100, width=32, allow_subnormal=False))


def holds(rings: list[contours.Ring], x: float, y: float) -> bool:
    """Whether an odd number of edges lies to the right of a point."""
    crossed = 0
    for (ax, ay), (bx, by) in (edge for ring in rings for edge in itertools.pairwise(ring.tolist())):
        crossed += (ay > y) != (by > y) and x < ax + (y - ay) * (bx - ax) / (by - ay)
    return crossed % 2 == 1


def test_one_hot_cell_has_a_ring_around_its_centre_within_its_neighbours() -> None:
    map_uv = np.zeros((7, 9), np.float32)
    map_uv[2, 3] = 4
    [ring] = contours.rings(map_uv, 1.0, **WHERE)
    assert (ring[0] == ring[-1]).all()
    x, y = (7.5 + 16 * 3 + 0.5) * 3, (7.5 + 16 * 2 + 0.5) * 2
    assert (ring.min(0) < (x, y)).all()
    assert (ring.max(0) > (x, y)).all()
    assert (ring.max(0) - ring.min(0) < (2 * 16 * 3, 2 * 16 * 2)).all()


def test_what_reaches_the_border_is_closed_along_it_and_a_hole_has_a_ring_of_its_own() -> None:
    map_uv = np.zeros((7, 9), np.float32)
    map_uv[:3] = 5
    [ring] = contours.rings(map_uv, 1.0, **WHERE)
    assert ring.min(0).tolist() == [0, 0]
    assert ring.max(0)[0] == 432
    hollow = np.zeros((7, 9), np.float32)
    hollow[1:6, 2:7] = 5
    hollow[3, 4] = 0
    assert len(contours.rings(hollow, 1.0, **WHERE)) == 2
    assert contours.rings(np.zeros((7, 9), np.float32), 0.0, **WHERE) == []


@settings(deadline=None, max_examples=50)
@given(MAPS, st.floats(1, 90))
def test_hot_cells_are_within_an_outline_and_no_others(map_uv: np.ndarray, threshold: float) -> None:
    rings = contours.rings(map_uv, threshold, **WHERE)
    if (np.abs(map_uv - threshold) > 1e-3 * threshold).all():  # else a region may be smaller than a line can show
        assert bool(rings) == bool(regions.find(map_uv, threshold, **WHERE))
    for row, column in np.ndindex(map_uv.shape):
        x, y = (8 + 16 * column) * 3, (8 + 16 * row) * 2
        if abs(map_uv[row, column] - threshold) > 1e-3 * threshold:  # else the line runs through its centre
            assert holds(rings, x + 0.01, y + 0.01) == (map_uv[row, column] > threshold)


def test_a_path_says_the_rings_to_a_tenth_of_a_pixel() -> None:
    ring = np.array([[0, 0], [10.04, 0], [10.06, 2.5], [0, 0]])
    assert contours.path([ring, ring]) == 2 * "M0 0L10 0L10.1 2.5Z"
    assert contours.path([]) == ""
    box = {"x0": 1, "y0": 2, "x1": 3, "y1": 4}
    assert re.fullmatch(r"M1 2H3V4H1Z", contours.box_path([box]))


@pytest.mark.parametrize("ground", ["#000000", "#ffffff", "#b40000", "#cf4446", "#fcffa4", "#00e5ff", "#808080"])
def test_a_line_is_seen_on_any_ground(ground: str) -> None:
    """Also on a red product, on the heatmap, and on one of the colour of the line itself."""
    picture = Image.new("RGB", (300, 200), ground)
    ring = np.array([[50, 50], [150, 50], [150, 150], [50, 150], [50, 50]], float)
    drawn = np.asarray(contours.draw(picture, [(1.0, [ring])])).astype(int)
    change = np.abs(drawn - np.asarray(picture).astype(int)).sum(2)
    assert (change[45:56, 60:140].max(0) > 200).all()  # all along it
    assert change[100, 100] == 0  # what it is around is not hidden
    assert (change > 0).mean() < 0.05


def test_the_line_of_the_threshold_is_the_widest() -> None:
    picture = Image.new("RGB", (300, 200), "#ffffff")
    ring = np.array([[50, 50], [150, 50], [150, 150], [50, 150], [50, 50]], float)
    share = {
        level: (np.asarray(contours.draw(picture, [(level, [ring])])) < 255).any(2).mean() for level in contours.LEVELS
    }
    assert all(share[level] < share[1.0] for level in contours.LEVELS if level != 1)
