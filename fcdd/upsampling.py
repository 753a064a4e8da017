"""Anomaly map -> full-resolution heatmap by a fixed Gaussian over each cell's receptive field.

Source: METHOD section 3 (official `models/bases.py`): a transposed convolution with stride j and an
r x r Gaussian kernel. A separable linear map, so it is written as two small matrix products, which are
50-200 times faster than the transposed convolution and equal to 6e-7 relative.

Shapes: B batch, U x V cells of the map, H x W pixels.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcdd.receptive_field import ReceptiveField


def with_extent(field: ReceptiveField, extent: int | None) -> ReceptiveField:
    """The field with another extent of the Gaussian, in pixels, around the same centres; None keeps it.

    For deep trunks, whose theoretical field is larger than the image while what they react to is not.
    """
    return field if extent is None else replace(field, extent=extent)


def default_std(extent: int) -> float:
    """The official standard deviation in pixels when none is given; it jumps from 1.42 to 10 at 32."""
    return math.log10(0.45 * extent + 1) + 0.25 if extent < 32 else 10.0


def gaussian_kernel(extent: int, std: float) -> npt.NDArray[np.float64]:
    """The 1-D factor of the kernel, (extent,): not normalised, peak 1 for odd extents.

    For even extents the official code repeats the middle sample of the next smaller odd kernel and
    halves the whole vector, so the peak is 0.5; kept, because its gain scales the pixel-wise loss.
    """
    size = extent if extent % 2 else extent - 1
    samples: npt.NDArray[np.float64] = np.exp(-((np.arange(size) - (size - 1) / 2) ** 2) / (2 * std**2))
    if extent % 2:
        return samples
    middle = size // 2
    return np.insert(samples, middle, samples[middle]) / 2


# Some standard deviations away the kernel is so small that products with it are no normal numbers of float32, with
# which processors compute many times slower: a sixth of a training step. The nearest cell weighs 1e20 times as much.
_NEGLIGIBLE = 1e-20


@functools.lru_cache(maxsize=64)
def _axis_matrix(
    cells: int, pixels: int, field: ReceptiveField, std: float, normalized: bool
) -> npt.NDArray[np.float32]:
    """(pixels, cells): row i holds what each cell adds to pixel i."""
    kernel = gaussian_kernel(field.extent, std)
    crop = (field.extent - 1) // 2 - math.floor(field.centre)
    index = np.arange(pixels)[:, None] + crop - field.stride * np.arange(cells)[None, :]
    inside = (index >= 0) & (index < field.extent)
    matrix = np.where(inside, kernel[index.clip(0, field.extent - 1)], 0.0)
    if normalized:
        matrix /= np.maximum(matrix.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    return np.where(matrix < _NEGLIGIBLE, 0, matrix).astype(np.float32)


def upsample(
    map_b1uv: Tensor,
    receptive_field: ReceptiveField,
    size: tuple[int, int],
    std: float | None = None,
    *,
    normalized: bool = False,
) -> Tensor:
    """Heatmap (B,1,H,W) float32 of a map (B,1,U,V); `size` = (H, W) is the network's input size.

    The default is the official operation, with its gain and its darker border. `normalized` divides by
    the upsampled all-ones map, so that a constant map stays constant: for display.
    """
    height, width = size
    std = default_std(receptive_field.extent) if std is None else std
    rows, columns = (
        torch.from_numpy(_axis_matrix(cells, pixels, receptive_field, std, normalized)).to(map_b1uv.device)
        for cells, pixels in ((map_b1uv.shape[-2], height), (map_b1uv.shape[-1], width))
    )
    return rows @ map_b1uv.float() @ columns.T
