"""Synthetic anomalies that measure what a detector finds: of kinds that no training learns from.

A missing part, one that is shifted, one that is turned, a blurred spot, specks of dirt: small changes as a product has
them, made from the nominal image itself. `fcdd.outliers` has those that are trained on; a detector that was measured
on them would be told how well it remembers. All sizes are fractions of the shorter side of the image, or of the part
of it that is drawn on (`fcdd.windows`); all randomness comes from the generator.

Shapes: H x W pixels, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fcdd import windows

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Alpha = npt.NDArray[np.float32]

# Grey levels; a pixel belongs to the mask when it changed by more than this.
_VISIBLE = 8
# Where an image has one colour, what is moved or blurred there changes nothing: another place is tried.
_ATTEMPTS = 16
# A change of fewer pixels would be no anomaly that anyone could see.
_SMALLEST = 6
_SPECK_DEPTH = (0.4, 0.9)


def missing(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the image (H,W,C) in which a spot has the colour of its surroundings, and the mask (H,W)."""

    def change(image: npt.NDArray[np.float32], where: "_Spot") -> npt.NDArray[np.float32]:
        return np.broadcast_to(image[where.around].mean(0), image[where.window].shape)

    return _changed(image_hwc, generator, (0.025, 0.07), change)


def shifted(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the image (H,W,C) in which a spot shows what lies 2 to 6 % of the side beside it, and the mask."""
    side = min(image_hwc.shape[:2])
    angle, distance = generator.uniform(0, 2 * np.pi), generator.uniform(0.02, 0.06) * side
    moved = (round(distance * np.sin(angle)), round(distance * np.cos(angle)))

    def change(image: npt.NDArray[np.float32], where: "_Spot") -> npt.NDArray[np.float32]:
        return np.roll(image, moved, (0, 1))[where.window]

    return _changed(image_hwc, generator, (0.04, 0.09), change)


def turned(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the image (H,W,C) in which a spot is turned by 20 to 180 degrees, and the mask (H,W) of the change."""
    angle = np.radians(generator.uniform(20, 180))

    def change(image: npt.NDArray[np.float32], where: "_Spot") -> npt.NDArray[np.float32]:
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        middle, corner = np.array([*where.centre, 0.0]), np.array([*(part.start for part in where.window), 0.0])
        turned: npt.NDArray[np.float32] = ndimage.affine_transform(
            image,
            matrix,
            middle + matrix @ (corner - middle),
            output_shape=image[where.window].shape,
            order=1,
            mode="nearest",
        )
        return turned

    return _changed(image_hwc, generator, (0.03, 0.08), change)


def blurred(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the image (H,W,C) with a blurred spot, and the mask (H,W) of the change."""
    spread = generator.uniform(0.012, 0.03) * min(image_hwc.shape[:2])

    def change(image: npt.NDArray[np.float32], where: "_Spot") -> npt.NDArray[np.float32]:
        reach = round(4 * spread) + 1  # of the filter
        near = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in where.window)
        soft = ndimage.gaussian_filter(image[near], spread, axes=(0, 1), mode="nearest")
        inner = tuple(
            slice(part.start - outer.start, part.stop - outer.start)
            for part, outer in zip(where.window, near, strict=True)
        )
        found: npt.NDArray[np.float32] = soft[inner]
        return found

    return _changed(image_hwc, generator, (0.05, 0.1), change)


def specks(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the image (H,W,C) with one to three specks of one colour, and the mask (H,W) of the change.

    The mask is not empty: a speck is darker on a bright ground and brighter on a dark one.
    """
    height, width = image_hwc.shape[:2]
    result = image_hwc.astype(np.float32)
    depth = generator.uniform(*_SPECK_DEPTH)
    for _ in range(generator.integers(1, 4)):
        spot = _Spot.drawn(height, width, (0.008, 0.018), generator)
        ground = result[spot.alpha > 0].mean(0)
        dark = generator.uniform(0, 80, image_hwc.shape[2])
        tone = 255 - dark if ground.mean() < 128 else dark
        result += spot.alpha[:, :, None] * depth * (tone - result)
    shown = result.round().clip(0, 255).astype(np.uint8)
    return shown, _visible(shown, image_hwc)


Probe = Callable[[Pixels, np.random.Generator], tuple[Pixels, Mask]]
PROBES: MappingProxyType[str, Probe] = MappingProxyType(
    {each.__name__: each for each in (missing, shifted, turned, blurred, specks)}
)


@dataclass(frozen=True, slots=True)
class Pictures:
    """M pictures (H,W,C), each made when it is looked at: an image (N,H,W,C), and what was drawn over a part of it.

    Large images are never copied all at once. `sources` (M,); `corners` (M,2) are the row and column of the parts.
    """

    images: Pixels
    sources: npt.NDArray[np.int64]
    corners: npt.NDArray[np.int64]
    parts: Sequence[Pixels]

    @property
    def shape(self) -> tuple[int, ...]:
        """(M,H,W,C)"""
        return (len(self.parts), *self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, chosen: int | slice) -> Pixels:
        """One picture (H,W,C), or some (m,H,W,C)."""
        if isinstance(chosen, slice):
            numbers = range(*chosen.indices(len(self)))
            return np.stack([self[number] for number in numbers]) if numbers else self.images[:0]
        (row, column), part = self.corners[chosen], self.parts[chosen]
        picture: Pixels = self.images[self.sources[chosen]].copy()
        picture[row : row + part.shape[0], column : column + part.shape[1]] = part
        return picture


class Drawn(NamedTuple):
    """M probes: pictures, the kind of each, and the index of the image that each was made from, (M,).

    `boxes` (M,4) are x0, y0, x1, y1 of what was changed, in pixels.
    """

    pictures: Pictures
    kinds: list[str]
    sources: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]


def draw(
    images_nhwc: Pixels,
    generator: np.random.Generator,
    *,
    kinds: Mapping[str, Probe],
    per_kind: int,
    counts: Callable[[Sequence[int]], bool] = lambda _: True,
) -> Drawn:
    """`per_kind` probes of every kind, made from images (N,H,W,C) in turn; on parts of large ones, as in training.

    Where a box (x0, y0, x1, y1) does not count, another place is tried.
    """
    names = [kind for kind in kinds for _ in range(per_kind)]
    sources = np.resize(generator.permutation(len(images_nhwc)), len(names))
    sides = np.array(windows.part_of(images_nhwc.shape[1:3]))
    beyond = images_nhwc.shape[1:3] - sides
    corners, parts, boxes = [], [], []
    for kind, source in zip(names, sources, strict=True):
        for _ in range(_ATTEMPTS):
            corner = generator.integers(beyond + 1) if beyond.any() else np.zeros(2, np.int64)
            (top, left), (bottom, right) = corner, corner + sides
            part, mask = kinds[kind](np.ascontiguousarray(images_nhwc[source, top:bottom, left:right]), generator)
            x0, y0, x1, y1 = _box(mask)
            box = (left + x0, top + y0, left + x1, top + y1)
            if counts(box):
                break
        corners.append(corner)
        parts.append(part)
        boxes.append(box)
    return Drawn(Pictures(images_nhwc, sources, np.array(corners), parts), names, sources, np.array(boxes, np.int64))


def _box(mask_hw: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class _Spot:
    """A place with a soft rim: `alpha` (H,W) its coverage in [0,1], `around` (H,W) bool the ring beside it.

    `window` is the rectangle outside of which `alpha` is 0.
    """

    def __init__(self, alpha: Alpha, around: Mask, centre: tuple[float, float]) -> None:
        self.alpha, self.around, self.centre = alpha, around, centre
        left, top, right, bottom = _box(alpha > 0)
        self.window = (slice(top, bottom), slice(left, right))

    @classmethod
    def drawn(cls, height: int, width: int, radius: tuple[float, float], generator: np.random.Generator) -> "_Spot":
        """An ellipse that lies inside the image, with its radius in fractions of the shorter side."""
        side = min(height, width)
        large = max(1.5, generator.uniform(*radius) * side)
        small = max(1.2, large * generator.uniform(0.5, 1))
        angle, margin = generator.uniform(0, np.pi), min(large, side / 2 - 1)
        y, x = generator.uniform((margin, margin), (height - margin, width - margin))
        rows, columns = np.ogrid[:height, :width]
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        distance = np.sqrt((along / large) ** 2 + (across / small) ** 2)
        alpha = ((1 - distance) * small + 0.5).clip(0, 1).astype(np.float32)
        return cls(alpha, (distance > 1) & (distance < 1.5), (float(y), float(x)))


def _changed(
    image_hwc: Pixels,
    generator: np.random.Generator,
    radius: tuple[float, float],
    change: Callable[[npt.NDArray[np.float32], _Spot], npt.NDArray[np.float32]],
) -> tuple[Pixels, Mask]:
    """The image with a spot of what `change` makes of it; specks where no place shows a change."""
    height, width = image_hwc.shape[:2]
    original = image_hwc.astype(np.float32)
    for _ in range(_ATTEMPTS):
        spot = _Spot.drawn(height, width, radius, generator)
        if not spot.around.any():
            continue
        at, shown = spot.window, image_hwc.copy()
        result = original[at] + spot.alpha[at][:, :, None] * (change(original, spot) - original[at])
        shown[at] = result.round().clip(0, 255).astype(np.uint8)
        mask = _visible(shown, image_hwc)
        if mask.sum() >= _SMALLEST:
            return shown, mask
    return specks(image_hwc, generator)


def _visible(shown: Pixels, image_hwc: Pixels) -> Mask:
    changed: Mask = np.abs(shown.astype(np.int16) - image_hwc).max(2) > _VISIBLE
    return changed
