"""Circuit boards of 320x256 pixels: parts, traces, prints; missing, shifted, wrong and scratched ones."""

import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcdd.paper.toys.drawing import SCALE, Colour, Point, blended, box, scaled, wobbly

WIDTH, HEIGHT = 320, 256
# The grid that parts are placed on, and how many of each there are.
_COLUMNS, _ROWS, _MARGIN = 9, 7, 14
_CHIPS, _CANS, _TWO_POLES, _TRACES = 4, 4, 24, 22
GROUND, _COPPER, _SOLDER, _PRINT = (24, 92, 58), (46, 128, 78), (196, 198, 190), (222, 226, 214)


@dataclass(frozen=True, slots=True)
class Part:
    """One component: centre and size (width, height) in pixels, angle in degrees, what is printed on it or beside."""

    kind: Literal["chip", "can", "two_pole"]
    centre: Point
    size: Point
    colour: Colour
    text: str
    angle: float = 0.0
    is_placed: bool = True
    is_printed: bool = True


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows; `marks` are lines over everything: points, width, colour, opacity."""

    parts: tuple[Part, ...]
    traces: tuple[tuple[Point, ...], ...]
    lot: str
    gaps: tuple[Point, ...] = ()
    bridges: tuple[tuple[Point, Point], ...] = ()
    marks: tuple[tuple[tuple[Point, ...], float, Colour, float], ...] = ()


def design(seed: int) -> Scene:
    """The board of one seed, as it was drawn by its maker."""
    generator = np.random.default_rng((0, seed))
    cells = [(c, r) for r in range(_ROWS) for c in range(_COLUMNS)]
    step = ((WIDTH - 2 * _MARGIN) / _COLUMNS, (HEIGHT - 2 * _MARGIN) / _ROWS)
    taken = set[tuple[int, int]]()
    parts: list[Part] = []
    for number in generator.permutation(len(cells)):
        column, row = cells[number]
        chips = sum(part.kind == "chip" for part in parts)
        block = {(column + c, row + r) for c in range(2) for r in range(2)} if chips < _CHIPS else {(column, row)}
        if block & taken or any(c >= _COLUMNS or r >= _ROWS for c, r in block):
            continue
        if len(parts) == _CHIPS + _CANS + _TWO_POLES:
            break
        taken |= block
        across = 1 if len(block) == 1 else 2
        centre = (_MARGIN + step[0] * (column + across / 2), _MARGIN + step[1] * (row + across / 2))
        parts.append(_part(len(parts), centre, generator))
    traces = tuple(_trace(parts, generator) for _ in range(_TRACES))
    return Scene(tuple(parts), traces, "")


def _part(number: int, centre: Point, generator: np.random.Generator) -> Part:
    letters = "".join(generator.choice(list(string.ascii_uppercase + string.digits), 4))
    if number < _CHIPS:
        size = tuple(generator.uniform((34, 30), (48, 42)))
        return Part("chip", centre, (size[0], size[1]), (38, 38, 42), letters)
    if number < _CHIPS + _CANS:
        side = float(generator.uniform(17, 22))
        return Part("can", centre, (side, side), (150, 154, 158), letters[:2])
    size = tuple(generator.uniform((12, 6), (17, 9)))
    colour: Colour = ((58, 50, 46), (140, 106, 74), (196, 170, 130))[int(generator.integers(3))]
    return Part("two_pole", centre, (size[0], size[1]), colour, letters[:2], float(generator.choice((0.0, 90.0))))


def _trace(parts: list[Part], generator: np.random.Generator) -> tuple[Point, ...]:
    one, other = generator.choice(len(parts), 2, replace=False)
    (x0, y0), (x1, y1) = parts[one].centre, parts[other].centre
    return ((x0, y0), (x1, y0), (x1, y1)) if generator.random() < 0.5 else ((x0, y0), (x0, y1), (x1, y1))


def produced(board: Scene, generator: np.random.Generator) -> Scene:
    """One nominal copy of a design: tolerances of placing, tints, a lot number."""

    def tolerance(part: Part) -> Part:
        (x, y), (dx, dy) = part.centre, generator.normal(0, 0.5, 2).clip(-1.2, 1.2)
        tint = generator.normal(1, 0.04)
        red, green, blue = (int(min(255, value * tint)) for value in part.colour)
        turned = part.angle + float(np.clip(generator.normal(0, 1), -2.5, 2.5))
        return replace(part, centre=(x + dx, y + dy), colour=(red, green, blue), angle=turned)

    lot = "".join(generator.choice(list(string.digits), 6))
    return replace(board, parts=tuple(map(tolerance, board.parts)), lot=lot)


# Defects: a nominal scene in, one with a defect out.


def missing(scene: Scene, generator: np.random.Generator) -> Scene:
    """A two-pole part or a can was not placed: its pads are bare."""
    return _changed(scene, generator, ("two_pole", "can"), lambda part: replace(part, is_placed=False))


def shifted(scene: Scene, generator: np.random.Generator) -> Scene:
    """A two-pole part sits 4 to 7 pixels beside its pads, turned by 15 to 40 degrees."""

    def move(part: Part) -> Part:
        direction, distance = generator.uniform(0, 2 * np.pi), generator.uniform(4, 7)
        (x, y), turn = part.centre, generator.choice((-1, 1)) * generator.uniform(15, 40)
        centre = (x + distance * np.cos(direction), y + distance * np.sin(direction))
        return replace(part, centre=centre, angle=part.angle + turn)

    return _changed(scene, generator, ("two_pole",), move)


def unprinted(scene: Scene, generator: np.random.Generator) -> Scene:
    """The print of a chip is missing."""
    return _changed(scene, generator, ("chip",), lambda part: replace(part, is_printed=False))


def misprinted(scene: Scene, generator: np.random.Generator) -> Scene:
    """A chip has another print: another type was placed."""

    def other(part: Part) -> Part:
        return replace(part, text="".join(generator.choice(list(string.ascii_uppercase + string.digits), 4)))

    return _changed(scene, generator, ("chip",), other)


def scratched(scene: Scene, generator: np.random.Generator) -> Scene:
    """A bright line of 18 to 45 pixels, about one pixel wide, of an opacity of 0.35 to 0.7."""
    length, angle = generator.uniform(18, 45), generator.uniform(0, 2 * np.pi)
    start = generator.uniform((50, 50), (WIDTH - 50, HEIGHT - 50))
    line = wobbly((float(start[0]), float(start[1])), length, angle, generator)
    return replace(scene, marks=((line, generator.uniform(0.8, 1.4), (205, 208, 200), generator.uniform(0.35, 0.7)),))


def bridged(scene: Scene, generator: np.random.Generator) -> Scene:
    """Solder joins two neighbouring legs of a chip."""
    chips = [part for part in scene.parts if part.kind == "chip"]
    legs = _legs(chips[int(generator.integers(len(chips)))])
    side = legs[: len(legs) // 2] if generator.random() < 0.5 else legs[len(legs) // 2 :]
    first = int(generator.integers(len(side) - 1))
    return replace(scene, bridges=((side[first], side[first + 1]),))


def interrupted(scene: Scene, generator: np.random.Generator) -> Scene:
    """A trace has a gap of 5 pixels, where no part covers it."""
    while True:
        trace = scene.traces[int(generator.integers(len(scene.traces)))]
        (x0, y0), (x1, y1) = trace[0], trace[1]
        along = generator.uniform(0.2, 0.8)
        gap = (x0 + along * (x1 - x0), y0 + along * (y1 - y0))
        if all(np.hypot(gap[0] - p.centre[0], gap[1] - p.centre[1]) > max(p.size) / 2 + 6 for p in scene.parts):
            return replace(scene, gaps=(gap,))


DEFECTS: tuple[Callable[[Scene, np.random.Generator], Scene], ...] = (
    *(missing, shifted, unprinted, misprinted, scratched, bridged, interrupted),
)


def _changed(
    scene: Scene, generator: np.random.Generator, kinds: tuple[str, ...], change: Callable[[Part], Part]
) -> Scene:
    number = int(generator.choice([n for n, part in enumerate(scene.parts) if part.kind in kinds]))
    parts = list(scene.parts)
    parts[number] = change(parts[number])
    return replace(scene, parts=tuple(parts))


def _legs(part: Part) -> list[Point]:
    """The legs of a chip: those of its left side, then of its right."""
    (x, y), (width, height) = part.centre, part.size
    rows = np.linspace(y - height / 2 + 4, y + height / 2 - 4, 5)
    return [(x + side * (width / 2 + 2), float(row)) for side in (-1, 1) for row in rows]


def drawn(scene: Scene, board: Scene) -> Image.Image:
    """The board at `SCALE` times the size; pads lie where the design has them, whatever became of the parts."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), GROUND)
    canvas = ImageDraw.Draw(image)
    for trace in scene.traces:
        canvas.line(scaled(trace), _COPPER, 3 * SCALE, joint="curve")
    for x, y in scene.gaps:
        canvas.rectangle(box((x, y), (5, 5)), GROUND)
    for part in board.parts:
        for pad in _pads(part):
            canvas.rectangle(box(pad, (5, 6)), _SOLDER)
    for part in scene.parts:
        if part.is_placed:
            _draw_part(image, part)
    canvas.text((8 * SCALE, (HEIGHT - 12) * SCALE), f"LOT {scene.lot}", _PRINT, ImageFont.load_default(8 * SCALE))
    for one, other in scene.bridges:
        canvas.line(scaled((one, other)), _SOLDER, 3 * SCALE)
    for points, width, colour, opacity in scene.marks:
        image = blended(image, points, width, colour, opacity)
    return image


def _pads(part: Part) -> list[Point]:
    if part.kind == "chip":
        return []
    reach = part.size[0] / 2 * (0.6 if part.kind == "can" else 1)
    upright = 45 < part.angle % 180 < 135
    (x, y), (dx, dy) = part.centre, (0.0, reach) if upright else (reach, 0.0)
    return [(x - dx, y - dy), (x + dx, y + dy)]


def _draw_part(image: Image.Image, part: Part) -> None:
    """Drawn upright on a sheet of its own, turned, and laid onto the board."""
    side = int(2 * max(part.size) + 8) * SCALE
    sheet = Image.new("RGBA", (side, side), (*part.colour, 0))
    canvas, middle = ImageDraw.Draw(sheet), (side / 2 / SCALE, side / 2 / SCALE)
    if part.kind == "can":
        canvas.ellipse(box(middle, part.size), part.colour, (90, 92, 96), SCALE)
        canvas.pieslice(box(middle, (part.size[0] - 3, part.size[1] - 3)), 20, 90, (60, 62, 70))
    else:
        if part.kind == "chip":
            for leg in _legs(replace(part, centre=middle)):
                canvas.rectangle(box(leg, (4, 2.5)), _SOLDER)
        canvas.rectangle(box(middle, part.size), part.colour)
        if part.kind == "two_pole":
            for end in (-1, 1):
                x = middle[0] + end * (part.size[0] / 2 - 1)
                canvas.rectangle(box((x, middle[1]), (2.5, part.size[1])), _SOLDER)
    if part.kind == "chip" and part.is_printed:
        canvas.text(
            (middle[0] * SCALE, middle[1] * SCALE), part.text, _PRINT, ImageFont.load_default(9 * SCALE), anchor="mm"
        )
    turned = sheet.rotate(part.angle, Image.Resampling.BILINEAR)
    corner = (round(part.centre[0] * SCALE - side / 2), round(part.centre[1] * SCALE - side / 2))
    image.paste(turned, corner, turned)
