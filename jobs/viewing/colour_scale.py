"""The colour scale of heatmaps as it is shown beside them: from 0 to nine thresholds, with numbers.

A colour is v / (v + threshold) (`fcdd.heatmap.display_scale`): the threshold is in the middle of all colours, and what
is beyond nine thresholds, their last tenth, looks alike.
"""

from typing import NamedTuple

from PIL import Image

from fcdd import heatmap

_MARKS = (0.0, 1 / 3, 1.0, 3.0, 9.0)
_END = _MARKS[-1] / (_MARKS[-1] + 1)


class Mark(NamedTuple):
    """A number beside the scale: where, as a share of its width, and what it says."""

    at: float
    text: str
    is_threshold: bool


def bar(width: int) -> Image.Image:
    """The colours from left to right, as a picture of `width` x 1 pixels."""
    return heatmap.colours(round(width / _END)).crop((0, 0, width, 1))


def marks(threshold: float) -> list[Mark]:
    """The numbers beside the scale; the last one stands for all that is more."""
    return [
        Mark(times / (times + 1) / _END, f"{times * threshold:.2g}" + "+" * (times == _MARKS[-1]), times == 1)
        for times in _MARKS
    ]
