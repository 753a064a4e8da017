"""Synthetic anomalies for training: a nominal image in, an anomalous one and its exact mask out.

Three kinds that look like what breaks on a product: cracks (thin jagged lines), patches (a polygon of
another brightness, as a broken-off or disconnected part), stains (smooth blobs shaped by low-frequency
noise). They change the image and replace nothing else, so the network cannot learn the texture of the
source. All sizes are fractions of the image's shorter side; all randomness comes from the generator.

Shapes: H x W pixels, C channels.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Pixels = npt.NDArray[np.uint8]
Alpha = npt.NDArray[np.float32]

# Lines are drawn this many times larger and scaled down, so that a one-pixel crack has soft edges.
_SUPERSAMPLING = 3
# How far a defect goes towards black (or white): faint ones keep the task hard.
_DEPTH = (0.15, 0.9)
# A pixel belongs to the mask when at least this share of it is covered.
_MASKED_ALPHA = 0.15


def add_anomaly(image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """A copy of the uint8 image (H,W,C) with one to three defects, and their mask (H,W).

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
            target = result * (1 - depth) if generator.random() < 0.8 else result + (255 - result) * depth
            result += alpha[:, :, None] * (target - result)
            covered = np.maximum(covered, alpha)
    return result.round().clip(0, 255).astype(np.uint8), covered >= _MASKED_ALPHA


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


_KINDS: tuple[Callable[[int, int, np.random.Generator], Alpha], ...] = (cracks, patches, stains)
_WEIGHTS = (0.6, 0.2, 0.2)


def _jagged_path(
    start: npt.NDArray[np.float64], angle: float, length: float, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """(steps + 1, 2) points (x, y): a straight walk whose direction wobbles."""
    steps = int(generator.integers(3, 14))
    angles = angle + np.cumsum(generator.normal(0, 0.25, steps)) + generator.normal(0, 0.2, steps)
    moves = np.stack((np.cos(angles), np.sin(angles)), 1) * (length / steps)
    return np.vstack((start, start + np.cumsum(moves, 0)))


def _to_alpha(canvas: Image.Image, size: tuple[int, int]) -> Alpha:
    soft = canvas.resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.5))
    return np.asarray(soft, np.float32) / np.float32(255)
