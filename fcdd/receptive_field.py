"""Receptive-field arithmetic: what a cell of the output map sees of the input image.

Plain numbers over (kernel, stride, padding); no torch. Source: METHOD section 2, recurrence from
(n, j, r, s) = (H, 1, 1, 0), the same as the official `models/bases.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fcdd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or pooling along one axis; `pad_after` defaults to `pad_before`."""

    kernel: int
    stride: int = 1
    pad_before: int = 0
    pad_after: int | None = None

    @property
    def padding(self) -> int:
        """Padding before and after, in cells of this layer's input."""
        return self.pad_before + (self.pad_before if self.pad_after is None else self.pad_after)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptiveField:
    """Geometry of an output map; cell q is centred on input pixel `centre + stride * q`, per axis.

    `height` and `width` count the map's cells; `stride` (j), `extent` (r) and `centre` (s, of cell 0,
    where 0 is the centre of pixel 0) are in input pixels.
    """

    height: int
    width: int
    stride: int
    extent: int
    centre: float


def compute(layers: Iterable[Layer], image_size: tuple[int, int]) -> ReceptiveField:
    """Geometry after `layers` for an input of `image_size` = (height, width) pixels.

    Raises ConfigError when the image is smaller than a layer's kernel.
    """
    height, width = image_size
    stride, extent, centre = 1, 1, 0.0
    for layer in layers:
        height, width = (
            (n + layer.padding - layer.kernel) // layer.stride + 1 if n + layer.padding >= layer.kernel else 0
            for n in (height, width)
        )
        if height < 1 or width < 1:
            raise ConfigError(f"the network needs a larger image than {image_size[0]}x{image_size[1]} pixels")
        extent += (layer.kernel - 1) * stride
        centre += ((layer.kernel - 1) / 2 - layer.pad_before) * stride
        stride *= layer.stride
    return ReceptiveField(height=height, width=width, stride=stride, extent=extent, centre=centre)
