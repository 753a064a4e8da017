"""Write the pictures of one design as a collection of PNG files."""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd.paper import toys


def main() -> None:
    """Write a collection."""
    parser = argparse.ArgumentParser(
        prog="python -m fcdd.paper.toys", description=toys.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("product", choices=sorted(toys.PRODUCTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nominal", type=int, default=500, help="nominal pictures to train on (500)")
    parser.add_argument("--good", type=int, default=200, help="nominal pictures to test (200)")
    parser.add_argument("--anomalous", type=int, default=210, help="pictures with a defect (210)")
    options = parser.parse_args()
    drawn = toys.load(
        options.product,
        options.seed,
        num_training=options.nominal,
        num_calibration=0,
        num_nominal=options.good,
        num_anomalous=options.anomalous,
    )
    for number, picture in enumerate(drawn.training):
        _save(picture, options.folder / "nominal" / f"{number:04d}.png")
    for number, (picture, mask, kind) in enumerate(zip(drawn.test, drawn.masks, drawn.kinds, strict=True)):
        _save(picture, options.folder / "test" / kind / f"{number:04d}.png")
        if kind != "good":
            _save(mask.astype(np.uint8) * 255, options.folder / "ground_truth" / kind / f"{number:04d}_mask.png")


def _save(picture: npt.NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


if __name__ == "__main__":
    main()
