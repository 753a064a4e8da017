import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fcdd import detector, networks, normalization, training
from fcdd.errors import ConfigError
from fcdd.training import TrainOptions

OPTIONS = TrainOptions(
    epochs=3,
    batch_size=8,
    learning_rate=3e-3,
    weight_decay=1e-4,
    loss="image",
    anomalies="defects",
    gaussian_std=2.0,
    flips=True,
    seed=1,
)
IMAGES = np.random.default_rng(0).integers(120, 136, (40, 32, 32, 3)).astype(np.uint8)


def test_an_epoch_shows_each_image_at_most_once_and_another_epoch_another_order() -> None:
    first, second = (training.epoch_order(43, 8, seed=0, epoch=epoch) for epoch in (0, 1))
    assert first.shape == (5, 8)
    assert len(set(first.ravel().tolist())) == 40
    assert (first != second).any()


def test_a_batch_larger_than_the_set_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="a batch of 8 needs as many training images, got 7"):
        training.epoch_order(7, 8, seed=0, epoch=0)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_together_draw_the_same_global_batches(workers: int) -> None:
    alone = list(training.batches(IMAGES, OPTIONS, epoch=2))
    shares = [list(training.batches(IMAGES, OPTIONS, epoch=2, rank=r, world_size=workers)) for r in range(workers)]
    for step, batch in enumerate(alone):
        for rank in range(workers):
            for ours, all_of_them in zip(shares[rank][step], batch, strict=True):
                assert torch.equal(ours, all_of_them[rank::workers])


def test_nominal_samples_are_mirrored_and_vary_in_brightness() -> None:
    image = np.full((16, 16, 3), 100, np.uint8)
    image[:4, :6] = 160  # a corner that shows how the image was turned
    nominal = [
        s.pixels for s in (training.draw_sample(image, i, epoch=0, options=OPTIONS) for i in range(200)) if not s.label
    ]
    brightest = {tuple(int(v) for v in np.unravel_index(p[:, :, 0].argmax(), (16, 16))) for p in nominal}
    assert {row > 8 for row, _ in brightest} == {column > 8 for _, column in brightest} == {False, True}
    assert np.ptp([p.mean() for p in nominal]) > 20
    still = dataclasses.replace(OPTIONS, flips=False)
    unturned = [
        s.pixels for s in (training.draw_sample(image, i, epoch=0, options=still) for i in range(200)) if not s.label
    ]
    assert {tuple(np.unravel_index(p[:, :, 0].argmax(), (16, 16))) for p in unturned} == {(0, 0)}


def test_the_learning_rate_rises_and_falls_over_the_training() -> None:
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32))
    scaling = normalization.estimate("mean_std", torch.from_numpy(IMAGES))
    trainer = training.Trainer(network, network.receptive_field, scaling, OPTIONS, num_images=40, input_size=(32, 32))
    rates = []
    for epoch in range(OPTIONS.epochs):
        for batch in training.batches(IMAGES, OPTIONS, epoch=epoch):
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            trainer.step(batch)
    assert len(rates) == 15
    assert rates[0] < 0.1 * max(rates)
    assert rates[-1] < 0.1 * max(rates)
    assert max(rates) == pytest.approx(OPTIONS.learning_rate, rel=0.05)


@pytest.mark.parametrize("anomalies", ["defects", "confetti"])
def test_half_of_the_samples_become_anomalous_with_a_mask(anomalies: str) -> None:
    options = dataclasses.replace(OPTIONS, anomalies=anomalies)  # type: ignore[arg-type]
    samples = [training.draw_sample(IMAGES[0], i, epoch=0, options=options) for i in range(400)]
    labels = np.array([sample.label for sample in samples])
    assert labels.mean() == pytest.approx(0.5, abs=0.08)
    assert all(sample.mask.any() == bool(sample.label) for sample in samples)


@pytest.mark.parametrize("loss", ["image", "pixel"])
def test_training_separates_anomalous_from_nominal_samples(loss: str) -> None:
    options = dataclasses.replace(OPTIONS, epochs=25, loss=loss)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32))
    scaling = normalization.estimate("mean_std", torch.from_numpy(IMAGES))
    trainer = training.Trainer(
        network, network.receptive_field, scaling, options, num_images=len(IMAGES), input_size=(32, 32)
    )
    for epoch in range(options.epochs):
        for batch in training.batches(IMAGES, options, epoch=epoch):
            trainer.step(batch)
    fresh = [training.draw_sample(IMAGES[0], index, epoch=999, options=options) for index in range(200)]
    pixels = np.stack([sample.pixels for sample in fresh])
    scores = detector.score_pixels(detector.for_inference(network), scaling, pixels).mean
    assert roc_auc_score([sample.label for sample in fresh], scores) > 0.8


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32))
    scaling = normalization.Normalization(kind="mean_std", shift=(0.0,) * 3, scale=(1e-38,) * 3)
    trainer = training.Trainer(network, network.receptive_field, scaling, OPTIONS, num_images=40, input_size=(32, 32))
    before = network.head.weight.clone()
    batch = next(training.batches(IMAGES, OPTIONS, epoch=0))
    with pytest.raises(FloatingPointError):
        trainer.step(batch)
    assert torch.equal(network.head.weight, before)
