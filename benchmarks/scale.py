"""How much memory and time does a run of ten million images take its driver, apart from scoring them?

    python -m benchmarks.scale [--images 10000000] [--smoke]

A simulated store lists so many keys; the real code makes the manifest, a stub scores (rows as large as those of a small
network's map, staged by processes of their own), the real code finds out what is done, proves, publishes on a local
Ray, and commits. Results lie on the local disk. Prints seconds and the driver's resident memory after each step.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from fcdd import bundle, heatmap
from fcdd.calibration import STATISTICS, Calibration, Nominal
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import manifest_parts, staging
from jobs.catalog.staging import Coverage
from jobs.on_ray import session
from jobs.scoring import publishing
from jobs.scoring.manifests import Listing, Source
from jobs.scoring.publishing import Facts
from jobs.sources.listing import Selection
from schemas import Layout
from schemas.runs import Intent, ManifestPart

PREFIX = "s3://simulated/images"
WHEN = datetime(2026, 11, 1, tzinfo=UTC)
SHARD_ROWS = 512
CALIBRATION = 500


class Undisturbed:
    """A night that nobody else is at."""

    def check(self) -> None:
        """Nobody has taken over."""

    def commit_time(self) -> datetime:
        """Always the same."""
        return WHEN


class Memory(threading.Thread):
    """The driver's resident memory: now, and the largest since the last step."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process, self.peak = psutil.Process(), 0

    def run(self) -> None:
        """Sample for ever."""
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            time.sleep(0.05)


def simulate(count: int) -> None:
    """From now on listings of PREFIX come from here, a thousand keys a page, as S3 gives them."""
    pages = storage.pages

    def simulated(prefix: str, *, after: str | None = None) -> Iterator[list[ObjectInfo]]:
        if prefix != PREFIX:
            yield from pages(prefix, after=after)
            return
        for start in range(0, count, 1000):
            yield [
                ObjectInfo(f"{PREFIX}/line-4/2026-11-01/camera-3/{index:012d}.png", f'"{index:032x}"', 48_000, WHEN)
                for index in range(start, min(start + 1000, count))
            ]

    storage.pages = simulated


def make_bundle(uri: str) -> None:
    """In a process of its own: it loads torch, which the driver of scoring does not."""
    from benchmarks import scoring

    scoring.make_bundle("cnn32", uri)


def stage_part(results: str, run_id: str, index: int, part: ManifestPart) -> None:
    """What a scorer would have staged for one part of the manifest."""
    layout = Layout(results)
    rows = manifest_parts.read(layout, run_id, index)
    maps = [heatmap.encode(np.random.default_rng(seed).random((4, 4), np.float32)) for seed in range(64)]
    generator = np.random.default_rng(index)
    for start in range(0, part.rows, SHARD_ROWS):
        piece = rows.slice(start, SHARD_ROWS)
        count = piece.num_rows
        columns: dict[str, Any] = {name: piece[name] for name in piece.column_names}
        columns["position"] = pa.array(range(part.start + start, part.start + start + count), pa.int64())
        scores = generator.random(count).astype(np.float32)
        for name in (
            "anomaly_score",
            "score_mean",
            "score_max",
            "score_top1pct",
            "brightness",
            "contrast",
            "sharpness",
        ):
            columns[name] = scores
        columns["p_value"] = np.ceil(scores.astype(np.float64) * CALIBRATION) / (CALIBRATION + 1)
        columns["image_hash"] = pa.array([bytes(32)] * count, pa.binary(32))
        columns["image_group"], columns["image_format"] = ["camera-1"] * count, ["PNG"] * count
        columns["is_anomalous"] = scores > 0.99
        columns["heatmap"] = pa.array([maps[i] for i in generator.integers(0, 64, count)], pa.binary())
        constants = {"width": 300, "height": 300, "num_frames": 1, "heatmap_height": 4, "heatmap_width": 4}
        for name, value in constants.items():
            columns[name] = np.full(count, value, np.int32)
        columns["regions"] = pa.array([[]] * count, staging.ROW.field("regions").type)
        for name in staging.FAILURE_COLUMNS:
            columns[name] = pa.nulls(count, staging.ROW.field(name).type)
        staging.put(layout, run_id, "aaaaaaaa", pa.table({name: columns[name] for name in staging.ROW.names}))


def main() -> None:
    """Plan, stage by a stub, prove, publish, commit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--smoke", action="store_true", help="a few thousand images")
    arguments = parser.parse_args()
    count = 10_000 if arguments.smoke else arguments.images
    memory = Memory()
    memory.start()
    with tempfile.TemporaryDirectory(prefix="fcdd-scale-") as folder:
        run(count, f"file://{folder}/results", f"{folder}/bundle", memory)


def _calibration() -> Calibration:
    """Of maps as large as the stub's."""
    generator = np.random.default_rng(0)
    maps = generator.random((CALIBRATION, 4, 4), np.float32)
    statistics = generator.random((CALIBRATION, len(STATISTICS)), np.float32)
    groups = ["camera-1"] * CALIBRATION
    nominal = Nominal(maps.mean((1, 2)), maps.max((1, 2)), statistics, ["PNG"] * CALIBRATION, groups, maps)
    return Calibration.fit(nominal, alpha=0.01)


def run(count: int, results: str, bundle_uri: str, memory: Memory) -> None:
    """All steps, with what each took."""
    context = multiprocessing.get_context("spawn")
    maker = context.Process(target=make_bundle, args=(bundle_uri,))
    maker.start()
    maker.join()
    spec, _ = bundle.load(bundle_uri)
    layout, steps = Layout(results), {}

    def step(name: str, started: float) -> None:
        steps[name] = {"seconds": round(time.perf_counter() - started, 1), "driver_mb": round(memory.peak / 1e6)}
        print(name, json.dumps(steps[name]), flush=True)
        memory.peak = 0

    fitted = _calibration()
    simulate(count)
    intent = Intent(
        run_id="r",
        collection="c",
        day=date(2026, 11, 1),
        images=(PREFIX,),
        selection={},
        bundle=bundle_uri,
        bundle_digest=spec.digest,
        alpha=0.01,
        fdr=0.1,
        started_at=WHEN,
    )
    started = time.perf_counter()
    with Listing(layout, intent, Source([PREFIX], None, Selection(), False)) as listing:
        listing.wait()
        print(f"the first part is there after {time.perf_counter() - started:.2f} s", flush=True)
        plan = listing.plan()
    step("plan", started)
    assert plan.num_images == count
    started = time.perf_counter()
    with context.Pool(2) as pool:
        pool.starmap(stage_part, [(results, "r", index, part) for index, part in enumerate(plan.parts)], chunksize=1)
    step("stage (stub)", started)
    started = time.perf_counter()
    done = Coverage.read(layout, "r")
    assert done.count() == count
    assert not any(True for part in plan.parts for _ in done.missing(part))
    step("find out what is done", started)
    started = time.perf_counter()
    with ExitStack() as cluster:
        session.join(cluster)
        record = publishing.commit(
            layout,
            plan,
            fitted,
            before=None,
            run=session.parallel_map,
            night=Undisturbed(),
            facts=Facts(images_per_second=1.0, stage_seconds={}, settings={}, versions={}),
        )
    step("prove, publish, commit", started)
    assert record.num_scored == count
    size, largest = sum(part.bytes for part in record.scores), max(part.bytes for part in record.scores)
    print(f"{len(record.scores)} published parts, {size / 1e9:.2f} GB, largest {largest / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
