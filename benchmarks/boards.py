"""Pictures of circuit boards of one design, nominal and with one small defect each, with exact masks.

    python -m benchmarks.boards FOLDER [--seed N]     write a collection: nominal/, test/<kind>/, ground_truth/<kind>/

A seed is a design: where the parts sit, what is printed on them. Every picture of a design differs in what differs in
production: light and its gradient, the board's position and angle under the camera, tolerances of placing, tints of
parts, reflections of solder, the lot number, noise. Defects are of `DEFECTS`; their sizes were fixed before any
detector had seen one. A mask marks the pixels that the defect changed by more than `VISIBLE` grey levels in the
picture without noise.

Shapes: N pictures of H x W = 256 x 320 pixels, three channels.
"""

import argparse
import string
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Colour = tuple[int, int, int]
Point = tuple[float, float]

WIDTH, HEIGHT = 320, 256
VISIBLE = 8
# Drawn larger and scaled down, so that edges are soft as a lens makes them.
_SCALE = 2
# The grid that parts are placed on, and how many of each there are.
_COLUMNS, _ROWS, _MARGIN = 9, 7, 14
_CHIPS, _CANS, _TWO_POLES, _TRACES = 4, 4, 24, 22
_SUBSTRATE, _COPPER, _SOLDER, _PRINT = (24, 92, 58), (46, 128, 78), (196, 198, 190), (222, 226, 214)


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


class Boards(NamedTuple):
    """Nominal pictures (N,H,W,C) to train and to calibrate on; test pictures, labels (N,), masks (N,H,W), kinds."""

    training: Pixels
    calibration: Pixels
    test: Pixels
    labels: npt.NDArray[np.int64]
    masks: Mask
    kinds: list[str]


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
    way = np.linspace(0, 1, 7)[:, None] * length * np.array([[np.cos(angle), np.sin(angle)]])
    points = start + way + generator.normal(0, 0.8, way.shape)
    line = tuple((float(x), float(y)) for x, y in points)
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


Defect = Callable[[Scene, np.random.Generator], Scene]
DEFECTS: dict[str, Defect] = {
    each.__name__: each for each in (missing, shifted, unprinted, misprinted, scratched, bridged, interrupted)
}


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


def photograph(
    scene: Scene, defect: Defect | None, board: Scene, generator: np.random.Generator
) -> tuple[Pixels, Mask]:
    """A picture (H,W,C) of a produced board, with a defect if there is one, and the mask (H,W) of what it changed."""
    camera = _Camera.drawn(generator)
    clean = camera.light(_drawn(scene, board))
    shown = clean if defect is None else camera.light(_drawn(defect(scene, generator), board))
    mask: Mask = np.any(np.abs(shown - clean) > VISIBLE, axis=2)
    noisy = shown + generator.normal(0, 3, shown.shape)
    return noisy.round().clip(0, 255).astype(np.uint8), mask


class _Camera(NamedTuple):
    """How a picture is taken: the board's place and angle under the camera, the light and where it falls off."""

    shift: Point
    angle: float
    gain: float
    slope: Point

    @classmethod
    def drawn(cls, generator: np.random.Generator) -> "_Camera":
        dx, dy = generator.normal(0, 0.7, 2).clip(-1.8, 1.8)
        angle = float(np.clip(generator.normal(0, 0.2), -0.5, 0.5))
        sx, sy = generator.uniform(-0.06, 0.06, 2)
        return cls((float(dx), float(dy)), angle, float(generator.uniform(0.93, 1.07)), (float(sx), float(sy)))

    def light(self, image: Image.Image) -> npt.NDArray[np.float64]:
        """What the sensor sees (H,W,C), without its noise."""
        (dx, dy), angle = self.shift, np.radians(self.angle)
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        x, y = image.width / 2, image.height / 2
        back = (cos, sin, x - cos * (x + dx * _SCALE) - sin * (y + dy * _SCALE))
        down = (-sin, cos, y + sin * (x + dx * _SCALE) - cos * (y + dy * _SCALE))
        moved = image.transform(
            image.size, Image.Transform.AFFINE, (*back, *down), Image.Resampling.BILINEAR, fillcolor=_SUBSTRATE
        )
        small = np.asarray(moved.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float64)
        rows, columns = np.linspace(-1, 1, HEIGHT)[:, None], np.linspace(-1, 1, WIDTH)[None]
        return small * (self.gain + self.slope[0] * columns + self.slope[1] * rows)[:, :, None]


def _drawn(scene: Scene, board: Scene) -> Image.Image:
    """The board at `_SCALE` times the size; pads lie where the design has them, whatever became of the parts."""
    image = Image.new("RGB", (WIDTH * _SCALE, HEIGHT * _SCALE), _SUBSTRATE)
    canvas = ImageDraw.Draw(image)
    for trace in scene.traces:
        canvas.line(_scaled(trace), _COPPER, 3 * _SCALE, joint="curve")
    for x, y in scene.gaps:
        canvas.rectangle(_box((x, y), (5, 5)), _SUBSTRATE)
    for part in board.parts:
        for pad in _pads(part):
            canvas.rectangle(_box(pad, (5, 6)), _SOLDER)
    for part in scene.parts:
        if part.is_placed:
            _draw_part(image, part)
    canvas.text((8 * _SCALE, (HEIGHT - 12) * _SCALE), f"LOT {scene.lot}", _PRINT, ImageFont.load_default(8 * _SCALE))
    for one, other in scene.bridges:
        canvas.line(_scaled((one, other)), _SOLDER, 3 * _SCALE)
    for points, width, colour, opacity in scene.marks:
        over = image.copy()
        ImageDraw.Draw(over).line(_scaled(points), colour, max(1, round(width * _SCALE)), joint="curve")
        image = Image.blend(image, over, opacity)
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
    side = int(2 * max(part.size) + 8) * _SCALE
    sheet = Image.new("RGBA", (side, side), (*part.colour, 0))
    canvas, middle = ImageDraw.Draw(sheet), (side / 2 / _SCALE, side / 2 / _SCALE)
    if part.kind == "can":
        canvas.ellipse(_box(middle, part.size), part.colour, (90, 92, 96), _SCALE)
        canvas.pieslice(_box(middle, (part.size[0] - 3, part.size[1] - 3)), 20, 90, (60, 62, 70))
    else:
        if part.kind == "chip":
            for leg in _legs(replace(part, centre=middle)):
                canvas.rectangle(_box(leg, (4, 2.5)), _SOLDER)
        canvas.rectangle(_box(middle, part.size), part.colour)
        if part.kind == "two_pole":
            for end in (-1, 1):
                x = middle[0] + end * (part.size[0] / 2 - 1)
                canvas.rectangle(_box((x, middle[1]), (2.5, part.size[1])), _SOLDER)
    if part.kind == "chip" and part.is_printed:
        canvas.text(
            (middle[0] * _SCALE, middle[1] * _SCALE), part.text, _PRINT, ImageFont.load_default(9 * _SCALE), anchor="mm"
        )
    turned = sheet.rotate(part.angle, Image.Resampling.BILINEAR)
    corner = (round(part.centre[0] * _SCALE - side / 2), round(part.centre[1] * _SCALE - side / 2))
    image.paste(turned, corner, turned)


def _scaled(points: tuple[Point, ...]) -> list[Point]:
    return [(x * _SCALE, y * _SCALE) for x, y in points]


def _box(centre: Point, size: Point) -> tuple[float, float, float, float]:
    (x, y), (width, height) = centre, size
    return (
        (x - width / 2) * _SCALE,
        (y - height / 2) * _SCALE,
        (x + width / 2) * _SCALE,
        (y + height / 2) * _SCALE,
    )


def load(
    seed: int, *, num_training: int = 300, num_calibration: int = 200, num_nominal: int = 200, num_anomalous: int = 210
) -> Boards:
    """The pictures of one design; the defects take turns."""
    board = design(seed)
    nominal = num_training + num_calibration + num_nominal
    kinds = ["good"] * nominal + [list(DEFECTS)[n % len(DEFECTS)] for n in range(num_anomalous)]
    pixels = np.empty((len(kinds), HEIGHT, WIDTH, 3), np.uint8)
    masks = np.zeros(pixels.shape[:3], np.bool_)
    for number, kind in enumerate(kinds):
        generator = np.random.default_rng((1, seed, number))
        pixels[number], masks[number] = photograph(produced(board, generator), DEFECTS.get(kind), board, generator)
    first = num_training + num_calibration
    return Boards(
        pixels[:num_training],
        pixels[num_training:first],
        pixels[first:],
        np.repeat([0, 1], [num_nominal, num_anomalous]),
        masks[first:],
        kinds[first:],
    )


def write(folder: Path, seed: int) -> None:
    """The pictures of one design as PNG files; nominal ones to train and calibrate on are together."""
    boards = load(seed)
    for number, image in enumerate(np.concatenate([boards.training, boards.calibration])):
        _save(image, folder / "nominal" / f"{number:04d}.png")
    for number, (image, mask, kind) in enumerate(zip(boards.test, boards.masks, boards.kinds, strict=True)):
        _save(image, folder / "test" / kind / f"{number:04d}.png")
        if kind != "good":
            _save(mask.astype(np.uint8) * 255, folder / "ground_truth" / kind / f"{number:04d}_mask.png")


def _save(image: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def main() -> None:
    """Write a collection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
