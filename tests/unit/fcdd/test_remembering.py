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


def filled(network: FCDDNetwork, images: npt.NDArray[np.uint8], **options: int) -> Remembering:
    remembering = Remembering(network, **options)
    training.remember_components(network, scaled, images, remembering.remember)
    return remembering


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
    assert trained(mindful, images, remembering=filled(mindful, images)) == pytest.approx(expected, rel=1e-4)
    for name, value in mindful.state_dict().items():
        torch.testing.assert_close(value, forgetful.state_dict()[name], rtol=1e-3, atol=1e-5, msg=name)


def test_features_of_images_that_are_known_are_not_computed(
    images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, computed, compute = fitted(images), list[int](), FCDDNetwork.compute_features
    remembering, pixels = filled(network, images), scaled(torch.from_numpy(images))
    expected = network(pixels[:4])
    monkeypatch.setattr(
        FCDDNetwork, "compute_features", lambda self, images: [computed.append(len(images)), compute(self, images)][1]
    )
    found = remembering(pixels[:4], [0, None, 2, 3])
    remembering(pixels[2:4], [2, 3])
    assert computed == [1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert network.head.mixing.weight.grad is not None  # type: ignore[union-attr]


def test_no_more_is_remembered_than_there_is_room_for(images: npt.NDArray[np.uint8]) -> None:
    network = fitted(images)
    one = filled(network, images).components[0]
    few = filled(network, images, capacity=2 * one.numel() * one.element_size())
    assert sorted(few.components) == [0, 1]
    pixels = scaled(torch.from_numpy(images))
    torch.testing.assert_close(few(pixels, list(range(8))), network(pixels), rtol=1e-4, atol=1e-4)
    assert sorted(few.components) == [0, 1]  # nothing is added while training


@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_that_goes_on_knows_bit_for_bit_what_the_fit_knew(
    rank: int, images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_BATCH", 3)
    network, share = fitted(images), {"rank": rank, "world_size": 2}
    fit, again = Remembering(network), Remembering(network)
    training.fit_statistics(network, scaled, images, seed=0, remember=fit.remember)
    training.remember_components(network, scaled, images, again.remember, **share)
    assert sorted(again.components) == ([0, 1, 2, 6, 7] if rank == 0 else [3, 4, 5])
    for number, components in again.components.items():
        assert torch.equal(components, fit.components[number])


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
