"""Which share of the CPU seconds of a night is neither reading, decoding nor the network?

    python -m benchmarks.overhead [--network cnn224] [--images 20000] [--sample 2000] [--smoke]

JPEGs of 500x375 pixels in a folder (1,000 distinct ones under many names), as in `benchmarks.peers`. `fcdd score` as it
comes, on the threads of one process, and its CPU seconds with all its processes; before and after it a bare loop over a
sample of the same images in one process of two threads: read, decode, the network by the same library in the same
batches, and nothing else. Prints a line of JSON for each, and

    overhead    1 - (CPU seconds of the bare loop per image) / (CPU seconds of the night per image)

with the start and the end of the command in it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import peers
from fcdd import bundle, images, scorer
from fcdd.runtime import Runtime
from jobs.engines import choice

DISTINCT, THREADS, AT_ONCE = 1000, 2, 64


class Spent(NamedTuple):
    """CPU and wall-clock seconds of so many images."""

    what: str
    images: int
    cpu: float
    wall: float

    @property
    def per_image(self) -> float:
        """CPU seconds."""
        return self.cpu / self.images

    def tell(self) -> None:
        """As a line of JSON."""
        print(json.dumps({**self._asdict(), "cpu_ms_per_image": round(1000 * self.per_image, 3)}), flush=True)


def make(folder: Path, count: int) -> None:
    """So many names of fewer pictures."""
    firsts = list[Path]()
    for number, (name, data) in enumerate(islice(peers.pictures("jpeg"), min(count, DISTINCT))):
        firsts.append(folder / "0" / Path(name).name)
        firsts[-1].parent.mkdir(parents=True, exist_ok=True)
        firsts[-1].write_bytes(data)
        for copy in range(1, -(-(count - number) // DISTINCT)):
            link = folder / str(copy) / firsts[-1].name
            link.parent.mkdir(exist_ok=True)
            os.link(firsts[-1], link)


def bare(bundle_uri: str, folder: Path, count: int) -> Spent:
    """Read, decode and score, after a round that loads everything."""
    spec, weights = bundle.load(bundle_uri)
    runtime = Runtime(backend=choice.backend(False, compiles=False))
    score = scorer.load(spec, weights, runtime, threads=THREADS, gpu=False)
    paths = sorted(folder.rglob("*.jpg"))[:count]

    def some(part: list[Path]) -> None:
        score(np.stack([images.decode(path.read_bytes(), spec.view).pixels for path in part]))

    parts = [paths[start : start + AT_ONCE] for start in range(0, count, AT_ONCE)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(some, parts[:THREADS]))
        began, cpu = time.perf_counter(), time.process_time()
        list(pool.map(some, parts))
        return Spent("bare", count, time.process_time() - cpu, time.perf_counter() - began)


def night(bundle_uri: str, folder: Path, results: Path, day: int, include: str, count: int) -> Spent:
    """`fcdd score` and its processes."""
    where = ["--bundle", bundle_uri, "--images", str(folder), "--results", str(results), "--collection", "c"]
    command = [sys.executable, "-m", "jobs.score", *where, "--date", f"2026-11-{day:02d}", "--include", include]
    # Decoder processes end with the one that started them, which does not wait for them: so they are watched.
    found = peers.measured([*command, "--workers", "0"], lambda: None)
    return Spent("night", count, found["cpu"], found["whole"])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cnn224", help="as for benchmarks.peers")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--sample", type=int, default=2_000)
    parser.add_argument("--smoke", action="store_true", help="few images")
    arguments = parser.parse_args()
    count, sample = (200, 64) if arguments.smoke else (arguments.images, arguments.sample)
    with tempfile.TemporaryDirectory() as temporary:
        folder, results = Path(temporary, "images"), Path(temporary, "results")
        make(folder, count)
        bundle_uri = str(Path(temporary, "bundle"))
        peers.make_bundle(arguments.network, "jpeg", bundle_uri)
        # The first night of a machine converts the network.
        night(bundle_uri, folder, results, 1, "*0000001.jpg", 1)
        before = bare(bundle_uri, folder, sample)
        before.tell()
        whole = night(bundle_uri, folder, results, 2, "*", count)
        whole.tell()
        after = bare(bundle_uri, folder, sample)
        after.tell()
    per_image = (before.per_image + after.per_image) / 2
    print(f"overhead: {1 - per_image / whole.per_image:.1%} of the CPU seconds of {count} images")


if __name__ == "__main__":
    main()
