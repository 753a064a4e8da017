import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fcdd import augmentation, networks, normalization, outliers, supervision, training
from fcdd.errors import ConfigError, ImageError
from fcdd.inference import Runner
from fcdd.scores import summarise
from fcdd.supervision import HeldOut, TrainingSet
from fcdd.training import Sampling, TrainOptions

OPTIONS = TrainOptions(
    epochs=3,
    batch_size=8,
    learning_rate=3e-3,
    weight_decay=1e-4,
    loss="image",
    gaussian_std=2.0,
    seed=1,
)
SAMPLING = Sampling(anomalies=outliers.defects, augment=augmentation.light((32, 32), "all"), seed=1)
IMAGES = np.random.default_rng(0).integers(120, 136, (40, 32, 32, 3)).astype(np.uint8)
DATA = TrainingSet(list(IMAGES))
SCALING = normalization.estimate("mean_std", torch.from_numpy(IMAGES))


def test_an_epoch_shows_each_image_at_most_once_and_another_epoch_another_order() -> None:
    first, second = (np.array(training.epoch_order(43, OPTIONS, epoch=epoch)) for epoch in (0, 1))
    assert first.shape == (5, 8)
    assert len(set(first.ravel().tolist())) == 40
    assert (first != second).any()


def test_the_official_loader_keeps_the_incomplete_batch() -> None:
    official = dataclasses.replace(OPTIONS, drop_incomplete=False, repeats=2)
    order = training.epoch_order(21, official, epoch=0)
    assert [len(batch) for batch in order] == [8, 8, 8, 8, 8, 2]
    assert sorted(np.concatenate(order).tolist()) == list(range(42))
    assert training.num_steps(3, dataclasses.replace(official, repeats=1)) == 1


def test_a_batch_larger_than_the_set_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="a batch of 8 needs as many training images, got 7"):
        training.epoch_order(7, OPTIONS, epoch=0)


@pytest.mark.parametrize("workers", [1, 2, 4, 3])
def test_workers_together_draw_the_same_global_batches(workers: int) -> None:
    options = dataclasses.replace(OPTIONS, repeats=2)
    alone = list(training.batches(DATA, SAMPLING, options))
    assert len(alone) == 3 * 10
    shares = [list(training.batches(DATA, SAMPLING, options, rank=r, world_size=workers)) for r in range(workers)]
    for step, batch in enumerate(alone):
        for rank in range(workers):
            for name in ("pixels", "labels", "masks"):
                assert torch.equal(getattr(shares[rank][step], name), getattr(batch, name)[rank::workers])
            assert shares[rank][step].sources == batch.sources[rank::workers]
        # The mean of the workers' weighted means is the mean over the batch, also where 8 do not divide by 3.
        means = [shares[rank][step].pixels.mean() * shares[rank][step].weight for rank in range(workers)]
        assert float(sum(means)) / workers == pytest.approx(float(batch.pixels.mean()), rel=1e-5)


def test_background_processes_and_a_later_start_draw_the_same_samples() -> None:
    alone = list(training.batches(DATA, SAMPLING, OPTIONS))
    later = list(training.batches(DATA, SAMPLING, OPTIONS, start=7, processes=1))
    assert len(later) == len(alone) - 7
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(alone[7:], later, strict=True))


class Broken(list):  # type: ignore[type-arg]
    """Images of which some cannot be read."""

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        if index in (3, 4):
            raise ImageError("vanished", f"image {index}")
        return super().__getitem__(index)  # type: ignore[no-any-return]


def test_an_image_that_cannot_be_read_is_named_and_the_next_one_taken() -> None:
    sample = training.draw_sample(TrainingSet(Broken(IMAGES)), 3, epoch=0, sampling=SAMPLING)
    assert sample.source == 5
    assert sample.left_out == ("vanished: image 3", "vanished: image 4")
    with pytest.raises(ConfigError, match="10 training images in a row cannot be read, the last: vanished"):
        training.draw_sample(TrainingSet(AllBroken()), 0, epoch=0, sampling=SAMPLING)


class Copies(list):  # type: ignore[type-arg]
    """Images of which the first fifteen are held out, as those of a camera that stood still."""

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        if index < 15:
            raise HeldOut(f"image {index}")
        return super().__getitem__(index)  # type: ignore[no-any-return]


def test_pictures_that_are_held_out_are_passed_over_however_many_they_are() -> None:
    sample = training.draw_sample(TrainingSet(Copies(20 * [IMAGES[0]])), 1, epoch=0, sampling=SAMPLING)
    assert (sample.source, sample.left_out, len(sample.copies)) == (15, (), 14)
    assert sample.copies[0] == "changed: the same picture is held out (image 1)"
    with pytest.raises(ConfigError, match="there is no image to train on: of 12, 12 are held out under another name"):
        training.draw_sample(TrainingSet(Copies(12 * [IMAGES[0]])), 1, epoch=0, sampling=SAMPLING)


class AllBroken(Broken):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        raise ImageError("vanished", f"image {index}")


def draw(data: TrainingSet, count: int, sampling: Sampling = SAMPLING) -> list[training.Sample]:
    return [training.draw_sample(data, number, epoch=0, sampling=sampling) for number in range(count)]


@pytest.mark.parametrize("anomalies", supervision.SYNTHETIC)
def test_half_of_the_samples_become_anomalous_with_a_mask(anomalies: str) -> None:
    sampling = dataclasses.replace(SAMPLING, anomalies=supervision.SYNTHETIC[anomalies])
    samples = draw(TrainingSet(list(IMAGES[:1])), 400, sampling)
    labels = np.array([sample.label for sample in samples])
    assert labels.mean() == pytest.approx(0.5, abs=0.08)
    assert all(sample.mask.any() == bool(sample.label) for sample in samples)


def test_labelled_anomalies_in_the_training_set_stay_what_they_are() -> None:
    data = supervision.offline(list(IMAGES), supervision.SYNTHETIC["confetti"], seed=0)
    sampling = dataclasses.replace(SAMPLING, augment=augmentation.light((32, 32), "none"), probability=0.0)
    samples = draw(data, 80, sampling)
    assert [sample.label for sample in samples] == 40 * [0] + 40 * [1]
    assert [bool(sample.mask.any()) for sample in samples] == 40 * [False] + 40 * [True]
    np.testing.assert_array_equal(samples[0].pixels * 255, IMAGES[0])


def test_a_training_set_without_anomalies_yields_nominal_samples_only() -> None:
    sampling = dataclasses.replace(SAMPLING, probability=0.0)
    assert {sample.label for sample in draw(DATA, 100, sampling)} == {0}


def rates(options: TrainOptions) -> list[float]:
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32))
    trainer = make_trainer(network, options)
    seen = []
    for batch in training.batches(DATA, SAMPLING, options):
        seen.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.step(batch)
    return seen


def make_trainer(network: networks.FCDDNetwork, options: TrainOptions) -> training.Trainer:
    return training.Trainer(
        network, network.receptive_field, SCALING, options, num_images=len(IMAGES), input_size=(32, 32)
    )


def test_the_learning_rate_rises_and_falls_over_the_training() -> None:
    seen = rates(OPTIONS)
    assert len(seen) == 15
    assert seen[0] < 0.1 * max(seen)
    assert seen[-1] < 0.1 * max(seen)
    assert max(seen) == pytest.approx(OPTIONS.learning_rate, rel=0.05)


def test_published_schedules_change_the_rate_after_whole_epochs() -> None:
    exponential = dataclasses.replace(OPTIONS, optimizer="sgd", schedule="exponential", decay=0.5)
    assert rates(exponential) == pytest.approx(5 * [3e-3] + 5 * [1.5e-3] + 5 * [7.5e-4])
    milestones = dataclasses.replace(OPTIONS, optimizer="adam", schedule="milestones", decay=0.1, milestones=(1, 2))
    assert rates(milestones) == pytest.approx(5 * [3e-3] + 5 * [3e-4] + 5 * [3e-5])


@pytest.mark.parametrize("loss", ["image", "pixel"])
def test_training_separates_anomalous_from_nominal_samples(loss: str) -> None:
    options = dataclasses.replace(OPTIONS, epochs=25, loss=loss)  # type: ignore[arg-type]
    torch.manual_seed(0)
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32))
    trainer = make_trainer(network, options)
    for batch in training.batches(DATA, SAMPLING, options):
        trainer.step(batch)
    fresh = [training.draw_sample(DATA, index, epoch=999, sampling=SAMPLING) for index in range(200)]
    pixels = np.stack([np.round(sample.pixels * 255).astype(np.uint8) for sample in fresh])
    scores = summarise(Runner(network, SCALING, (32, 32))(pixels)).mean
    assert roc_auc_score([sample.label for sample in fresh], scores) > 0.8


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32))
    scaling = normalization.Normalization(kind="mean_std", shift=(0.0,) * 3, scale=(1e-38,) * 3)
    trainer = training.Trainer(network, network.receptive_field, scaling, OPTIONS, num_images=40, input_size=(32, 32))
    before = network.head.weight.clone()
    batch = next(training.batches(DATA, SAMPLING, OPTIONS))
    with pytest.raises(FloatingPointError):
        trainer.step(batch)
    assert torch.equal(network.head.weight, before)
