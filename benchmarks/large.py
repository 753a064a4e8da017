"""Small defects in large pictures: one defective solar cell in a module of 4, 16 or 64, by the size it is seen at.

    python -m benchmarks.large [--sides 4 2 8] [--sizes 224 512 896] [--seeds 3] [--threads 2] [--smoke]

Modules of 1,200 pixels (`fcdd.paper.mosaics`; 600 and 2,400 with 2 x 2 and 8 x 8 cells) are scaled to a square of each
size. Prints one JSON line for each number of cells, size and seed, measured in a process of its own: what `fcdd train`
makes by default of 240 nominal modules, before ("untrained") and after its training, on 80 nominal modules and 80 with
one defective cell among their cells: AUROC of the mean, the maximum and the top 1 % of the map; in what share of the
defective modules the hottest cell of the map lies in the defective solar cell; and what it costs.

"cells": the other way, a detector of single cells at 224 pixels that looks at each cell of a module; its maximum.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fcdd import augmentation, detector, metrics, networks, supervision, training
from fcdd.inference import Runner
from fcdd.networks import FCDDNetwork, OfWindows
from fcdd.normalization import Normalization
from fcdd.paper import mosaics
from fcdd.paper.mosaics import CELL, Mosaics
from fcdd.scores import summarise
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions
from fcdd.windows import Windows

Pixels = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
NETWORK = "whitened:efficientnet_lite0:stage4+stage3+stage5"
SINGLE = 224


def trained(name: str, pixels_nhwc: Pixels) -> tuple[FCDDNetwork, FCDDNetwork, Normalization]:
    """A network before and after its training on nominal pictures, by the defaults of `fcdd train`."""
    size = pixels_nhwc.shape[1:3]
    torch.manual_seed(0)
    network = networks.build(name, in_channels=3, image_size=size)
    networks.load_pretrained(network, name)
    scaling = networks.input_normalization(name)
    assert scaling is not None, "a pretrained network"
    network.fold_features()
    training.fit_statistics(network, scaling, pixels_nhwc, seed=0)
    before = _copied(network, name, size)
    field = network.receptive_field
    options = TrainOptions(
        epochs=3,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.0,
        loss="pixel",
        gaussian_std=field.stride / 2,
        seed=0,
    )
    windows = Windows.for_images(size, field, margin=True, coarsest=network.coarsest)
    sampling = Sampling(
        anomalies=supervision.SYNTHETIC["defects"],
        augment=augmentation.light(windows.part_size if windows else size, "none"),
        seed=0,
        windows=windows,
    )
    trainer = training.Trainer(
        OfWindows(network) if windows else network,
        windows.inner_field if windows else field,
        scaling,
        options,
        num_images=len(pixels_nhwc),
        input_size=windows.inner_size if windows else size,
    )
    for batch in training.batches(TrainingSet(list(pixels_nhwc)), sampling, options):
        trainer.step(batch)
    return before, _copied(network, name, size), scaling


def _copied(network: FCDDNetwork, name: str, size: tuple[int, int]) -> FCDDNetwork:
    return detector.deserialize(detector.serialize(network), name, 3, size)


def at_size(modules_nhw: Pixels, side: int) -> Pixels:
    """(N,side,side,3)"""
    return np.stack([augmentation.bilinear(np.repeat(each[..., None], 3, 2), (side, side)) for each in modules_nhw])


def cells_of(modules_nhw: Pixels) -> Pixels:
    """The cells of modules one by one, at the size of a single one, (N * cells,224,224,3)."""
    count, across = len(modules_nhw), modules_nhw.shape[1] // CELL
    cut = modules_nhw.reshape(count, across, CELL, across, CELL).swapaxes(2, 3).reshape(-1, CELL, CELL)
    return at_size(cut, SINGLE)


def figures(maps: Maps, data: Mosaics) -> dict[str, Any]:
    """AUROC by score, and in what share of the defective modules the hottest cell is in the defective one.

    Of all of them, and of those that are found by the maximum at 5 % false alarms among the nominal test modules.
    """
    scored = summarise(maps)
    found: dict[str, Any] = {
        name: round(metrics.image_metrics(data.labels, scores.astype(np.float64), resamples=0).auroc.value, 4)
        for name, scores in (("mean", scored.mean), ("maximum", scored.maximum), ("top1pct", scored.top1pct))
    }
    across, is_broken = data.test.shape[1] // CELL, data.labels == 1
    rows, columns = np.divmod(maps.reshape(len(maps), -1).argmax(1), maps.shape[2])
    hottest = np.stack([rows * across // maps.shape[1], columns * across // maps.shape[2]], 1)
    is_hit = (hottest == data.defective).all(1)
    is_found = scored.maximum > np.quantile(scored.maximum[~is_broken], 0.95)
    found["hottest_is_defective"] = round(float(is_hit[is_broken].mean()), 3)
    found["found"] = round(float(is_found[is_broken].mean()), 3)
    found["hottest_of_found"] = round(float(is_hit[is_broken & is_found].mean()), 3) if found["found"] else None
    return found


def measured(side: int, size: int, seed: int, *, few: bool) -> dict[str, Any]:
    """One line; `size` 0 stands for single cells."""
    numbers = {"num_training": 40, "num_test": 8} if few else {}
    data, started = mosaics.load(side=side, seed=seed, **numbers), time.perf_counter()
    line: dict[str, Any] = {"cells": side**2, "size": size or "cells", "seed": seed}
    training_pixels = at_size(data.training, size) if size else cells_of(data.training)
    if not size:  # as many pictures as there are modules, so that both see as many defects while they train
        training_pixels = training_pixels[:: max(1, len(training_pixels) // 960)]
    shape = training_pixels.shape[1:3]
    name = networks.for_size(f"{NETWORK}:1", shape)
    before, after, scaling = trained(name, training_pixels)
    line |= {"network": name, "seconds_to_train": round(time.perf_counter() - started)}
    shown = at_size(data.test, size) if size else cells_of(data.test)
    for what, network in (("untrained", before), ("trained", after)):
        began = time.perf_counter()
        maps = Runner(network, scaling, shape)(shown)
        seconds = time.perf_counter() - began
        line[what] = figures(maps if size else _joined(maps, side), data)
    line |= {
        "bundle_mb": round(len(detector.serialize(after)) / 1e6, 1),
        "modules_per_second": round(len(data.test) / seconds, 2),
        "megapixels_per_second": round(len(shown) * shape[0] * shape[1] / seconds / 1e6, 2),
        "memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    return line


def _joined(maps: Maps, side: int) -> Maps:
    """The maps of single cells as those of their modules."""
    height, width = maps.shape[1:]
    grid = maps.reshape(-1, side, side, height, width).swapaxes(2, 3)
    return grid.reshape(-1, side * height, side * width)


def main() -> None:
    """Measure, each line in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[4], help="cells along each side of a module")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 224, 512, 896], help="pixels; 0: single cells")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="few modules, one seed")
    parser.add_argument("--one", type=int, nargs=3, metavar=("SIDE", "SIZE", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(measured(*arguments.one, few=arguments.smoke)), flush=True)
        return
    for side in arguments.sides:
        for size in arguments.sizes:
            for seed in range(1 if arguments.smoke else arguments.seeds):
                one = ["--one", *map(str, (side, size, seed)), "--threads", str(arguments.threads)]
                smoke = ["--smoke"] if arguments.smoke else []
                subprocess.run([sys.executable, "-m", "benchmarks.large", *one, *smoke], check=True)


if __name__ == "__main__":
    main()
