"""Features of images too large to be computed at once: strip by strip, with the same result.

The first layers of a network take the most memory, in proportion to the pixels. Strips of rows overlap by as much as
a cell can see, so that no cell that is kept saw the edge of its strip.
"""

import math
from typing import NamedTuple

from fcdd.receptive_field import ReceptiveField

# Pixels that are computed at once; more are computed in strips.
LARGEST = 8 * 2**20


class Strip(NamedTuple):
    """Rows of an image, and which rows of cells of their map are kept."""

    rows: slice
    kept: slice


def plan(image_size: tuple[int, int], field: ReceptiveField, coarsest: int) -> list[Strip]:
    """The strips of images of (height, width), for cells with this field; none where an image is computed at once.

    Strips begin at multiples of `coarsest`, the largest stride within the network, in pixels.
    """
    height, width = image_size
    if height * width <= LARGEST:
        return []
    # A cell may look from its tile in one direction only.
    margin = math.ceil((field.extent / 2 + field.stride) / coarsest) * coarsest
    most = max(LARGEST // width // coarsest * coarsest, 2 * margin + coarsest)
    number = max(1, math.ceil((height - 2 * margin) / (most - 2 * margin)))
    # All of one height: what is compiled for a shape is compiled once, and none takes more memory than it must.
    rows = math.ceil((height + 2 * margin * (number - 1)) / number / coarsest) * coarsest
    last = max(0, height - rows) // coarsest * coarsest
    tops = sorted({min(index * (rows - 2 * margin), last) for index in range(number)})
    ends = [*(top + margin for top in tops[1:]), None]
    strips, begin = list[Strip](), 0
    for top, end in zip(tops, ends, strict=True):
        kept = slice((begin - top) // field.stride, None if end is None else (end - top) // field.stride)
        strips.append(Strip(slice(top, height if end is None else top + rows), kept))
        begin = end or height
    return strips
