"""What the toys share: how a drawn scene becomes a photograph, and shapes on an enlarged canvas.

Scenes are drawn at `SCALE` times their size and scaled down, so that edges are soft as a lens makes them.
"""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SCALE = 2


class Camera(NamedTuple):
    """How a picture is taken: the product's place and angle under the camera, the light and where it falls off."""

    shift: Point
    angle: float
    gain: float
    slope: Point

    @classmethod
    def drawn(cls, generator: np.random.Generator) -> Self:
        """Tolerances of a fixed camera: about a pixel, a fifth of a degree, 7 % of light."""
        dx, dy = generator.normal(0, 0.7, 2).clip(-1.8, 1.8)
        angle = float(np.clip(generator.normal(0, 0.2), -0.5, 0.5))
        sx, sy = generator.uniform(-0.06, 0.06, 2)
        return cls((float(dx), float(dy)), angle, float(generator.uniform(0.93, 1.07)), (float(sx), float(sy)))

    def light(self, image: Image.Image, ground: Colour) -> npt.NDArray[np.float64]:
        """What the sensor sees of a drawing (H,W,C), without its noise; `ground` is what comes in at the rim."""
        (dx, dy), angle = self.shift, np.radians(self.angle)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        x, y = image.width / 2, image.height / 2
        back = (cos, sin, x - cos * (x + dx * SCALE) - sin * (y + dy * SCALE))
        down = (-sin, cos, y + sin * (x + dx * SCALE) - cos * (y + dy * SCALE))
        moved = image.transform(
            image.size, Image.Transform.AFFINE, (*back, *down), Image.Resampling.BILINEAR, fillcolor=ground
        )
        width, height = image.width // SCALE, image.height // SCALE
        small = np.asarray(moved.resize((width, height), Image.Resampling.BOX), np.float64)
        rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        return small * (self.gain + self.slope[0] * columns + self.slope[1] * rows)[:, :, None]


def scaled(points: tuple[Point, ...]) -> list[Point]:
    """Points of the scene on the enlarged canvas."""
    return [(x * SCALE, y * SCALE) for x, y in points]


def box(centre: Point, size: Point) -> tuple[float, float, float, float]:
    """The box of a shape of `size` (width, height), on the enlarged canvas."""
    (x, y), (width, height) = centre, size
    return (
        (x - width / 2) * SCALE,
        (y - height / 2) * SCALE,
        (x + width / 2) * SCALE,
        (y + height / 2) * SCALE,
    )


def blended(image: Image.Image, line: tuple[Point, ...], width: float, colour: Colour, opacity: float) -> Image.Image:
    """The picture with a line of an opacity over it."""
    over = image.copy()
    ImageDraw.Draw(over).line(scaled(line), colour, max(1, round(width * SCALE)), joint="curve")
    return Image.blend(image, over, opacity)


def wobbly(start: Point, length: float, angle: float, generator: np.random.Generator) -> tuple[Point, ...]:
    """A line of seven points from a start, nearly straight: a scratch or a crack."""
    way = np.linspace(0, 1, 7)[:, None] * length * np.array([[np.cos(angle), np.sin(angle)]])
    points = np.array(start) + way + generator.normal(0, 0.8, way.shape)
    return tuple((float(x), float(y)) for x, y in points)
