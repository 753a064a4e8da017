"""The size that a network sees images in, where nobody says: their own shape, small images not scaled down.

Defects are small: what is lost by squeezing a wide picture into a square is lost for them first
(benchmarks/results/2026-11-27-defaults.md). Larger images are scaled to an area that a CPU computes in time; a small
defect on them needs more, and an option.
"""

import math
from collections.abc import Sequence

# Pixels: areas between the published 224 x 224 and this are kept; sides are whole cells of a trunk.
SMALLEST_AREA, LARGEST_AREA = 224 * 224, 256 * 320
MULTIPLE = 16
_LONGEST = 4096


def input_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(height, width) for images of these (height, width): the shape of the median image, of a fitting area."""
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    height, width = by_area[len(by_area) // 2]
    area = min(max(height * width, SMALLEST_AREA), LARGEST_AREA)
    scale = math.sqrt(area / (height * width))
    rows, columns = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (height, width))
    return min(rows, _LONGEST), min(columns, _LONGEST)
