"""How well do the boxes of regions enclose what is anomalous, by how far down from its peak a region reaches?

    python -m fcdd.paper.toys boards FOLDER && fcdd train --images FOLDER/nominal --bundle BUNDLE
    python -m benchmarks.region_boxes --bundle BUNDLE --toys FOLDER

Of the pictures with a defect whose map exceeds the map threshold, for each share of the peak (0: all that is above the
threshold; the product has `fcdd.regions.REACH`), as a table:

    IoU          of the hottest region's box and the box around the mask: median and mean
    covered      the part of the mask's pixels that lies in any box, in the mean
    by half      pictures in which that is more than half
    touched      pictures in which the hottest box and the mask have pixels in common
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd import images, regions
from fcdd.cropping import Box
from fcdd.detector import Detector
from fcdd.regions import Region

SHARES = (0.0, 0.25, 0.35, 0.5, 0.65, 0.8)
Mask = npt.NDArray[np.bool_]


class Enclosed(NamedTuple):
    """Of one picture."""

    iou: float
    covered: float
    touched: bool


def enclosed(found: list[Region], mask: Mask) -> Enclosed:
    """How regions, the hottest first, enclose the true pixels of a mask (H,W)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    truth = Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    boxes = [Box(region.y0, region.x0, region.y1, region.x1) for region in found]
    inside, first = np.zeros_like(mask), boxes[0]
    for box in boxes:
        inside[box.top : box.bottom, box.left : box.right] = True
    touched = bool(mask[first.top : first.bottom, first.left : first.right].any())
    return Enclosed(_iou(first, truth), float((inside & mask).sum() / mask.sum()), touched)


def _iou(one: Box, other: Box) -> float:
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    width = min(one.right, other.right) - max(one.left, other.left)
    common = max(0, height) * max(0, width)
    return common / (np.prod(one.size) + np.prod(other.size) - common)


def measured(detector: Detector, folder: Path, shares: tuple[float, ...]) -> dict[float, list[Enclosed]]:
    """Of all pictures that have a region."""
    spec, results = detector.spec, dict[float, list[Enclosed]]((share, []) for share in shares)
    for path in sorted((folder / "test").glob("*/*.png")):
        marked = sorted((folder / "ground_truth" / path.parent.name).glob(f"{path.stem}*.png"))
        if not marked:  # a good one
            continue
        mask = np.asarray(Image.open(marked[0]).convert("L")) > 0
        (map_uv,) = detector.score(images.decode(path.read_bytes(), spec.view).pixels[None]).maps
        for share in shares:
            regions.REACH = share or 1e-9
            found = regions.find(
                map_uv,
                spec.calibration.map_threshold,
                receptive_field=detector.receptive_field,
                input_size=spec.input_size,
                image_size=(mask.shape[0], mask.shape[1]),
                crop=spec.view.crop,
            )
            if found and mask.any():
                results[share].append(enclosed(found, mask))
    return results


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--toys", required=True, type=Path, help="what `python -m fcdd.paper.toys` wrote")
    arguments = parser.parse_args()
    print("| share of the peak | pictures | IoU, median | mean | covered | by half | touched |")
    print("|---|---|---|---|---|---|---|")
    for share, found in measured(Detector.load(arguments.bundle), arguments.toys, SHARES).items():
        iou, covered, touched = (np.array(values) for values in zip(*found, strict=True))
        cells = (np.median(iou), iou.mean(), covered.mean(), (covered > 0.5).mean(), touched.mean())
        print(f"| {share:g} | {len(found)} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
