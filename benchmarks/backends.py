"""How fast is the forward pass in each way `fcdd score` can run it, how exact, and what do heatmaps cost beside it?

    python -m benchmarks.backends [--smoke]

One thread, random weights, 64 ELPV cells in batches of 16, best of 5 rounds. The deviation is the largest of any cell
of any map from the plain network (not folded, float32), relative to the largest value of that map. Heatmaps are
encoding and regions, with a threshold that one map in a hundred exceeds; their share is of the time of decoding,
forward pass and heatmaps together.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from fcdd import heatmap, images, networks, objective, regions
from fcdd.images import View
from fcdd.inference import Runner
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.paper import datasets
from fcdd.runtime import Runtime

CASES = {
    "cnn32": 32,
    "cnn224": 224,
    "backbone:efficientnet_lite0:stage4": 160,
    "whitened:efficientnet_lite0:stage3+stage4+stage5:1:32+32+32": 224,
}
RUNTIMES = [
    Runtime(backend="torch"),
    Runtime(backend="openvino"),
    Runtime(backend="torch", precision="bfloat16"),
    Runtime(backend="openvino", precision="bfloat16"),
]
SCALING = Normalization(kind="mean_std", shift=(0.5, 0.5, 0.5), scale=(0.25, 0.25, 0.25))


def seconds(rounds: int, work: Callable[..., object], *arguments: object) -> float:
    """The shortest of several rounds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        work(*arguments)
        taken.append(time.perf_counter() - started)
    return min(taken)


def decode(cells: list[bytes], side: int) -> npt.NDArray[np.uint8]:
    """Pixels (N,side,side,3)."""
    return np.stack([images.decode(data, View((side, side), 3)).pixels for data in cells])


def draw(maps: npt.NDArray[np.float32], threshold: float, network: FCDDNetwork, side: int) -> None:
    """What is stored of maps beside their scores."""
    heatmap.encode_each(maps)
    for each in maps[maps.max((1, 2)) > threshold]:
        field, size = network.receptive_field, (side, side)
        regions.find(each, threshold, receptive_field=field, input_size=size, image_size=(300, 300))


def plain(network: FCDDNetwork, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Maps of the network as it is, one image at a time."""
    with torch.inference_mode():
        maps = [objective.anomaly_map(network(SCALING(torch.from_numpy(each[None])))) for each in pixels]
    joined: npt.NDArray[np.float32] = torch.cat(maps)[:, 0].numpy()
    return joined


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few images, one round")
    arguments = parser.parse_args()
    count, rounds = (16, 1) if arguments.smoke else (64, 5)
    torch.set_num_threads(1)
    cells = [cell.path.read_bytes() for cell in datasets.elpv()[:count]]
    for name, side in CASES.items():
        torch.manual_seed(0)
        network = networks.build(name, in_channels=3, image_size=(side, side)).eval()
        pixels = decode(cells, side)
        expected = plain(network, pixels)
        threshold = float(np.quantile(expected.max((1, 2)), 0.99))
        decoding = seconds(rounds, decode, cells, side)
        drawing = seconds(rounds, draw, expected, threshold, network, side)
        for runtime in RUNTIMES:
            if name.startswith("whitened") and runtime.precision == "bfloat16":
                continue
            runner = Runner(copy.deepcopy(network), SCALING, (side, side), runtime)
            found = runner(pixels)
            forward = seconds(rounds, runner, pixels)
            deviation = np.abs(found - expected) / expected.max((1, 2), keepdims=True)
            print(
                json.dumps(
                    {
                        "network": name,
                        "backend": runtime.backend,
                        "precision": runtime.precision,
                        "images_per_second": round(count / forward, 1),
                        "largest_deviation": float(f"{deviation.max():.1e}"),
                        "heatmaps_us_per_image": round(drawing / count * 1e6, 1),
                        "heatmaps_share": round(drawing / (decoding + forward + drawing), 4),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
