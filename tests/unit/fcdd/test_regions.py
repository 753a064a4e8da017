import numpy as np

from fcdd import regions
from fcdd.receptive_field import ReceptiveField

FIELD = ReceptiveField(height=4, width=4, stride=8, extent=20, centre=3.5)


def find(map_uv: np.ndarray, **options: int) -> list[regions.Region]:
    return regions.find(map_uv, 1.0, receptive_field=FIELD, input_size=(32, 32), image_size=(64, 320), **options)


def test_no_region_below_the_threshold() -> None:
    assert find(np.ones((4, 4), np.float32)) == []


def test_a_cell_becomes_its_box_in_original_pixels() -> None:
    map_uv = np.zeros((4, 4), np.float32)
    map_uv[1, 2] = 5
    assert find(map_uv) == [regions.Region(160, 16, 240, 32, 1 / 16, 5.0)]


def test_cells_that_touch_at_a_corner_are_one_region_and_others_are_not() -> None:
    map_uv = np.array([[2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 4]], np.float32)
    first, second = find(map_uv)
    assert (first.peak, first.area_fraction) == (4.0, 1 / 16)
    assert (second.peak, second.area_fraction) == (3.0, 2 / 16)
    assert (second.x0, second.y0, second.x1, second.y1) == (0, 0, 160, 32)


def test_only_the_hottest_are_kept() -> None:
    map_uv = np.zeros((4, 4), np.float32)
    map_uv[::2, ::2] = [[2, 5], [3, 4]]
    assert [region.peak for region in find(map_uv, limit=2)] == [5.0, 4.0]


def test_boxes_stay_inside_the_image_for_lopsided_networks() -> None:
    field = ReceptiveField(height=4, width=4, stride=8, extent=59, centre=0)
    [region] = regions.find(
        np.full((4, 4), 2, np.float32), 1.0, receptive_field=field, input_size=(32, 32), image_size=(32, 32)
    )
    assert (region.x0, region.y0) == (0, 0)
    assert region.x1 <= 32
    assert region.y1 <= 32
