"""Networks rewritten for speed have the values of those that they were made from."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fcdd import folding, networks
from fcdd.efficientnet_lite import EfficientNetLite
from fcdd.networks import FCDDNetwork

WHITENED = "whitened:efficientnet_lite0:stage4+stage3"


def with_statistics(module: nn.Module) -> nn.Module:
    """Batch norms as after a training: without it folding them would change nothing."""
    torch.manual_seed(1)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.get_buffer("running_mean").normal_(0, 0.1)
            each.get_buffer("running_var").uniform_(0.5, 2)
    return module.eval()


def build(name: str) -> FCDDNetwork:
    torch.manual_seed(0)
    network = networks.build(name, in_channels=3, image_size=(64, 96))
    with_statistics(network)
    return network


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def inputs(size: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "name", ["cnn32", "cnn224", "vgg", WHITENED, "backbone:resnet18:layer2", "backbone:mobilenet_v2:features.6"]
)
def test_a_folded_network_has_the_outputs_of_the_network_and_leaves_it_alone(name: str) -> None:
    network, images = build(name), inputs()
    before = copy.deepcopy(network.state_dict())
    with torch.inference_mode():
        expected = network(images)
        folded = folding.folded(network)
        assert difference(folded(images), expected) < 1e-5
        assert difference(network(images), expected) == 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_padding_on_one_side_is_done_by_the_convolution() -> None:
    trunk = with_statistics(EfficientNetLite(("stage3", "stage6")))
    folded, images = folding.folded(trunk), inputs((64, 96))
    assert isinstance(folded, fx.GraphModule)
    assert F.pad not in {node.target for node in folded.graph.nodes}
    with torch.inference_mode():
        for one, other in zip(folded(images), trunk(images), strict=True):
            assert difference(one, other) < 1e-5


class _Skips(nn.Module):
    """What an activation in place would spoil: its input is read again."""

    def __init__(self, activation: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.activation = activation

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        once = self.activation(self.second(hidden))
        again: Tensor = self.activation(hidden) + hidden
        return again + once


class _OfItsInput(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return F.relu(images)


@pytest.mark.parametrize("module", [_Skips(nn.ReLU()), _Skips(F.relu), _OfItsInput()])
def test_what_is_read_again_is_not_written_over(module: nn.Module) -> None:
    images = inputs()
    with torch.inference_mode():
        expected, kept = module(images), images.clone()
        assert difference(folding.folded(module)(images), expected) < 1e-6
    assert torch.equal(images, kept)


class _Reflects(nn.Module):
    """Padding on one side that is not by zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, padding="same")

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.conv(F.pad(images, (0, 1, 0, 1), "reflect")), True)
        padded: Tensor = self.other(F.pad(hidden, (0, 1, 0, 1)))
        return padded


class _PadsTwice(nn.Module):
    """Zeros that more than the convolution reads, and zeros at the left."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.left = nn.Conv2d(3, 4, 3, 2)

    def forward(self, images: Tensor) -> Tensor:
        padded = F.pad(images, (0, 1, 0, 1))
        shifted = self.left(F.pad(images, (1, 0, 1, 0)))
        together: Tensor = self.conv(padded) + shifted + padded.mean()
        return together


@pytest.mark.parametrize("kind", [_PadsTwice, _Reflects])
def test_other_padding_stays_as_it_is(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, images = kind(), inputs()
    with torch.inference_mode():
        assert difference(folding.folded(module)(images), module(images)) < 1e-6


def test_fixed_features_are_folded_and_their_state_is_kept() -> None:
    network, images = build(WHITENED), inputs()
    names = list(network.state_dict())
    with torch.no_grad():
        expected = network(images)
        network.fold_features()
        network.train()
        assert 0 < difference(network(images), expected) < 1e-4
    assert list(network.state_dict()) == names
    assert not any(parameter.grad_fn for parameter in network.parameters())
    network(images).mean().backward()
    assert all(parameter.grad is not None for parameter in network.head.parameters())


@pytest.mark.parametrize("name", ["cnn32", "backbone:efficientnet_lite0:stage3", "vgg_f"])
def test_features_that_are_trained_are_not_folded(name: str) -> None:
    network, images = build(name), inputs()
    network.fold_features()
    with torch.no_grad():
        for parameter in network.features.parameters():
            parameter.mul_(2)
        assert difference(network.compute_features(images), network.features(images)) == 0
