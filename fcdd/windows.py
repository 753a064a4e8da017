"""Training on parts of large images: where a part lies, and which cells of its map are those of the whole image's map.

A network that is trained on whole images of 2,048 pixels needs memory for all of them at once, and draws defects as
large as the image allows. Parts of the published size need neither: a scratch is as wide on them as it is on an image
of 224 pixels. Where the statistics are those of whole images (`fcdd.whitening`), a part has a margin around the cells
that count, because at its rim the network sees zeros instead of the image.

Shapes: B batch, U x V cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fcdd.receptive_field import ReceptiveField

# Larger images are trained on in parts, pixels; what counts of a part, and its margin.
WHOLE_AREA = 512 * 512
PART, MARGIN = 224, 48


def part_of(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of what anomalies are drawn on: all of an image, or a part of a large one."""
    if size[0] * size[1] <= WHOLE_AREA:
        return size
    return min(size[0], PART), min(size[1], PART)


class Window(NamedTuple):
    """The cells (rows, columns) that count of a part: the first one's place in the image's map, and in the part's."""

    origin: tuple[int, int]
    offset: tuple[int, int]
    cells: tuple[int, int]


class Part(NamedTuple):
    """A part of an image: its rows and columns, and which cells of it count; `inner` are their pixels in the part."""

    pixels: tuple[slice, slice]
    inner: tuple[slice, slice]
    window: Window


@dataclass(frozen=True, slots=True)
class _Axis:
    """Along one side, in cells but for `part` pixels: a part begins at a multiple of `step`, the last one at `last`."""

    side: int
    part: int
    counting: int
    margin: int
    last: int
    step: int

    @classmethod
    def of(cls, side: int, cells: int, stride: int, margin: int, coarsest: int) -> Self:
        """For images of `side` pixels with so many cells of `stride` pixels; `margin` and `coarsest` in pixels."""
        part = PART + 2 * margin
        if side <= part:
            return cls(side, side, cells, 0, 0, 1)
        step = max(1, coarsest // stride)  # parts begin where the coarsest cells do
        return cls(side, part, PART // stride, margin // stride, (side - part) // stride // step * step, step)

    def draw(self, generator: np.random.Generator, around: int | None, stride: int) -> tuple[int, int]:
        """The first cell that counts and the first cell of a part, which holds the pixel `around`, if one is given."""
        if not self.last and self.part == self.side:
            return 0, 0
        reach = self.last + self.part // stride - self.counting
        # Beyond both ends, so that cells at the border count as often as others.
        low, high = 1 - self.counting, reach + self.counting
        if around is not None:
            high = around // stride + 1
            low = high - self.counting + (0 if self.margin else self.step - 1)
        first = min(max(int(generator.integers(low, high)), 0), reach)
        if not self.margin:  # what counts begins where the part does
            first -= first % self.step
        begin = min(max(first - self.margin, 0), self.last)
        return first, begin - begin % self.step


@dataclass(frozen=True, slots=True)
class Windows:
    """How parts are drawn of images of one size, all of them of one size, too."""

    rows: _Axis
    columns: _Axis
    field: ReceptiveField

    @classmethod
    def for_images(
        cls, size: tuple[int, int], field: ReceptiveField, *, margin: bool, coarsest: int = 1
    ) -> Self | None:
        """For images of (height, width) pixels and the geometry of their maps; None where whole ones are trained on.

        `coarsest` is the largest stride within the network, in pixels.
        """
        if size[0] * size[1] <= WHOLE_AREA:
            return None
        around = MARGIN if margin else 0
        return cls(
            _Axis.of(size[0], field.height, field.stride, around, coarsest),
            _Axis.of(size[1], field.width, field.stride, around, coarsest),
            field,
        )

    @property
    def part_size(self) -> tuple[int, int]:
        """(height, width) of a part in pixels."""
        return self.rows.part, self.columns.part

    @property
    def inner_field(self) -> ReceptiveField:
        """Geometry of the cells that count."""
        return replace(self.field, height=self.rows.counting, width=self.columns.counting)

    @property
    def inner_size(self) -> tuple[int, int]:
        """(height, width) in pixels of what counts."""
        stride, sides = self.field.stride, (self.rows, self.columns)
        height, width = (axis.part if axis.part == axis.side else axis.counting * stride for axis in sides)
        return height, width

    def draw(self, generator: np.random.Generator, around: tuple[int, int] | None = None) -> Part:
        """A part at a random place; with `around` (row, column) that pixel is among those that count."""
        stride = self.field.stride
        rows, columns = self.rows, self.columns
        row, top = rows.draw(generator, around and around[0], stride)
        column, left = columns.draw(generator, around and around[1], stride)
        pixels = (
            slice(top * stride, top * stride + rows.part),
            slice(left * stride, left * stride + columns.part),
        )
        height, width = self.inner_size
        offset = (row - top, column - left)
        inner = (
            slice(offset[0] * stride, offset[0] * stride + height),
            slice(offset[1] * stride, offset[1] * stride + width),
        )
        return Part(pixels, inner, Window((row, column), offset, (rows.counting, columns.counting)))


def cut_out(values_bcuv: Tensor, windows: Sequence[Window]) -> Tensor:
    """The cells that count (B,C,rows,columns) out of the maps of parts, whose windows (B) are of one size."""
    return torch.stack([cut(each, at.offset, at.cells) for each, at in zip(values_bcuv, windows, strict=True)])


def cut(values_cuv: Tensor, first: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """The rectangle of `cells` (rows, columns) that begins at `first`."""
    return values_cuv[:, first[0] : first[0] + cells[0], first[1] : first[1] + cells[1]]
