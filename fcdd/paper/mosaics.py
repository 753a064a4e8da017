"""Large pictures with one small defect each: solar modules put together from the cells of ELPV.

A module is a square of cells drawn at random, mono- and polycrystalline ones side by side. Nominal modules have cells
of defect probability 0 only; of a defective one exactly one cell has the probability 1. Cells to train on are never
those to test on.

    python -m fcdd.paper.mosaics FOLDER [--side 4] [--seed N] ...     write nominal/, test/<kind>/ and ground_truth/

Shapes: N modules of H x W pixels, one channel.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd import splits
from fcdd.images import View
from fcdd.io import isolation
from fcdd.paper import datasets
from fcdd.paper.datasets import LabelledImage

Pixels = npt.NDArray[np.uint8]
CELL = 300
# Of the nominal cells this share is tested on, by a hash of the name: those that the demo holds out, too.
_HELD_OUT = 0.3


class Mosaics(NamedTuple):
    """Nominal modules (N,H,W) to train on; modules to test, labels (N,), and the defective cell (row, column) of each.

    The cell is (-1, -1) where there is none.
    """

    training: Pixels
    test: Pixels
    labels: npt.NDArray[np.int64]
    defective: npt.NDArray[np.int64]


def load(*, side: int = 4, seed: int = 0, num_training: int = 240, num_test: int = 80) -> Mosaics:
    """Modules of `side` x `side` cells, `num_test` nominal and as many defective ones to test."""
    cells = datasets.elpv()
    held_out = {cell.path.name: splits.is_held_out(cell.path.name, _HELD_OUT) for cell in cells}
    fitted = [cell for cell in cells if cell.probability == 0 and not held_out[cell.path.name]]
    tested = [cell for cell in cells if cell.probability == 0 and held_out[cell.path.name]]
    broken = [cell for cell in cells if cell.probability == 1]
    generators = [np.random.default_rng((seed, side, part)) for part in range(3)]
    training = [_module(fitted, side, generators[0]) for _ in range(num_training)]
    nominal = [_module(tested, side, generators[1]) for _ in range(num_test)]
    defective = [_defective(tested, broken, side, generators[2]) for _ in range(num_test)]
    return Mosaics(
        np.stack(training),
        np.stack([*nominal, *(module for module, _ in defective)]),
        np.repeat([0, 1], num_test),
        np.array([(-1, -1)] * num_test + [cell for _, cell in defective], np.int64),
    )


def _module(cells: Sequence[LabelledImage], side: int, generator: np.random.Generator) -> Pixels:
    """(H,W)"""
    return _together(_some(cells, side**2, generator), side)


def _defective(
    cells: Sequence[LabelledImage], broken: Sequence[LabelledImage], side: int, generator: np.random.Generator
) -> tuple[Pixels, tuple[int, int]]:
    """A module (H,W) with one defective cell, and its row and column."""
    chosen, at = _some(cells, side**2, generator), int(generator.integers(side**2))
    chosen[at] = broken[int(generator.integers(len(broken)))]
    return _together(chosen, side), divmod(at, side)


def _some(cells: Sequence[LabelledImage], number: int, generator: np.random.Generator) -> list[LabelledImage]:
    return [cells[index] for index in generator.choice(len(cells), number, replace=False)]


def _together(cells: Sequence[LabelledImage], side: int) -> Pixels:
    pictures = np.stack([_picture(cell.path) for cell in cells])
    return pictures.reshape(side, side, CELL, CELL).swapaxes(1, 2).reshape(side * CELL, side * CELL)


def _picture(path: Path) -> Pixels:
    return isolation.shared_pool(View((CELL, CELL), 1)).decode(path.read_bytes()).pixels[:, :, 0]


def main() -> None:
    """Write modules as PNG files."""
    parser = argparse.ArgumentParser(
        prog="python -m fcdd.paper.mosaics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=4, help="cells along each side (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nominal", type=int, default=240, help="nominal modules to train on (240)")
    parser.add_argument("--test", type=int, default=80, help="nominal, and as many defective ones, to test (80)")
    options = parser.parse_args()
    drawn = load(side=options.side, seed=options.seed, num_training=options.nominal, num_test=options.test)
    for number, picture in enumerate(drawn.training):
        _save(picture, options.folder / "nominal" / f"{number:04d}.png")
    for number, (picture, label, cell) in enumerate(zip(drawn.test, drawn.labels, drawn.defective, strict=True)):
        _save(picture, options.folder / "test" / ("defective" if label else "good") / f"{number:04d}.png")
        if label:
            mask = np.zeros_like(picture)
            mask[tuple(slice(first * CELL, (first + 1) * CELL) for first in cell)] = 255
            _save(mask, options.folder / "ground_truth" / "defective" / f"{number:04d}_mask.png")


def _save(picture: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


if __name__ == "__main__":
    main()
