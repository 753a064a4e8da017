"""Does a threshold from scores of images left out one by one keep the promised rate, and what does it find?

    python -m benchmarks.leave_one_out [--data NAME ...] [--images N ...] [--splits N] [--threads N] [--smoke]

For every data set of `benchmarks.defaults` and number of nominal images: `--splits` times, other images are drawn at
random, a detector is trained on them as `fcdd train` does, and its threshold for 1 % and for 5 % is taken from scores
by statistics that did not see their image (`fcdd.leave_one_out`). Prints one JSON line each: the share of other
nominal images above the threshold (mean over the splits, with its standard error, and the largest), the share of
defects found, and the same with a fifth held out, where that supports the rate.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import defaults
from benchmarks.defaults import Data
from fcdd import calibration, leave_one_out
from fcdd.errors import ConfigError
from fcdd.inference import Runner
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.scores import Scored, summarise

Pixels = npt.NDArray[np.uint8]
ALPHAS = (0.01, 0.05)
HELD_OUT = 0.2
DEFAULT = defaults.VARIATIONS["default"]


def one_split(data: Data, count: int, modes: int, seed: int) -> dict[str, float]:
    """Shares of other nominal images and of defects above the thresholds of both ways."""
    nominal = np.concatenate([data.training, data.calibration, data.test[data.labels == 0]])
    order = np.random.default_rng(seed).permutation(len(nominal))
    own, others, defects = nominal[order[:count]], nominal[order[count:]], data.test[data.labels == 1]
    network, scaling = defaults.trained(own, DEFAULT, modes, seed)
    maps, _ = leave_one_out.maps(network, scaling, own, own[:0], np.empty(0, np.int64), seed=seed)
    found = _shares("left out", summarise(maps), *_scored(network, scaling, others, defects))
    held = round(HELD_OUT * count)
    network, scaling = defaults.trained(own[held:], DEFAULT, modes, seed)
    of_held, *tested = _scored(network, scaling, own[:held], others, defects)
    return found | _shares("held-out", of_held, *tested)


def _scored(network: FCDDNetwork, scaling: Normalization, *sets: Pixels) -> list[Scored]:
    runner = Runner(network, scaling, sets[0].shape[1:3])
    return [summarise(runner(pixels)) for pixels in sets]


def _shares(way: str, calibrating: Scored, nominal: Scored, defects: Scored) -> dict[str, float]:
    found = {}
    for alpha in ALPHAS:
        try:
            threshold = calibration.conformal_threshold(calibrating.maximum, alpha)
        except ConfigError:  # a fifth of so few does not support the rate
            continue
        found[f"{way} false alarms at {alpha:g}"] = float((nominal.maximum > threshold).mean())
        found[f"{way} recall at {alpha:g}"] = float((defects.maximum > threshold).mean())
    return found


def summary(splits: list[dict[str, float]]) -> dict[str, Any]:
    """Mean, standard error and extreme of every figure over the splits."""
    found: dict[str, Any] = {}
    for name in splits[0]:
        values = np.array([each[name] for each in splits])
        found[name] = {
            "mean": round(float(values.mean()), 4),
            "standard_error": round(float(values.std() / np.sqrt(len(values))), 4),
            "largest": round(float(values.max()), 4),
        }
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=defaults.DATA, default=defaults.DATA)
    parser.add_argument("--images", nargs="+", type=int, default=[100, 150, 200, 400])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="few pictures, one split")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.data:
        data = defaults.at_size(defaults.load(name, 0, few=arguments.smoke), DEFAULT)
        for count in [100] if arguments.smoke else arguments.images:
            started = time.perf_counter()
            splits = [one_split(data, count, 1, seed) for seed in range(1 if arguments.smoke else arguments.splits)]
            line = {"data": name, "images": count, "splits": len(splits), **summary(splits)}
            print(json.dumps({**line, "seconds": round(time.perf_counter() - started)}), flush=True)


if __name__ == "__main__":
    main()
