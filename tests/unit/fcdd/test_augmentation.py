import numpy as np
import pytest
from PIL import Image

from fcdd import augmentation
from fcdd.augmentation import Augmentation
from fcdd.errors import ConfigError
from fcdd.paper.protocols import PROTOCOLS

IMAGE = np.random.default_rng(0).integers(60, 180, (40, 40, 3)).astype(np.uint8)
MASK = np.zeros((40, 40), np.bool_)
MASK[5:20, 10:30] = True
LABELLED = np.where(MASK[:, :, None], 255, 0).astype(np.uint8).repeat(3, 2)


def draws(chain: Augmentation, image: np.ndarray, mask: np.ndarray, count: int = 200) -> list:
    return [chain(image, mask, np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize(
    "chain",
    [
        Augmentation(size=(32, 32), fit="crop", padding=2, flips=("horizontal", "vertical")),
        Augmentation(size=(24, 32), fit="resize"),
        Augmentation(size=(32, 32), fit="crop_or_resize", resize_before_crop=(48, 48), flips=("horizontal",)),
    ],
)
def test_image_and_mask_move_together(chain: Augmentation) -> None:
    for pixels, mask in draws(chain, LABELLED, MASK):
        assert pixels.shape == (*chain.size, 3)
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels[:, :, 0] == 1, mask)


def test_crops_flips_and_resizes_are_drawn_as_often_as_published() -> None:
    """MVTec: every second image is cropped, the other resized; Fashion-MNIST: every second one is mirrored."""
    ramp = np.arange(240, dtype=np.uint8)[None, :, None].repeat(240, 0).repeat(3, 2)
    chain = Augmentation(size=(224, 224), fit="crop_or_resize")
    widths = [np.ptp(pixels[0, :, 0] * 255) for pixels, _ in draws(chain, ramp, np.zeros((240, 240), np.bool_))]
    assert np.mean([width < 225 for width in widths]) == pytest.approx(0.5, abs=0.12)
    mirrored = [
        pixels[0, 0, 0] > pixels[0, -1, 0]
        for pixels, _ in draws(
            Augmentation(size=(240, 240), flips=("horizontal",)), ramp, np.zeros((240, 240), np.bool_)
        )
    ]
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.12)
    corners = {
        tuple(np.round(p[0, [0, -1], 0] * 255))
        for p, _ in draws(Augmentation(size=(238, 238), fit="crop"), ramp, np.zeros((240, 240), np.bool_))
    }
    assert corners == {(0, 237), (1, 238), (2, 239)}


def test_noise_has_the_published_deviation() -> None:
    flat, empty = np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64), np.bool_)
    deviations = [(p - p.mean()).std() for p, _ in draws(Augmentation(size=(64, 64), noise=0.001), flat, empty, 50)]
    assert np.mean(deviations) == pytest.approx(0.001, rel=0.02)
    image = np.tile(np.array([100, 140], np.uint8), (64, 32))[..., None].repeat(3, 2)  # deviation 20 grey levels
    added = [
        p - image / np.float32(255)
        for p, _ in draws(Augmentation(size=(64, 64), relative_noise=0.1), image, empty, 200)
    ]
    noisy = [each.std() for each in added if each.std() > 0]
    assert len(noisy) / len(added) == pytest.approx(0.5, abs=0.12)
    assert np.mean(noisy) == pytest.approx(0.1 * 20 / 255, rel=0.03)


def test_jitter_changes_each_property_within_its_range() -> None:
    only_brightness = [augmentation.jitter(IMAGE, (0.2, 0, 0, 0), np.random.default_rng(s)).mean() for s in range(200)]
    assert min(only_brightness) == pytest.approx(0.8 * IMAGE.mean(), rel=0.02)
    assert max(only_brightness) == pytest.approx(1.2 * IMAGE.mean(), rel=0.02)
    flat = augmentation.jitter(IMAGE, (0, 0.5, 0, 0), np.random.default_rng(1))
    assert flat.mean() == pytest.approx(IMAGE.mean(), abs=1)
    assert flat.std() != pytest.approx(IMAGE.std(), rel=0.01)
    red = np.zeros((8, 8, 3), np.uint8)
    red[:, :, 0] = 200
    hues = {
        Image.fromarray(augmentation.jitter(red, (0, 0, 0, 0.1), np.random.default_rng(s)))
        .convert("HSV")
        .getpixel((0, 0))[0]  # type: ignore[index]
        for s in range(200)
    }
    assert max(hue if hue < 128 else 256 - hue for hue in hues) in (24, 25, 26)
    unchanged = augmentation.jitter(IMAGE, (0, 0, 0, 0), np.random.default_rng(0))
    assert np.abs(unchanged.astype(int) - IMAGE).max() <= 3  # through HSV and back
    grey = augmentation.jitter(IMAGE[:, :, :1], (0.1, 0.1, 0.1, 0.1), np.random.default_rng(0))
    assert grey.shape == (40, 40, 1)


def test_a_crop_larger_than_the_image_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="cannot cut 64x50 pixels out of an image of 40x40"):
        Augmentation(size=(50, 64), fit="crop")(IMAGE, MASK, np.random.default_rng(0))


@pytest.mark.parametrize(("shape", "expected"), [((60, 80), (30, 40)), ((80, 60), (40, 30)), ((50, 50), (30, 30))])
def test_the_shorter_side_gets_the_size_and_the_longer_follows(shape: tuple, expected: tuple) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    assert augmentation.shorter_side(image, 30).shape == (*expected, 3)


def test_a_centre_crop_is_in_the_middle() -> None:
    array = np.arange(100).reshape(10, 10)
    np.testing.assert_array_equal(augmentation.centre_crop(array, (4, 6)), array[3:7, 2:8])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_training_and_test_chains_end_at_the_networks_size(protocol: str) -> None:
    chain = PROTOCOLS[protocol]
    stored = {"fmnist": 28, "fmnist-emnist": 28, "cifar10": 32, "mvtec": 240, "mvtec-semi": 240, "voc": 224}
    side = stored.get(protocol, 256)
    channels = 1 if protocol.startswith("fmnist") else 3
    image = np.zeros((side, side, channels), np.uint8)
    pixels, mask = chain.augment(image, np.zeros((side, side), np.bool_), np.random.default_rng(0))
    assert pixels.shape == (*chain.size, channels)
    assert mask.shape == chain.size
