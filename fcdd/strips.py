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
    core = max(1, (LARGEST // width - 2 * margin) // coarsest) * coarsest
    strips = []
    for top in range(0, height, core):
        first, last = max(0, top - margin), min(height, top + core + margin)
        is_last = top + core >= height
        begin = (top - first) // field.stride
        kept = slice(begin, None if is_last else begin + core // field.stride)
        strips.append(Strip(slice(first, height if is_last else last), kept))
        if is_last:
            break
    return strips
