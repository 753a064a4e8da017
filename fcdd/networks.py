"""Every network by name: an image (B,C,H,W) to a one-channel output (B,1,U,V) before the anomaly map.

Source: METHOD section 2, whose table this module copies. `build` is the only way in; names are
lower-case ("cnn224", "cnn32_lw3k"), with "_nobias" appended for the variants without biases. Beyond the paper:

    backbone:<trunk>:<stage>    a pretrained trunk cut after a stage, and the published head
    whitened:<trunk>[:<stages>][:<modes>[:<components>]][:anywhere[:<borders>]]
                                a fixed trunk and the head of `fcdd.whitening`

with the trunks and stages of `fcdd.backbones` ("backbone:resnet18:layer3", "backbone:efficientnet_lite0:stage4",
"whitened:efficientnet_lite0:stage4+stage3+stage5:2", "...:2:64", "...:2:32+32+32", "...:1:64:anywhere"). Stages are
on the grid of the first. "whitened:efficientnet_lite0" and "whitened:efficientnet_lite0:2" leave stages and components
to the size of the images (`for_size`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fcdd import backbones, folding, receptive_field, strips
from fcdd.errors import ConfigError
from fcdd.normalization import Normalization
from fcdd.openvino_features import OpenvinoFeatures
from fcdd.receptive_field import Layer, ReceptiveField
from fcdd.strips import Strip
from fcdd.whitening import LARGEST_OF_STAGES, Statistics, WhitenedHead, matrix_bytes
from fcdd.windows import Window, cut_out

Tail = Literal["", "L", "p", "Lp", "LP"]


class Conv(NamedTuple):
    """A "same" convolution and what follows: L = batch-norm and leaky ReLU, p / P = max-pooling 2 / 3."""

    kernel: int
    channels: int
    tail: Tail = ""


def _wide224(kernel: int) -> list[Conv]:
    k = kernel
    return [Conv(k, 32, "LP"), Conv(k, 128, "LP"), Conv(k, 256, "L"), Conv(k, 256, "LP"), Conv(k, 128)]


ARCHITECTURES: dict[str, Sequence[Conv]] = {
    "cnn28": [Conv(5, 8, "Lp"), Conv(5, 16, "p")],
    "cnn28_w": [Conv(5, 128, "Lp"), Conv(5, 128, "p")],
    "cnn32": [Conv(5, 32, "Lp"), Conv(5, 64, "Lp"), Conv(5, 128)],
    "cnn32_s": [Conv(3, 32, "Lp"), Conv(3, 64, "Lp"), Conv(3, 128)],
    "cnn32_lw3k": [Conv(3, 128, "Lp"), Conv(3, 256, "L"), Conv(3, 256, "Lp"), Conv(3, 128)],
    "cnn224": [Conv(5, 8, "LP"), Conv(5, 32, "LP"), Conv(3, 64, "L"), Conv(3, 128, "LP"), Conv(3, 128)],
    "cnn224_w": [Conv(5, 32, "LP"), Conv(5, 128, "LP"), Conv(3, 256, "L"), Conv(3, 256, "LP"), Conv(3, 128)],
    **{f"cnn224_{k}k": _wide224(k) for k in range(3, 14, 2)},
    **{f"cnn32_{k}k": [Conv(k, 128, "Lp"), Conv(3, 256, "Lp"), Conv(3, 128)] for k in range(3, 18, 2)},
}
# VGG11 with batch-norm up to its sixth convolution; "p" pools. "vgg" and "vgg_f" start from ImageNet weights,
# "vgg_nopt" does not; "vgg_f" freezes the first four convolutions and their batch-norms.
VGG_LAYERS: tuple[int | Literal["p"], ...] = (64, "p", 128, "p", 256, 256, "p", 512, 512)
VGG_NAMES = ("vgg", "vgg_f", "vgg_nopt")
VGG_FROZEN_MODULES = 15
MAX_MODES = 16
BACKBONE, WHITENED, ANYWHERE = "backbone", "whitened", "anywhere"
_TRUNK_NAME = re.compile(
    r"(?P<kind>backbone|whitened):(?P<trunk>[^:]+)(:(?P<stages>(?!anywhere)[^:0-9][^:]*))?"
    r"(:(?P<modes>[1-9][0-9]?)(:(?P<components>[1-9][0-9]{0,3}(\+[1-9][0-9]{0,3})*))?)?(?P<anywhere>:anywhere(:(?P<borders>[0-9]))?)?"
)
# Where no stages are named: fine cells find small defects, with components of each stage for want of images and memory;
# large images have too many of them, and with several variants, which vary more, they find less
# (benchmarks/results/2026-11-27-cells.md and -large.md).
_Choice = tuple[list[str], tuple[int, ...]]
_FINE: _Choice = (["stage3", "stage4", "stage5"], (32, 32, 32))
_COARSE: _Choice = (["stage4", "stage3", "stage5"], (64,))
# What lies anywhere is told from its texture, by the first stages; zeros beyond the image reach so many cells far
# (benchmarks/results/2026-11-28-anywhere.md).
_ANYWHERE, _BORDERS, _SMALLEST_MAP = ["stage3", "stage2", "stage4"], 2, 8
# Covariances of all features of 256 x 320 pixels in coarse cells are 69 MB for each mode: more are those of components.
_LARGEST_OF_FEATURES = 75_000_000
# Neighbouring cells are averaged, which makes whitened features less sensitive to small shifts.
_NEIGHBOURHOOD = 3


class FCDDNetwork(nn.Module):
    """Convolutional features, then a head: as published, a 1x1 convolution to one channel without activation.

    `receptive_field` describes the output map for the image size the network was built for. Batch-norms below
    `fixed_statistics` stay in evaluation mode while training, so that the result does not depend on the batch; a part
    without trainable parameters does so entirely (dropout and stochastic depth too).
    """

    def __init__(
        self,
        features: nn.Module,
        head: nn.Module,
        field: ReceptiveField,
        *,
        fixed_statistics: Sequence[nn.Module] = (),
        parts: Sequence[Strip] = (),
        coarsest: int | None = None,
    ) -> None:
        """With `parts` features are computed strip by strip; `coarsest`: the largest stride, if not that of the map."""
        super().__init__()
        self.coarsest = coarsest or field.stride
        self._strips = tuple(parts)
        self.features = features
        self.head = head
        self.receptive_field = field
        modules = [module for part in fixed_statistics for module in part.modules()]
        # A tuple, so that torch does not register them a second time.
        self._fixed = tuple(
            module for module in modules if isinstance(module, nn.BatchNorm2d) or not _trainable(features)
        )
        self._folded: tuple[nn.Module, ...] = ()  # a tuple for the same reason

    def train(self, mode: bool = True) -> Self:
        """Like `nn.Module.train`, but for what is fixed."""
        super().train(mode)
        for module in self._fixed:
            module.training = False
        return self

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Output (B,1,U,V), any real value; `fcdd.objective.anomaly_map` makes it a map."""
        output: Tensor = self.head(self.compute_features(images_bchw))
        return output

    def compute_features(self, images_bchw: Tensor) -> Tensor:
        """Features (B,D,U,V): what the head is given."""
        compute = self._folded[0] if self._folded else self.features
        if not self._strips or images_bchw.shape[2] < self._strips[-1].rows.stop:  # whole, or a part of an image
            features: Tensor = compute(images_bchw)
            return features
        return torch.cat([compute(images_bchw[:, :, strip.rows])[:, :, strip.kept] for strip in self._strips], 2)

    def fold_features(self) -> None:
        """Compute the features by a folded copy (`fcdd.folding`) from now on, if they are fixed entirely.

        The state is that of the features as they were built; fill and move the network before.
        """
        if self._fixed and not _trainable(self.features):
            self._fold()

    def for_inference(self, *, openvino_threads: int = 0) -> Self:
        """This network in evaluation mode, with a folded copy of its features; fill and move it before.

        So many threads of OpenVINO compute them, if that is not 0. Raises then as `openvino_features` does.
        """
        self.eval()._fold()
        if openvino_threads:
            channels = next(self.features.parameters()).shape[1]  # of the first convolution
            self._folded = (OpenvinoFeatures(self._folded[0], channels, threads=openvino_threads),)
        return self

    def _fold(self) -> None:
        on_cpu = all(each.device.type == "cpu" for each in self.features.parameters())
        self._folded = (folding.folded(self.features, for_cpu=on_cpu),)


class OfWindows(nn.Module):
    """A network that is given parts of larger images (B,C,h,w), and the cells of each whose output is wanted."""

    def __init__(self, network: FCDDNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_bchw: Tensor, windows: Sequence[Window]) -> Tensor:
        """Output (B,1,rows,columns) of the cells of the windows (B), which are of one size."""
        features, head = self.network.compute_features(images_bchw), self.network.head
        if isinstance(head, WhitenedHead):
            return head.of_windows(features, windows)
        output: Tensor = head(cut_out(features, windows))
        return output


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def names() -> list[str]:
    """Every name `build` accepts, without the "_nobias" variants; trunks and modes stand for all of theirs."""
    return [
        *sorted(ARCHITECTURES),
        *VGG_NAMES,
        f"{BACKBONE}:<trunk>:<stage>",
        f"{WHITENED}:<trunk>[:<stage>+<stage>...][:<modes>[:<components>]][:{ANYWHERE}[:<borders>]]",
    ]


class TrunkName(NamedTuple):
    """The parts of a "backbone:" or "whitened:" name; the statistics are those of the head of the latter.

    Without stages they are those that fit the images.
    """

    kind: str
    trunk: str
    stages: list[str]
    statistics: Statistics = Statistics()

    def __str__(self) -> str:
        modes, components, anywhere, borders = self.statistics
        counts = [str(modes)] if modes > 1 or components else []
        kept = ["+".join(map(str, components))] if components else []
        stages = ["+".join(self.stages)] if self.stages else []
        places = ([ANYWHERE] if anywhere else []) + ([] if borders is None else [str(borders)])
        return ":".join([self.kind, self.trunk, *stages, *counts, *kept, *places])


def parse(name: str) -> TrunkName | None:
    """The parts of the name of a network with a trunk, None for the others. Raises ConfigError for a malformed one."""
    if name.split(":")[0] not in (BACKBONE, WHITENED):
        return None
    found = _TRUNK_NAME.fullmatch(name)
    parts = found.groupdict() if found else {}
    modes, components = int(parts.get("modes") or 1), parts.get("components")
    extras = parts.get("modes") or parts.get("anywhere")
    is_backbone = parts.get("kind") == BACKBONE
    if not parts or modes > MAX_MODES or (is_backbone and (extras or not parts["stages"])):
        raise ConfigError(f"expected a network like {' or '.join(names()[-2:])}, got {name!r}")
    if not parts["stages"] and (parts["trunk"] != backbones.LITE0 or components):
        raise ConfigError(
            f"name the stages of {parts['trunk']}, as in {parts['kind']}:{parts['trunk']}:<stage>+<stage>"
        )
    stages = parts["stages"].split("+") if parts["stages"] else []
    kept = tuple(map(int, components.split("+"))) if components else None
    statistics = Statistics(modes, kept, bool(parts["anywhere"]), int(parts["borders"]) if parts["borders"] else None)
    return TrunkName(parts["kind"], parts["trunk"], stages, statistics)


def with_statistics(name: str, statistics: Statistics) -> str:
    """The name of a "whitened:" network with other statistics; what is the default is left out."""
    parts = parse(name)
    assert parts is not None, "a whitened network"
    return str(parts._replace(statistics=statistics))


def names_modes(name: str) -> bool:
    """Whether the name of a "whitened:" network says how many modes it has."""
    found = _TRUNK_NAME.fullmatch(name)
    return found is not None and found["modes"] is not None


def geometry(name: str, image_size: tuple[int, int]) -> ReceptiveField:
    """The geometry of a network's map for images of (height, width). Raises ConfigError as `build`."""
    if needs_statistics(name):  # statistics of every cell would take memory for nothing
        name = with_statistics(for_size(name, image_size), Statistics(anywhere=True))
    return build(name, in_channels=in_channels(name), image_size=image_size).receptive_field


def for_size(name: str, image_size: tuple[int, int]) -> str:
    """The name of a "whitened:" network with what fits images of (height, width); others are as they are.

    Stages that the name leaves open are those of fine cells for one variant, where a covariance for each cell fits in
    `whitening.LARGEST_OF_STAGES`, else those of coarse ones. Covariances of all features of named stages that would
    take more than 75 MB are those of principal components, unless the name says of how many.

    Of statistics for anywhere open stages are those that tell textures apart, and the borders have covariances of their
    own where the map has 8 x 8 cells or more and they take no more than 75 MB. Raises ConfigError as `build`.
    """
    parts = parse(name)
    if parts is None or parts.kind != WHITENED:
        return name
    modes = parts.statistics.modes
    if parts.statistics.anywhere:
        stages = parts.stages or _ANYWHERE
        _, field, channels, _ = backbones.build(parts.trunk, stages, image_size)
        borders = parts.statistics.borders
        if borders is None:
            side, size = 2 * _BORDERS + 1, sum(parts.statistics.components or channels)
            fits = modes * matrix_bytes((side, side), size) <= _LARGEST_OF_FEATURES
            borders = _BORDERS if fits and min(field.height, field.width) >= _SMALLEST_MAP else 0
        return str(parts._replace(stages=stages, statistics=parts.statistics._replace(borders=borders)))
    if parts.statistics.components:
        return name
    if not parts.stages:
        stages, components = _FINE
        _, field, *_ = backbones.build(parts.trunk, stages, image_size)
        fits = matrix_bytes((field.height, field.width), sum(components)) <= LARGEST_OF_STAGES
        if modes == 1 and fits:
            return str(parts._replace(stages=stages, statistics=Statistics(modes, components)))
        return for_size(str(parts._replace(stages=_COARSE[0])), image_size)
    _, field, channels, _ = backbones.build(parts.trunk, parts.stages, image_size)
    fits = matrix_bytes((field.height, field.width), sum(channels)) <= _LARGEST_OF_FEATURES
    if fits or sum(channels) <= sum(_COARSE[1]):
        return name
    return str(parts._replace(statistics=Statistics(modes, _COARSE[1])))


def check_name(name: str) -> None:
    """Raises ConfigError for a name that `build` does not know."""
    if parse(name) is None and name not in VGG_NAMES and name.removesuffix("_nobias") not in ARCHITECTURES:
        raise ConfigError(f"unknown network {name!r}; choose one of: {', '.join(names())}")


def is_pretrained(name: str) -> bool:
    """Whether the network is meant to start from ImageNet weights."""
    return parse(name) is not None or name in ("vgg", "vgg_f")


def needs_statistics(name: str) -> bool:
    """Whether the network's head is fitted to nominal features before it is trained."""
    parts = parse(name)
    return parts is not None and parts.kind == WHITENED


def in_channels(name: str) -> Literal[1, 3]:
    """Channels of the images the network was published for: 1 for the 28-pixel ones, else 3."""
    return 1 if name.startswith("cnn28") else 3


def load_pretrained(network: FCDDNetwork, name: str, weights: Path | None = None) -> None:
    """Fill the features of network `name` with their ImageNet weights, in place; see `backbones.load_pretrained`."""
    parts = parse(name)
    trunk = network.features if parts is None or parts.kind == BACKBONE else network.features[0]  # type: ignore[index]
    backbones.load_pretrained(trunk, parts.trunk if parts else "vgg11_bn", weights)


def input_normalization(name: str) -> Normalization | None:
    """What the ImageNet weights of the network's trunk expect; None where constants are estimated."""
    parts = parse(name)
    return backbones.input_normalization(parts.trunk) if parts else None


def build(
    name: str,
    *,
    in_channels: int,
    image_size: tuple[int, int],
    moving_statistics: bool = False,
    frozen: bool = False,
) -> FCDDNetwork:
    """The network `name` with default initialisation, for images of `image_size` = (height, width).

    Pretrained weights are loaded by `load_pretrained`, not here. With `moving_statistics` the batch-norms of backbones
    and the frozen ones of "vgg_f" normalise with the batch and follow it while training: the official behaviour of
    "vgg_f" (METHOD section 2), and needed without pretrained weights. By default they keep their statistics. `frozen`
    trains the head of a backbone alone; whitened trunks are always frozen.
    Raises ConfigError for an unknown name, an image too small for the layers, or a trunk with other than 3 channels.
    """
    check_name(name)
    trunk = parse(name)
    if trunk and not trunk.stages:
        trunk = parse(for_size(name, image_size))
    if (trunk or name in VGG_NAMES) and in_channels != 3:
        raise ConfigError(f"{name} takes images of 3 channels, got {in_channels}")
    if name in VGG_NAMES:
        vgg = nn.Sequential(*_vgg_modules(in_channels))
        field = receptive_field.compute(_vgg_geometry(), image_size)
        fixed = vgg[:VGG_FROZEN_MODULES].requires_grad_(False) if name == "vgg_f" else nn.Sequential()
        parts = strips.plan(image_size, field, field.stride)
        return FCDDNetwork(vgg, _head(512), field, fixed_statistics=() if moving_statistics else [fixed], parts=parts)
    if trunk:
        return _on_trunk(trunk, image_size, moving_statistics, frozen)
    base = name.removesuffix("_nobias")
    convs, bias = ARCHITECTURES[base], base == name
    field = receptive_field.compute(_geometry(convs), image_size)
    features = nn.Sequential(*_modules(convs, in_channels, bias))
    parts = strips.plan(image_size, field, field.stride)
    return FCDDNetwork(features, _head(convs[-1].channels, bias=bias), field, parts=parts)


def _head(channels: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, 1, 1, bias=bias)


def _on_trunk(parts: TrunkName, image_size: tuple[int, int], moving_statistics: bool, frozen: bool) -> FCDDNetwork:
    features, field, channels, coarsest = backbones.build(parts.trunk, parts.stages, image_size)
    head: nn.Module = _head(sum(channels))
    if parts.kind == WHITENED:
        features = nn.Sequential(features, _neighbourhood(parts.statistics))
        field = replace(field, extent=field.extent + (_NEIGHBOURHOOD - 1) * field.stride)
        head = WhitenedHead(channels, (field.height, field.width), parts.statistics)
        moving_statistics, frozen = False, True
    features.requires_grad_(not frozen)
    several = strips.plan(image_size, field, coarsest)
    if several and any(side % coarsest for side in image_size):
        raise ConfigError(
            f"beyond {strips.LARGEST:,} pixels the sides of images for {parts.trunk} with these stages must divide by "
            f"{coarsest}, got {image_size[0]}x{image_size[1]}"
        )
    if several and any(isinstance(module, nn.AdaptiveAvgPool2d) for module in features.modules()):
        raise ConfigError(
            f"{parts.trunk} looks at the whole image at once, which for {image_size[0]}x{image_size[1]} pixels takes "
            f"too much memory; choose another network, or at most {strips.LARGEST:,} pixels"
        )
    return FCDDNetwork(
        features,
        head,
        field,
        fixed_statistics=() if moving_statistics else [features],
        parts=several,
        coarsest=coarsest,
    )


def _neighbourhood(statistics: Statistics) -> nn.Module:
    """A mean over 3 x 3 cells; with weights 1, 2, 1 where each stage has components of its own: fine cells."""
    if statistics.is_by_stage:
        pair = nn.AvgPool2d(2, 1)
        return nn.Sequential(nn.ReplicationPad2d(_NEIGHBOURHOOD // 2), pair, pair)
    return nn.AvgPool2d(_NEIGHBOURHOOD, 1, _NEIGHBOURHOOD // 2, count_include_pad=False)


def _vgg_geometry() -> Iterator[Layer]:
    for layer in VGG_LAYERS:
        yield Layer(2, 2) if layer == "p" else Layer(3, 1, 1)


def _vgg_modules(in_channels: int) -> Iterator[nn.Module]:
    for layer in VGG_LAYERS:
        if layer == "p":
            yield nn.MaxPool2d(2, 2)
            continue
        yield from (nn.Conv2d(in_channels, layer, 3, padding=1), nn.BatchNorm2d(layer), nn.ReLU())
        in_channels = layer


def _geometry(convs: Sequence[Conv]) -> Iterator[Layer]:
    for conv in convs:
        yield Layer(conv.kernel, 1, (conv.kernel - 1) // 2)
        if conv.tail.endswith("p"):
            yield Layer(2, 2)
        elif conv.tail.endswith("P"):
            yield Layer(3, 2, 1)


def _modules(convs: Sequence[Conv], in_channels: int, bias: bool) -> Iterator[nn.Module]:
    for conv in convs:
        yield nn.Conv2d(in_channels, conv.channels, conv.kernel, padding=(conv.kernel - 1) // 2, bias=bias)
        if "L" in conv.tail:
            yield nn.BatchNorm2d(conv.channels, eps=1e-4, affine=bias)
            yield nn.LeakyReLU(0.01)
        if conv.tail.endswith("p"):
            yield nn.MaxPool2d(2, 2)
        elif conv.tail.endswith("P"):
            yield nn.MaxPool2d(3, 2, 1)
        in_channels = conv.channels
