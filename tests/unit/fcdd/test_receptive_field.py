import pytest
import torch

from fcdd import networks, receptive_field
from fcdd.errors import ConfigError
from fcdd.receptive_field import Layer

PUBLISHED = {  # METHOD section 2: map, r, j, s
    "cnn28": (7, 16, 4, 1.5),
    "cnn32": (8, 32, 4, 1.5),
    "cnn32_s": (8, 18, 4, 1.5),
    "cnn32_lw3k": (8, 22, 4, 1.5),
    "cnn224": (28, 59, 8, 0),
    "cnn224_w": (28, 59, 8, 0),
    "cnn224_13k": (28, 243, 8, 0),
    "cnn32_17k": (8, 32, 4, 1.5),
    "vgg": (28, 62, 8, 3.5),
}


def _build(name: str, size: tuple[int, int]) -> networks.FCDDNetwork:
    return networks.build(name, in_channels=1 if name.startswith("cnn28") else 3, image_size=size)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_geometry(name: str) -> None:
    side = 224 if name == "vgg" else int(name.removeprefix("cnn").split("_")[0])
    field = _build(name, (side, side)).receptive_field
    assert (field.height, field.extent, field.stride, field.centre) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["cnn28", "cnn32_lw3k", "cnn224", "vgg", "backbone:efficientnet_lite0:stage4"])
def test_rectangular_images_give_maps_of_the_computed_size(name: str) -> None:
    network = _build(name, (96, 160)).eval()
    field = network.receptive_field
    channels = 1 if name.startswith("cnn28") else 3
    assert network(torch.zeros(1, channels, 96, 160)).shape == (1, 1, field.height, field.width)


@pytest.mark.parametrize("name", ["cnn32_s", "cnn224", "backbone:efficientnet_lite0:stage3"])
def test_a_cell_sees_exactly_its_receptive_field(name: str) -> None:
    network = _build(name, (224, 224)).eval()
    field = network.receptive_field
    cell = field.height // 2
    images = torch.randn(1, 3, 224, 224, requires_grad=True)
    network(images)[0, 0, cell, cell].backward()
    seen = torch.nonzero(images.grad.abs().sum((0, 1, 3))).flatten()
    # Lite0 pads after the image only: by theory its cells are centred half a cell further on than they look.
    theory = field.stride - 1 if "lite0" in name else field.centre
    centre = theory + field.stride * cell
    half = (field.extent - 1) / 2
    assert seen.min() >= centre - half
    assert seen.max() <= centre + half
    assert seen.max() - seen.min() + 1 > 0.7 * field.extent  # max-pooling may drop some of the rim


# Parameters as METHOD section 2 counts them.
PARAMETERS = {
    "cnn28": 3_457,
    "cnn28_w": 413_441,
    "cnn32": 259_201,
    "cnn32_s": 93_569,
    "cnn32_lw3k": 1_185_537,
    "cnn224": 247_569,
    "cnn224_w": 1_286_721,
    "vgg": 4_504_833,
    "vgg_f": 4_504_833,
    "vgg_nopt": 4_504_833,
    "cnn32_3k": 594_689,
    "cnn32_17k": 702_209,
}
# The receptive fields of the paper's study, by kernel size.
STUDY_224 = {3: (53, 1.22), 5: (91, 3.38), 7: (129, 6.63), 9: (167, 10.96), 11: (205, 16.37), 13: (243, 22.86)}
STUDY_32 = {3: 18, 5: 20, 7: 22, 9: 24, 11: 26, 13: 28, 15: 30, 17: 32}


def _count(network: networks.FCDDNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_number_of_parameters(name: str) -> None:
    # The official CNN32 and CNN32_LW3K also count a batch-norm of 128 channels that they never use.
    unused = 256 if name in ("cnn32", "cnn32_lw3k") else 0
    assert _count(_build(name, (224, 224))) + unused == PARAMETERS[name]


def test_the_receptive_fields_of_the_papers_study() -> None:
    for kernel, (extent, millions) in STUDY_224.items():
        network = _build(f"cnn224_{kernel}k", (224, 224))
        assert network.receptive_field.extent == extent
        assert _count(network) / 1e6 == pytest.approx(millions, abs=0.005)
    for kernel, extent in STUDY_32.items():
        assert _build(f"cnn32_{kernel}k", (32, 32)).receptive_field.extent == extent


def test_a_network_without_biases_has_none() -> None:
    for name in ("cnn28_nobias", "cnn224_w_nobias", "cnn32_9k_nobias"):
        network = _build(name, (224, 224))
        assert {key.rpartition(".")[2] for key, _ in network.named_parameters()} == {"weight"}
        assert all(p.dim() == 4 for p in network.parameters())  # convolutions only: batch-norms are not affine


def test_too_small_an_image_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="needs a larger image than 5x5 pixels"):
        receptive_field.compute([Layer(5), Layer(3)], (5, 5))


def test_a_backbone_refuses_sizes_its_stride_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="divide by 16"):
        _build("backbone:efficientnet_lite0:stage4", (100, 100))


def test_an_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"cnn32_lw3k.*backbone:<trunk>:<stage>"):
        _build("resnet9000", (32, 32))
