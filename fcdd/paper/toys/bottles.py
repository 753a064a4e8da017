"""Filled bottles of 192x320 pixels before a bright wall: cap, fill level, printed label; seven defects.

A design is the shape of the bottle, its colours, and what its label says.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcdd.paper.toys.drawing import SCALE, Colour, Point, blended, box, scaled, wobbly

WIDTH, HEIGHT = 192, 320
GROUND: Colour = (206, 208, 212)
_GLASS_DARKER, _INK = 0.72, (40, 36, 34)
_FOOT, _TOP = 306, 22


@dataclass(frozen=True, slots=True)
class Scene:
    """One bottle: half widths of body and neck, heights (pixels from the top), colours, the label and what is wrong.

    `marks` are lines over everything (points, width, colour, opacity), `dirt` ellipses (centre, size, colour).
    """

    body: float
    neck: float
    shoulder: float
    fill: float
    glass: Colour
    drink: Colour
    cap: Colour
    label: Colour
    brand: str
    lot: str
    label_at: Point
    label_angle: float = 0.0
    has_cap: bool = True
    cap_shift: float = 0.0
    chip: Point | None = None
    marks: tuple[tuple[tuple[Point, ...], float, Colour, float], ...] = ()
    dirt: tuple[tuple[Point, Point, Colour], ...] = ()


def design(seed: int) -> Scene:
    """The bottle of one seed."""
    generator = np.random.default_rng((2, seed))
    hue = generator.integers(3)
    glass: Colour = ((122, 150, 118), (150, 118, 84), (164, 178, 186))[hue]
    drink: Colour = ((84, 104, 58), (104, 62, 30), (196, 168, 96))[hue]
    cap: Colour = ((168, 44, 40), (46, 62, 118), (196, 174, 72))[int(generator.integers(3))]
    return Scene(
        body=float(generator.uniform(46, 58)),
        neck=float(generator.uniform(14, 19)),
        shoulder=float(generator.uniform(104, 128)),
        fill=float(generator.uniform(70, 84)),
        glass=glass,
        drink=drink,
        cap=cap,
        label=(232, 226, 210),
        brand="".join(generator.choice(list(string.ascii_uppercase), 5)),
        lot="",
        label_at=(WIDTH / 2, float(generator.uniform(206, 222))),
    )


def produced(bottle: Scene, generator: np.random.Generator) -> Scene:
    """One nominal copy: tolerances of filling and labelling, tints, a lot number."""
    dx, dy = generator.normal(0, 0.6, 2).clip(-1.5, 1.5)
    tint = float(generator.normal(1, 0.03))
    return replace(
        bottle,
        fill=bottle.fill + float(np.clip(generator.normal(0, 1.0), -2.5, 2.5)),
        label_at=(bottle.label_at[0] + dx, bottle.label_at[1] + dy),
        label_angle=float(np.clip(generator.normal(0, 0.4), -1, 1)),
        drink=_tinted(bottle.drink, tint),
        glass=_tinted(bottle.glass, float(generator.normal(1, 0.02))),
        lot="".join(generator.choice(list(string.digits), 6)),
    )


def _tinted(colour: Colour, tint: float) -> Colour:
    red, green, blue = (int(min(255, max(0, value * tint))) for value in colour)
    return (red, green, blue)


# Defects: a nominal scene in, one with a defect out.


def uncapped(scene: Scene, _: np.random.Generator) -> Scene:
    """The cap is missing."""
    return replace(scene, has_cap=False)


def cap_askew(scene: Scene, generator: np.random.Generator) -> Scene:
    """The cap sits 3 to 6 pixels to one side."""
    return replace(scene, cap_shift=float(generator.choice((-1, 1)) * generator.uniform(3, 6)))


def underfilled(scene: Scene, generator: np.random.Generator) -> Scene:
    """The drink stands 8 to 20 pixels too low."""
    return replace(scene, fill=scene.fill + float(generator.uniform(8, 20)))


def label_tilted(scene: Scene, generator: np.random.Generator) -> Scene:
    """The label is turned by 4 to 9 degrees and shifted by 3 to 6 pixels."""
    (x, y), turn = scene.label_at, generator.choice((-1, 1)) * generator.uniform(4, 9)
    return replace(scene, label_at=(x, y + float(generator.uniform(3, 6))), label_angle=float(turn))


def misprinted(scene: Scene, generator: np.random.Generator) -> Scene:
    """The label says something else."""
    return replace(scene, brand="".join(generator.choice(list(string.ascii_uppercase), 5)))


def cracked(scene: Scene, generator: np.random.Generator) -> Scene:
    """A bright crack of 20 to 50 pixels in the glass, about one pixel wide, of an opacity of 0.4 to 0.8."""
    length, angle = float(generator.uniform(20, 50)), float(generator.uniform(0, 2 * np.pi))
    x = float(generator.uniform(WIDTH / 2 - scene.body + 10, WIDTH / 2 + scene.body - 10))
    line = wobbly((x, float(generator.uniform(scene.shoulder + 10, _FOOT - 50))), length, angle, generator)
    mark = (line, float(generator.uniform(0.7, 1.3)), (236, 240, 240), float(generator.uniform(0.4, 0.8)))
    return replace(scene, marks=(mark,))


def dirty(scene: Scene, generator: np.random.Generator) -> Scene:
    """One dark particle of 3 to 6 pixels in the drink, above the label."""
    size = generator.uniform((3, 3), (6, 6))
    x = float(generator.uniform(WIDTH / 2 - scene.body + 12, WIDTH / 2 + scene.body - 12))
    y = float(generator.uniform(scene.shoulder + 22, scene.label_at[1] - 44))
    return replace(scene, dirt=(((x, y), (float(size[0]), float(size[1])), (34, 26, 20)),))


DEFECTS: tuple[Callable[[Scene, np.random.Generator], Scene], ...] = (
    *(uncapped, cap_askew, underfilled, label_tilted, misprinted, cracked, dirty),
)


def drawn(scene: Scene, _: Scene) -> Image.Image:
    """The bottle at `SCALE` times the size."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), GROUND)
    canvas = ImageDraw.Draw(image)
    outline = _outline(scene, 0)
    canvas.polygon(scaled(outline), scene.glass)
    inside = Image.new("L", image.size)
    ImageDraw.Draw(inside).polygon(scaled(_outline(scene, 4)), 255)
    ImageDraw.Draw(inside).rectangle((0, 0, image.width, scene.fill * SCALE), 0)
    image.paste(scene.drink, mask=inside)
    canvas.line(scaled((*outline, outline[0])), _tinted(scene.glass, _GLASS_DARKER), 2 * SCALE, joint="curve")
    if scene.has_cap:
        canvas.rectangle(box((WIDTH / 2 + scene.cap_shift, _TOP), (2 * scene.neck + 8, 20)), scene.cap)
    for centre, size, colour in scene.dirt:
        canvas.ellipse(box(centre, size), colour)
    _stick_label(image, scene)
    for points, width, colour, opacity in scene.marks:
        image = blended(image, points, width, colour, opacity)
    return image


def _outline(scene: Scene, inset: float) -> tuple[Point, ...]:
    """The bottle from the left of its mouth around to the right of it."""
    middle, body, neck = WIDTH / 2, scene.body - inset, scene.neck - inset
    rounding = np.linspace(0, np.pi / 2, 9)
    curve = [
        (neck + (body - neck) * float(np.sin(each)), scene.shoulder - 34 * float(np.cos(each))) for each in rounding
    ]
    right = [(neck, _TOP + 8.0), *curve, (body, _FOOT - 8.0 - inset), (body - 8, _FOOT - inset)]
    return (*((middle - x, y) for x, y in right), *((middle + x, y) for x, y in reversed(right)))


def _stick_label(image: Image.Image, scene: Scene) -> None:
    width, height = int(2 * scene.body - 14) * SCALE, 70 * SCALE
    label = Image.new("RGBA", (width, height), (*scene.label, 255))
    canvas = ImageDraw.Draw(label)
    canvas.rectangle((0, 0, width - 1, height - 1), None, _INK, SCALE)
    canvas.text((width / 2, height * 0.42), scene.brand, _INK, ImageFont.load_default(22 * SCALE), anchor="mm")
    canvas.text((width / 2, height * 0.85), f"L{scene.lot}", _INK, ImageFont.load_default(8 * SCALE), anchor="mm")
    turned = label.rotate(scene.label_angle, Image.Resampling.BILINEAR, expand=True)
    (x, y) = scene.label_at
    image.paste(turned, (round(x * SCALE - turned.width / 2), round(y * SCALE - turned.height / 2)), turned)
