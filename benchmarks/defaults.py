"""What should a training do when nobody says? Its defaults, one changed at a time, on data that it was not tuned on.

    python -m benchmarks.defaults [--data NAME ...] [--vary NAME ...] [--seeds N] [--threads N] [--smoke]

Trains as `fcdd train` does and prints one JSON line per data set, seed and variation: for each statistic of the map
(mean, maximum, mean of the top 1 %) the AUROC, and what happens at the promised false-alarm rate of 1 %: the threshold
is the conformal one of other nominal images; recall and false alarms are those of test images that neither the training
nor the threshold has seen. Where there are kinds of defects also the recall by kind.

Data: "elpv" is split as by the demo; "boards", "bottles" and "fabrics" are `fcdd.paper.toys`, one design per seed;
"brick", "grass" and "gravel" are `benchmarks.textures`, at 128 pixels. Variations: see `VARIATIONS`.
"""

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import elpv, textures
from fcdd import (
    augmentation,
    calibration,
    metrics,
    networks,
    sizing,
    splits,
    supervision,
    training,
    variants,
)
from fcdd.inference import Runner
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.paper import datasets, toys
from fcdd.scores import Scored, summarise
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions

Pixels = npt.NDArray[np.uint8]
ALPHA, SQUARE = 0.01, 224
STATISTICS = ("mean", "maximum", "top1pct")
DATA = ("elpv", *toys.PRODUCTS, "brick", "grass", "gravel")
TRUNK = "whitened:efficientnet_lite0"
COARSE = f"{TRUNK}:stage4+stage3+stage5"  # the default before 2026-11-27


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is varied: the input's size (that of the images, or a square), variants (0: counted), anomalies, epochs."""

    is_square: bool = False
    modes: int = 0
    anomalies: str = "defects"
    epochs: int = 3
    trunk: str = TRUNK


VARIATIONS: dict[str, Recipe] = {
    "default": Recipe(),
    "square": Recipe(is_square=True),
    "one variant": Recipe(modes=1),
    "two variants": Recipe(modes=2),
    "mixed": Recipe(anomalies="mixed"),
    "cutpaste": Recipe(anomalies="cutpaste"),
    "perlin": Recipe(anomalies="perlin"),
    "confetti": Recipe(anomalies="confetti"),
    "one epoch": Recipe(epochs=1),
    "six epochs": Recipe(epochs=6),
    "coarse cells": Recipe(trunk=COARSE),
    "without stage 5": Recipe(trunk=f"{TRUNK}:stage4+stage3"),
    "before": Recipe(is_square=True, modes=1, anomalies="mixed", trunk=COARSE),
}


class Data(NamedTuple):
    """Nominal pictures (N,H,W,C) to train and to calibrate on; test pictures, labels (N,), kinds of defects."""

    training: Pixels
    calibration: Pixels
    test: Pixels
    labels: npt.NDArray[np.int64]
    kinds: list[str]


def load(name: str, seed: int, *, few: bool) -> Data:
    """One data set as its images are; `few` pictures of it to see that it works."""
    if name == "elpv":
        return _elpv(few)
    if name in toys.PRODUCTS:
        numbers = {"num_training": 40, "num_calibration": 100, "num_nominal": 8, "num_anomalous": 7} if few else {}
        drawn = toys.load(name, seed, **numbers)
        return Data(drawn.training, drawn.calibration, drawn.test, drawn.labels, drawn.kinds)
    numbers = {"num_training": 40, "num_test": 400} if few else {"num_training": 400, "num_test": 800}
    texture = textures.load(name, seed=seed, **numbers)
    # Of the half of the photograph that is not trained on: 200 nominal crops for the threshold, the others to test.
    calibrating = np.flatnonzero(texture.labels == 0)[: numbers["num_test"] // 4]
    tested = np.setdiff1d(np.arange(len(texture.labels)), calibrating)
    labels, test = texture.labels[tested], texture.test
    kinds = ["pasted" if label else "good" for label in labels]
    return Data(texture.training, test[calibrating], test[tested], labels, kinds)


def _elpv(few: bool) -> Data:
    cells = datasets.elpv()
    nominal = [cell for cell in cells if cell.probability == 0]
    anomalous = [cell for cell in cells if cell.probability == 1]
    tested = [cell for cell in nominal if splits.is_held_out(cell.path.name, 0.3)]
    others = [cell for cell in nominal if not splits.is_held_out(cell.path.name, 0.3)]
    calibrating = [cell for cell in others if splits.is_held_out(f"{cell.cell_type}/{cell.path.name}", 0.2)]
    fitted = [cell for cell in others if cell not in calibrating]
    if few:
        fitted, calibrating, tested, anomalous = fitted[:40], calibrating[:100], tested[:8], anomalous[:8]
    return Data(
        elpv.load(fitted, ELPV_SIDE),
        elpv.load(calibrating, ELPV_SIDE),
        elpv.load(tested + anomalous, ELPV_SIDE),
        np.repeat([0, 1], [len(tested), len(anomalous)]),
        ["good"] * len(tested) + ["defective"] * len(anomalous),
    )


ELPV_SIDE = 300


def at_size(data: Data, recipe: Recipe) -> Data:
    """The pictures at the size that the network sees them in."""
    size = (SQUARE, SQUARE) if recipe.is_square else sizing.input_size([data.training.shape[1:3]])

    def resized(pixels_nhwc: Pixels) -> Pixels:
        if pixels_nhwc.shape[1:3] == size:
            return pixels_nhwc
        return np.stack([augmentation.bilinear(image, size) for image in pixels_nhwc])

    return data._replace(
        training=resized(data.training), calibration=resized(data.calibration), test=resized(data.test)
    )


def scored(data: Data, recipe: Recipe, seed: int) -> tuple[Scored, Scored, int]:
    """Scores of the calibration and of the test pictures by a network trained on the others, and its variants."""
    size = data.training.shape[1:3]
    name = recipe.trunk
    modes = recipe.modes or variants.count(
        mean_features(name, data.training[:: max(1, len(data.training) // 160)]), seed=seed
    )
    network, scaling = trained(data.training, recipe, modes, seed)
    runner = Runner(network, scaling, size)
    return summarise(runner(data.calibration)), summarise(runner(data.test)), modes


def trained(pixels_nhwc: Pixels, recipe: Recipe, modes: int, seed: int) -> tuple[FCDDNetwork, Normalization]:
    """A network of so many variants trained on nominal pictures."""
    size = pixels_nhwc.shape[1:3]
    name = networks.for_size(f"{recipe.trunk}:{modes}", size)
    torch.manual_seed(seed)
    network = networks.build(name, in_channels=3, image_size=size)
    scaling = networks.input_normalization(name)
    assert scaling is not None, "a pretrained network"
    networks.load_pretrained(network, name)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    training.fit_statistics(network, scaling, pixels_nhwc, seed=seed)
    options = TrainOptions(
        epochs=recipe.epochs,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.0,
        loss="pixel",
        gaussian_std=network.receptive_field.stride / 2,
        seed=seed,
    )
    source = supervision.SYNTHETIC[recipe.anomalies]
    sampling = Sampling(anomalies=source, augment=augmentation.light(size, "none"), seed=seed)
    trainer = training.Trainer(
        network, network.receptive_field, scaling, options, num_images=len(pixels_nhwc), input_size=size
    )
    for batch in training.batches(TrainingSet(list(pixels_nhwc)), sampling, options):
        trainer.step(batch)
    return network, scaling


@torch.inference_mode()
def mean_features(name: str, pixels_nhwc: Pixels) -> npt.NDArray[np.float32]:
    """Mean features (N,D) of pictures, for the number of their variants."""
    network = networks.build(name, in_channels=3, image_size=pixels_nhwc.shape[1:3]).eval()
    networks.load_pretrained(network, name)
    scaling = networks.input_normalization(name)
    assert scaling is not None, "a pretrained network"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    pixels = torch.from_numpy(pixels_nhwc)
    features = [
        network.features(scaling(pixels[start : start + 16].to(device))).mean((2, 3))
        for start in range(0, len(pixels), 16)
    ]
    found: npt.NDArray[np.float32] = torch.cat(features).cpu().numpy()
    return found


def figures(nominal: Scored, tested: Scored, data: Data) -> dict[str, Any]:
    """By statistic: AUROC, recall and false alarms at the promised rate, and recall by kind where there are kinds."""
    found: dict[str, Any] = {}
    kinds = np.array(data.kinds)
    for name in STATISTICS:
        scores = getattr(tested, name).astype(np.float64)
        alarms = scores > calibration.conformal_threshold(getattr(nominal, name), ALPHA)
        found[name] = {
            "auroc": round(metrics.image_metrics(data.labels, scores, resamples=0).auroc.value, 4),
            "recall": round(float(alarms[data.labels == 1].mean()), 4),
            "false_alarms": round(float(alarms[data.labels == 0].mean()), 4),
        }
        by_kind = {
            str(kind): round(float(alarms[kinds == kind].mean()), 3) for kind in sorted({*data.kinds} - {"good"})
        }
        if len(by_kind) > 1:
            found[name]["recall_by_kind"] = by_kind
    return found


def measured(name: str, seed: int, variation: str, data: Data) -> dict[str, Any]:
    """One line of the result."""
    started, recipe = time.perf_counter(), VARIATIONS[variation]
    shown = at_size(data, recipe)
    nominal, tested, modes = scored(shown, recipe, seed)
    counts = {"trained": len(data.training), "calibrated": len(data.calibration)}
    counts |= {"nominal": int((data.labels == 0).sum()), "anomalous": int(data.labels.sum())}
    line = {"data": name, "seed": seed, "variation": variation, "size": list(shown.training.shape[1:3]), "modes": modes}
    return {**line, **counts, **figures(nominal, tested, data), "seconds": round(time.perf_counter() - started)}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--vary", nargs="+", choices=VARIATIONS, default=["default"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="few pictures, one seed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.data:
        for seed in range(1 if arguments.smoke else arguments.seeds):
            data = load(name, seed, few=arguments.smoke)
            for variation in arguments.vary:
                print(json.dumps(measured(name, seed, variation, data)), flush=True)


if __name__ == "__main__":
    main()
