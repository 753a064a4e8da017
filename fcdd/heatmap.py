"""The stored heatmap: the low-resolution anomaly map as a few hundred bytes, and how it is shown.

Codec "version 1", little-endian: version u8 = 1, height u16, width u16, minimum f32, maximum f32, then
height x width bytes. Values are quantised to 256 levels between minimum and maximum (error at most
1/510 of that range), differenced along both axes modulo 256 and zigzag-coded, so that Parquet's zstd
shrinks a column of them best (docs/facts.md: 473 bytes per 28x28 map against 3,136 raw).

Shapes: U x V cells of the map, H x W pixels.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fcdd.errors import FCDDError

VERSION = 1
_HEADER = struct.Struct("<BHHff")
_HEADER_FIELDS = np.dtype([("version", "u1"), ("shape", "<u2", 2), ("low", "<f4"), ("high", "<f4")])
_LEVELS = 255
# The three anchors of the colour scale.
_COLD, _WARM, _HOT = "#1b0c41", "#cf4446", "#fcffa4"


class DamagedHeatmap(FCDDError, ValueError):
    """Bytes that are no heatmap of this codec."""


def encode(map_uv: npt.NDArray[np.float32]) -> bytes:
    """Bytes of a finite map (U,V). Raises ValueError for other shapes or values."""
    return encode_each(map_uv[None])[0]


def encode_each(maps: npt.NDArray[np.float32]) -> list[bytes]:
    """`encode` of every map of a stack (N,U,V), several times faster than one by one."""
    if maps.ndim != 3 or not np.isfinite(maps).all():
        raise ValueError(f"expected finite 2-D maps, got shape {maps.shape}")
    if not len(maps):
        return []
    low, high = maps.min((1, 2)), maps.max((1, 2))
    span = high.astype(np.float64) - low
    span[span == 0] = 1.0
    scaled = (maps.astype(np.float64) - low[:, None, None]) * (_LEVELS / span)[:, None, None]
    levels = np.rint(scaled).astype(np.uint8)
    deltas = np.diff(levels, axis=2, prepend=np.uint8(0))
    deltas = np.diff(deltas, axis=1, prepend=np.uint8(0)).view(np.int8)
    zigzag = ((deltas << 1) ^ (deltas >> 7)).view(np.uint8)
    shape = maps.shape[1:]
    return [
        _HEADER.pack(VERSION, *shape, *extremes) + cells.tobytes()
        for extremes, cells in zip(zip(low, high, strict=True), zigzag, strict=True)
    ]


def decode(data: bytes) -> npt.NDArray[np.float32]:
    """The map (U,V) of `encode`, within 1/510 of its range. Raises DamagedHeatmap for other bytes."""
    if len(data) < _HEADER.size:
        raise DamagedHeatmap(f"expected at least {_HEADER.size} bytes of heatmap, got {len(data)}")
    version, height, width, low, high = _HEADER.unpack_from(data)
    if version != VERSION or not height * width or len(data) != _HEADER.size + height * width:
        raise DamagedHeatmap(f"expected a heatmap of version {VERSION}, got {version} with {len(data)} bytes")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DamagedHeatmap(f"expected a finite heatmap, got one from {low} to {high}")
    zigzag = np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(height, width)
    deltas = (zigzag >> 1) ^ (0 - (zigzag & 1))
    levels = deltas.cumsum(0, dtype=np.uint8).cumsum(1, dtype=np.uint8)
    values: npt.NDArray[np.float32] = (low + levels * ((high - low) / _LEVELS)).astype(np.float32)
    return values


def decode_each(encoded: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """`decode` of maps of one shape, as one stack (N,U,V), several times faster than one by one.

    Raises DamagedHeatmap for other bytes, or maps of different shapes.
    """
    if not encoded:
        return np.empty((0, 0, 0), np.float32)
    first = decode(encoded[0])
    if any(len(each) != len(encoded[0]) for each in encoded):
        raise DamagedHeatmap("expected heatmaps of one shape")
    data = np.frombuffer(b"".join(encoded), np.uint8).reshape(len(encoded), -1)
    headers = np.frombuffer(data[:, : _HEADER.size].tobytes(), _HEADER_FIELDS)
    if (headers["version"] != VERSION).any() or (headers["shape"] != first.shape).any():
        raise DamagedHeatmap(f"expected heatmaps of version {VERSION} and shape {first.shape}")
    zigzag = data[:, _HEADER.size :].reshape(-1, *first.shape)
    levels = ((zigzag >> 1) ^ (0 - (zigzag & 1))).cumsum(1, dtype=np.uint8).cumsum(2, dtype=np.uint8)
    low, high = (headers[name].astype(np.float64)[:, None, None] for name in ("low", "high"))
    values: npt.NDArray[np.float32] = (low + levels * ((high - low) / _LEVELS)).astype(np.float32)
    return values


def display_scale(values: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.float32]:
    """V / (v + threshold) in [0,1): the same colour means the same evidence in every image.

    The threshold itself shows as 0.5, so nominal images never look hot.
    """
    scaled: npt.NDArray[np.float32] = values / (values + np.float32(max(threshold, 1e-30)))
    return scaled


def at_size(heatmap_hw: npt.NDArray[np.float32], width: int, height: int) -> npt.NDArray[np.float32]:
    """The heatmap (H,W) at another size, (height,width), in the map's units."""
    resized = Image.fromarray(heatmap_hw).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def layer(heatmap_hw: npt.NDArray[np.float32], threshold: float) -> Image.Image:
    """The heatmap in colours as an RGBA picture to lay over the image, transparent where the evidence is nominal.

    The scale is dark, red, yellow: ordered also for colour-blind eyes and in grey.
    """
    grey = Image.fromarray((display_scale(heatmap_hw, threshold) * 255).round().astype(np.uint8))
    shown = ImageOps.colorize(grey, black=_COLD, mid=_WARM, white=_HOT, midpoint=150)
    # Invisible up to a quarter of the threshold (0.2 on the scale), then ever more opaque up to 60 % at
    # 2.3 times the threshold (0.7), so that the defect under it stays visible.
    shown.putalpha(grey.point([round(255 * 0.6 * min(max((v / 255 - 0.2) / 0.5, 0), 1)) for v in range(256)]))
    return shown


def small_layer(
    heatmap_hw: npt.NDArray[np.float32], threshold: float, *, size: tuple[int, int], long_side: int
) -> Image.Image:
    """`layer` in the shape of an image of `size` (width, height), its long side `long_side` pixels."""
    scale = long_side / max(1, *size)
    width, height = (max(1, round(side * scale)) for side in size)
    return layer(at_size(heatmap_hw, width, height), threshold)


def overlay(image: Image.Image, heatmap_hw: npt.NDArray[np.float32], threshold: float) -> Image.Image:
    """RGB picture of `image` with the heatmap, resized to it, over it."""
    over = layer(at_size(heatmap_hw, *image.size), threshold)
    return Image.composite(over.convert("RGB"), image.convert("RGB"), over.getchannel("A"))


def to_16bit(heatmap_hw: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.uint16]:
    """The display scale in 65,536 steps: 0 is no evidence, 32,768 the threshold; v = t * x / (65535 - x) inverts it."""
    return (display_scale(heatmap_hw, threshold) * np.float32(65535)).round().astype(np.uint16)


def colours(count: int) -> Image.Image:
    """The colours of the scale from 0 to 1, opaque, as a picture of `count` x 1 pixels."""
    grey = Image.fromarray(np.linspace(0, 255, count).round().astype(np.uint8)[None])
    return ImageOps.colorize(grey, black=_COLD, mid=_WARM, white=_HOT, midpoint=150)
