"""The size that a network sees images in, where nobody says: their own shape, and small images as they are.

Defects are small: what is lost by squeezing a wide picture into a square, or by scaling a small one down, is lost for
them first (benchmarks/results/2026-11-27-defaults.md). Larger images are scaled to the published area, whatever their
shape: a small defect on them needs more, and an option that says how small.
"""

import math
from collections.abc import Sequence

# Pixels. An image of at most the larger area is not scaled down; sides are whole cells of a trunk.
PUBLISHED_AREA, SMALL_AREA = 224 * 224, 256 * 320
# Diameter at which spots of half the contrast were found in 94 of 100 boards (docs/resolution.md).
PER_DEFECT = 8
MULTIPLE = 16
LONGEST = 4096


def input_size(sizes: Sequence[tuple[int, int]], smallest_defect: float | None = None) -> tuple[int, int]:
    """(height, width) for images of these (height, width): the shape of the median image, of a fitting area.

    With the diameter of the smallest defect, in pixels of the images, the area is at least the one at which it has
    `PER_DEFECT` pixels, but never larger than the image, nor than `LONGEST` along a side.
    """
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    height, width = by_area[len(by_area) // 2]
    area = height * width
    fitting = area if PUBLISHED_AREA <= area <= SMALL_AREA else PUBLISHED_AREA
    scale = math.sqrt(fitting / area)
    if smallest_defect is not None:
        scale = max(scale, min(1.0, PER_DEFECT / smallest_defect, LONGEST / max(height, width)))
    rows, columns = whole_cells((height * scale, width * scale))
    return min(rows, LONGEST), min(columns, LONGEST)


def whole_cells(size: tuple[float, float]) -> tuple[int, int]:
    """The nearest (height, width) whose sides are whole cells of a trunk."""
    rows, columns = (max(MULTIPLE, math.floor(side / MULTIPLE + 0.5) * MULTIPLE) for side in size)
    return rows, columns


def images_at_once(size: tuple[int, int], most: int) -> int:
    """How many images of (height, width) make one batch, where `most` of up to 256x320 pixels do: at least one."""
    return max(1, min(most, most * SMALL_AREA // (size[0] * size[1])))
