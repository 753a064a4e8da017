"""What does the whole of `fcdd score` cost beside its parts, and beside what one would write without it?

    python -m benchmarks.scoring [--network cnn32] [--images 20000] [--rounds 3] [--only job,bare,...] [--smoke]

ELPV cells (300x300 grey PNG, each uploaded under many names) in the embedded S3 server; a network with random weights
(the arithmetic is the same). Each round runs, one after the other, on the same images and the same cores:

    job        `fcdd score`, S3 in, committed Parquet out; images/s from when each worker has staged its first shard to
               the last one
    bare       as many processes as the job has workers, each a plain loop: fetch (16 threads), decode, folded network,
               heatmaps and regions encoded, Parquet put; no Ray, no isolation, no proof
    pattern    Ray's documented pattern: read_images -> map_batches(Predictor) -> write_parquet with float tensors and
               raw full-resolution float32 heatmaps
    reference  the official code's way on local files: torch DataLoader with worker processes, Pillow, batches of 32,
               eager network, heatmaps upsampled by a transposed convolution with a Gaussian kernel

Rates of `bare`, `pattern` and `reference` leave out their start too. Prints a JSON line per run and the median ratios.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks import untrained
from cluster import local_s3
from fcdd import bundle, calibration, detector, heatmap, images, networks, objective, regions
from fcdd.detector import Detector
from fcdd.images import View
from fcdd.io import storage
from fcdd.paper import datasets
from jobs.catalog import commit_records, part_files
from jobs.sources import listing

WORKERS = 2
BUCKET = "s3://bench"
SIZES = {"cnn28": 28, "cnn32": 32}


def make_bundle(network: str, uri: str) -> None:
    """A bundle with random weights, calibrated on a few cells so that one in a hundred is anomalous."""
    side, channels = SIZES.get(network, 224), networks.in_channels(network)
    cells = [cell.path.read_bytes() for cell in datasets.elpv()[:400]]
    pixels = np.stack([images.decode(each, View((side, side), channels)).pixels for each in cells])
    untrained.save(network, pixels, uri)


def upload(count: int) -> None:
    """Cells under `count` names, in folders of a thousand."""
    cells = [cell.path.read_bytes() for cell in datasets.elpv()]
    uris = [f"{BUCKET}/images/{index // 1000:04d}/{index:08d}.png" for index in range(count)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(storage.write, uris, (cells[index % len(cells)] for index in range(count))))


def job(network: str, count: int, round_: int) -> dict[str, Any]:
    """The command itself."""
    results = f"{BUCKET}/results-{network}-{round_}"
    where = ["--bundle", f"{BUCKET}/{network}", "--images", f"{BUCKET}/images", "--results", results]
    started = time.perf_counter()
    command = [sys.executable, "-m", "jobs.score", *where, "--collection", "c", "--date", "2026-11-01"]
    how = ["--workers", str(WORKERS), "--backend", "torch"]  # as the others
    done = subprocess.run([*command, *how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds = time.perf_counter() - started
    [record] = commit_records.committed(results, "c")
    assert record.num_scored == count, record
    workers = {k: round(v, 1) for k, v in record.stage_seconds.items()}
    size = sum(part.bytes for part in record.scores)
    return {"rate": record.images_per_second, "seconds": seconds, "bytes_per_image": size / count, "stages": workers}


def bare(network: str, count: int, round_: int) -> dict[str, Any]:
    """The same work in plain loops."""
    infos = listing.list_images(f"{BUCKET}/images")
    queue: Any = multiprocessing.get_context("spawn").Queue()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WORKERS)
    shares = [infos[start::WORKERS] for start in range(WORKERS)]
    processes = [context.Process(target=_bare_loop, args=(network, share, barrier, queue)) for share in shares]
    for process in processes:
        process.start()
    spans = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return {"rate": count / (max(end for _, end in spans) - min(start for start, _ in spans))}


def _bare_loop(network: str, infos: list[storage.ObjectInfo], barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    model = Detector.load(f"{BUCKET}/{network}")
    spec = model.spec
    side, nominal = spec.input_size, np.array(spec.calibration.pooled.scores)
    model.score(np.zeros((16, *side, spec.channels), np.uint8))
    barrier.wait()
    started = time.time()
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(infos), 512):
            part = infos[start : start + 512]
            decoded = [images.decode(data, View(side, spec.channels)) for data in pool.map(storage.read_checked, part)]
            scored = model.score(np.stack([image.pixels for image in decoded]))
            threshold = spec.calibration.map_threshold
            found = [
                regions.find(
                    each,
                    threshold,
                    receptive_field=model.receptive_field,
                    input_size=side,
                    image_size=(image.height, image.width),
                )
                if each.max() > threshold
                else []
                for each, image in zip(scored.maps, decoded, strict=True)
            ]
            table = pa.table(
                {
                    "image_uri": [info.uri for info in part],
                    "anomaly_score": scored.mean,
                    "score_max": scored.maximum,
                    "p_value": calibration.p_values(scored.mean, nominal),
                    "heatmap": heatmap.encode_each(scored.maps),
                    "regions": [[region._asdict() for region in each] for each in found],
                }
            )
            storage.write(f"{BUCKET}/bare/{os.getpid()}-{start}.parquet", part_files.to_parquet(table))
    queue.put((started, time.time()))


class Predictor:
    """What Ray's guide calls a callable class."""

    def __init__(self, uri: str, size: tuple[int, int]) -> None:
        spec, weights = bundle.load(uri)
        self.network = detector.deserialize(weights, spec.network, spec.channels, spec.input_size).eval()
        self.size = size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score a batch."""
        pixels = torch.from_numpy(np.stack(list(batch["image"]))).float().permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            maps = objective.anomaly_map(self.network((pixels - 0.5) / 0.25))
            full = torch.nn.functional.interpolate(maps, size=self.size, mode="bilinear")
        return {"path": batch["path"], "score": maps.mean((1, 2, 3)).numpy(), "heatmap": full[:, 0].numpy()}


def pattern(network: str, count: int, round_: int) -> dict[str, Any]:
    """Ray's documented pattern, on s3fs's rival pyarrow as its reader chooses."""
    code = (
        "import os, sys, time, ray, pyarrow.fs as fs\n"
        "from benchmarks.scoring import Predictor, BUCKET\n"
        "network, side, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]\n"
        "end = os.environ['AWS_ENDPOINT_URL'].removeprefix('http://')\n"
        "s3 = fs.S3FileSystem(endpoint_override=end, scheme='http', region='us-east-1')\n"
        "ray.init(num_cpus=3, include_dashboard=False, object_store_memory=2**30)\n"
        "start = time.time()\n"
        "options = {'size': (side, side), 'mode': 'RGB', 'include_paths': True}\n"
        "data = ray.data.read_images('bench/images', filesystem=s3, **options)\n"
        "from ray.data import ActorPoolStrategy\n"
        "data = data.map_batches(Predictor, fn_constructor_args=(f'{BUCKET}/{network}', (side, side)), batch_size=32,\n"
        "    compute=ActorPoolStrategy(size=2), num_cpus=0.8)\n"
        "data.write_parquet(out, filesystem=s3)\n"
        "print('SECONDS', time.time() - start)\n"
    )
    side = SIZES.get(network, 224)
    place = f"bench/pattern-{network}-{round_}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", code, network, str(side), place]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    seconds = float(done.stdout.split("SECONDS")[1].split()[0])
    size = sum(info.size for page in storage.pages(f"s3://{place}") for info in page)
    return {"rate": count / seconds, "bytes_per_image": size / count}


class Files(torch.utils.data.Dataset[torch.Tensor]):
    """Local files, decoded and normalised as the official loaders do."""

    def __init__(self, paths: list[Path], side: int, channels: int) -> None:
        self.paths, self.side, self.mode = paths, side, "RGB" if channels == 3 else "L"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        image = Image.open(io.BytesIO(self.paths[index].read_bytes())).convert(self.mode)
        pixels = np.asarray(image.resize((self.side, self.side), Image.Resampling.BILINEAR)).reshape(
            self.side, self.side, -1
        )
        return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.25


def reference(network: str, count: int, round_: int) -> dict[str, Any]:
    """Inference plus heatmaps as the official code does them, one process and its loaders on the same cores."""
    spec, weights = bundle.load(f"{BUCKET}/{network}")
    model = detector.deserialize(weights, spec.network, spec.channels, spec.input_size).eval()
    field, side = model.receptive_field, spec.input_size[0]
    extent = int(field.extent)
    axis = torch.arange(extent, dtype=torch.float32) - (extent - 1) / 2
    line = torch.exp(-axis.square() / (2 * spec.gaussian_std**2))
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    stride = int(field.stride)
    cells = datasets.elpv()
    chosen = [cells[index % len(cells)].path for index in range(min(count, 3000 if network in SIZES else 400))]
    torch.set_num_threads(WORKERS)
    loader = torch.utils.data.DataLoader(Files(chosen, side, spec.channels), batch_size=32, num_workers=WORKERS)
    started, done = time.perf_counter(), 0
    with torch.no_grad():
        for batch in loader:
            maps = objective.anomaly_map(model(batch))
            full = torch.nn.functional.conv_transpose2d(maps, kernel, stride=stride)
            full[:, :, :side, :side].numpy()
            if not done:
                started = time.perf_counter()  # the loaders have started
            done += len(batch)
    torch.set_num_threads(1)
    return {"rate": (done - 32) / (time.perf_counter() - started)}


RUNS: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
    "job": job,
    "bare": bare,
    "pattern": pattern,
    "reference": reference,
}


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cnn32")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(RUNS))
    parser.add_argument("--smoke", action="store_true", help="few images, one round")
    arguments = parser.parse_args()
    count, rounds = (200, 1) if arguments.smoke else (arguments.images, arguments.rounds)
    chosen = arguments.only.split(",")
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    with local_s3.serve("bench") as server:
        os.environ.update(server.environment())
        make_bundle(arguments.network, f"{BUCKET}/{arguments.network}")
        upload(count)
        for round_ in range(rounds):
            for name in chosen:
                result = RUNS[name](arguments.network, count, round_)
                rates[name].append(result["rate"])
                print(json.dumps({"run": name, "network": arguments.network, "images": count, **result}), flush=True)
                for place in ("bare", f"pattern-{arguments.network}-{round_}", f"results-{arguments.network}-{round_}"):
                    storage.delete_prefix(f"{BUCKET}/{place}")
    if "job" in rates:
        for name in set(chosen) - {"job"}:
            ratios = [ours / theirs for ours, theirs in zip(rates["job"], rates[name], strict=True)]
            print(f"job / {name}: median {statistics.median(ratios):.3f} of {[round(ratio, 3) for ratio in ratios]}")


if __name__ == "__main__":
    main()
