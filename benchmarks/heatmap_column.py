"""What does the heatmap column cost? Bytes per image on disk, and maps per second, against raw floats.

    python -m benchmarks.heatmap_column [--smoke]

Real 28x28 maps: a trunk with stride 8 trained for a moment on nominal ELPV images at 224 pixels.
"""

import argparse
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fcdd import augmentation, heatmap, images, networks, outliers, training
from fcdd.images import View
from fcdd.inference import Runner
from fcdd.paper import datasets
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions
from jobs.catalog import part_files

SIZE = (224, 224)
NETWORK = "backbone:efficientnet_lite0:stage3"
ROUNDS = 5


def trained_maps(num_training: int, num_scored: int, epochs: int) -> np.ndarray:
    """(num_scored, 28, 28) float32 maps of nominal and anomalous cells."""
    cells = datasets.elpv()
    nominal = [cell for cell in cells if cell.probability == 0][:num_training]
    pixels = np.stack([images.decode(c.path.read_bytes(), View(SIZE, 3)).pixels for c in nominal])
    options = TrainOptions(
        epochs=epochs,
        batch_size=16,
        learning_rate=1e-3,
        weight_decay=1e-4,
        loss="pixel",
        gaussian_std=8.0,
        seed=0,
    )
    sampling = Sampling(anomalies=outliers.defects, augment=augmentation.light(SIZE, "all"), seed=0)
    torch.manual_seed(0)
    network = networks.build(NETWORK, in_channels=3, image_size=SIZE)
    networks.load_pretrained(network, NETWORK)
    scaling = networks.input_normalization(NETWORK)
    assert scaling is not None
    trainer = training.Trainer(
        network, network.receptive_field, scaling, options, num_images=len(pixels), input_size=SIZE
    )
    for batch in training.batches(TrainingSet(list(pixels)), sampling, options):
        trainer.step(batch)
    chosen = np.random.default_rng(0).choice(len(cells), num_scored, replace=False)
    scored = np.stack([images.decode(cells[i].path.read_bytes(), View(SIZE, 3)).pixels for i in chosen])
    return Runner(network, scaling, SIZE)(scored)


def column_bytes(values: list[bytes]) -> float:
    """Bytes per image of a binary column, written as the results are."""
    data = part_files.to_parquet(pa.table({"heatmap": values}))
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    return float(group.column(0).total_compressed_size / group.num_rows)


def rate(work: Callable[[], object], count: int) -> float:
    """Median items per second over the rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / float(np.median(seconds))


def main() -> None:
    """Measure and print a Markdown report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few images, no statement about real maps")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)
    maps = trained_maps(*((32, 64, 1) if smoke else (600, 1200, 3)))
    encoded = [heatmap.encode(map_uv) for map_uv in maps]
    raw = [map_uv.tobytes() for map_uv in maps]
    errors = [
        float(np.abs(heatmap.decode(data) - map_uv).max() / np.ptp(map_uv))
        for data, map_uv in zip(encoded, maps, strict=True)
    ]
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?: ?")
    print(f"conditions: {len(maps)} maps of {maps.shape[1]}x{maps.shape[2]} of {NETWORK} at {SIZE[0]} px, one thread,")
    print(f"{cpu.split(':')[1].strip()}, Python {platform.python_version()}, pyarrow {metadata.version('pyarrow')},")
    print(f"numpy {metadata.version('numpy')}; median of {ROUNDS} rounds\n")
    print("| column | bytes per image on disk | encode, maps/s | decode, maps/s | largest error / range |")
    print("|---|---|---|---|---|")
    print(f"| float32 raw, zstd | {column_bytes(raw):.0f} | - | - | 0 |")
    print(
        f"| heatmap codec, zstd | {column_bytes(encoded):.0f} "
        f"| {rate(lambda: [heatmap.encode(m) for m in maps], len(maps)):,.0f} "
        f"| {rate(lambda: [heatmap.decode(d) for d in encoded], len(maps)):,.0f} "
        f"| {max(errors):.2e} |"
    )
    full = SIZE[0] * SIZE[1] * 4
    print(
        f"\nA full-resolution float32 heatmap would be {full:,} bytes: {full / column_bytes(encoded):.0f} times more."
    )


if __name__ == "__main__":
    main()
