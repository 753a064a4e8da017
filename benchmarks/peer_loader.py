"""What one would write with torch alone: a DataLoader with worker processes, the network, a Parquet file.

    python benchmarks/peer_loader.py BUNDLE IMAGES OUTPUT FIRST

FIRST is a file that is written when the first images are scored. No isolation, no quarantine, no proof, no heatmaps.
"""

import functools
import io
import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from fcdd import bundle, detector, objective

WORKERS = int(os.environ.get("PEER_WORKERS", "2"))


@functools.cache
def s3() -> pyarrow.fs.S3FileSystem:
    """Of this process."""
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    return pyarrow.fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")


class Images(Dataset[tuple[int, torch.Tensor]]):
    """Pixels (H,W,C) uint8 of a list of files."""

    def __init__(self, on_s3: bool, paths: list[str], size: tuple[int, int]) -> None:
        self.on_s3, self.paths, self.size = on_s3, paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        if self.on_s3:
            with s3().open_input_file(self.paths[index]) as file:
                data = file.read()
        else:
            data = Path(self.paths[index]).read_bytes()
        image = Image.open(io.BytesIO(data)).convert("RGB")
        resized = image.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
        return index, torch.from_numpy(np.asarray(resized).copy())


def main() -> None:
    """Score every image."""
    uri, images, output, first = sys.argv[1:]
    on_s3 = images.startswith("s3://")
    if on_s3:
        selector = pyarrow.fs.FileSelector(images.removeprefix("s3://"), recursive=True)
        paths = sorted(info.path for info in s3().get_file_info(selector) if info.is_file)
    else:
        paths = sorted(str(path) for path in Path(images).rglob("*.*"))
    spec, weights = bundle.load(uri)
    network = detector.deserialize(weights, spec.network, spec.channels, spec.input_size).eval()
    scores = np.zeros(len(paths), np.float32)
    loader = DataLoader(
        Images(on_s3, paths, spec.input_size),
        batch_size=32,
        num_workers=WORKERS,
        multiprocessing_context="forkserver" if on_s3 else None,  # Arrow's client does not survive a fork
    )
    with torch.inference_mode():
        for indices, pixels in loader:
            maps = objective.anomaly_map(network(spec.normalization(pixels)))
            scores[indices.numpy()] = maps.amax((1, 2, 3)).numpy()
            if not Path(first).exists():
                Path(first).write_text(str(time.time()))
    table, target = pa.table({"path": paths, "score": scores}), f"{output.removeprefix('s3://')}.parquet"
    if not on_s3:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target, filesystem=s3() if on_s3 else None)


if __name__ == "__main__":
    main()
