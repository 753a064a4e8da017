"""Synthetic anomalies for training: a nominal image in, an anomalous one and its mask out.

Defects look like what breaks on a product: cracks (thin jagged lines), scratches (long smooth ones), patches (a
polygon of another brightness, as a broken-off or disconnected part), stains (smooth blobs). They change the image
and replace nothing else, so the network cannot learn the texture of the source. CutPaste moves a part of the image
to another place; Perlin blends another texture or tone in through a mask of coherent noise. The mask marks where a
defect covers at least 15 % of a pixel: its soft rim changes the image a little too. All sizes are fractions of the
image; all randomness comes from the generator. The published noise modes are in `fcdd.noise`.

Shapes: H x W pixels, C channels.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Alpha = npt.NDArray[np.float32]

# Lines are drawn this many times larger and scaled down, so that a one-pixel crack has soft edges.
_SUPERSAMPLING = 3
# How far a defect goes towards black (or white): faint ones keep the task hard.
_DEPTH = (0.15, 0.9)
# Pixels beyond what is drawn that its softened edges reach.
_SOFT_RIM = 4
# A pixel belongs to the mask when at least this share of it is covered.
_MASKED_ALPHA = 0.15
# Grey levels; a moved or blended pixel belongs to the mask when it changed by more than this.
_VISIBLE = 8
# An image of one colour hides a moved part however often it is tried.
_ATTEMPTS = 8
_SCRATCH_POINTS = 16


def mixed(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the uint8 image (H,W,C) with defects, a moved part or a blend, and the mask (H,W) of the change."""
    kind = (defects, cutpaste, perlin)[generator.choice(3, p=(0.5, 0.25, 0.25))]
    return kind(image_hwc, generator)


def defects(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the uint8 image (H,W,C) with one to three cracks, scratches, patches or stains, and their mask (H,W).

    The mask holds at least one pixel. Darker defects are drawn four times as often as brighter ones.
    """
    height, width = image_hwc.shape[:2]
    result = image_hwc.astype(np.float32)
    covered = np.zeros((height, width), np.float32)
    while covered.max() < _MASKED_ALPHA:
        for _ in range(generator.integers(1, 4)):
            kind = _KINDS[generator.choice(len(_KINDS), p=_WEIGHTS)]
            alpha = kind(height, width, generator)
            depth = generator.uniform(*_DEPTH)
            chosen = int(generator.random() >= 0.8)
            at = _covered_part(alpha)
            changes = [alpha[at][:, :, None] * depth * (tone - result[at]) for tone in (0, 255)]
            # Nothing is seen of a dark defect on black, nor of a bright one on white.
            if np.abs(changes[chosen]).max(initial=0) < _VISIBLE:
                chosen = 1 - chosen
            result[at] += changes[chosen]
            covered[at] = np.maximum(covered[at], alpha[at])
    return result.round().clip(0, 255).astype(np.uint8), covered >= _MASKED_ALPHA


def cutpaste(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the uint8 image (H,W,C) with a part of itself pasted elsewhere, and the mask (H,W) of the change.

    Source: Li et al., CutPaste, CVPR 2021: 2 to 15 % of the area with an aspect ratio of 0.3 to 3.3, or a thin
    "scar"; turned, and its brightness changed. The mask holds at least one pixel.
    """
    height, width = image_hwc.shape[:2]
    for _ in range(_ATTEMPTS):
        if generator.random() < 0.5:
            area, aspect = generator.uniform(0.02, 0.15) * height * width, np.exp(generator.uniform(-1.2, 1.2))
            rows, columns, turn = np.sqrt(area * aspect), np.sqrt(area / aspect), generator.choice((0.0, 90.0, 180.0))
        else:
            side = min(height, width)
            rows, columns = generator.uniform(0.01, 0.07) * side, generator.uniform(0.05, 0.25) * side
            turn = generator.uniform(-90, 90)
        size = (min(max(round(columns), 1), width), min(max(round(rows), 1), height))
        left, top = generator.integers((0, 0), (width - size[0] + 1, height - size[1] + 1))
        part = image_hwc[top : top + size[1], left : left + size[0]] * generator.uniform(0.8, 1.2)
        result, covered = _paste(image_hwc, part.clip(0, 255).astype(np.uint8), turn, generator)
        # Where the part equals what it covers, nothing is anomalous.
        mask = covered & (np.abs(result.astype(np.int16) - image_hwc).max(2) > _VISIBLE)
        if mask.any():
            return result, mask
    return defects(image_hwc, generator)


def perlin(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A copy of the uint8 image (H,W,C) with another texture or tone blended in, and the mask (H,W) of the change.

    Source: Zavrtanik et al., DRAEM, ICCV 2021: the mask is Perlin noise above a threshold, the opacity 0.15 to 1.
    The texture is the image itself, turned and shifted; the tone is one colour. The mask holds at least one pixel.
    """
    height, width = image_hwc.shape[:2]
    for _ in range(_ATTEMPTS):
        noise = perlin_noise(height, width, 2 ** generator.integers(1, 6, 2), generator)
        window = _window(height, width, generator)
        mask = (noise * window > generator.uniform(0.2, 0.5)) & (window > 0.1)
        source: npt.NDArray[np.float64] | Pixels
        if generator.random() < 0.5:
            source = np.roll(image_hwc[::-1, ::-1], generator.integers((0, 0), (height, width)), (0, 1))
        else:
            source = np.broadcast_to(generator.uniform(0, 255, image_hwc.shape[2]), image_hwc.shape)
        opacity = generator.uniform(0.15, 1)
        blended = (image_hwc + opacity * (source - image_hwc.astype(np.float64))).round().clip(0, 255).astype(np.uint8)
        result = np.where(mask[:, :, None], blended, image_hwc)
        mask &= np.abs(result.astype(np.int16) - image_hwc).max(2) > _VISIBLE
        if mask.any():
            return result, mask
    return defects(image_hwc, generator)


def perlin_noise(
    height: int, width: int, cells: npt.NDArray[np.int64], generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Gradient noise (H,W) in about [-1, 1] on a lattice of `cells` = (rows, columns) (Perlin, 1985 and 2002)."""
    rows, columns = (np.arange(n) * c / n for n, c in zip((height, width), cells, strict=True))
    angles = generator.uniform(0, 2 * np.pi, cells + 1)
    row, column = rows.astype(np.int64)[:, None], columns.astype(np.int64)[None, :]
    y, x = rows[:, None] - row, columns[None, :] - column
    dots = [
        [np.sin(angles[row + i, column + j]) * (y - i) + np.cos(angles[row + i, column + j]) * (x - j) for j in (0, 1)]
        for i in (0, 1)
    ]
    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (y, x))
    upper, lower = (dots[i][0] + fade_x * (dots[i][1] - dots[i][0]) for i in (0, 1))
    noise: npt.NDArray[np.float64] = np.sqrt(2) * (upper + fade_y * (lower - upper))
    return noise


def _window(height: int, width: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """(H,W) in (0, 1]: one place of the image, of random size, so that the change stays local."""
    centre_y, centre_x = generator.uniform((0, 0), (height, width))
    radius = generator.uniform(0.08, 0.4) * min(height, width)
    rows, columns = np.ogrid[:height, :width]
    window: npt.NDArray[np.float64] = np.exp(-((rows - centre_y) ** 2 + (columns - centre_x) ** 2) / (2 * radius**2))
    return window


def _paste(image: Pixels, part: Pixels, turn: float, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """The image with `part` turned by `turn` degrees at a random place, and the mask (H,W) it covers."""
    turned = Image.fromarray(part.squeeze(2) if part.shape[2] == 1 else part).rotate(turn, expand=True)
    shape = Image.new("L", (part.shape[1], part.shape[0]), 255).rotate(turn, expand=True)
    canvas = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    covered = Image.new("L", canvas.size)
    # Anywhere with its centre inside the image; what sticks out is cut off.
    centre = generator.integers((0, 0), canvas.size)
    corner = (int(centre[0]) - turned.width // 2, int(centre[1]) - turned.height // 2)
    canvas.paste(turned, corner, shape)
    covered.paste(shape, corner, shape)
    return np.asarray(canvas).reshape(image.shape), np.asarray(covered) > 0


def cracks(height: int, width: int, generator: np.random.Generator) -> Alpha:
    """Coverage (H,W) in [0,1] of one jagged line with up to two branches."""
    side = min(height, width)
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    start = generator.uniform((0, 0), (width, height))
    angle = generator.uniform(0, 2 * np.pi)
    for branch in range(generator.integers(1, 4)):
        length = generator.uniform(0.15, 0.9) * side / (1 + branch)
        path = _jagged_path(start, angle, length, generator)
        thickness = max(1, round(generator.uniform(0.003, 0.012) * side * _SUPERSAMPLING))
        draw.line([tuple(point) for point in path * _SUPERSAMPLING], fill=255, width=thickness, joint="curve")
        start = path[generator.integers(len(path))]
        angle += generator.uniform(0.4, 1.4) * generator.choice((-1, 1))
    return _to_alpha(canvas, (width, height))


def scratches(height: int, width: int, generator: np.random.Generator) -> Alpha:
    """Coverage (H,W) in [0,1] of one long smooth thin line."""
    side = min(height, width)
    start = generator.uniform((0, 0), (width, height))
    angle, length = generator.uniform(0, 2 * np.pi), generator.uniform(0.2, 1.0) * side
    bend = np.linspace(0, generator.uniform(-0.6, 0.6), _SCRATCH_POINTS)
    moves = np.stack((np.cos(angle + bend), np.sin(angle + bend)), 1) * (length / _SCRATCH_POINTS)
    path = start + np.cumsum(moves, 0)
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    thickness = max(1, round(generator.uniform(0.004, 0.015) * side * _SUPERSAMPLING))
    points = [tuple(point) for point in path * _SUPERSAMPLING]
    ImageDraw.Draw(canvas).line(points, fill=255, width=thickness, joint="curve")
    return _to_alpha(canvas, (width, height))


def patches(height: int, width: int, generator: np.random.Generator) -> Alpha:
    """Coverage (H,W) in [0,1] of one irregular polygon."""
    side = min(height, width)
    corners = generator.integers(3, 8)
    angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
    radii = generator.uniform(0.02, 0.3) * side * generator.uniform(0.4, 1.6, corners)
    stretch = generator.uniform(0.4, 1.0, 2)
    centre = generator.uniform((0, 0), (width, height))
    points = centre + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1) * stretch
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points * _SUPERSAMPLING], fill=255)
    return _to_alpha(canvas, (width, height))


def stains(height: int, width: int, generator: np.random.Generator) -> Alpha:
    """Coverage (H,W) in [0,1] of smooth blobs inside one random disc."""
    cells = int(generator.integers(3, 9))
    noise = generator.uniform(0, 255, (cells, cells)).astype(np.uint8)
    field = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    centre_x, centre_y = generator.uniform((0, 0), (width, height))
    radius = generator.uniform(0.04, 0.25) * min(height, width)
    rows, columns = np.ogrid[:height, :width]
    disc = np.exp(-((rows - centre_y) ** 2 + (columns - centre_x) ** 2) / (2 * radius**2))
    alpha: Alpha = np.clip((field * disc - 0.25) * 4, 0, 1).astype(np.float32)
    return alpha


_KINDS: tuple[Callable[[int, int, np.random.Generator], Alpha], ...] = (cracks, scratches, patches, stains)
_WEIGHTS = (0.45, 0.15, 0.2, 0.2)


def _jagged_path(
    start: npt.NDArray[np.float64], angle: float, length: float, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """(steps + 1, 2) points (x, y): a straight walk whose direction wobbles."""
    steps = int(generator.integers(3, 14))
    angles = angle + np.cumsum(generator.normal(0, 0.25, steps)) + generator.normal(0, 0.2, steps)
    moves = np.stack((np.cos(angles), np.sin(angles)), 1) * (length / steps)
    return np.vstack((start, start + np.cumsum(moves, 0)))


def _covered_part(alpha_hw: Alpha) -> tuple[slice, slice]:
    """The smallest rectangle that holds all of a defect: most of them are small, and nothing changes elsewhere."""
    spans = []
    for axis in (1, 0):
        hit = np.flatnonzero(alpha_hw.any(axis))
        spans.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, 0))
    return spans[0], spans[1]


def _to_alpha(canvas: Image.Image, size: tuple[int, int]) -> Alpha:
    alpha = np.zeros((size[1], size[0]), np.float32)
    drawn = canvas.getbbox()
    if drawn is not None:
        left, top = (max(side // _SUPERSAMPLING - _SOFT_RIM, 0) for side in drawn[:2])
        right, bottom = (
            min(-(-side // _SUPERSAMPLING) + _SOFT_RIM, end) for side, end in zip(drawn[2:], size, strict=True)
        )
        n = _SUPERSAMPLING
        part = canvas.crop((n * left, n * top, n * right, n * bottom))
        soft = part.resize((right - left, bottom - top), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.5))
        alpha[top:bottom, left:right] = np.asarray(soft, np.float32) / np.float32(255)
    return alpha
