"""Where on the product: connected hot regions of an anomaly map, in pixels of the original image."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fcdd.receptive_field import ReceptiveField


class Region(NamedTuple):
    """Box [x0, x1) x [y0, y1) in original pixels, share of the map's cells, largest map value."""

    x0: int
    y0: int
    x1: int
    y1: int
    area_fraction: float
    peak: float


def find(
    map_uv: npt.NDArray[np.float32],
    threshold: float,
    *,
    receptive_field: ReceptiveField,
    input_size: tuple[int, int],
    image_size: tuple[int, int],
    limit: int = 8,
) -> list[Region]:
    """At most `limit` regions above `threshold`, hottest first; sizes are (height, width) in pixels.

    Cells that touch by an edge or a corner belong together. A cell covers `stride` network-input pixels
    around its centre, scaled to the original image.
    """
    from scipy import ndimage  # late: who reads regions that were found needs none of it

    labels, count = ndimage.label(map_uv > threshold, structure=np.ones((3, 3)))
    found = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == index
        (y0, y1), (x0, x1) = (
            _pixels(axis, receptive_field, pixels / inputs, pixels)
            for axis, inputs, pixels in zip(box, input_size, image_size, strict=True)
        )
        peak = float(map_uv[box][inside].max())
        found.append(Region(x0, y0, x1, y1, float(inside.sum() / map_uv.size), peak))
    assert len(found) == count
    return sorted(found, key=lambda region: -region.peak)[:limit]


def _pixels(cells: slice, field: ReceptiveField, scale: float, pixels: int) -> tuple[int, int]:
    start = field.centre + field.stride * (cells.start - 0.5) + 0.5
    stop = field.centre + field.stride * (cells.stop - 0.5) + 0.5
    first = min(max(int(np.floor(start * scale)), 0), pixels - 1)
    return first, max(min(int(np.ceil(stop * scale)), pixels), first + 1)
