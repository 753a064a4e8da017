from collections.abc import Iterator

import numpy as np
import pytest
import skimage.data
import torch

from fcdd import detector, networks, normalization, training, whitening
from fcdd.errors import ConfigError
from fcdd.inference import Runner
from fcdd.whitening import REGULARIZATION, Statistics, WhitenedHead
from fcdd.windows import Window

CELLS = (3, 4)
GENERATOR = torch.Generator().manual_seed(0)


def features(count: int, shift: float = 0.0) -> torch.Tensor:
    """(count, 5, 3, 4): another mean and covariance at every cell."""
    mixing = torch.randn(12, 5, 5, generator=torch.Generator().manual_seed(1))
    means = torch.arange(60.0).view(12, 5) + shift
    cells = torch.randn(count, 12, 1, 5, generator=GENERATOR) @ mixing + means[:, None]
    return cells[:, :, 0].transpose(1, 2).reshape(count, 5, *CELLS)


def fitted(data: torch.Tensor, modes: int = 1) -> WhitenedHead:
    head = WhitenedHead([5], CELLS, Statistics(modes))

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
    one, other = WhitenedHead([5], CELLS), WhitenedHead([5], CELLS)
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


def covariance(data: torch.Tensor) -> np.ndarray:
    return np.cov(data.double().numpy().T)


@pytest.mark.parametrize("cells", [(4, 6), (5, 7)])
def test_neighbouring_cells_share_a_covariance_about_their_own_means(
    cells: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whitening, "LARGEST", whitening.matrix_bytes(cells, 5) - 1)
    mixing = torch.randn(5, 5, generator=GENERATOR)
    means = 10 * torch.randn(5, *cells, generator=GENERATOR)
    data = torch.einsum("df,nduv->nfuv", mixing, torch.randn(300, 5, *cells, generator=GENERATOR)) + means
    head = WhitenedHead([5], cells, Statistics(components=(5,)))
    assert head.side == 2
    head.fit_projection(data.split(50))
    assert head.projection is not None
    torch.testing.assert_close(head.projection.T @ head.projection, torch.eye(5), atol=1e-4, rtol=0)
    head.fit(lambda: data.split(7))
    assert len(head.whitening[0]) == len(range(0, cells[0], 2)) * len(range(0, cells[1], 2))
    # By hand: the last square, which is smaller where cells do not divide into squares of two.
    rows, columns = range(cells[0] - (cells[0] % 2 or 2), cells[0]), range(cells[1] - (cells[1] % 2 or 2), cells[1])
    gaps = data - data.mean(0)
    members = torch.cat([gaps[:, :, u, v] for u in rows for v in columns])
    expected = (members.T @ members / ((len(data) - 1) * len(rows) * len(columns))).double().numpy()
    all_variances = gaps.square().sum((0, 2, 3)) / ((len(data) - 1) * cells[0] * cells[1])
    gap = gaps[:6, :, rows[-1], columns[-1]].double().numpy()
    with torch.inference_mode():
        energies = (head(data[:6])[:, 0, rows[-1], columns[-1]] + 1).double().numpy() ** 2
    ridge = REGULARIZATION * float(all_variances.mean())
    by_hand = np.einsum("ni,ij,nj->n", gap, np.linalg.inv(expected + ridge * np.eye(5)), gap) / 5
    np.testing.assert_allclose(energies, by_hand, rtol=0.02)


def test_the_components_are_those_with_the_largest_variance() -> None:
    directions = torch.linalg.qr(torch.randn(5, 5, generator=GENERATOR)).Q
    data = torch.einsum("fd,nduv->nfuv", directions, torch.randn(100, 5, 3, 4, generator=GENERATOR))
    spread = torch.tensor([9.0, 4.0, 1.0, 0.1, 0.01])
    data = torch.einsum("fd,d,nduv->nfuv", directions, spread, torch.randn(400, 5, 3, 4, generator=GENERATOR))
    head = WhitenedHead([5], CELLS, Statistics(components=(2,)))
    head.fit_projection(data.split(100))
    assert head.projection is not None
    overlap = (directions[:, :2].T @ head.projection).abs()
    torch.testing.assert_close(overlap, torch.eye(2), atol=0.05, rtol=0)
    assert head.mean.shape == (1, 12, 2)
    with pytest.raises(ConfigError, match="no 6 principal components of 5 features"):
        WhitenedHead([5], CELLS, Statistics(components=(6,)))


def test_each_stage_keeps_components_of_its_own() -> None:
    """However much more the features of another stage vary."""
    data = torch.randn(400, 5, 3, 4, generator=GENERATOR)
    data[:, 1] += 3 * data[:, 0]
    data[:, 2:] *= 100
    head = WhitenedHead([2, 3], CELLS, Statistics(components=(1, 2)))
    head.fit_projection(data.split(100))
    assert head.projection is not None
    assert head.projection.shape == (5, 3)
    assert not head.projection[2:, 0].any()
    assert not head.projection[:2, 1:].any()
    torch.testing.assert_close(head.projection.T @ head.projection, torch.eye(3), atol=1e-4, rtol=0)
    together = data[:, :2].permute(1, 0, 2, 3).flatten(1)
    direction = np.linalg.eigh(covariance(together.T))[1][:, -1]
    assert abs(direction @ head.projection[:2, 0].double().numpy()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("components", "said"),
    [((3, 2), "no 3 principal components of 2 features"), ((1, 1, 1), r"1\+1\+1 components are those of 3 stages")],
)
def test_components_that_stages_do_not_have_are_refused(components: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WhitenedHead([2, 3], CELLS, Statistics(components=components))


@pytest.mark.parametrize(
    ("stages", "cells", "statistics", "side"),
    [
        ([232], (40, 40), Statistics(2, (64,)), 2),  # 52 MB of both modes together
        ([232], (40, 40), Statistics(1, (64,)), 1),
        ([40, 80, 112], (32, 40), Statistics(1, (32, 32, 32)), 1),  # 47 MB
        ([40, 80, 112], (40, 40), Statistics(1, (32, 32, 32)), 2),
    ],
)
def test_which_cells_share_is_what_stored_bundles_have(
    stages: list[int], cells: tuple[int, int], statistics: Statistics, side: int
) -> None:
    assert WhitenedHead(stages, cells, statistics).side == side


def test_variants_are_told_apart_by_features_that_no_component_keeps() -> None:
    data = torch.randn(60, 2, 3, 4, generator=GENERATOR) * torch.tensor([100.0, 0.1]).view(2, 1, 1)
    data[::2, 1] += 1
    head = WhitenedHead([2], CELLS, Statistics(2, (1,)))
    head.fit_projection([data])
    labels = head.assign(lambda: data.split(7), 0)
    assert labels is not None
    assert len(set(labels[::2].tolist())) == len(set(labels[1::2].tolist())) == 1
    assert labels[0] != labels[1]


def test_statistics_of_anywhere_judge_the_same_features_alike_at_every_place() -> None:
    data = torch.randn(200, 5, 3, 4, generator=GENERATOR) * torch.arange(1.0, 6).view(5, 1, 1) + 3
    head = WhitenedHead([5], CELLS, Statistics(anywhere=True))
    head.fit(lambda: data.split(30))
    assert head.mean.shape == (1, 1, 5)
    cells_nd = data.permute(0, 2, 3, 1).reshape(-1, 5)
    ridge = REGULARIZATION * np.diag(covariance(cells_nd)).mean()
    probe = torch.randn(5, generator=GENERATOR) * 4
    with torch.inference_mode():
        output = head(probe.view(1, 5, 1, 1).expand(1, 5, 7, 2))  # maps of any size
    gap = (probe - cells_nd.mean(0)).double().numpy()
    expected = np.sqrt(gap @ np.linalg.inv(covariance(cells_nd) + ridge * np.eye(5)) @ gap / 5) - 1
    np.testing.assert_allclose(output.numpy(), np.full((1, 1, 7, 2), expected), rtol=2e-3)


def test_cells_at_a_border_have_statistics_of_their_own_by_how_near_and_at_which_side() -> None:
    data = torch.randn(300, 5, 7, 8, generator=GENERATOR) + 3
    data[:, 0, :, :2] += torch.tensor([40.0, 20.0])  # as zeros beyond the image do
    data[:, :, -1] *= 3
    head = WhitenedHead([5], (7, 8), Statistics(anywhere=True, borders=2))
    head.fit(lambda: data.split(70))
    blind = WhitenedHead([5], (7, 8), Statistics(anywhere=True))
    blind.fit(lambda: data.split(70))
    with torch.inference_mode():
        maps, without = ((each(data) + 1).mean((0, 1)) for each in (head, blind))
    assert head.mean.shape == (1, 25, 5)
    assert 0.8 < maps.min() < maps.max() < 1.1
    assert without.max() / without.min() > 2
    middle_nd = data[:, :, 2:5, 2:6].permute(0, 2, 3, 1).reshape(-1, 5)
    ridge = REGULARIZATION * np.diag(covariance(middle_nd)).mean()
    for rows, columns in ((slice(2, 5), slice(2, 6)), (slice(2, 5), slice(0, 1)), (slice(6, 7), slice(7, 8))):
        own_nd = data[:, :, rows, columns].permute(0, 2, 3, 1).reshape(-1, 5)
        own, usual, count = covariance(own_nd), covariance(middle_nd), len(own_nd) - 1
        if rows.start == 2 == columns.start:
            expected = usual
        else:
            expected = (count * own + 20 * usual * np.trace(own) / np.trace(usual)) / (count + 20)
        gap = (own_nd[:4] - own_nd.mean(0)).double().numpy()
        distance = np.einsum("nd,de,ne->n", gap, np.linalg.inv(expected + ridge * np.eye(5)), gap)
        with torch.inference_mode():
            found = (head(data[:1])[0, 0, rows, columns].flatten()[:4] + 1) ** 2 * 5
        np.testing.assert_allclose(found.numpy(), distance[: len(found)], rtol=5e-3)


def test_borders_of_a_texture_are_hardly_farther_from_nominal_than_the_rest() -> None:
    brick, corners = skimage.data.brick(), range(0, 320, 80)
    crops = np.stack([brick[row : row + 192, column : column + 192] for row in corners for column in corners])
    pixels = np.repeat(crops[..., None], 3, 3)
    ratios = []
    for borders in (0, 2):
        name = f"whitened:efficientnet_lite0:stage3+stage2+stage4:anywhere:{borders}"
        network = networks.build(name, in_channels=3, image_size=(192, 192))
        scaling = networks.input_normalization(name)
        assert scaling is not None
        networks.load_pretrained(network, name)
        training.fit_statistics(network, scaling, pixels[::2], seed=0)
        with torch.inference_mode():
            distances = network.eval()(scaling(torch.from_numpy(pixels[1::2])))[:, 0] + 1
        ratios.append(float(distances[:, 0].mean() / distances[:, 2:-2, 2:-2].mean()))
    assert ratios[0] > 1.3
    assert 0.9 < ratios[1] < 1.2


@pytest.mark.parametrize(
    "statistics",
    [Statistics(2), Statistics(1, (3,)), Statistics(1, (3,), True), Statistics(2, (3,), True, 1), Statistics(2, (4,))],
)
@pytest.mark.parametrize("side", [1, 2])
def test_a_window_is_judged_by_the_statistics_of_its_cells(
    statistics: Statistics, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if side > 1:
        monkeypatch.setattr(whitening, "LARGEST", 1)  # as few matrices as can be
    data = features(60)
    head = WhitenedHead([5], CELLS, statistics)
    head.fit_projection([data])
    head.fit(lambda: [data])
    at = [Window((1, 2), (1, 0), (2, 2)), Window((0, 1), (0, 1), (2, 2))]
    parts = torch.stack([data[0, :, 0:3, 2:4], data[1, :, 0:3, 0:2]])
    parts = torch.cat([parts, parts], 3)  # something beside what counts
    parts[1, :, :2, 1:3] = data[1, :, 0:2, 1:3]
    with torch.inference_mode():
        whole, windows = head(data[:2]), head.of_windows(parts, at)
    torch.testing.assert_close(windows[0], whole[0, :, 1:3, 2:4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(windows[1], whole[1, :, 0:2, 1:3], rtol=1e-4, atol=1e-4)


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
