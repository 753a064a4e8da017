from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from fcdd import outliers

GREY = np.full((96, 128, 3), 128, np.uint8)


def test_the_mask_is_where_the_image_changed() -> None:
    for seed in range(50):
        image, mask = outliers.defects(GREY, np.random.default_rng(seed))
        change = np.abs(image.astype(int) - GREY).max(2)
        assert image.dtype == np.uint8
        assert mask.shape == (96, 128)
        assert mask.any()
        # Outside the mask only the soft rim of a defect changes anything.
        assert change[~mask].max(initial=0) <= 0.15 * 0.9 * 128 * 3 + 1
        assert change[mask].mean() > change[~mask].mean() + 1


def test_the_same_generator_gives_the_same_anomaly_and_the_source_is_untouched() -> None:
    source = GREY.copy()
    first, second, other = (outliers.mixed(source, np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != other[0]).any()
    np.testing.assert_array_equal(source, GREY)


@pytest.mark.parametrize("kind", [outliers.cracks, outliers.scratches, outliers.patches, outliers.stains])
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


@pytest.mark.parametrize("kind", [outliers.cutpaste, outliers.perlin])
@pytest.mark.parametrize("channels", [1, 3])
def test_moved_and_blended_parts_are_masked_exactly(kind: Callable[..., tuple], channels: int) -> None:
    rows, columns = np.mgrid[:64, :96]
    source = np.repeat((2 * rows + columns)[..., None], channels, 2).astype(np.uint8)
    shares = []
    for seed in range(100):
        image, mask = kind(source, np.random.default_rng(seed))
        change = np.abs(image.astype(int) - source).max(2)
        assert image.shape == source.shape
        assert mask.any()
        assert change[~mask].max() <= 90  # the smooth rim of a defect, where nothing else was possible
        if (change > 8).sum() == mask.sum():  # moved or blended, not a defect
            assert ((change > 8) == mask).all()
            shares.append(mask.mean())
    assert len(shares) > 80
    assert 0.001 < np.median(shares) < 0.3


def test_a_part_moved_over_its_like_falls_back_to_a_visible_defect() -> None:
    for seed in range(20):
        image, mask = outliers.cutpaste(GREY // 128, np.random.default_rng(seed))  # grey level 1: a gain hides too
        assert mask.any()
        assert (image != GREY // 128).any()


def test_perlin_noise_is_zero_at_its_lattice_and_smooth_between() -> None:
    field = outliers.perlin_noise(64, 96, np.array([4, 6]), np.random.default_rng(0))
    assert field.shape == (64, 96)
    np.testing.assert_allclose(field[::16, ::16], 0, atol=1e-12)
    assert 0.3 < np.abs(field).max() <= 1.01
    assert np.abs(np.diff(field, axis=0)).max() < 0.25
    # Every cell has a direction of its own.
    assert np.std([field[8 + 16 * i, 8 + 16 * j] for i in range(4) for j in range(6)]) > 0.1
