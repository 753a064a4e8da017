"""Lines of equal evidence: where an anomaly map reaches a level, in pixels of the original image.

The map is interpolated between the centres of its cells, never beyond their values. So whatever `regions.find` finds
lies within an outline, and nothing else does, while the heatmap, which is smoothed, may stay below what one hot cell
exceeds (5 of 92 regions of a night of boards).

Shapes: U x V cells of the map; a ring is (N,2) float64, x and y, and ends where it begins.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fcdd.cropping import Crop, box_of
from fcdd.receptive_field import ReceptiveField

Ring = npt.NDArray[np.float64]
# A level, in thresholds, and the lines at it.
Contour = tuple[float, list[Ring]]

# Seen on any ground: bright where the picture is dark, dark where it is bright; no colour of the heatmap's scale.
LINE, CASING = "#00e5ff", "#000000"
# Levels of contours, in thresholds: each twice the one before.
LEVELS = (0.5, 1.0, 2.0, 4.0)
# Points of an outline between two cells, so that it is round.
_STEPS = 4
# Lines are drawn on so many pixels at most, along the longer side, and scaled down: smooth on small pictures.
_DRAWN_SIDE, _ENLARGED = 3000, 4


def rings(
    map_uv: npt.NDArray[np.float32],
    level: float,
    *,
    receptive_field: ReceptiveField,
    input_size: tuple[int, int],
    image_size: tuple[int, int],
    crop: Crop | None = None,
) -> list[Ring]:
    """Closed lines around everything above `level`, and around holes in it; sizes are (height, width) in pixels.

    What reaches the border of the image, or of its `crop`, is closed along it.
    """
    import contourpy  # late: who draws no lines needs none of it
    from scipy.interpolate import PchipInterpolator

    values, seen = np.pad(map_uv.astype(np.float64), 1, mode="edge"), box_of(crop, image_size)
    grid = []
    for axis, (cells, inputs, pixels) in enumerate(zip(map_uv.shape, input_size, seen.size, strict=True)):
        places = _places(cells, receptive_field, pixels / inputs, pixels)
        steps = np.arange((cells + 1) * _STEPS + 1) / _STEPS
        grid.append(np.interp(steps, np.arange(cells + 2), places))
        values = PchipInterpolator(places, values, axis)(grid[-1])  # monotone: no value beyond those of the cells
    generator = contourpy.contour_generator(grid[1], grid[0], values, fill_type=contourpy.FillType.OuterOffset)
    found = generator.filled(np.nextafter(level, np.inf), np.inf)
    outer, offsets = cast("tuple[list[Ring], list[npt.NDArray[np.uint32]]]", found)
    limits, corner = np.array(seen.size[::-1], np.float64), np.array((seen.left, seen.top), np.float64)
    return [
        points[start:stop].clip(0, limits) + corner
        for points, starts in zip(outer, offsets, strict=True)
        for start, stop in itertools.pairwise(starts.tolist())
    ]


def _places(cells: int, field: ReceptiveField, scale: float, pixels: int) -> npt.NDArray[np.float64]:
    """Centres of the cells along an axis, and a place beyond each border for the values at it."""
    centres = (field.centre + field.stride * np.arange(cells) + 0.5) * scale
    return np.array([min(0.0, centres[0]) - 1, *centres, max(float(pixels), centres[-1]) + 1])


def path(lines: Iterable[Ring]) -> str:
    """The rings as data of an SVG path, to a tenth of a pixel."""
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}".replace(".0", "") for x, y in ring[:-1]) + "Z" for ring in lines)


def box_path(boxes: Iterable[Mapping[str, int]]) -> str:
    """Boxes [x0, x1) x [y0, y1) as data of an SVG path, where there is no map to draw outlines of."""
    return "".join(f"M{box['x0']} {box['y0']}H{box['x1']}V{box['y1']}H{box['x0']}Z" for box in boxes)


def draw(picture: Image.Image, drawn: Iterable[Contour]) -> Image.Image:
    """An RGB copy with the lines over it; those at the threshold (level 1) are the widest."""
    scale = max(1, min(_ENLARGED, _DRAWN_SIDE // max(picture.size)))
    unit = scale * max(1.0, max(picture.size) / 500)
    lines = [
        ((1.5 if level == 1 else 0.75) * unit, [(x * scale, y * scale) for x, y in ring.tolist()])
        for level, found in drawn
        for ring in found
    ]
    copy = picture.convert("RGB")
    for colour, more in ((CASING, 1.5 * unit), (LINE, 0.0)):
        mask = Image.new("L", (picture.width * scale, picture.height * scale))
        pen = ImageDraw.Draw(mask)
        for width, points in lines:
            pen.line(points, 255, max(1, round(width + more)), joint="curve")
        copy.paste(colour, (0, 0), mask.resize(picture.size, Image.Resampling.BOX))
    return copy
