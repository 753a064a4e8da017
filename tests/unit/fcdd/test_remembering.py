import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fcdd import augmentation, networks, supervision, training
from fcdd.networks import FCDDNetwork
from fcdd.remembering import Remembering
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions

NAME, SIZE = "whitened:efficientnet_lite0:stage4+stage3+stage5:2", (64, 64)
OPTIONS = TrainOptions(
    epochs=2, batch_size=4, learning_rate=1e-2, weight_decay=0.0, loss="pixel", gaussian_std=8.0, seed=0
)


@pytest.fixture
def images() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (8, *SIZE, 3), np.uint8)


def fitted(images: npt.NDArray[np.uint8]) -> FCDDNetwork:
    torch.manual_seed(0)
    network = networks.build(NAME, in_channels=3, image_size=SIZE)
    network.fold_features()
    training.fit_statistics(network, scaled, images, seed=0)
    return network


def scaled(pixels: Tensor) -> Tensor:
    return pixels.float().permute(0, 3, 1, 2) / (1 if pixels.is_floating_point() else 255)


def trained(network: FCDDNetwork, images: npt.NDArray[np.uint8], *, remembering: Remembering | None) -> list[float]:
    """The losses of all steps."""
    sampling = Sampling(
        anomalies=supervision.SYNTHETIC["confetti"],
        augment=augmentation.light(SIZE, "none"),
        seed=0,
        leaves_as_they_are=remembering is not None,
    )
    field = network.receptive_field
    trainer = training.Trainer(remembering or network, field, scaled, OPTIONS, num_images=len(images), input_size=SIZE)
    return [trainer.step(batch).mean for batch in training.batches(TrainingSet(list(images)), sampling, OPTIONS)]


def test_a_training_that_remembers_is_the_one_that_does_not(images: npt.NDArray[np.uint8]) -> None:
    forgetful, mindful = fitted(images), fitted(images)
    expected = trained(forgetful, images, remembering=None)
    assert trained(mindful, images, remembering=Remembering(mindful)) == pytest.approx(expected, rel=1e-4)
    for name, value in mindful.state_dict().items():
        torch.testing.assert_close(value, forgetful.state_dict()[name], rtol=1e-3, atol=1e-5, msg=name)


def test_features_of_unchanged_images_are_computed_once(
    images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, computed, compute = fitted(images), list[int](), FCDDNetwork.compute_features
    monkeypatch.setattr(
        FCDDNetwork, "compute_features", lambda self, images: [computed.append(len(images)), compute(self, images)][1]
    )
    remembering, pixels = Remembering(network), scaled(torch.from_numpy(images))
    first = remembering(pixels[:4], [0, None, 2, 3])
    again = remembering(pixels[:4], [0, None, 2, 3])
    remembering(pixels[2:4], [2, 3])
    assert computed == [4, 1]
    torch.testing.assert_close(again, first)
    torch.testing.assert_close(first, network(pixels[:4]))
    again.sum().backward()
    assert network.head.mixing.weight.grad is not None  # type: ignore[union-attr]


def test_no_more_is_remembered_than_there_is_room_for(images: npt.NDArray[np.uint8]) -> None:
    network, pixels = fitted(images), scaled(torch.from_numpy(images))
    with torch.no_grad():
        one = network.compute_features(pixels[:1])
    remembering = Remembering(network, capacity=2 * one.numel() * one.element_size())
    remembering(pixels, list(range(8)))
    assert len(remembering.components) == 2


def test_images_that_statistics_were_fitted_to_are_known_from_then_on(images: npt.NDArray[np.uint8]) -> None:
    network = fitted(images)
    remembering = Remembering(network)
    training.fit_statistics(network, scaled, images, seed=0, remember=remembering.remember)
    assert len(remembering.components) == 8
    pixels = scaled(torch.from_numpy(images))
    torch.testing.assert_close(remembering(pixels, list(range(8))), network(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("leaves", [True, False])
def test_samples_say_which_of_them_are_images_as_they_are(leaves: bool, images: npt.NDArray[np.uint8]) -> None:
    sampling = Sampling(
        anomalies=supervision.SYNTHETIC["confetti"],
        augment=augmentation.light(SIZE, "none" if leaves else "all"),
        seed=0,
        leaves_as_they_are=leaves,
    )
    for batch in training.batches(TrainingSet(list(images)), sampling, OPTIONS):
        if not leaves:
            assert batch.unchanged is None
            continue
        assert batch.unchanged is not None
        for sample, source, number, label in zip(
            batch.pixels, batch.sources, batch.unchanged, batch.labels, strict=True
        ):
            assert number == (None if label else source)
            same = np.array_equal(sample.numpy(), images[source].astype(np.float32) / np.float32(255))
            assert same == (number is not None)
