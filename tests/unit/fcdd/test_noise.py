import numpy as np
import pytest

from fcdd import noise

SHAPE = (240, 240, 3)


@pytest.mark.slow
def test_confetti_is_distributed_as_published() -> None:
    """Over 1,000 draws within 5 % of the official generator's figures over 1,200 (METHOD section 4)."""
    generator = np.random.default_rng(0)
    draws = 1000
    coloured = [noise.blobs(SHAPE, noise.COLOURED_PROBABILITY, generator, coloured=True) for _ in range(draws)]
    tones = [noise.blobs(SHAPE, noise.SINGLE_TONE_PROBABILITY, generator, coloured=False) for _ in range(draws)]
    assert np.mean([blobs.number for blobs in coloured]) == pytest.approx(1.606, rel=0.05)
    assert np.mean([blobs.number for blobs in tones]) == pytest.approx(1.385, rel=0.05)
    assert np.mean([(blobs.layer != 0).any(2).mean() for blobs in coloured]) == pytest.approx(0.0281, rel=0.06)
    assert np.mean([(blobs.layer != 0).any(2).mean() for blobs in tones]) == pytest.approx(0.0248, rel=0.06)
    whole = [noise.confetti(SHAPE, generator) for _ in range(draws)]
    grey = np.full(SHAPE, 128, np.uint8)
    malformed = [noise.malform(grey, z) for z in whole]
    assert np.mean([z.min() for z in whole]) == pytest.approx(-259.3, rel=0.05)
    assert min(z.min() for z in whole) >= -511
    assert max(z.max() for z in whole) == 0
    assert np.mean([mask.mean() for _, mask in malformed]) == pytest.approx(0.1270, rel=0.05)
    change = [np.abs(image.astype(int) - 128).mean() for image, _ in malformed]
    assert np.mean(change) == pytest.approx(7.326, rel=0.05)


def test_a_black_image_is_brightened_because_darkening_changes_nothing() -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    z = np.zeros((64, 64, 3), np.int64)
    z[10:20, 10:20] = -200
    image, mask = noise.malform(black, z)
    assert image[15, 15].tolist() == [200, 200, 200]
    assert mask.sum() == 100


def test_the_mask_marks_a_pixel_changed_in_any_channel() -> None:
    z = np.zeros((4, 4, 3), np.int64)
    z[0, 0, 1], z[2, 3] = -50, -50
    image, mask = noise.malform(np.full((4, 4, 3), 100, np.uint8), z)
    assert sorted(map(tuple, np.argwhere(mask).tolist())) == [(0, 0), (2, 3)]
    assert image[0, 0].tolist() == [100, 50, 100]


def test_other_noise_modes_have_the_published_parameters() -> None:
    generator = np.random.default_rng(0)
    draws = {mode: np.stack([make(SHAPE, generator) for _ in range(40)]) for mode, make in noise.MODES.items()}
    assert draws["gaussian"].std() == pytest.approx(64, rel=0.01)
    assert abs(draws["gaussian"].mean()) < 0.5
    assert (draws["uniform"].min(), draws["uniform"].max()) == (0, 254)
    assert draws["uniform"].mean() == pytest.approx(127, rel=0.01)
    # 36 pixels around 0.2 % of the pixels, with overlap: 1 - exp(-0.072); borders cut a little off.
    assert set(np.unique(draws["blob"])) == {0, 255}
    assert (draws["blob"] > 0).mean() == pytest.approx(0.0695, rel=0.05)
    assert len(np.unique(draws["mixed_blob"])) > 200
    assert draws["solid"].reshape(40, -1, 3).std(1).max() == 0
    assert len(np.unique(draws["solid"])) > 50


def test_the_offline_rule_turns_the_sign_at_bright_pixels() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 200  # bright: mean above 0.11 * 255
    image[1, 1] = 20
    result, mask = noise.malform_offline(image, np.full((2, 2, 3), -30, np.int64))
    assert result[:, :, 0].tolist() == [[230, 230], [0, 0]]
    assert mask.tolist() == [[True, True], [False, True]]
