"""What the names of networks on whitened features say, and what they leave to the size of the images."""

import pytest
import torch
from torch import nn

from fcdd import networks
from fcdd.errors import ConfigError
from fcdd.whitening import Statistics, WhitenedHead

OPEN = "whitened:efficientnet_lite0"
TEXTURE, WIDE = f"{OPEN}:stage3+stage2+stage4", "whitened:resnet50:layer1+layer2+layer3"
FINE, COARSE = f"{OPEN}:stage3+stage4+stage5", f"{OPEN}:stage4+stage3+stage5"


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        (OPEN, (64, 64), f"{FINE}:1:32+32+32"),
        (f"{OPEN}:1", (224, 224), f"{FINE}:1:32+32+32"),
        (f"{OPEN}:2", (224, 224), f"{COARSE}:2"),
        (OPEN, (256, 320), f"{FINE}:1:32+32+32"),
        (OPEN, (320, 320), f"{COARSE}:1:64"),  # so many fine cells would be 59 MB
        (f"{OPEN}:2", (896, 896), f"{COARSE}:2:64"),
        (f"{OPEN}:anywhere", (224, 224), f"{TEXTURE}:anywhere:2"),
        (f"{OPEN}:3:anywhere", (2048, 2048), f"{TEXTURE}:3:anywhere:2"),
        (f"{COARSE}:1:64:anywhere", (512, 512), f"{COARSE}:1:64:anywhere:2"),
        (f"{COARSE}:anywhere:1", (512, 512), f"{COARSE}:anywhere:1"),
        (f"{OPEN}:anywhere:0", (512, 512), f"{TEXTURE}:anywhere:0"),
        (f"{COARSE}:anywhere", (112, 512), f"{COARSE}:anywhere:0"),  # 7 rows of cells
        (f"{WIDE}:anywhere", (64, 64), f"{WIDE}:anywhere:0"),  # 25 covariances would be 321 MB
        (COARSE, (224, 224), COARSE),
        (f"{COARSE}:1", (256, 320), f"{COARSE}:1"),
        (COARSE, (512, 512), f"{COARSE}:1:64"),
        (f"{COARSE}:1:100", (896, 896), f"{COARSE}:1:100"),
        (f"{OPEN}:stage3", (512, 512), f"{OPEN}:stage3"),  # 40 features are fewer than the components would be
        ("cnn224", (224, 224), "cnn224"),
    ],
)
def test_what_a_name_leaves_open_follows_from_the_size_of_the_images(
    name: str, size: tuple[int, int], found: str
) -> None:
    assert networks.for_size(name, size) == found
    assert networks.for_size(found, size) == found


def test_an_open_name_is_built_as_the_name_that_it_becomes() -> None:
    network = networks.build(OPEN, in_channels=3, image_size=(64, 96))
    assert isinstance(network.head, WhitenedHead)
    assert network.head.mean.shape == (1, 8 * 12, 96)
    assert networks.geometry(OPEN, (64, 96)) == network.receptive_field
    assert network.receptive_field.stride == 8


@pytest.mark.parametrize(
    ("name", "statistics", "is_said"),
    [
        (OPEN, Statistics(), False),
        (f"{OPEN}:3", Statistics(3), True),
        (f"{OPEN}:anywhere", Statistics(anywhere=True), False),
        (f"{FINE}:1", Statistics(1), True),
        (f"{FINE}:2:8+16+24", Statistics(2, (8, 16, 24)), True),
        (f"{FINE}:1:64:anywhere", Statistics(1, (64,), True), True),
        (f"{FINE}:anywhere:3", Statistics(anywhere=True, borders=3), False),
        (f"{FINE}:2:anywhere:1", Statistics(2, None, True, 1), True),
    ],
)
def test_a_name_says_which_statistics(name: str, statistics: Statistics, is_said: bool) -> None:
    parts = networks.parse(name)
    assert parts is not None
    assert parts.statistics == statistics
    assert networks.names_modes(name) is is_said
    assert networks.parse(str(parts)) == parts


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("whitened:resnet18", "name the stages of resnet18, as in whitened:resnet18:<stage>"),
        (f"{OPEN}:1:64", "name the stages of efficientnet_lite0"),
        ("backbone:efficientnet_lite0", "expected a network like backbone:<trunk>:<stage>"),
        (f"{OPEN}:17", "expected a network like"),
        (f"{OPEN}:stage4:1:", "expected a network like"),
        (f"{OPEN}:stage4:1:8+", "expected a network like"),
        (f"{OPEN}:anywhere:12", "expected a network like"),
        (f"{OPEN}:2:1", "name the stages"),
    ],
)
def test_a_malformed_name_is_refused_with_an_example(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        networks.check_name(name)


def test_fine_cells_count_their_neighbours_less_than_themselves() -> None:
    for name, weight in ((f"{FINE}:1:4+4+4", 0.25), (FINE, 1 / 9)):
        features = networks.build(name, in_channels=3, image_size=(64, 64)).features
        assert isinstance(features, nn.Sequential)
        spot = torch.zeros(1, 1, 8, 8)
        spot[0, 0, 4, 4] = 1
        around = features[1](spot)
        assert around.shape == spot.shape
        assert float(around[0, 0, 4, 4]) == pytest.approx(weight)
        assert float(around.sum()) == pytest.approx(1)
