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


def two_peaks(lower: float, saddle: float) -> np.ndarray:
    map_uv = np.zeros((4, 4), np.float32)
    map_uv[1] = [9, saddle, lower, saddle]
    return map_uv


def test_two_peaks_are_two_regions_where_the_saddle_between_them_is_low() -> None:
    first, second = find(two_peaks(lower=6, saddle=2))
    assert (first.peak, second.peak) == (9, 6)
    assert (first.x0, first.x1, second.x0, second.x1) == (0, 80, 160, 240)
    assert first.area_fraction + second.area_fraction == 2 / 16


def test_a_region_reaches_down_to_half_of_its_peak() -> None:
    map_uv = np.full((4, 4), 2, np.float32)  # all of it is above the threshold
    map_uv[1:3, 1:3] = [[10, 5], [4.9, 5]]
    [region] = find(map_uv)
    assert region == regions.Region(80, 16, 240, 48, 3 / 16, 10.0)
    [faint] = find(map_uv / 5)  # and never below the threshold
    assert (faint.x0, faint.y0, faint.x1, faint.y1, faint.area_fraction) == (80, 16, 160, 32, 1 / 16)


def test_a_hot_area_with_a_high_saddle_is_one_region() -> None:
    [region] = find(two_peaks(lower=6, saddle=3))
    assert (region.x0, region.x1, region.peak, region.area_fraction) == (0, 240, 9, 2 / 16)


def test_a_low_peak_between_two_high_ones_belongs_to_one_of_them() -> None:
    map_uv = np.zeros((4, 4), np.float32)
    map_uv[0], map_uv[2] = [9, 2, 0, 0], [0, 0, 2, 8]
    map_uv[1, 1] = 3  # touches both, and stands out from neither
    assert [region.peak for region in find(map_uv)] == [9, 8]
    assert sum(region.area_fraction for region in find(map_uv)) == 2 / 16


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
