"""Every network by name: an image (B,C,H,W) to a one-channel output (B,1,U,V) before the anomaly map.

Source: METHOD section 2, whose table this module copies. `build` is the only way in; names are
lower-case ("cnn224", "cnn32_lw3k", "backbone:efficientnet_lite0:stage4"), with "_nobias" appended for
the variants without biases.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Self

from torch import Tensor, nn

from fcdd import backbones, receptive_field
from fcdd.errors import ConfigError
from fcdd.receptive_field import Layer, ReceptiveField

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
BACKBONE_PREFIX = "backbone:"


class FCDDNetwork(nn.Module):
    """Convolutional features, then a 1x1 convolution to one channel without activation.

    `receptive_field` describes the output map for the image size the network was built for. Batch-norms below
    `fixed_statistics` stay in evaluation mode while training, so that the result does not depend on the batch.
    """

    def __init__(
        self,
        features: nn.Module,
        channels: int,
        field: ReceptiveField,
        *,
        bias: bool = True,
        fixed_statistics: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Conv2d(channels, 1, 1, bias=bias)
        self.receptive_field = field
        modules = [module for part in fixed_statistics for module in part.modules()]
        # A tuple, so that torch does not register them a second time.
        self._fixed_norms = tuple(module for module in modules if isinstance(module, nn.BatchNorm2d))

    def train(self, mode: bool = True) -> Self:
        """Like `nn.Module.train`, but for the batch-norms with fixed statistics."""
        super().train(mode)
        for norm in self._fixed_norms:
            norm.eval()
        return self

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Output (B,1,U,V), any real value; `fcdd.objective.anomaly_map` makes it a map."""
        output: Tensor = self.head(self.features(images_bchw))
        return output


def names() -> list[str]:
    """Every name `build` accepts, without the "_nobias" variants."""
    trunks = [f"{BACKBONE_PREFIX}{name}:{stage}" for name, stages in backbones.STAGES.items() for stage in stages]
    return sorted(ARCHITECTURES) + list(VGG_NAMES) + trunks


def is_pretrained(name: str) -> bool:
    """Whether the network is meant to start from ImageNet weights."""
    return name.startswith(BACKBONE_PREFIX) or name in ("vgg", "vgg_f")


def build(name: str, *, in_channels: int, image_size: tuple[int, int], moving_statistics: bool = False) -> FCDDNetwork:
    """The network `name` with default initialisation, for images of `image_size` = (height, width).

    Pretrained weights are loaded by `fcdd.backbones.load_pretrained`, not here. With `moving_statistics` the
    batch-norms of backbones and the frozen ones of "vgg_f" normalise with the batch and follow it while training:
    the official behaviour of "vgg_f" (METHOD section 2), and needed without pretrained weights. By default they
    keep their statistics.
    Raises ConfigError for an unknown name, an image too small for the layers, or VGG with other than 3 channels.
    """
    if name in VGG_NAMES:
        if in_channels != 3:
            raise ConfigError(f"{name} takes images of 3 channels, got {in_channels}")
        vgg = nn.Sequential(*_vgg_modules(in_channels))
        field = receptive_field.compute(_vgg_geometry(), image_size)
        frozen = vgg[:VGG_FROZEN_MODULES].requires_grad_(False) if name == "vgg_f" else nn.Sequential()
        return FCDDNetwork(vgg, 512, field, fixed_statistics=() if moving_statistics else [frozen])
    if name.startswith(BACKBONE_PREFIX):
        features, layers, channels = backbones.trunk(name.removeprefix(BACKBONE_PREFIX), in_channels)
        field = receptive_field.compute(layers, image_size)
        if any(side % field.stride for side in image_size):
            raise ConfigError(f"{name} takes images whose sides divide by {field.stride}, got {image_size}")
        return FCDDNetwork(features, channels, field, fixed_statistics=() if moving_statistics else [features])
    base = name.removesuffix("_nobias")
    if base not in ARCHITECTURES:
        raise ConfigError(f"unknown network {name!r}; choose one of: {', '.join(names())}")
    convs, bias = ARCHITECTURES[base], base == name
    field = receptive_field.compute(_geometry(convs), image_size)
    features = nn.Sequential(*_modules(convs, in_channels, bias))
    return FCDDNetwork(features, convs[-1].channels, field, bias=bias)


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
