"""How much of what so many workers could do is lost to organising them?

    python -m benchmarks.orchestration [--workers 1,2,4,16,64] [--images-per-second 42] [--seconds 90] [--smoke]

`fcdd score` as it is, on a local Ray, with a simulated store that lists keys, and with fetching, decoding and scoring
replaced by a sleep: as long as a worker takes for those images (42 images/s is the paper's `cnn224` on one core). So
any number of workers fit on two cores, and what is left is ours: the manifest, Ray, staging, progress, proof,
publishing, commit. Results lie on the local disk.

Prints a JSON line per number of workers: the rate from when all workers are up until the work becomes scarce, as a
share of workers x images per second; how much longer the last shards took than their share; CPU seconds and memory of
the driver; CPU seconds of Ray's own processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from fcdd import heatmap
from fcdd.bundle import BundleSpec
from fcdd.io import storage
from fcdd.runtime import Runtime
from jobs.catalog import manifest_parts, staging
from jobs.engines import stages
from jobs.engines.gpu_decoding import told
from jobs.engines.stages import Receipt, StartLog
from jobs.scoring import publishing, runs
from jobs.scoring.progress import Progress
from jobs.scoring.settings import ScoreSettings
from schemas import Layout

RATE = "FCDD_BENCH_IMAGES_PER_SECOND"
RAYS_OWN = ("gcs_server", "raylet", "dashboard", "agent.py", "monitor.py", "log_monitor")


class SimulatedFetch:
    """Shards -> their manifest rows; nothing is fetched."""

    def __init__(self, results: str, run_id: str, *rest: Any) -> None:
        self.results, self.run_id = results, run_id

    def __call__(self, shards: pa.Table) -> Iterator[pa.Table]:
        """One table per shard."""
        for shard in shards.to_pylist():
            part = manifest_parts.read(Layout(self.results), self.run_id, shard["part"])
            rows = part.slice(shard["start"] - shard["part_start"], shard["stop"] - shard["start"])
            yield rows.append_column("position", pa.array(range(shard["start"], shard["stop"]), pa.int64()))


class SimulatedScore:
    """Rows -> staged rows, after as long as scoring them takes."""

    def __init__(
        self, spec: BundleSpec, weights: bytes, runtime: Runtime, alpha: float, then: Any, starts: StartLog, **_: Any
    ) -> None:
        starts.add()
        self.then, self.rate = then, float(os.environ[RATE])
        self.map = heatmap.encode(np.linspace(0, 1, 28 * 28, dtype=np.float32).reshape(28, 28))

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Sleeps, and stages."""
        started, count = time.perf_counter(), len(rows)
        constant: dict[str, Any] = {"width": 300, "height": 300, "num_frames": 1, "image_format": "PNG"}
        constant |= {"image_group": "", "p_value": 0.5, "is_anomalous": False, "heatmap": self.map}
        constant |= {"heatmap_height": 28, "heatmap_width": 28, "regions": [], "image_hash": b"\0" * 32}
        columns = {name: rows[name] for name in rows.column_names}
        for field in staging.ROW:
            if field.name in columns or field.name in staging.FAILURE_COLUMNS:
                continue
            columns[field.name] = pa.array([constant.get(field.name, 0.5)] * count, field.type)
        for name in staging.FAILURE_COLUMNS:
            columns[name] = pa.nulls(count, staging.ROW.field(name).type)
        table = pa.table({name: columns[name] for name in staging.ROW.names})
        for name in stages.SECONDS:
            table = table.append_column(name, pa.array(np.full(count, 1 / self.rate / 3, np.float32)))
        time.sleep(max(0.0, count / self.rate - (time.perf_counter() - started)))
        return self.then(told(table))


def one(workers: int, rate: float, seconds: float) -> dict[str, Any]:
    """One run, in this process."""
    from benchmarks import scale
    from jobs.on_ray import session

    os.environ[RATE] = str(rate)
    images = int(workers * rate * seconds)
    scale.simulate(images)
    stages.FetchDecode, stages.Score = SimulatedFetch, SimulatedScore  # type: ignore[misc, assignment]
    seen: list[tuple[float, int]] = []
    add = Progress.add

    def added(self: Progress, receipt: Receipt) -> None:
        seen.append((time.time(), receipt["rows"]))
        add(self, receipt)

    Progress.add = added  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        maker = [
            sys.executable,
            "-c",
            f"from benchmarks import scoring; scoring.make_bundle('cnn224', '{folder}/bundle')",
        ]
        subprocess.run(maker, check=True)
        me, started = psutil.Process(), time.time()
        before = me.cpu_times()
        where = ["--bundle", f"{folder}/bundle", "--images", scale.PREFIX, "--results", f"{folder}/results"]
        argv = [*where, "--collection", "c", "--date", "2026-11-01", "--workers", str(workers)]
        with session.session(cpus=workers + 1):
            family = [p for p in me.children(recursive=True) if any(w in " ".join(p.cmdline()) for w in RAYS_OWN)]
            cpu = {p.pid: sum(p.cpu_times()[:2]) for p in family}
            kept = _keep_starts()
            record = runs.score(ScoreSettings.parse(argv).options())
            alive = [p for p in family if p.is_running()]
            rays = sum(sum(p.cpu_times()[:2]) - cpu[p.pid] for p in alive)
        after = me.cpu_times()
        assert record.num_scored == images
    up = max(kept, default=started)  # what was listed late is a second round, with workers of its own
    return summary(seen, up, workers, rate) | {
        "workers": workers,
        "images": images,
        "driver_cpu_s_per_million": round((after.user + after.system - before.user - before.system) / images * 1e6, 1),
        "driver_mb": round(me.memory_info().rss / 1e6),
        "ray_cpu_s_per_million": round(rays / images * 1e6, 1),
    }


def _keep_starts() -> list[float]:
    """When workers said that they start: their objects are gone once the run is committed."""
    found: list[float] = []
    clean_up = publishing.clean_up

    def kept(layout: Layout, run_id: str) -> None:
        folder = f"{layout.staging(run_id)}/starts"
        found.extend(info.last_modified.timestamp() for page in storage.pages(folder) for info in page)
        clean_up(layout, run_id)

    publishing.clean_up = kept
    return found


def summary(seen: list[tuple[float, int]], up: float, workers: int, rate: float) -> dict[str, Any]:
    """The share of what so many workers could do, and the seconds by which the last shards took longer.

    Workers that began together stage together, so the rate is the slope through all receipts, not what lies between
    two.
    """
    at, rows = np.array([each for each, _ in seen]), np.array([each for _, each in seen])
    done, largest, ideal = np.cumsum(rows), rows.max(), workers * rate
    # After all workers are up, and before shards become smaller and some have nothing to do.
    steady = (at >= up + largest / rate) & (rows.sum() - done >= workers * largest)
    slope = np.polyfit(at[steady], (done - rows / 2)[steady], 1)[0] if steady.sum() > 2 * workers else float("nan")
    last = int(np.flatnonzero(steady)[-1]) if steady.any() else 0
    tail = at[-1] - at[last] - (done[-1] - done[last]) / ideal
    return {"steady": round(float(slope / ideal), 3), "tail_s": round(float(tail), 1)}


def main() -> None:
    """Run the cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4,16,64")
    parser.add_argument("--images-per-second", type=float, default=42)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.images_per_second, options.seconds)))
        return
    workers, seconds = ("1,2", 15.0) if options.smoke else (options.workers, options.seconds)
    for count in workers.split(","):
        command = [sys.executable, "-m", "benchmarks.orchestration", "--one", count, "--seconds", str(seconds)]
        command += ["--images-per-second", str(options.images_per_second)]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr, flush=True)


if __name__ == "__main__":
    main()
