"""How fast does `fcdd train` train, end to end, and what does Ray Train cost?

    python -m benchmarks.training [--smoke]

Runs the real command on nominal ELPV cells in a local folder, with one and with two Ray workers of one thread each, and
without Ray; reads the images/s of every epoch after the first and the share of the time that waited for data from the
bundle's metrics. Prints one JSON line per run; the overhead is the command's time less that of its epochs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fcdd.paper import datasets


class Case(NamedTuple):
    """A network with the options that fit it."""

    network: str
    image_size: int
    batch_size: int
    num_images: int
    epochs: int


CASES = (
    Case("cnn32", 32, 32, 1000, 6),
    Case("cnn224", 224, 16, 240, 4),
    Case("whitened:efficientnet_lite0:stage3+stage4+stage5:1:32+32+32", 224, 32, 240, 4),
)


def run(case: Case, workers: int, images: Path, folder: Path) -> dict[str, object]:
    """One training."""
    bundle = folder / f"{case.network.partition(':')[0]}-{workers}"
    options = {
        "images": images,
        "bundle": bundle,
        "network": case.network,
        "image-size": case.image_size,
        "batch-size": case.batch_size,
        "epochs": case.epochs,
        "workers": workers,
        "alpha": 0.2,
    }
    command = [sys.executable, "-m", "jobs.train", *(f"--{name}={value}" for name, value in options.items())]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = time.perf_counter() - start
    epochs = [json.loads(line) for line in (bundle / "metrics.jsonl").read_text().splitlines()]
    rates = [epoch["images_per_second"] for epoch in epochs[1:] or epochs]
    steps = (0.8 * case.num_images) // case.batch_size * case.batch_size  # about: a fifth is held out
    return {
        **case._asdict(),
        "workers": workers,
        "images_per_second": round(float(np.median(rates)), 1),
        "spread": [round(min(rates), 1), round(max(rates), 1)],
        "waiting_share": round(float(np.median([epoch["waiting_share"] for epoch in epochs])), 3),
        "overhead_s": round(seconds - sum(steps / epoch["images_per_second"] for epoch in epochs), 1),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one case, few images, without Ray")
    arguments = parser.parse_args()
    nominal = [cell.path for cell in datasets.elpv() if cell.probability == 0]
    cases = [Case("cnn32", 32, 8, 60, 2)] if arguments.smoke else CASES
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            images = Path(name, "images")
            images.mkdir()
            for path in nominal[: case.num_images]:
                (images / path.name).symlink_to(path)
            for workers in (0,) if arguments.smoke else (0, 1, 2):
                print(json.dumps(run(case, workers, images, Path(name))), flush=True)


if __name__ == "__main__":
    main()
