import numpy as np
import pytest
import torch

from fcdd import normalization

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 16, 24, 3)).astype(np.uint8))


def test_mean_and_deviation_of_the_training_images_become_zero_and_one() -> None:
    scaling = normalization.estimate("mean_std", PIXELS, chunk=7)
    images = scaling(PIXELS)
    assert images.shape == (30, 3, 16, 24)
    assert images.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert images.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_lcn_extremes_of_the_training_images_become_zero_and_one() -> None:
    images = normalization.estimate("lcn_min_max", PIXELS, chunk=7)(PIXELS)
    assert images.amin((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert images.amax((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_lcn_does_not_depend_on_the_other_images_of_a_batch() -> None:
    images = PIXELS.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(normalization.lcn(images)[4], normalization.lcn(images[4]))


def test_a_channel_without_contrast_is_not_divided_by_zero() -> None:
    flat = torch.full((5, 8, 8, 1), 77, dtype=torch.uint8)
    for kind in ("mean_std", "lcn_min_max"):
        assert torch.isfinite(normalization.estimate(kind, flat)(flat)).all()  # type: ignore[arg-type]
