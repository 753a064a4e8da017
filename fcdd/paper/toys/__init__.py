"""Pictures of toy products, nominal and with one small defect each, with exact masks: to measure and to try out.

    python -m fcdd.paper.toys PRODUCT FOLDER [--seed N]     write nominal/, test/<kind>/ and ground_truth/<kind>/

A seed is a design: how this board, bottle or cloth looks. Every picture of a design differs in what differs in
production: light and its gradient, place and angle under the camera, tolerances, tints, a lot number, noise. The sizes
of the defects were fixed before any detector had seen one. A mask marks the pixels that the defect changed by more
than `VISIBLE` grey levels in the picture without noise.

Shapes: N pictures of H x W pixels, three channels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd.paper.toys import boards, bottles, fabrics
from fcdd.paper.toys.drawing import Camera, Colour

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
# A scene is the product's own: its module knows what is in it.
Defect = Callable[[Any, np.random.Generator], Any]

VISIBLE = 8
_NOISE = 3.0


class Product(NamedTuple):
    """How one kind of product is made: a design, copies of it with tolerances, its defects, and how it is drawn.

    `drawn` takes a scene and the design that it was made to, and draws enlarged (`drawing.SCALE`); `ground` is around
    it.
    """

    design: Callable[[int], Any]
    produced: Callable[[Any, np.random.Generator], Any]
    defects: Mapping[str, Defect]
    drawn: Callable[[Any, Any], Image.Image]
    ground: Colour


PRODUCTS: Mapping[str, Product] = {
    each.__name__.rpartition(".")[2]: Product(
        each.design, each.produced, {defect.__name__: defect for defect in each.DEFECTS}, each.drawn, each.GROUND
    )
    for each in (boards, bottles, fabrics)
}


class Toys(NamedTuple):
    """Nominal pictures (N,H,W,C) to train and to calibrate on; test pictures, labels (N,), masks (N,H,W), kinds."""

    training: Pixels
    calibration: Pixels
    test: Pixels
    labels: npt.NDArray[np.int64]
    masks: Mask
    kinds: list[str]


def photograph(
    product: Product, scene: Any, defect: Defect | None, design: Any, generator: np.random.Generator
) -> tuple[Pixels, Mask]:
    """A picture (H,W,C) of a produced scene, with a defect if there is one, and the mask (H,W) of what it changed."""
    camera = Camera.drawn(generator)
    clean = camera.light(product.drawn(scene, design), product.ground)
    shown = clean
    if defect is not None:
        shown = camera.light(product.drawn(defect(scene, generator), design), product.ground)
    mask: Mask = np.any(np.abs(shown - clean) > VISIBLE, axis=2)
    noisy = shown + generator.normal(0, _NOISE, shown.shape)
    return noisy.round().clip(0, 255).astype(np.uint8), mask


def load(
    name: str,
    seed: int,
    *,
    num_training: int = 300,
    num_calibration: int = 200,
    num_nominal: int = 200,
    num_anomalous: int = 210,
) -> Toys:
    """The pictures of one design of the product `name`; the defects take turns."""
    product = PRODUCTS[name]
    design, defects = product.design(seed), list(product.defects)
    nominal = num_training + num_calibration + num_nominal
    kinds = ["good"] * nominal + [defects[number % len(defects)] for number in range(num_anomalous)]
    taken = []
    for number, kind in enumerate(kinds):
        generator = np.random.default_rng((1, seed, number))
        scene = product.produced(design, generator)
        taken.append(photograph(product, scene, product.defects.get(kind), design, generator))
    pixels, masks = np.stack([picture for picture, _ in taken]), np.stack([mask for _, mask in taken])
    first = num_training + num_calibration
    return Toys(
        pixels[:num_training],
        pixels[num_training:first],
        pixels[first:],
        np.repeat([0, 1], [num_nominal, num_anomalous]),
        masks[first:],
        kinds[first:],
    )
