import itertools

import numpy as np
import pytest
import torch

from fcdd import augmentation, networks, supervision, training
from fcdd.networks import OfWindows
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions
from fcdd.windows import MARGIN, PART, Windows, part_of

NAME = "whitened:efficientnet_lite0:stage3+stage4:1:16"


def windows_of(size: tuple[int, int], name: str = NAME, *, margin: bool = True) -> Windows:
    found = Windows.for_images(size, networks.geometry(name, size), margin=margin, coarsest=16)
    assert found is not None
    return found


def test_images_up_to_the_limit_are_trained_on_whole() -> None:
    assert Windows.for_images((512, 512), networks.geometry("cnn224", (512, 512)), margin=False) is None
    assert part_of((512, 512)) == (512, 512)
    assert part_of((200, 4000)) == (200, PART)


@pytest.mark.parametrize("size", [(640, 800), (208, 2048), (1504, 608)])
@pytest.mark.parametrize(("name", "margin"), [(NAME, True), ("cnn224", True), ("cnn224", False)])
def test_parts_lie_in_the_image_and_their_cells_are_those_of_the_image(
    size: tuple[int, int], name: str, margin: bool
) -> None:
    windows, field = windows_of(size, name, margin=margin), networks.geometry(name, size)
    generator, counted = np.random.default_rng(0), np.zeros((field.height, field.width))
    for _ in range(2000):
        part = windows.draw(generator)
        (rows, columns), (row, column), cells = part.pixels, part.window.origin, part.window.cells
        assert 0 <= rows.start < rows.stop <= size[0]
        assert 0 <= columns.start < columns.stop <= size[1]
        assert (rows.stop - rows.start, columns.stop - columns.start) == windows.part_size
        assert rows.start % 16 == columns.start % 16 == 0
        assert all(inner.stop <= side for inner, side in zip(part.inner, windows.part_size, strict=True))
        for first, offset, begin in zip((row, column), part.window.offset, (rows.start, columns.start), strict=True):
            assert begin // field.stride + offset == first
        assert row + cells[0] <= field.height
        assert column + cells[1] <= field.width
        counted[row : row + cells[0], column : column + cells[1]] += 1
    assert counted.min() > 0
    # The border counts as often as what lies within, about.
    assert counted[0].mean() > 0.4 * counted[field.height // 2].mean()


def test_parts_begin_where_the_coarsest_cells_of_a_trunk_do() -> None:
    size, name = (640, 832), "whitened:resnet18:layer2+layer4:1:8"
    network = networks.build(name, in_channels=3, image_size=size)
    assert network.coarsest == 32
    windows = Windows.for_images(size, network.receptive_field, margin=True, coarsest=network.coarsest)
    assert windows is not None
    for seed in range(50):
        part = windows.draw(np.random.default_rng(seed))
        assert part.pixels[0].start % 32 == part.pixels[1].start % 32 == 0


def test_a_part_can_be_asked_for_that_holds_a_pixel() -> None:
    generator = np.random.default_rng(0)
    found = [windows_of((640, 800)), windows_of((640, 800), "cnn224", margin=False)]
    for windows, place in itertools.product(found, ((0, 0), (639, 799), (300, 420), (301, 8))):
        part = windows.draw(generator, place)
        for axis, pixel in enumerate(place):
            begin = part.pixels[axis].start + part.inner[axis].start
            assert begin <= pixel < begin + windows.inner_size[axis]


def test_the_cells_of_a_part_are_nearly_those_of_the_whole_image() -> None:
    size = (640, 640)
    torch.manual_seed(0)
    network = networks.build(NAME, in_channels=3, image_size=size).eval()
    networks.load_pretrained(network, NAME)
    scaling = networks.input_normalization(NAME)
    assert scaling is not None
    coarse = np.random.default_rng(0).integers(60, 200, (8, 40, 40, 3)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    training.fit_statistics(network, scaling, coarse, seed=0)
    windows, generator = windows_of(size), np.random.default_rng(1)
    parts = [windows.draw(generator) for _ in range(8)]
    with torch.inference_mode():
        whole = network(scaling(torch.from_numpy(coarse[:1])))[0, 0]
        shown = np.stack([coarse[0][part.pixels] for part in parts])
        cut = OfWindows(network)(scaling(torch.from_numpy(shown)), [part.window for part in parts])[:, 0]
    for part, found in zip(parts, cut, strict=True):
        (row, column), (height, width) = part.window.origin, part.window.cells
        expected = whole[row : row + height, column : column + width]
        assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


@pytest.mark.parametrize("name", [NAME, "cnn224"])
def test_a_training_on_parts_draws_anomalies_where_they_count(name: str) -> None:
    size, is_whitened = (528, 528), networks.needs_statistics(name)
    torch.manual_seed(0)
    network = networks.build(name, in_channels=3, image_size=size)
    scaling = networks.input_normalization(NAME)
    assert scaling is not None
    images = np.random.default_rng(0).integers(100, 140, (8, *size, 3)).astype(np.uint8)
    if is_whitened:
        networks.load_pretrained(network, name)
        training.fit_statistics(network, scaling, images, seed=0)
    windows = windows_of(size, name, margin=is_whitened)
    assert windows.part_size == (PART + 2 * MARGIN * is_whitened,) * 2
    sampling = Sampling(
        anomalies=supervision.SYNTHETIC["defects"],
        augment=augmentation.light(windows.part_size, "none" if is_whitened else "flips"),
        seed=0,
        windows=windows,
    )
    options = TrainOptions(
        epochs=3, batch_size=8, learning_rate=1e-2, weight_decay=0.0, loss="pixel", gaussian_std=8.0, seed=0
    )
    trainer = training.Trainer(
        OfWindows(network), windows.inner_field, scaling, options, num_images=8, input_size=windows.inner_size
    )
    data = TrainingSet(list(images))
    for number, batch in enumerate(training.batches(data, sampling, options)):
        assert batch.masks.shape == (8, 1, PART, PART)
        assert (batch.masks.flatten(1).any(1) == (batch.labels == 1)).all()
        again = training.draw_sample(
            data, int(training.epoch_order(8, options, epoch=number)[0][0]), epoch=number, sampling=sampling
        )
        torch.testing.assert_close(batch.pixels[0], torch.from_numpy(again.pixels))
        losses = trainer.step(batch)
        assert np.isfinite(losses.mean)


def test_images_that_a_source_brings_are_cut_around_their_anomaly() -> None:
    size = (640, 640)
    windows, image = windows_of(size), np.full((*size, 3), 100, np.uint8)
    mask = np.zeros(size, np.bool_)
    mask[600:606, 20:26] = True
    broken = image.copy()
    broken[mask] = 255
    sampling = Sampling(
        anomalies=supervision.RealAnomalies([broken], [mask]),
        augment=augmentation.light(windows.part_size, "none"),
        seed=0,
        probability=1.0,
        windows=windows,
    )
    for number in range(20):
        sample = training.draw_sample(TrainingSet([image]), number, epoch=0, sampling=sampling)
        assert sample.label == 1
        assert sample.mask.any()
        assert sample.pixels.max() == 1.0


def test_outliers_that_are_anomalous_everywhere_are_cut_anywhere() -> None:
    size = (640, 640)
    windows, image = windows_of(size), np.full((*size, 3), 100, np.uint8)
    other = np.full((*size, 3), 200, np.uint8)
    sampling = Sampling(
        anomalies=supervision.RealAnomalies([other]),
        augment=augmentation.light(windows.part_size, "none"),
        seed=0,
        probability=1.0,
        windows=windows,
    )
    samples = [training.draw_sample(TrainingSet([image]), n, epoch=0, sampling=sampling) for n in range(12)]
    assert all(sample.mask.all() and sample.pixels.min() > 0.7 for sample in samples)
    assert len({sample.window.origin for sample in samples if sample.window}) > 4
