"""The part of each image that a network looks at: everything else is neither decoded to its input, scored nor drawn."""

import re
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd.errors import ImageError

_TEXT = re.compile(r"(\d+(?:\.\d+)?)(%?),(\d+(?:\.\d+)?)(%?),(\d+(?:\.\d+)?)(%?),(\d+(?:\.\d+)?)(%?)")


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of an image, in pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


class Crop(NamedTuple):
    """A rectangle of the upright image: left, top, width and height, in pixels or in per cent of its sides."""

    x: float
    y: float
    width: float
    height: float
    is_percent: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "X,Y,W,H" in pixels, or "X%,Y%,W%,H%". Raises ValueError that says what is wrong."""
        found = _TEXT.fullmatch(text.replace(" ", ""))
        units = {found.group(number) for number in (2, 4, 6, 8)} if found else set[str]()
        if not found or len(units) > 1:
            raise ValueError(f"expected X,Y,WIDTH,HEIGHT in pixels, or all four with %, got {text!r}")
        x, y, width, height = (float(found.group(number)) for number in (1, 3, 5, 7))
        crop = cls(x, y, width, height, units == {"%"})
        if not (crop.width and crop.height):
            raise ValueError(f"nothing is left by {text!r}: width and height must be more than 0")
        if crop.is_percent and not (crop.x + crop.width <= 100 and crop.y + crop.height <= 100):
            raise ValueError(f"{text!r} reaches beyond 100 % of the image")
        return crop

    @classmethod
    def checked(cls, text: str) -> str:
        """The text of a crop as `str` spells it. Raises as `parse`."""
        return str(cls.parse(text))

    def __str__(self) -> str:
        """What `parse` reads."""
        unit = "%" if self.is_percent else ""
        return ",".join(f"{value:.6f}".rstrip("0").rstrip(".") + unit for value in self[:4])

    def box(self, image_size: tuple[int, int]) -> Box:
        """In an image of (height, width) pixels. Raises ImageError unsupported where it does not fit into the image."""
        height, width = image_size
        across, down = (width / 100, height / 100) if self.is_percent else (1.0, 1.0)
        left, top = round(self.x * across), round(self.y * down)
        right, bottom = round((self.x + self.width) * across), round((self.y + self.height) * down)
        if not (left < right <= width and top < bottom <= height):
            raise ImageError("unsupported", f"the crop {self} does not lie in an image of {width}x{height} pixels")
        return Box(top, left, bottom, right)


def box_of(crop: Crop | None, image_size: tuple[int, int]) -> Box:
    """The part of an image of (height, width) that is looked at: all of it without a crop. Raises as `Crop.box`."""
    return crop.box(image_size) if crop else Box(0, 0, *image_size)


def around(values_hw: npt.NDArray[np.float32], box: Box, image_size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Values (H,W) of a part of an image as those of all of it (height, width), 0 elsewhere; not finer than it."""
    if values_hw.size > box.size[0] * box.size[1]:
        values_hw = np.asarray(Image.fromarray(values_hw).resize(box.size[::-1], Image.Resampling.BILINEAR))
    scales = [got / size for got, size in zip(values_hw.shape, box.size, strict=True)]
    whole = np.zeros([max(1, round(side * scale)) for side, scale in zip(image_size, scales, strict=True)], np.float32)
    top, left = (round(first * scale) for first, scale in zip((box.top, box.left), scales, strict=True))
    into = whole[top : top + values_hw.shape[0], left : left + values_hw.shape[1]]
    into[:] = values_hw[: into.shape[0], : into.shape[1]]
    return whole
