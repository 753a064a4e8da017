"""The closed form is compared with what it replaces: a network fitted anew without the image."""

import copy

import numpy as np
import pytest
import torch

from fcdd import calibration, leave_one_out, networks, objective, training, whitening
from fcdd.networks import FCDDNetwork
from fcdd.whitening import WhitenedHead

NAME, SIZE = "whitened:efficientnet_lite0:stage3", (64, 64)


@pytest.fixture(autouse=True)
def fixed_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The closed form keeps the ridge of all images: the reference must, too."""
    for module in (whitening, leave_one_out):
        monkeypatch.setattr(module, "ridge_of", lambda variances: torch.tensor(0.02, dtype=variances.dtype))


def pictures(count: int, seed: int = 0, *, variants: int = 1) -> np.ndarray:
    """Smooth pictures that differ; of several variants the brightness jumps."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(60, 120, (count, 8, 8, 3))
    coarse += 100 * (np.arange(count) % variants)[:, None, None, None]
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)


def network_for(images: np.ndarray, name: str = NAME) -> FCDDNetwork:
    """Fitted, with a head that is no longer the identity, as after a training."""
    torch.manual_seed(0)
    network = networks.build(name, in_channels=3, image_size=SIZE).eval()
    networks.load_pretrained(network, name)
    scaling = networks.input_normalization(name)
    assert scaling is not None
    training.fit_statistics(network, scaling, images, seed=0)
    assert isinstance(network.head, WhitenedHead)
    with torch.no_grad():
        network.head.mixing.weight += 0.05 * torch.randn_like(network.head.mixing.weight)
        network.head.weights += 0.3 * torch.randn_like(network.head.weights)
    return network


def fitted_without(network: FCDDNetwork, images: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The map of one picture by the same head, with statistics of these images only."""
    scaling = networks.input_normalization(NAME)
    assert scaling is not None
    other = copy.deepcopy(network)
    training.fit_statistics(other, scaling, images, seed=0)
    with torch.inference_mode():
        return objective.anomaly_map(other(scaling(torch.from_numpy(shown[None]))))[0, 0].numpy()


def left_out(network: FCDDNetwork, images: np.ndarray, probes: np.ndarray, sources: list[int]) -> tuple:
    scaling = networks.input_normalization(NAME)
    assert scaling is not None
    return leave_one_out.maps(network, scaling, images, probes, np.array(sources, np.int64), seed=0)


# More and fewer images than features (40): the covariance of fewer is singular without its ridge.
@pytest.mark.parametrize("count", [60, 25])
def test_the_closed_form_is_what_a_fit_without_the_image_gives(count: int) -> None:
    images = pictures(count)
    network = network_for(images)
    probes = np.ascontiguousarray(images[[3, 8], ::-1])
    maps, probe_maps = left_out(network, images, probes, [3, 8])
    for index in (0, 3, count - 1):
        expected = fitted_without(network, np.delete(images, index, 0), images[index])
        np.testing.assert_allclose(maps[index], expected, rtol=5e-3, atol=5e-3 * expected.max())
        seen = fitted_without(network, images, images[index])
        assert seen.max() < 0.95 * expected.max()  # statistics that saw the image judge it less strictly
    expected = fitted_without(network, np.delete(images, 8, 0), probes[1])
    np.testing.assert_allclose(probe_maps[1], expected, rtol=5e-3, atol=5e-3 * expected.max())


@pytest.mark.parametrize("name", [NAME, f"{NAME}:2"])
def test_components_that_are_known_give_the_same_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(30, variants=2)
    network, scaling, known = network_for(images, name), networks.input_normalization(name), dict[int, torch.Tensor]()
    assert scaling is not None
    training.fit_statistics(network, scaling, images, seed=0, remember=known.__setitem__)
    sources, computed, compute = np.array([3], np.int64), list[int](), FCDDNetwork.compute_features
    expected = leave_one_out.maps(network, scaling, images, images[:1], sources, seed=0)
    monkeypatch.setattr(
        FCDDNetwork, "compute_features", lambda self, images: [computed.append(len(images)), compute(self, images)][1]
    )
    found = leave_one_out.maps(network, scaling, images, images[:1], sources, seed=0, known=known)
    assert sum(computed) == (1 if name == NAME else 31)  # variants are told apart by all features
    for each, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-5)


def test_the_same_picture_under_two_names_is_left_out_with_both() -> None:
    images = pictures(60)
    images[11] = images[4]
    network = network_for(images)
    maps, _ = left_out(network, images, images[:0], [])
    expected = fitted_without(network, np.delete(images, [4, 11], 0), images[4])
    np.testing.assert_allclose(maps[4], expected, rtol=5e-3, atol=5e-3 * expected.max())
    # On some processors a place in the batch shows in the last bit.
    np.testing.assert_allclose(maps[4], maps[11], rtol=1e-5)


def test_images_of_two_variants_are_left_out_of_the_statistics_of_their_own() -> None:
    images = pictures(120, variants=2)
    network = network_for(images, f"{NAME}:2")
    maps, _ = left_out(network, images, images[:0], [])
    alone = network_for(images)
    assert isinstance(network.head, WhitenedHead)
    assert isinstance(alone.head, WhitenedHead)
    for name in ("weights", "scale", "offset"):
        getattr(alone.head, name).data = getattr(network.head, name).data
    alone.head.mixing = network.head.mixing
    expected = fitted_without(alone, np.delete(images[::2], 5, 0), images[10])
    np.testing.assert_allclose(maps[10], expected, rtol=1e-2, atol=1e-2 * expected.max())


def test_new_images_are_judged_as_those_that_were_left_out() -> None:
    images, new = pictures(80), pictures(400, seed=1)
    network, scaling = network_for(images), networks.input_normalization(NAME)
    assert scaling is not None
    with torch.inference_mode():
        tested = objective.anomaly_map(network(scaling(torch.from_numpy(new)))).amax((1, 2, 3)).numpy()
        own = objective.anomaly_map(network(scaling(torch.from_numpy(images)))).amax((1, 2, 3)).numpy()
    maps, _ = left_out(network, images, images[:0], [])
    rate = (tested > calibration.conformal_threshold(maps.max((1, 2)), 0.2)).mean()
    assert 0.08 < rate < 0.35
    # By statistics that did see them, nearly every new image would be an alarm.
    assert (tested > calibration.conformal_threshold(own, 0.2)).mean() > 0.9


@pytest.mark.parametrize("suffix", [":1:8", ":1:8:anywhere", ":1:8:anywhere:1", ":2:8:anywhere:1", ":2:8"])
def test_images_are_left_out_of_statistics_that_cells_share(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "LARGEST", 5000)  # squares of four cells and more
    images = pictures(40, variants=2 if suffix.startswith(":2") else 1)
    images[11] = images[5]
    network = network_for(images, NAME + suffix)
    assert isinstance(network.head, WhitenedHead)
    assert network.head.anywhere or network.head.side > 1
    probes = np.ascontiguousarray(images[[3], ::-1])
    maps, probe_maps = left_out(network, images, probes, [3])
    kept = copy.deepcopy(network)  # the components stay those of all images

    def without(indices: list[int], shown: np.ndarray) -> np.ndarray:
        monkeypatch.setattr(WhitenedHead, "fit_projection", lambda *_, **__: None)
        return fitted_without(kept, np.delete(images, indices, 0), shown)

    for index, indices in ((0, [0]), (5, [5, 11])):
        expected = without(indices, images[index])
        np.testing.assert_allclose(maps[index], expected, rtol=1e-2, atol=1e-2 * expected.max())
    expected = without([3], probes[0])
    np.testing.assert_allclose(probe_maps[0], expected, rtol=1e-2, atol=1e-2 * expected.max())


def test_a_variant_of_two_images_is_judged_by_what_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "LARGEST", 5000)
    images = pictures(40)
    images[[0, 1]] = 255 - images[[0, 1]]
    network = network_for(images, f"{NAME}:2:8")
    maps, _ = left_out(network, images, images[:0], [])
    assert np.isfinite(maps).all()
    images[1] = images[0]  # and of one picture twice
    maps, _ = left_out(network_for(images, f"{NAME}:2:8"), images, images[:0], [])
    assert np.isfinite(maps).all()
