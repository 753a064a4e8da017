"""How long do questions about results take, what do they read, and what does a report of a large run cost?

    python -m benchmarks.querying FOLDER [--smoke]

Generates two results locations in FOLDER (once; 8 GB): one night of 1,000,000 images, and 30 nights of 10,000,000
together. Each question is asked twice, in a process that is new and in the same one again; the bytes are DuckDB's own
count. Prints what goes into results/.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import result_tables
from benchmarks.result_tables import FIRST_NIGHT, image_uri
from cluster import local_s3
from fcdd import detector, networks
from fcdd.bundle import BundleSpec, TrainingRecord
from fcdd.calibration import STATISTICS, Calibration, Nominal
from fcdd.detector import Detector
from fcdd.io import storage
from fcdd.normalization import Normalization
from jobs import results
from schemas import IDENTITY, SCORES, Layout, RunRecord

_SMOKE, _FULL = (1_000, 3, 500), (1_000_000, 30, 333_334)
_PICTURES, _PICTURE_SIZE = 50, (1024, 768)


def _fcdd(*arguments: str) -> tuple[float, float]:
    """Seconds and peak memory (GB) of a command."""
    code = (
        "import re, sys; from jobs import cli; code = cli.main(); status = open('/proc/self/status').read(); "
        "print('peak', int(re.findall(r'VmHWM:\\s+(\\d+)', status)[0]) / 1e6, file=sys.stderr); sys.exit(code)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{arguments}: {done.stdout}{done.stderr}")
    return seconds, float(done.stderr.split("peak ")[-1])


def _timed(ask: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first and of the second time."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


def questions(night: str, month: str, images: int) -> None:
    """Questions of the Python API, on the local disk."""
    one_of_many = image_uri(FIRST_NIGHT, images * 7 // 9)
    by_day = "SELECT date, count_if(is_anomalous) FROM scores GROUP BY ALL ORDER BY ALL"
    by_camera = "SELECT date, image_group, count_if(is_anomalous) FROM scores GROUP BY ALL ORDER BY ALL"
    one = f"SELECT * FROM scores WHERE image_uri = '{image_uri(FIRST_NIGHT, 77)}'"
    asked = {
        "top 100 by score": (night, "SELECT * FROM scores ORDER BY anomaly_score DESC LIMIT 100"),
        "one image's row by uri": (night, f"SELECT * FROM scores WHERE image_uri = '{one_of_many}'"),
        "alarms per day, a month": (month, by_day),
        "alarms per day and camera": (month, by_camera),
        "one image of one night of the month": (month, f"{one} AND date = '{FIRST_NIGHT}'"),
        "one image in all nights": (month, one),
    }
    print("| question | images | first, s | again, s | read, MB | row groups |\n|---|---|---|---|---|---|")
    for name, (where, query) in asked.items():
        opened = results.open(where)
        cold, warm = _timed(lambda o=opened, q=query: o.sql(q).fetchall())  # type: ignore[misc]
        profile = opened.explain(query)
        groups = f"{profile['query']['total_row_groups_scanned']} of {profile['query']['total_row_groups_to_scan']}"
        read = profile["io"]["total_bytes_read"] / 1e6
        scored = sum(record.num_scored for record in opened.records)
        print(f"| {name} | {scored:,} | {cold:.3f} | {warm:.3f} | {read:.2f} | {groups} |", flush=True)


def commands(night: str, month: str, images: int) -> None:
    """Whole commands, start to end."""
    print("\n| command | s | peak memory, GB |\n|---|---|---|")
    for name, arguments in {
        "fcdd query --sql 'SELECT 1'": ("--results", night, "--sql", "SELECT 1"),
        "fcdd query --top 100": ("--results", night, "--top", "100"),
        "fcdd query history --uri ...": (
            "history",
            "--results",
            night,
            "--uri",
            image_uri(FIRST_NIGHT, images * 7 // 9),
        ),
        "fcdd query alarms, a month": ("alarms", "--results", month),
        "fcdd query quarantine, a month": ("quarantine", "--results", month),
    }.items():
        seconds, peak = _fcdd("query", *arguments, "--format", "json")
        print(f"| {name} | {seconds:.2f} | {peak:.2f} |", flush=True)


def point_look_up_in_a_bucket(night: str, images: int) -> None:
    """What one image's row costs over S3, of the same night."""
    query = f"SELECT * FROM scores WHERE image_uri = '{image_uri(FIRST_NIGHT, images * 7 // 9)}'"
    with local_s3.serve("results") as server, mock.patch.dict(os.environ, server.environment()):
        size = 0
        for page in storage.pages(night):
            for info in page:
                storage.write(info.uri.replace(storage.normalize(night), "s3://results/r"), storage.read(info.uri))
                size += info.size
        started = time.perf_counter()
        opened = results.open("s3://results/r")
        rows = opened.sql(query).fetchall()
        seconds = time.perf_counter() - started
        io = opened.explain(query)["io"]
    print(
        f"\nOver S3 (a local server): {len(rows)} row of {size / 1e6:,.0f} MB in {seconds:.2f} s, with opening; "
        f"{io['total_bytes_read'] / 1e6:.2f} MB in {io['total_read_operations']} reads."
    )


def reports(folder: Path, sizes: tuple[int, ...]) -> None:
    """Time and memory of `fcdd report` for runs of several sizes, each with 50 pictures of a megabyte."""
    bundle = _bundle(folder / "bundle")
    pictures = _pictures(folder / "pictures")
    print("\n| images in the run | fcdd report, s | peak memory, GB | file, MB |\n|---|---|---|---|")
    for size in sizes:
        root = folder / f"results-{size}"
        [record] = result_tables.generate(str(root), nights=1, images=size)
        _make_worst(root, record, pictures)
        known = record.model_copy(update={"bundle": str(folder / "bundle"), "bundle_digest": bundle})
        storage.write(Layout(str(root)).record(record.run_id), f"{known.model_dump_json()}\n".encode())
        page = root / "report.html"
        seconds, peak = _fcdd("report", "--results", str(root), "--output", str(page))
        print(f"| {size:,} | {seconds:.1f} | {peak:.2f} | {page.stat().st_size / 1e6:.2f} |", flush=True)


def _bundle(folder: Path) -> str:
    """A detector of 28 x 28 cells; its digest."""
    network = networks.build("cnn224", in_channels=3, image_size=(224, 224))
    weights = detector.serialize(network)
    random = np.random.default_rng(0)
    scores = random.gamma(8, 0.05, result_tables.NUM_CALIBRATION)
    maps = np.ones((len(scores), 28, 28), np.float32)
    statistics = random.normal(100, 10, (len(scores), len(STATISTICS)))
    nominal = Nominal(scores, scores, statistics, ["JPEG"] * len(scores), [""] * len(scores), maps)
    spec = BundleSpec(
        network="cnn224",
        channels=3,
        input_size=(224, 224),
        normalization=Normalization(kind="mean_std", shift=(0.5,) * 3, scale=(0.25,) * 3),
        gaussian_std=8.0,
        calibration=Calibration.fit(nominal, alpha=result_tables.ALPHA),
        calibrated_on="nothing",
        training=TrainingRecord(
            images="nothing", num_training=0, num_calibration=0, data_digest="0", options={}, versions={}
        ),
        weights_sha256=detector.sha256(weights),
    )
    Detector(spec, weights).save(str(folder))
    return spec.digest


def _pictures(folder: Path) -> list[storage.ObjectInfo]:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(_PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (48, 64, 3)).astype(np.uint8))
        coarse.resize(_PICTURE_SIZE).save(folder / f"{index:02d}.jpg", quality=95)
    return [storage.stat(str(path)) for path in sorted(folder.iterdir())]


def _make_worst(root: Path, record: RunRecord, pictures: list[storage.ObjectInfo]) -> None:
    """The first rows of the run become the most anomalous ones, of images that are there."""
    path = root / record.scores[0].path
    rows = pq.read_table(path, partitioning=None)
    for name, values in zip(IDENTITY, zip(*pictures, strict=True), strict=True):
        rows = _with(rows, name, list(values))
    rows = _with(rows, "anomaly_score", [100.0 - index for index in range(_PICTURES)])
    rows = _with(rows, "image_hash", [os.urandom(32) for _ in range(_PICTURES)])
    pq.write_table(rows, path, row_group_size=5_000, compression="zstd")


def _with(rows: pa.Table, name: str, first: list[object]) -> pa.Table:
    field = SCORES.field(name)
    column = pa.concat_arrays([pa.array(first, field.type), *rows[name].slice(len(first)).chunks])
    return rows.set_column(rows.column_names.index(name), field, column)


def main() -> None:
    """Generate what is missing, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    images, nights, each = _SMOKE if given.smoke else _FULL
    night, month = str(given.folder / "night"), str(given.folder / "month")
    for where, count, size in ((night, 1, images), (month, nights, each)):
        if not Path(where).exists():
            result_tables.generate(where, nights=count, images=size, processes=1 if given.smoke else 2)
    print(f"{platform.machine()}, {os.cpu_count()} cores\n")
    questions(night, month, images)
    commands(night, month, images)
    point_look_up_in_a_bucket(night, images)
    with tempfile.TemporaryDirectory() as folder:
        reports(Path(folder), (100, 1_000) if given.smoke else (10_000, 100_000, 1_000_000))


if __name__ == "__main__":
    main()
