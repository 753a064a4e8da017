from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from fcdd import outliers

GREY = np.full((96, 128, 3), 128, np.uint8)


def test_the_mask_is_where_the_image_changed() -> None:
    for seed in range(50):
        image, mask = outliers.add_anomaly(GREY, np.random.default_rng(seed))
        change = np.abs(image.astype(int) - GREY).max(2)
        assert image.dtype == np.uint8
        assert mask.shape == (96, 128)
        assert mask.any()
        # Outside the mask only the soft rim of a defect changes anything.
        assert change[~mask].max(initial=0) <= 0.15 * 0.9 * 128 * 3 + 1
        assert change[mask].mean() > change[~mask].mean() + 1


def test_the_same_generator_gives_the_same_anomaly_and_the_source_is_untouched() -> None:
    source = GREY.copy()
    first, second, other = (outliers.add_anomaly(source, np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != other[0]).any()
    np.testing.assert_array_equal(source, GREY)


@pytest.mark.parametrize("kind", [outliers.cracks, outliers.patches, outliers.stains])
def test_each_kind_covers_some_and_never_all_of_the_image(kind: object) -> None:
    covered = [
        (kind(64, 64, np.random.default_rng(seed)) >= 0.15).mean()  # type: ignore[operator]
        for seed in range(100)
    ]
    assert max(covered) < 0.9
    assert np.median(covered) > 0.001


def test_cracks_are_thin_and_patches_are_not() -> None:
    def share_left_after_erosion(kind: Callable[..., np.ndarray]) -> float:
        masks = [kind(160, 160, np.random.default_rng(seed)) > 0.15 for seed in range(60)]
        eroded = [ndimage.binary_erosion(mask, np.ones((5, 5))) for mask in masks]
        return float(np.sum(eroded) / np.sum(masks))

    assert share_left_after_erosion(outliers.cracks) < 0.1
    assert share_left_after_erosion(outliers.patches) > 0.6
