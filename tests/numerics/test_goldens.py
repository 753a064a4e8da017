"""Equal to the official implementation: networks, losses, gradients, upsampling, LCN, training steps.

Tolerance 1e-4 relative throughout: the smallest deliberate error (a batch-norm eps) moves outputs by 4e-4.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fcdd import augmentation, metrics, networks, normalization, objective, upsampling
from fcdd.paper import datasets
from fcdd.paper.protocols import PROTOCOLS
from tests.numerics import recipe

GOLDENS = Path(__file__).parents[1] / "goldens"
NETWORKS = {
    "cnn28": "CNN28",
    "cnn28_w": "CNN28_W",
    "cnn32_lw3k": "CNN32_LW3K",
    "cnn32_lw3k_nobias": "CNN32_LW3K_nobias",
    "cnn224": "CNN224",
}
RELATIVE = 1e-4


def load(name: str) -> np.lib.npyio.NpzFile:
    return np.load(GOLDENS / f"{name}.npz")


def close(actual: object, expected: np.ndarray, relative: float = RELATIVE) -> None:
    """Within `relative` of each value, or of the largest value where one is near zero."""
    array = np.asarray(actual.detach() if isinstance(actual, torch.Tensor) else actual)
    np.testing.assert_allclose(array, expected, rtol=relative, atol=relative * float(np.abs(expected).max() or 1) * 0.1)


class Case:
    """A network with the goldens' weights, its golden arrays and its inputs."""

    def __init__(self, name: str) -> None:
        self.golden = load(f"fcdd_{NETWORKS[name]}")
        self.size = int(name.removeprefix("cnn").split("_")[0])
        self.network = networks.build(name, in_channels=1 if self.size == 28 else 3, image_size=(self.size, self.size))
        self.names = recipe.fill(self.network, self.golden["keys_json"])
        inputs = load("inputs")
        count = len(self.golden["out_eval"])
        self.images = recipe.inputs(inputs, self.size, count)
        self.masks = torch.from_numpy(inputs[f"mask_{self.size}"][:count])
        self.labels = torch.tensor([0, 1, 1, 0])[:count]

    def upsample(self, maps: torch.Tensor, std: float | None) -> torch.Tensor:
        return upsampling.upsample(maps, self.network.receptive_field, (self.size, self.size), std)


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_network_has_the_published_geometry_and_output(case: Case) -> None:
    field = case.network.receptive_field
    expected = case.golden["reception_n_j_r_s"].tolist()
    assert [field.height, field.stride, field.extent, field.centre] == expected
    with torch.no_grad():
        output = case.network.eval()(case.images)
    close(output, case.golden["out_eval"])
    close(objective.anomaly_map(output), case.golden["amap_eval"])
    close(objective.image_score(objective.anomaly_map(output)), case.golden["score_eval"])


def test_upsampling_equals_the_transposed_convolution(case: Case) -> None:
    maps = torch.from_numpy(case.golden["amap_eval"])
    for kind in ("task", "default"):
        expected = case.golden[f"up_{kind}"]
        std = float(case.golden[f"up_{kind}_std"])
        close(case.upsample(maps[: len(expected)], std), expected)
    assert upsampling.default_std(case.network.receptive_field.extent) == pytest.approx(
        float(case.golden["up_default_std"])
    )


def test_training_mode_losses_and_gradients_are_the_published_ones(case: Case) -> None:
    std = float(case.golden["up_task_std"])
    for kind in ("loss_oe", "loss_gt", "loss_all_labels_0"):
        recipe.fill(case.network, case.golden["keys_json"])  # fresh weights and statistics
        case.network.train().zero_grad()
        maps = objective.anomaly_map(case.network(case.images))
        if kind == "loss_oe":
            losses = objective.image_loss(maps, case.labels)
        elif kind == "loss_gt":
            losses = objective.pixel_loss(maps, case.masks, lambda m: case.upsample(m, std))
        else:
            losses = objective.image_loss(maps, torch.zeros_like(case.labels))
        losses.mean().backward()
        close(losses, case.golden[f"{kind}_per_sample"])
        close(losses.mean(), case.golden[kind])
        close(case.network.head.weight.grad, case.golden[f"{kind}_grad_conv_final_weight"])
        parameters = dict(case.network.named_parameters())
        norms = [
            float(parameters[case.names[name]].grad.norm())
            for name in json.loads(str(case.golden["grad_names_json"]))
            if name in case.names
        ]
        expected = [
            norm
            for name, norm in zip(
                json.loads(str(case.golden["grad_names_json"])), case.golden[f"{kind}_grad_l2"], strict=True
            )
            if name in case.names
        ]
        np.testing.assert_allclose(norms, expected, rtol=1e-3, atol=1e-5 * max(expected))


def test_safe_anomalous_term_follows_the_official_one_and_stays_finite() -> None:
    golden = load("anomalous_term_curve")
    ours = objective.anomalous_term(torch.from_numpy(golden["a"])).numpy()
    assert np.isfinite(ours).all()
    for smallest, tolerance in ((1e-5, 0.0015), (1e-4, 0.0003)):
        beyond = golden["a"] >= smallest
        assert np.abs(ours - golden["term_float32"])[beyond].max() <= tolerance


def test_gaussian_kernels_are_the_published_ones() -> None:
    golden = load("gauss_kernels")
    for name in (name for name in golden.files if name.startswith("k")):
        size, std = name[1:].split("_std")
        extent = int(size)
        deviation = upsampling.default_std(extent) if std == "default" else float(std)
        close(upsampling.gaussian_kernel(extent, deviation), golden[name], 1e-5)
    close([upsampling.default_std(k) for k in range(1, 65)], golden["default_std_for_k_1_to_64"], 1e-6)


@pytest.mark.parametrize("cell", ["0_0", "3_3", "6_2"])
def test_a_single_hot_cell_lands_where_the_official_code_puts_it(cell: str) -> None:
    golden = load("gauss_kernels")
    field = networks.build("cnn28_w", in_channels=1, image_size=(28, 28)).receptive_field
    row, column = map(int, cell.split("_"))
    maps = torch.zeros(1, 1, 7, 7)
    maps[0, 0, row, column] = 1
    heatmap = upsampling.upsample(maps, field, (28, 28), 1.2)[0, 0].numpy()
    assert (
        list(np.unravel_index(heatmap.argmax(), heatmap.shape))
        == golden[f"impulse_FCDD_CNN28_W_{cell}_argmax"].tolist()
    )


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("size", [28, 32, 224])
def test_lcn_is_the_official_one_per_image(norm: str, size: int) -> None:
    expected = load("lcn")[f"lcn_{norm}_{size}"]
    images = torch.from_numpy(load("inputs")[f"u8_{size}"][: len(expected)]).float() / 255
    close(normalization.lcn(images, norm), expected)
    close(normalization.lcn(images[0], norm), expected[0])


def test_lcn_of_a_constant_image_is_finite() -> None:
    close(normalization.lcn(torch.full((3, 8, 8), 0.4)), load("lcn")["lcn_l1_constant_image"])


def test_five_steps_of_sgd_end_at_the_official_weights() -> None:
    golden = load("train5_CNN28_W_sgd_oe")
    case = Case("cnn28_w")
    optimizer = torch.optim.SGD(case.network.parameters(), 1e-2, momentum=0.9, nesterov=True, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    losses = []
    case.network.train()
    for _ in range(5):
        optimizer.zero_grad()
        loss = objective.image_loss(objective.anomaly_map(case.network(case.images)), case.labels).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    close(losses, golden["losses"])
    close(case.network.head.weight, golden["conv_final_weight_after"])
    with torch.no_grad():
        close(case.network.eval()(case.images), golden["out_eval_after"])


@pytest.mark.parametrize("std", [None, 4, 8, 12, 14])
def test_pixel_auroc_is_the_official_one(std: float | None) -> None:
    """Official chain: VGG geometry, Gaussian upsampling to 224, torch's nearest neighbour to the masks, one ROC."""
    golden = load("pixel_auc")
    field = networks.build("vgg", in_channels=3, image_size=(224, 224)).receptive_field
    heatmaps = upsampling.upsample(torch.from_numpy(golden["low"]), field, (224, 224), std)[:, 0].numpy()
    pixels = metrics.PixelMetrics(resamples=0)
    for heatmap, mask in zip(heatmaps, golden["gt"][:, 0], strict=True):
        pixels.add(datasets.nearest_corner(heatmap, mask.shape), mask == 1)
    assert pixels.result().auroc.value == pytest.approx(float(golden[f"pixel_auc_std{std}"]), abs=1e-4)
    labels, scores = golden["labels"].astype(int), golden["low"].mean((1, 2, 3)).astype(float)
    assert metrics.image_metrics(labels, scores, resamples=0).auroc.value == pytest.approx(float(golden["image_auc"]))


def test_nearest_neighbours_are_those_of_torch_and_of_pil() -> None:
    golden = load("resize_indices")
    for name in golden.files:
        kind, _, old, _, new = name.split("_")
        line = np.arange(int(old))[:, None].repeat(2, 1)
        resize = datasets.nearest_corner if kind == "torch" else augmentation.nearest
        np.testing.assert_array_equal(resize(line, (int(new), 2))[:, 0], golden[name])


@pytest.mark.parametrize(
    ("name", "protocol", "nominal", "size"),
    [
        ("fmnist_class3_lcn_minmax", "fmnist", "Dress", 28),
        ("cifar_class5_meanstd", "cifar10", "dog", 32),
        ("mvtec_class13_lcn_minmax", "mvtec", "wood", 224),
    ],
)
def test_preprocessing_with_the_published_constants(name: str, protocol: str, nominal: str, size: int) -> None:
    expected = load("lcn")[name]
    if expected.ndim == 3:  # one image, the second of the inputs
        images, expected = load("inputs")[f"u8_{size}"][1:2], expected[None]
    else:
        images = load("inputs")[f"u8_{size}"][: len(expected)]
    scaling = PROTOCOLS[protocol].normalization(nominal, [])
    actual = scaling(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1))))
    close(actual, expected)
