"""How large must a defect be, in pixels of the network's input, to be found?

    python -m benchmarks.defect_size --bundle BUNDLE --images FOLDER [--per-size 100] [--length 32]

Draws one round spot into each of some nominal images, at a random place and `depth` of the way to black or white
(whichever is further), by its diameter at the network's input, and prints one JSON line for each diameter and depth:
the share of the images that are alarms at the bundle's rate. "0" pixels are the images as they are. With a `length`
it is a straight crack with round ends, so long, as wide as a spot would be, in a random direction.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fcdd import images
from fcdd.calibration import Decider
from fcdd.detector import Detector

DIAMETERS, DEPTHS = (2, 3, 4, 6, 8, 12, 16, 24), (0.25, 0.5, 1.0)
_SOFT = 4  # how many times finer the rim is drawn


def damaged(
    image_hwc: npt.NDArray[np.uint8], diameter: float, length: float, depth: float, generator: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """The image with a spot, or a crack of some length, whose rim is as soft as a pixel."""
    height, width = image_hwc.shape[:2]
    margin = diameter + length / 2
    y, x = generator.uniform((margin, margin), (height - margin, width - margin))
    angle = generator.uniform(0, np.pi) if length else 0.0
    fine = (np.arange(_SOFT) + 0.5) / _SOFT
    rows, columns = (np.add.outer(np.arange(side), fine).ravel() for side in (height, width))
    down, across = rows[:, None] - y, columns[None, :] - x
    along = (down * np.sin(angle) + across * np.cos(angle)).clip(-length / 2, length / 2)
    inside = (down - along * np.sin(angle)) ** 2 + (across - along * np.cos(angle)) ** 2 < (diameter / 2) ** 2
    alpha = inside.reshape(height, _SOFT, width, _SOFT).mean((1, 3))[:, :, None]
    ground = float((image_hwc * alpha).sum() / (alpha.sum() * image_hwc.shape[2]))
    tone = 0 if ground > 127 else 255
    shown: npt.NDArray[np.float64] = image_hwc + depth * alpha * (tone - image_hwc.astype(np.float64))
    return np.asarray(shown.round(), np.uint8)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--images", required=True, type=Path, help="nominal images that were not trained on")
    parser.add_argument("--per-size", type=int, default=100)
    parser.add_argument(
        "--diameters", type=float, nargs="+", default=DIAMETERS, help="pixels; also the width of cracks"
    )
    parser.add_argument("--length", type=float, default=0, help="of a crack; default: round spots")
    arguments = parser.parse_args()
    detector, generator = Detector.load(arguments.bundle), np.random.default_rng(0)
    spec = detector.spec
    decide = Decider(spec.calibration, spec.calibration.alpha)
    paths = sorted(path for path in arguments.images.rglob("*") if path.is_file())[: arguments.per_size]
    pictures = [images.decode(path.read_bytes(), spec.view).pixels for path in paths]
    for diameter, depth in [(0, 0.0), *((d, depth) for depth in DEPTHS for d in arguments.diameters)]:
        shown = [damaged(each, diameter, arguments.length, depth, generator) if diameter else each for each in pictures]
        scored = detector.score(np.stack(shown))
        _, alarms = decide(getattr(scored, spec.score), scored.maximum, [""] * len(shown))
        line = {"pixels": diameter, "depth": depth, "images": len(shown), "found": round(float(alarms.mean()), 3)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
