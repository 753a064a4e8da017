"""Printed cloth of 256x256 pixels that runs under the camera: its pattern lies anywhere; six defects.

A design is the weave, its colours, and the printed motif. Unlike boards and bottles, no place of the picture is
special: what is nominal does not depend on the position.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fcdd.paper.toys.drawing import SCALE, Colour, Point, blended, box, wobbly

WIDTH, HEIGHT = 256, 256
GROUND: Colour = (120, 112, 100)


@dataclass(frozen=True, slots=True)
class Scene:
    """A piece of cloth: thread distance and motif distance in pixels, where the pattern begins, colours, defects.

    `unprinted` and `displaced` name motifs by column and row; `broken` is a thread (number, from, to); `pulled` lines
    (points, width, colour, opacity); `stains` (centre, size, opacity); `holes` (centre, size).
    """

    thread: float
    motif: float
    phase: Point
    warp: Colour
    weft: Colour
    ink: Colour
    sides: int
    tints: tuple[float, ...] = ()
    unprinted: tuple[tuple[int, int], ...] = ()
    displaced: tuple[tuple[int, int, float, float], ...] = ()
    broken: tuple[tuple[int, float, float], ...] = ()
    pulled: tuple[tuple[tuple[Point, ...], float, Colour, float], ...] = ()
    stains: tuple[tuple[Point, Point, float], ...] = ()
    holes: tuple[tuple[Point, Point], ...] = ()


def design(seed: int) -> Scene:
    """The cloth of one seed."""
    generator = np.random.default_rng((3, seed))
    base = generator.uniform(90, 200, 3)
    warp, weft, ink = ((int(r), int(g), int(b)) for r, g, b in (base, base * 0.86, 255 - 0.8 * base))
    return Scene(
        thread=float(generator.uniform(4, 6)),
        motif=float(generator.uniform(34, 46)),
        phase=(0.0, 0.0),
        warp=warp,
        weft=weft,
        ink=ink,
        sides=int(generator.integers(3, 7)),
    )


def produced(cloth: Scene, generator: np.random.Generator) -> Scene:
    """A nominal piece: the pattern begins anywhere, and threads differ a little."""
    x, y = generator.uniform(0, cloth.motif, 2)
    tints = generator.normal(1, 0.03, 128).clip(0.92, 1.08)
    return replace(cloth, phase=(float(x), float(y)), tints=tuple(float(each) for each in tints))


# Defects: a nominal scene in, one with a defect out.


def unprinted(scene: Scene, generator: np.random.Generator) -> Scene:
    """One motif is missing."""
    return replace(scene, unprinted=(_motif(scene, generator),))


def displaced(scene: Scene, generator: np.random.Generator) -> Scene:
    """One motif is printed 4 to 8 pixels beside its place."""
    angle, distance = generator.uniform(0, 2 * np.pi), generator.uniform(4, 8)
    column, row = _motif(scene, generator)
    return replace(scene, displaced=((column, row, float(distance * np.cos(angle)), float(distance * np.sin(angle))),))


def thread_missing(scene: Scene, generator: np.random.Generator) -> Scene:
    """A weft thread is missing over 40 to 120 pixels."""
    number = int(generator.integers(3, int(HEIGHT / scene.thread) - 3))
    start, length = float(generator.uniform(10, WIDTH - 130)), float(generator.uniform(40, 120))
    return replace(scene, broken=((number, start, start + length),))


def pulled(scene: Scene, generator: np.random.Generator) -> Scene:
    """A pulled thread: a bright line of 30 to 70 pixels, one to two pixels wide, of an opacity of 0.4 to 0.8."""
    length, angle = float(generator.uniform(30, 70)), float(generator.uniform(0, 2 * np.pi))
    x, y = generator.uniform((80, 80), (WIDTH - 80, HEIGHT - 80))
    line = wobbly((float(x), float(y)), length, angle, generator)
    mark = (line, float(generator.uniform(1, 2)), (240, 236, 228), float(generator.uniform(0.4, 0.8)))
    return replace(scene, pulled=(mark,))


def stained(scene: Scene, generator: np.random.Generator) -> Scene:
    """A dark stain of 12 to 28 pixels, of an opacity of 0.15 to 0.4."""
    size = generator.uniform((12, 12), (28, 28))
    x, y = generator.uniform((30, 30), (WIDTH - 30, HEIGHT - 30))
    stain = ((float(x), float(y)), (float(size[0]), float(size[1])), float(generator.uniform(0.15, 0.4)))
    return replace(scene, stains=(stain,))


def holed(scene: Scene, generator: np.random.Generator) -> Scene:
    """A hole of 4 to 9 pixels."""
    size = generator.uniform((4, 4), (9, 9))
    x, y = generator.uniform((20, 20), (WIDTH - 20, HEIGHT - 20))
    return replace(scene, holes=(((float(x), float(y)), (float(size[0]), float(size[1]))),))


DEFECTS: tuple[Callable[[Scene, np.random.Generator], Scene], ...] = (
    *(unprinted, displaced, thread_missing, pulled, stained, holed),
)


def _motif(scene: Scene, generator: np.random.Generator) -> tuple[int, int]:
    """One that lies whole inside the picture."""
    last = int((WIDTH - 40 - scene.phase[0]) // scene.motif), int((HEIGHT - 40 - scene.phase[1]) // scene.motif)
    column, row = generator.integers((1, 1), (max(2, last[0]), max(2, last[1])))
    return int(column), int(row)


def drawn(scene: Scene, _: Scene) -> Image.Image:
    """The cloth at `SCALE` times the size."""
    image = Image.fromarray(_woven(scene))
    image = _printed(image, scene)
    for points, width, colour, opacity in scene.pulled:
        image = blended(image, points, width, colour, opacity)
    canvas = ImageDraw.Draw(image)
    for centre, size in scene.holes:
        canvas.ellipse(box(centre, size), (24, 22, 20))
    for centre, size, opacity in scene.stains:
        dark = image.copy()
        ImageDraw.Draw(dark).ellipse(box(centre, size), (58, 44, 30))
        image = Image.blend(image, dark, opacity)
    return image


def _woven(scene: Scene) -> npt.NDArray[np.uint8]:
    """Threads over and under each other, with their tints; a broken one shows the dark ground."""
    step = scene.thread * SCALE
    across = (np.arange(WIDTH * SCALE) + scene.phase[0] * SCALE)[None]
    down = (np.arange(HEIGHT * SCALE) + scene.phase[1] * SCALE)[:, None]
    column, row = (across // step).astype(int), (down // step).astype(int)
    over = (column + row) % 2 == 0
    tints = np.array(scene.tints or (1.0,))
    warp = np.abs(np.sin(np.pi * across / step)) ** 0.6 * tints[column % len(tints)]
    weft = np.abs(np.sin(np.pi * down / step)) ** 0.6 * tints[(row + 64) % len(tints)]
    missing = np.zeros(over.shape, np.bool_)
    for number, first, last in scene.broken:
        place = np.arange(WIDTH * SCALE)[None] / SCALE
        missing |= (row == number) & (place >= first) & (place < last)
    shade = np.where(over, warp, np.where(missing, 0.0, weft))[:, :, None]
    colour = np.where(over[:, :, None], np.array(scene.warp), np.array(scene.weft))
    woven: npt.NDArray[np.uint8] = (colour * (0.55 + 0.45 * shade)).round().clip(0, 255).astype(np.uint8)
    return woven


def _printed(image: Image.Image, scene: Scene) -> Image.Image:
    """The motifs, with the weave showing through."""
    over, moved = image.copy(), {(c, r): (dx, dy) for c, r, dx, dy in scene.displaced}
    canvas = ImageDraw.Draw(over)
    for column in range(-1, int(WIDTH / scene.motif) + 2):
        for row in range(-1, int(HEIGHT / scene.motif) + 2):
            if (column, row) in scene.unprinted:
                continue
            dx, dy = moved.get((column, row), (0.0, 0.0))
            x, y = (scene.phase[0] + column * scene.motif + dx, scene.phase[1] + row * scene.motif + dy)
            canvas.regular_polygon((x * SCALE, y * SCALE, 7 * SCALE), scene.sides, 0, scene.ink)
    return Image.blend(image, over, 0.7)
