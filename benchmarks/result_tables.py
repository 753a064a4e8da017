"""Results of any size without scoring anything: committed nights in the layout that readers rely on.

    python -m benchmarks.result_tables FOLDER [--nights 30] [--images 333334] [--cells 28]

The columns that readers select by are drawn anew for every image; anomaly maps and hashes come from a pool of 4,096.
"""

import argparse
import datetime as dt
import functools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

import numpy as np
import pyarrow as pa

from fcdd import heatmap
from fcdd.io import storage
from jobs.catalog import part_files
from schemas import QUARANTINE, SCORES, Drift, Layout, Part, RunRecord, conform

COLLECTION, CAMERA_IMAGES, ALPHA = "generated", 125_000, 0.01
FIRST_NIGHT = dt.date(2026, 10, 1)
PART_ROWS, NUM_CALIBRATION, QUARANTINED = 200_000, 999, 20
_POOL = 4_096
_THRESHOLD = 0.9


def image_uri(night: dt.date, index: int) -> str:
    """The image at a position of a night; sorted like the positions."""
    return f"s3://factory/line-4/{night}/camera-{index // CAMERA_IMAGES:02d}/part-{index:09d}.jpg"


@functools.cache
def _pool(cells: int) -> tuple[list[bytes], list[bytes]]:
    """Encoded maps with a soft bump, and hashes."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:cells, :cells] / cells
    centre, height = random.random((2, _POOL, 1, 1)), random.exponential(0.3, (_POOL, 1, 1))
    bump = height * np.exp(-30 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2))
    maps = (bump + random.gamma(4, 0.02, (_POOL, cells, cells))).astype(np.float32)
    return heatmap.encode_each(maps), [random.bytes(32) for _ in range(_POOL)]


def rows(night: dt.date, run_id: str, start: int, stop: int, cells: int) -> pa.Table:
    """Rows of the scores table for images [start, stop) of a night."""
    count = stop - start
    random = np.random.default_rng((night.toordinal(), start))
    scores = random.gamma(8, 0.05, count).astype(np.float32)
    p_values = np.exp(-scores * 5.2).clip(1 / (NUM_CALIBRATION + 1), 1)
    encoded, hashes = _pool(cells)
    picked = random.integers(_POOL, size=count)
    time = dt.datetime.combine(night, dt.time(2), dt.UTC)
    constant = {
        "image_last_modified": time,
        "width": 1024,
        "height": 768,
        "num_frames": 1,
        "image_format": "JPEG",
        "heatmap_height": cells,
        "heatmap_width": cells,
        "collection": COLLECTION,
        "date": night,
        "run_id": run_id,
        "model_digest": "0" * 64,
        "scored_at": time,
    }
    drawn = {
        "row_id": np.arange(start, stop),
        "image_uri": [image_uri(night, index) for index in range(start, stop)],
        "image_etag": [f"{value:016x}{value:016x}" for value in random.integers(2**62, size=count).tolist()],
        "image_bytes": random.integers(100_000, 300_000, count),
        "image_group": [f"camera-{index // CAMERA_IMAGES:02d}" for index in range(start, stop)],
        "image_hash": [hashes[index] for index in picked],
        "anomaly_score": scores,
        "score_mean": scores / 3,
        "score_max": scores,
        "score_top1pct": scores * np.float32(0.9),
        "p_value": p_values,
        "is_anomalous": p_values <= ALPHA,
        "heatmap": [encoded[index] for index in picked],
        "regions": [[] if score <= _THRESHOLD else [_REGION] for score in scores.tolist()],
        **{
            name: random.normal(mean, 5, count).astype(np.float32)
            for name, mean in (("brightness", 120), ("contrast", 40), ("sharpness", 9))
        },
    }
    columns = {name: pa.array(drawn[name], SCORES.field(name).type) for name in drawn}
    columns |= {name: pa.repeat(pa.scalar(value, SCORES.field(name).type), count) for name, value in constant.items()}
    return conform(pa.table(columns), SCORES)


_REGION = {"x0": 100, "y0": 120, "x1": 180, "y1": 170, "area_fraction": 0.01, "peak": 1.2}


def _place(task: tuple[str, dt.date, str, int, int, int]) -> tuple[Part, int]:
    results, night, run_id, start, stop, cells = task
    table = rows(night, run_id, start, stop, cells)
    name = f"part-{start // PART_ROWS:05d}-{{}}.parquet"
    layout = Layout(results)
    part = part_files.publish(layout, layout.part("scores", COLLECTION, night, run_id, name), table)
    return part, int(np.count_nonzero(table["is_anomalous"]))


def _quarantine(layout: Layout, night: dt.date, run_id: str, images: int) -> Part:
    time = dt.datetime.combine(night, dt.time(2), dt.UTC)
    found = [
        {
            "row_id": images + index,
            "image_uri": image_uri(night, images + index),
            "image_etag": "",
            "image_bytes": 17,
            "image_last_modified": time,
            "image_group": "camera-00",
            "stage": "decode",
            "reason": ("truncated", "corrupt", "not_an_image")[index % 3],
            "detail": "generated",
            "attempts": 1,
            "collection": COLLECTION,
            "date": night,
            "run_id": run_id,
            "model_digest": "0" * 64,
            "scored_at": time,
        }
        for index in range(QUARANTINED)
    ]
    path = layout.part("quarantine", COLLECTION, night, run_id, "part-00000-{}.parquet")
    return part_files.publish(layout, path, pa.Table.from_pylist(found, QUARANTINE))


def generate(results: str, *, nights: int, images: int, cells: int = 28, processes: int = 1) -> list[RunRecord]:
    """Commit so many nights of so many scored images each."""
    layout = Layout(storage.normalize(results))
    days = [FIRST_NIGHT + dt.timedelta(days=index) for index in range(nights)]
    tasks = [
        (layout.results, day, f"{day:%Y%m%d}-generated", start, min(start + PART_ROWS, images), cells)
        for day in days
        for start in range(0, images, PART_ROWS)
    ]
    with ExitStack() as stack:
        run = map
        if processes > 1:  # forked ones would inherit the locks of the storage client's threads
            context = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(processes, context)).map  # type: ignore[assignment]
        placed = list(zip(tasks, run(_place, tasks), strict=True))
    records = []
    for day in days:
        run_id = f"{day:%Y%m%d}-generated"
        found = [each for task, each in placed if task[1] == day]
        quarantine = _quarantine(layout, day, run_id, images)
        records.append(_record(day, run_id, found, quarantine))
        storage.write(layout.record(run_id), f"{records[-1].model_dump_json()}\n".encode())
    return records


def _record(day: dt.date, run_id: str, found: Sequence[tuple[Part, int]], quarantine: Part) -> RunRecord:
    scored, time = sum(part.rows for part, _ in found), dt.datetime.combine(day, dt.time(2), dt.UTC)
    return RunRecord(
        run_id=run_id,
        collection=COLLECTION,
        day=day,
        images=(f"s3://factory/line-4/{day}",),
        selection={},
        bundle="s3://factory/bundles/line-4",
        bundle_digest="0" * 64,
        supersedes=None,
        started_at=time,
        committed_at=time + dt.timedelta(hours=1),
        num_listed=scored + quarantine.rows,
        num_scored=scored,
        num_quarantined=quarantine.rows,
        num_anomalous=sum(alarms for _, alarms in found),
        num_deleted=0,
        num_listed_twice=0,
        num_duplicates_dropped=0,
        num_bytes=scored * 200_000,
        skipped={},
        quarantine_reasons={"truncated": 7, "corrupt": 7, "not_an_image": 6},
        manifest_digest="0" * 64,
        threshold=_THRESHOLD,
        group_thresholds={},
        map_threshold=_THRESHOLD,
        alpha=ALPHA,
        num_calibration=NUM_CALIBRATION,
        smallest_p_value=1 / (NUM_CALIBRATION + 1),
        fdr=0.1,
        fdr_p_value=0.0,
        num_discoveries=0,
        drift=Drift(verdict="ok", reasons=(), part=None),
        images_per_second=scored / 3600,
        stage_seconds={"stage": 3000.0, "publish": 500.0, "decide": 100.0},
        settings={},
        versions={},
        scores=tuple(part for part, _ in found),
        quarantine=(quarantine,),
        deleted=(),
    )


def main() -> None:
    """Generate, and say what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--images", type=int, default=333_334, help="of each night")
    parser.add_argument("--cells", type=int, default=28, help="side of the anomaly maps")
    given = parser.parse_args()
    records = generate(given.folder, nights=given.nights, images=given.images, cells=given.cells, processes=2)
    size = sum(part.bytes for record in records for part in record.parts())
    print(f"{len(records)} nights, {sum(r.num_scored for r in records)} images, {size / 1e9:.2f} GB in {given.folder}")


if __name__ == "__main__":
    main()
