import functools
import logging

import numpy as np
import pytest

from fcdd import noise, supervision
from fcdd.errors import ConfigError, ImageError
from fcdd.supervision import AnyOf, OutlierExposure, RealAnomalies, WholeMask

GREY = np.full((48, 64, 3), 128, np.uint8)


class Counting:
    """A data set of flat images; number 3 cannot be read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        self.read.append(index)
        if index == 3:
            raise ImageError("corrupt", "broken")
        return np.full((48, 64, 3), index, np.uint8)


@pytest.mark.parametrize("name", supervision.SYNTHETIC)
def test_a_synthetic_anomaly_changes_the_image_and_marks_it(name: str) -> None:
    for seed in range(5):
        image, mask = supervision.SYNTHETIC[name](GREY, np.random.default_rng(seed))
        again, _ = supervision.SYNTHETIC[name](GREY, np.random.default_rng(seed))
        assert image.dtype == np.uint8
        assert image.shape == GREY.shape
        assert mask.shape == GREY.shape[:2]
        assert (image != GREY).any(2)[mask].mean() > 0.9
        np.testing.assert_array_equal(image, again)
    assert (GREY == 128).all()


@pytest.mark.parametrize("mode", noise.MODES)
def test_published_noise_modes_malform_an_image_or_are_one(mode: str) -> None:
    image, mask = supervision.malformed(GREY, np.random.default_rng(0), mode=mode)
    np.testing.assert_array_equal(mask, (image != GREY).any(2))  # malformed_normal_gt
    whole, everything = WholeMask(supervision.SYNTHETIC[mode])(GREY, np.random.default_rng(0))
    np.testing.assert_array_equal(whole, image)
    assert everything.all()  # malformed_normal
    alone, everywhere = supervision.noise_images(GREY, np.random.default_rng(0), mode=mode)
    assert everywhere.all()
    assert alone.shape == GREY.shape


def test_outliers_are_read_one_by_one_and_never_kept(caplog: pytest.LogCaptureFixture) -> None:
    images = Counting(250)
    source = OutlierExposure(images)
    generator = np.random.default_rng(0)
    drawn = [source(GREY, generator) for _ in range(300)]
    assert len(images.read) == 300 + images.read.count(3)
    assert len({int(image[0, 0, 0]) for image, _ in drawn}) > 100
    assert all(mask.all() for _, mask in drawn)


def test_an_outlier_that_cannot_be_read_is_named_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    source = OutlierExposure(Counting(4))
    with caplog.at_level(logging.WARNING):
        values = {int(source(GREY, np.random.default_rng(seed))[0][0, 0, 0]) for seed in range(50)}
    assert values == {0, 1, 2}
    assert "left out outlier 3: corrupt: broken" in caplog.text


def test_outliers_that_are_all_broken_or_missing_are_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="there are no images for outlier exposure"):
        OutlierExposure(Counting(0))
    seed = next(s for s in range(100) if np.random.default_rng(s).permutation(4)[0] == 3)
    with pytest.raises(ConfigError, match="ten outlier-exposure images in a row cannot be read"):
        OutlierExposure(Counting(4), limit=1, seed=seed)(GREY, np.random.default_rng(0))


def test_a_limit_draws_the_same_few_outliers_for_ever() -> None:
    source = OutlierExposure(Counting(200), limit=5, seed=1)
    values = {int(source(GREY, np.random.default_rng(seed))[0][0, 0, 0]) for seed in range(200)}
    assert len(values) == 5
    other = OutlierExposure(Counting(200), limit=5, seed=2)
    assert values != {int(other(GREY, np.random.default_rng(seed))[0][0, 0, 0]) for seed in range(200)}


def test_real_anomalies_come_with_their_masks_or_are_anomalous_everywhere() -> None:
    images = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20)]
    masks = [np.eye(8, dtype=np.bool_), np.tri(8, dtype=np.bool_)]
    drawn = [RealAnomalies(images, masks)(GREY, np.random.default_rng(seed)) for seed in range(20)]
    assert {(int(image[0, 0, 0]), int(mask.sum())) for image, mask in drawn} == {(10, 8), (20, 36)}
    assert RealAnomalies(images)(GREY, np.random.default_rng(0))[1].all()


def test_a_mask_of_another_size_or_without_an_anomaly_is_refused() -> None:
    with pytest.raises(ConfigError, match="mask of labelled anomaly 0 has 6x4 pixels, its image 8x8"):
        RealAnomalies([np.zeros((8, 8, 3), np.uint8)], [np.zeros((4, 6), np.bool_)])
    with pytest.raises(ConfigError, match="1 labelled anomalies but 0 masks"):
        RealAnomalies([np.zeros((8, 8, 3), np.uint8)], [])
    with pytest.raises(ConfigError, match="nothing is anomalous in the mask of labelled anomaly 1; mark its defect"):
        RealAnomalies(2 * [np.zeros((8, 8, 3), np.uint8)], [np.eye(8, dtype=np.bool_), np.zeros((8, 8), np.bool_)])
    with pytest.raises(ConfigError, match="there are no labelled anomalies"):
        RealAnomalies([])


def test_sources_are_mixed_with_their_chances() -> None:
    dark, bright = (RealAnomalies([np.full((4, 4, 3), v, np.uint8)]) for v in (0, 255))
    source = AnyOf([dark, bright], [0.25, 0.75])
    share = np.mean([source(GREY, np.random.default_rng(seed))[0][0, 0, 0] == 255 for seed in range(400)])
    assert share == pytest.approx(0.75, abs=0.06)


def test_offline_supervision_appends_as_many_anomalies_once() -> None:
    images = [np.full((48, 64, 3), value, np.uint8) for value in (100, 140, 180)]
    source = functools.partial(supervision.malformed_offline, mode="confetti")
    data, again = (supervision.offline(images, source, seed=3) for _ in range(2))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [mask.any() for mask in data.masks] == [False, False, False, True, True, True]
    for image, malformed, mask in zip(images, data.images[3:], data.masks[3:], strict=True):
        np.testing.assert_array_equal((malformed != image).any(2), mask)
        assert (malformed >= image).all()  # bright pixels: the darkening noise has its sign turned
    np.testing.assert_array_equal(data.images[4], again.images[4])
