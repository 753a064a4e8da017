"""Every network by name: an image (B,C,H,W) to a one-channel output (B,1,U,V) before the anomaly map.

Source: METHOD section 2, whose table this module copies. `build` is the only way in; names are
lower-case ("cnn224", "cnn32_lw3k", "backbone:efficientnet_lite0:stage4"), with "_nobias" appended for
the variants without biases.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

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
BACKBONE_PREFIX = "backbone:"


class FCDDNetwork(nn.Module):
    """Convolutional features, then a 1x1 convolution to one channel without activation.

    `receptive_field` describes the output map for the image size the network was built for.
    """

    def __init__(self, features: nn.Module, channels: int, field: ReceptiveField, *, bias: bool = True) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Conv2d(channels, 1, 1, bias=bias)
        self.receptive_field = field

    def forward(self, images_bchw: Tensor) -> Tensor:
        """Output (B,1,U,V), any real value; `fcdd.objective.anomaly_map` makes it a map."""
        output: Tensor = self.head(self.features(images_bchw))
        return output


def names() -> list[str]:
    """Every name `build` accepts, without the "_nobias" variants."""
    trunks = [f"{BACKBONE_PREFIX}{name}:{stage}" for name, stages in backbones.STAGES.items() for stage in stages]
    return sorted(ARCHITECTURES) + trunks


def build(name: str, *, in_channels: int, image_size: tuple[int, int]) -> FCDDNetwork:
    """The network `name` with default initialisation, for images of `image_size` = (height, width).

    Pretrained weights of backbones are loaded by `fcdd.backbones.load_pretrained`, not here.
    Raises ConfigError for an unknown name or an image too small for the layers.
    """
    if name.startswith(BACKBONE_PREFIX):
        features, layers, channels = backbones.trunk(name.removeprefix(BACKBONE_PREFIX), in_channels)
        field = receptive_field.compute(layers, image_size)
        if any(side % field.stride for side in image_size):
            raise ConfigError(f"{name} takes images whose sides divide by {field.stride}, got {image_size}")
        return FCDDNetwork(features, channels, field)
    base = name.removesuffix("_nobias")
    if base not in ARCHITECTURES:
        raise ConfigError(f"unknown network {name!r}; choose one of: {', '.join(names())}")
    convs, bias = ARCHITECTURES[base], base == name
    field = receptive_field.compute(_geometry(convs), image_size)
    features = nn.Sequential(*_modules(convs, in_channels, bias))
    return FCDDNetwork(features, convs[-1].channels, field, bias=bias)


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
