from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fcdd import detector, networks, normalization, training
from fcdd.errors import ConfigError
from fcdd.inference import Runner
from fcdd.whitening import REGULARIZATION, Statistics, WhitenedHead

CELLS = (3, 4)
GENERATOR = torch.Generator().manual_seed(0)


def features(count: int, shift: float = 0.0) -> torch.Tensor:
    """(count, 5, 3, 4): another mean and covariance at every cell."""
    mixing = torch.randn(12, 5, 5, generator=torch.Generator().manual_seed(1))
    means = torch.arange(60.0).view(12, 5) + shift
    cells = torch.randn(count, 12, 1, 5, generator=GENERATOR) @ mixing + means[:, None]
    return cells[:, :, 0].transpose(1, 2).reshape(count, 5, *CELLS)


def fitted(data: torch.Tensor, modes: int = 1) -> WhitenedHead:
    head = WhitenedHead(5, CELLS, Statistics(modes))

    def batches() -> Iterator[torch.Tensor]:
        yield from data.split(7)

    head.fit(batches)
    return head


def test_an_untrained_head_measures_the_mahalanobis_distance_of_every_cell() -> None:
    data, probe = features(400), features(6, shift=3.0)
    output = fitted(data)(probe)
    assert output.shape == (6, 1, *CELLS)
    covariances = [np.cov(data[:, :, u, v].double().numpy().T) for u in range(3) for v in range(4)]
    ridge = REGULARIZATION * np.mean([np.diag(c).mean() for c in covariances])
    for cell, covariance in enumerate(covariances):
        u, v = divmod(cell, 4)
        gaps = (probe[:, :, u, v] - data[:, :, u, v].mean(0)).double().numpy()
        inverse = np.linalg.inv(covariance + ridge * np.eye(5))
        expected = np.sqrt(np.einsum("ni,ij,nj->n", gaps, inverse, gaps) / 5) - 1
        np.testing.assert_allclose(output[:, 0, u, v].detach(), expected, rtol=1e-3, atol=1e-3)


def test_statistics_do_not_depend_on_the_batches() -> None:
    data = features(50)
    one, other = WhitenedHead(5, CELLS), WhitenedHead(5, CELLS)
    one.fit(lambda: data.split(50))
    other.fit(lambda: data.split(3))
    torch.testing.assert_close(one.whitening, other.whitening, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one.mean, other.mean)


def test_two_variants_are_both_nominal_with_two_modes_and_not_what_lies_between() -> None:
    near, far = features(200), features(200, shift=60.0)
    together = torch.cat([near, far])[torch.randperm(400, generator=GENERATOR)]
    head = fitted(together, modes=2)
    scores = {name: head(x).mean().item() for name, x in (("near", near), ("far", far), ("mid", features(50, 30.0)))}
    assert scores["near"] == pytest.approx(0, abs=0.2)
    assert scores["far"] == pytest.approx(0, abs=0.2)
    assert scores["mid"] > 3
    single = fitted(together, modes=1)
    assert single(features(50, 30.0)).mean() < single(near).mean()  # one Gaussian takes the middle for the most nominal


def test_too_few_images_for_the_modes_are_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="1 nominal images do not make 1 modes of two images or more"):
        fitted(features(1))
    with pytest.raises(ConfigError, match="use fewer modes"):
        fitted(torch.cat([features(10), features(1, shift=500.0)]), modes=2)


def test_a_whitened_network_is_fitted_trained_saved_and_scores_the_same_in_any_batch() -> None:
    name = "whitened:efficientnet_lite0:stage3+stage2+stage4:2"
    torch.manual_seed(0)
    network = networks.build(name, in_channels=3, image_size=(64, 96))
    networks.load_pretrained(network, name)
    scaling = networks.input_normalization(name)
    assert scaling is not None
    pixels = np.random.default_rng(0).integers(100, 140, (24, 64, 96, 3)).astype(np.uint8)
    pixels[::2] //= 2  # two variants
    before = network.head.state_dict()["mean"].clone()
    training.fit_statistics(network, scaling, pixels, seed=0)
    assert not torch.equal(network.head.state_dict()["mean"], before)
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        f"head.{part}" for part in ("mixing.weight", "weights", "scale", "offset")
    }
    again = detector.deserialize(detector.serialize(network), name, 3, (64, 96))
    test = np.concatenate((pixels[:4], 255 - pixels[:4]))
    together = Runner(again, scaling, (64, 96))(test)
    alone = np.concatenate([Runner(network, scaling, (64, 96))(test[i : i + 1]) for i in range(8)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape[1:] == (8, 12)
    assert together[4:].mean((1, 2)).min() > together[:4].mean((1, 2)).max()


def test_other_networks_have_no_statistics_to_fit() -> None:
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 32))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    training.fit_statistics(network, normalization.estimate("mean_std", torch.from_numpy(pixels)), pixels, seed=0)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
