"""Where on the product: the hot regions of an anomaly map, in pixels of the original image."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fcdd.cropping import Crop, box_of
from fcdd.receptive_field import ReceptiveField

# Two peaks are two regions where the saddle between them is below this share of the lower one.
SADDLE = 0.5
# So far down from its peak a region reaches, as the width of a peak is measured at half of its height.
REACH = 0.5


class Region(NamedTuple):
    """Box [x0, x1) x [y0, y1) in original pixels, the region's share of the map's cells, its largest map value."""

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
    crop: Crop | None = None,
    limit: int = 8,
) -> list[Region]:
    """At most `limit` regions, hottest first; sizes are (height, width) in pixels.

    Cells above `threshold` that touch by an edge or a corner belong together, but for two peaks with a saddle of less
    than `SADDLE` of the lower one between them. Of those cells a region has the ones of at least `REACH` of its peak: a
    map is smooth, and would else be hot far around what is anomalous. A cell covers `stride` network-input pixels
    around its centre, scaled to the original image, or to its `crop`; those at the rim reach the border of that.
    """
    from scipy import ndimage  # late: who reads regions that were found needs none of it

    hot = map_uv > threshold
    if not hot.any():
        return []
    labels, count = ndimage.label(hot, structure=np.ones((3, 3)))
    peaks = hot & (map_uv == ndimage.maximum_filter(map_uv, 3, mode="constant", cval=-np.inf))
    if peaks.sum() > count:
        labels, count = _basins(map_uv, hot)
    tops = np.array([np.inf, *ndimage.maximum(map_uv, labels, range(1, count + 1))])
    labels = np.where(map_uv >= REACH * tops[labels], labels, 0)
    seen, found = box_of(crop, image_size), []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == index
        (y0, y1), (x0, x1) = (
            _pixels(axis, cells, receptive_field, pixels / inputs, pixels)
            for axis, cells, inputs, pixels in zip(box, map_uv.shape, input_size, seen.size, strict=True)
        )
        x0, y0, x1, y1 = seen.left + x0, seen.top + y0, seen.left + x1, seen.top + y1
        found.append(Region(x0, y0, x1, y1, float(inside.sum() / map_uv.size), float(tops[index])))
    assert len(found) == count
    return sorted(found, key=lambda region: -region.peak)[:limit]


def _basins(map_uv: npt.NDArray[np.float32], hot: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    """Labels (U,V) of regions, 0 where not hot, and their number: cells in falling order join the hotter neighbours.

    Where two regions meet, the one of the lower peak becomes part of the other unless the saddle is low enough.
    """
    width = hot.shape[1] + 2  # with a rim, so that each cell has eight neighbours
    around = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    values = np.pad(np.where(hot, map_uv, -np.inf), 1, constant_values=-np.inf).ravel()
    order = np.argsort(-values, kind="stable")[: int(hot.sum())].tolist()
    labels, peaks = [0] * len(values), [np.inf]
    part_of = [0]  # of each label; one that became part of another leads to it
    for cell, value in zip(order, values[order].tolist(), strict=True):
        near = {_root(part_of, labels[cell + step]) for step in around if labels[cell + step]}
        if not near:
            near = {len(peaks)}
            part_of.append(len(peaks))
            peaks.append(value)
        hottest = max(near, key=peaks.__getitem__)
        for other in near - {hottest}:
            if value >= SADDLE * peaks[other]:
                part_of[other] = hottest
        labels[cell] = hottest
    roots = [_root(part_of, label) for label in range(len(peaks))]
    kept = {root: number for number, root in enumerate(sorted(set(roots)))}
    numbers = np.array([kept[root] for root in roots], np.int32)[labels]
    return numbers.reshape(-1, width)[1:-1, 1:-1], len(kept) - 1


def _root(part_of: list[int], label: int) -> int:
    while part_of[label] != label:
        label = part_of[label]
    return label


def _pixels(cells: slice, of: int, field: ReceptiveField, scale: float, pixels: int) -> tuple[int, int]:
    start = field.centre + field.stride * (cells.start - 0.5) + 0.5
    stop = field.centre + field.stride * (cells.stop - 0.5) + 0.5
    first = 0 if cells.start == 0 else min(max(int(np.floor(start * scale)), 0), pixels - 1)
    return first, pixels if cells.stop == of else max(min(int(np.ceil(stop * scale)), pixels), first + 1)
