"""Which statistic of the anomaly map should be the score when nobody says: mean, maximum, or mean of the top 1 %?

    python -m benchmarks.default_score [--data NAME ...] [--network NAME] [--seeds N] [--threads N] [--smoke]

Trains as `fcdd train` does without options (three epochs of mixed synthetic anomalies on nominal images, 224 pixels)
and prints one JSON line per data set and seed: for each statistic the AUROC, and what happens at the promised
false-alarm rate of 1 %: the threshold is the conformal one of other nominal images, recall and false alarms are those
of test images that neither the training nor the threshold has seen. On boards also the recall by kind of defect.

Data: "elpv" is split as by the demo, "boards" are `benchmarks.boards`, "brick", "grass" and "gravel" are
`benchmarks.textures`, drawn at 128 pixels.
"""

import argparse
import json
import time
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import boards, elpv, textures
from fcdd import augmentation, calibration, detector, metrics, networks, splits, supervision, training
from fcdd.detector import Scored
from fcdd.inference import Runner
from fcdd.paper import datasets
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions

Pixels = npt.NDArray[np.uint8]
ALPHA, SIDE = 0.01, 224
STATISTICS = ("mean", "maximum", "top1pct")
DATA = ("elpv", "boards", "brick", "grass", "gravel")


class Data(NamedTuple):
    """Nominal pictures (N,H,W,C) to train and to calibrate on; test pictures, labels (N,), kinds of defects."""

    training: Pixels
    calibration: Pixels
    test: Pixels
    labels: npt.NDArray[np.int64]
    kinds: list[str]


def load(name: str, seed: int, *, few: bool) -> Data:
    """One data set; `few` pictures of it to see that it works."""
    if name == "elpv":
        return _elpv(few)
    if name == "boards":
        numbers = {"num_training": 40, "num_calibration": 100, "num_nominal": 8, "num_anomalous": 7} if few else {}
        drawn = boards.load(seed, **numbers)
        return Data(
            _squeezed(drawn.training),
            _squeezed(drawn.calibration),
            _squeezed(drawn.test),
            drawn.labels,
            drawn.kinds,
        )
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
        elpv.load(fitted, SIDE),
        elpv.load(calibrating, SIDE),
        elpv.load(tested + anomalous, SIDE),
        np.repeat([0, 1], [len(tested), len(anomalous)]),
        ["good"] * len(tested) + ["defective"] * len(anomalous),
    )


def _squeezed(pixels_nhwc: Pixels) -> Pixels:
    return np.stack([augmentation.bilinear(image, (SIDE, SIDE)) for image in pixels_nhwc])


def scored(name: str, data: Data, seed: int) -> tuple[Scored, Scored]:
    """Scores of the calibration and of the test pictures by a network trained on the others."""
    size = data.training.shape[1:3]
    torch.manual_seed(seed)
    network = networks.build(name, in_channels=3, image_size=size)
    scaling = networks.input_normalization(name)
    assert scaling is not None, "a pretrained network"
    networks.load_pretrained(network, name)
    training.fit_statistics(network, scaling, data.training, seed=seed)
    options = TrainOptions(
        epochs=3,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.0,
        loss="pixel",
        gaussian_std=network.receptive_field.stride / 2,
        seed=seed,
    )
    sampling = Sampling(anomalies=supervision.SYNTHETIC["mixed"], augment=augmentation.light(size, "none"), seed=seed)
    trainer = training.Trainer(
        network, network.receptive_field, scaling, options, num_images=len(data.training), input_size=size
    )
    for batch in training.batches(TrainingSet(list(data.training)), sampling, options):
        trainer.step(batch)
    runner = Runner(network, scaling, size)
    return detector.summarise(runner(data.calibration)), detector.summarise(runner(data.test))


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


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--network", default="whitened:efficientnet_lite0:stage4+stage3+stage5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="few pictures, one seed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.data:
        for seed in range(1 if arguments.smoke else arguments.seeds):
            started = time.perf_counter()
            data = load(name, seed, few=arguments.smoke)
            result = figures(*scored(arguments.network, data, seed), data)
            counts = {"trained": len(data.training), "calibrated": len(data.calibration)}
            counts |= {"nominal": int((data.labels == 0).sum()), "anomalous": int(data.labels.sum())}
            line = {"data": name, "seed": seed, "network": arguments.network, **counts, **result}
            print(json.dumps({**line, "seconds": round(time.perf_counter() - started)}), flush=True)


if __name__ == "__main__":
    main()
