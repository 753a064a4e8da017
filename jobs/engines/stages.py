"""The stages of scoring, as callables; what joins them is `jobs.engines.in_process` and `jobs.engines.over_ray`.

    shards of the manifest -> fetch, decode, resize (uint8) -> score -> staged Parquet -> receipts

A bad image is a row with a reason from the stage that met it on. Each stage keeps what is expensive (decoder
processes, a network) for the length of its process, and is for several threads at once. Only `Score` loads torch.
"""

import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fcdd import grouping, heatmap, regions, scorer
from fcdd.bundle import BundleSpec
from fcdd.calibration import Decider
from fcdd.errors import FCDDError
from fcdd.images import DecodedImage, Limits, View
from fcdd.io import storage
from fcdd.jpeg_files import JpegFile
from fcdd.runtime import Runtime
from jobs.catalog import manifest_parts, staging
from jobs.catalog.shards import Shard
from jobs.engines.decoders import decoders
from jobs.engines.gpu_decoding import BY_GPU, DIFFERENCE, REFUSED, Decode, GpuDecoding, WatchedDecoder, told
from jobs.engines.rows import (
    DECODED,
    ENCODED,
    PIXELS,
    encoded_column,
    image_columns,
    pixels_of,
    source_columns,
    spread,
)
from jobs.sources import fetching
from jobs.sources.locations import Locations
from jobs.timing.busy_clock import BusyClock
from schemas import Layout

# Preempted machines are not a reason to stop; a process that cannot live is.
MAX_DEATHS, MAX_DEATHS_PER_WORKER = 5, 2

# Seconds of work per row, by stage: summed up they say where the time goes. Those of a GPU are the time that passes,
# and what of it nobody asks for scores: then the GPU waits for pixels.
SECONDS = ("fetch_seconds", "decode_seconds", "score_seconds", "gpu_seconds", "gpu_wait_seconds")
# What is said of a staged shard: `reasons` one each for its failed rows.
RECEIPT = pa.schema(
    [
        *((name, pa.int64()) for name in ("rows", "failed", "transient", "alarms", "bytes")),
        ("reasons", pa.list_(pa.string())),
        *((name, pa.float64()) for name in (*SECONDS, "write_seconds")),
        ("by_gpu", pa.int64()),
        ("checked", pa.int64()),
        ("difference", pa.float64()),
        ("refused", pa.int64()),
    ]
)


class Receipt(TypedDict):
    """What a worker reports of one staged part: a row of RECEIPT."""

    rows: int
    failed: int
    # Of the failed: for a reason of the store.
    transient: int
    alarms: int
    bytes: int
    reasons: list[str]
    fetch_seconds: float
    decode_seconds: float
    score_seconds: float
    gpu_seconds: float
    gpu_wait_seconds: float
    write_seconds: float
    # Of images that a GPU decoded: how many, how many of them a CPU checked, and the largest difference of their scores
    # as a share of the threshold. Of those that were left to a GPU: how many a CPU decoded, since it is not trusted.
    by_gpu: int
    checked: int
    difference: float
    refused: int


def seconds_of(receipt: Receipt) -> dict[str, float]:
    """Seconds of a worker by stage, and of a GPU."""
    return {
        "fetch": receipt["fetch_seconds"],
        "decode": receipt["decode_seconds"],
        "score": receipt["score_seconds"],
        "write": receipt["write_seconds"],
        "gpu": receipt["gpu_seconds"],
        "gpu_wait": receipt["gpu_wait_seconds"],
    }


@dataclass(frozen=True, slots=True)
class FetchDecode:
    """Shards -> their manifest rows with uint8 pixels of the network's size, or with a stage and a reason.

    With `gpu` ordinary JPEGs stay as they are for the GPU's decoder, until one is found that it is not to be trusted.
    """

    results: str
    run_id: str
    view: View
    limits: Limits
    timeout_s: float
    roots: tuple[str, ...]
    group_pattern: str | None
    attempt: str
    allowed: Locations | None = None
    gpu: GpuDecoding | None = None

    def __call__(self, shards: pa.Table) -> Iterator[pa.Table]:
        """One table per shard."""
        for shard in shards.to_pylist():
            part = _manifest_part(self.results, self.run_id, self.attempt, shard["part"])
            yield self.load(part.slice(shard["start"] - shard["part_start"], shard["stop"] - shard["start"]), shard)

    def load(self, rows: pa.Table, shard: Shard) -> pa.Table:
        """Manifest rows of a shard, loaded."""
        leave = self.gpu.chosen if self.gpu and not self.gpu.refused() else None
        with decoders(self.view, self.limits, self.timeout_s).one() as decoder:
            loaded = fetching.load_isolated(manifest_parts.rows_of(rows), decoder, self.limits, self.allowed, leave)
        columns = source_columns(rows["row_id"], loaded.infos) | image_columns(loaded.results)
        columns["position"] = pa.array(range(shard["start"], shard["stop"]), pa.int64())
        pattern = grouping.compile_pattern(self.group_pattern)
        columns["image_group"] = pa.array([grouping.group_of(info.uri, self.roots, pattern) for info in loaded.infos])
        for name, seconds in zip(SECONDS, (loaded.fetch_seconds, loaded.decode_seconds), strict=False):
            columns[name] = pa.array(np.full(len(rows), seconds / len(rows), np.float32))
        if self.gpu:
            columns[ENCODED] = encoded_column(loaded.results)
        return pa.table(columns)


@functools.lru_cache(maxsize=2)
def _manifest_part(results: str, run_id: str, attempt: str, index: int) -> pa.Table:
    """The shards of a part follow each other, so it is read once per worker and attempt.

    A run that begins again has another manifest under the same name.
    """
    return manifest_parts.read(Layout(results), run_id, index)


class Score:
    """Decoded rows -> ROW tables, each column null where it is not its table's; staged at once if `then` does that.

    For `threads` at once: a GPU works for one while the others do what comes before and after; on CPUs each computes
    on one of them. Where the network is on a GPU, which `gpu` allows, or is meant to be (`beside_gpu`), its waiting is
    counted.
    """

    def __init__(
        self,
        spec: BundleSpec,
        weights: bytes,
        runtime: Runtime,
        alpha: float,
        then: Callable[[pa.Table], pa.Table] | None = None,
        starts: "StartLog | None" = None,
        *,
        threads: int = 1,
        gpu: bool = True,
        beside_gpu: bool = False,
        gpu_decoding: GpuDecoding | None = None,
        sample: bytes | None = None,
    ) -> None:
        """The driver verified the bundle and passes it on, so all rows of a run carry one digest."""
        died = starts.add() if starts else 0
        self.spec = spec
        self.scorer = scorer.load(spec, weights, runtime, threads=threads, gpu=gpu, sample=sample)
        self.decide = Decider(spec.calibration, alpha)
        self.then = then
        self._clock = BusyClock()
        self._waiting = _Waiting(self._clock) if beside_gpu or self.scorer.is_on_gpu else None
        if gpu_decoding and died:
            gpu_decoding.refuse(f"{died} scoring process{'es' * (died > 1)} died, perhaps of the GPU's decoder")
        self._watched = gpu_decoding and WatchedDecoder(
            gpu_decoding, self.decide.threshold, lambda: self._batch_decoder(gpu_decoding.device), self._scored
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Scores the readable rows; a score that is not finite becomes a reason."""
        scored = self._watched(rows) if self._watched else told(self._scored(rows))
        return self.then(scored) if self.then else scored

    def _batch_decoder(self, device: str) -> Decode:
        """Of a GPU, whose work it counts as."""
        import torch

        from fcdd.batch_decoding import BatchDecoder

        decoder = BatchDecoder(self.spec.view, torch.device(device))

        def decode(files: Sequence[JpegFile]) -> list[DecodedImage | None]:
            with self._clock.busy():
                return decoder(files)

        return decode

    def _scored(self, rows: pa.Table) -> pa.Table:
        started = time.perf_counter()
        spec = self.spec
        readable = pc.is_valid(rows[PIXELS]).to_numpy(zero_copy_only=False)
        pixels = pixels_of(rows[PIXELS], (int(readable.sum()), *spec.input_size, spec.channels))
        with self._clock.busy():
            scored = self.scorer(pixels)
        finite = np.isfinite(scored.maps).all((1, 2))
        has_score = readable.copy()
        has_score[readable] = finite
        chosen: npt.NDArray[np.float32] = getattr(scored, spec.score)[finite]
        maps = scored.maps[finite]
        groups = rows["image_group"].filter(pa.array(has_score)).to_pylist()
        p, alarms = self.decide(chosen, scored.maximum[finite], groups)
        values = {
            "anomaly_score": chosen,
            "score_mean": scored.mean[finite],
            "score_max": scored.maximum[finite],
            "score_top1pct": scored.top1pct[finite],
            "p_value": p,
            "is_anomalous": alarms,
            "heatmap": heatmap.encode_each(maps),
            "heatmap_height": np.full(len(maps), maps.shape[1], np.int32),
            "heatmap_width": np.full(len(maps), maps.shape[2], np.int32),
            "regions": self._regions(maps, rows.select(["height", "width"]).filter(pa.array(has_score))),
        }
        columns = {name: rows[name] for name in rows.column_names if name != PIXELS}
        for name, array in values.items():
            columns[name] = spread(pa.array(array, staging.ROW.field(name).type), has_score)
        if not finite.all():
            bad = readable & ~has_score
            for name, value in (("stage", "score"), ("reason", "non_finite_score"), ("attempts", 1)):
                columns[name] = pc.if_else(pa.array(bad), pa.scalar(value, columns[name].type), columns[name])
            detail = pa.scalar("the anomaly map holds values that are not finite")
            columns["detail"] = pc.if_else(pa.array(bad), detail, columns["detail"])
            for name in DECODED:
                columns[name] = pc.if_else(pa.array(bad), pa.scalar(None, columns[name].type), columns[name])
        columns["score_seconds"] = pa.array(
            np.full(len(rows), (time.perf_counter() - started) / max(1, len(rows))), pa.float32()
        )
        of_gpu = self._waiting.since_last(started) if self._waiting else (0.0, 0.0)
        for name, seconds in zip(SECONDS[-2:], of_gpu, strict=True):
            columns[name] = pa.array(np.full(len(rows), seconds / max(1, len(rows))), pa.float32())
        return pa.table({name: columns[name] for name in (*staging.ROW.names, *SECONDS)})

    def _regions(self, maps: npt.NDArray[np.float32], rows: pa.Table) -> list[list[dict[str, Any]]]:
        """Hot regions of each map; most maps have none, which their maximum says."""
        threshold = self.decide.map_threshold
        hot = maps.max((1, 2), initial=-np.inf) > threshold
        sizes = zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True)
        return [
            [region._asdict() for region in self._find(map_uv, threshold, size)] if is_hot else []
            for map_uv, is_hot, size in zip(maps, hot, sizes, strict=True)
        ]

    def _find(
        self, map_uv: npt.NDArray[np.float32], threshold: float, image_size: tuple[int, int]
    ) -> list[regions.Region]:
        return regions.find(
            map_uv,
            threshold,
            receptive_field=self.scorer.receptive_field,
            input_size=self.spec.input_size,
            image_size=image_size,
            crop=self.spec.view.crop,
        )


class _Waiting:
    """How long a GPU had nothing to do, told in pieces by the threads that share it."""

    def __init__(self, clock: BusyClock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._told: tuple[float, float] | None = None

    def since_last(self, started: float) -> tuple[float, float]:
        """Seconds that passed, and those that the GPU waited, since the last call; the first time, since `started`."""
        with self._lock:
            now, busy = time.perf_counter(), self._clock.seconds()
            before, busy_before = self._told or (started, 0.0)
            self._told = now, busy
            return now - before, max(0.0, now - before - (busy - busy_before))


@dataclass(frozen=True, slots=True)
class StartLog:
    """Counts the starts of scoring processes: Ray would start one that dies for ever again (docs/facts.md)."""

    results: str
    run_id: str
    attempt: str
    workers: int

    def add(self) -> int:
        """How many processes died before this one. Raises FCDDError when they died too often to go on."""
        folder = Layout(self.results).starts(self.run_id, self.attempt)
        storage.write(storage.join(folder, uuid.uuid4().hex), b"")
        starts = sum(len(page) for page in storage.pages(folder))
        if starts > self.workers * (1 + MAX_DEATHS_PER_WORKER) + MAX_DEATHS:
            raise FCDDError(
                f"scoring processes died {starts - self.workers} times, of too little memory or in native code; what "
                "was scored is kept. Use fewer --workers or a smaller --max-image-mb, and run the same command again"
            )
        return max(0, starts - self.workers)


@dataclass(frozen=True, slots=True)
class StageParts:
    """ROW tables -> staged parts; one receipt row of counts and seconds each."""

    results: str
    run_id: str
    attempt: str

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Puts the rows into staging and returns the receipt."""
        started = time.perf_counter()
        staging.put(Layout(self.results), self.run_id, self.attempt, rows)
        receipt = {
            "rows": rows.num_rows,
            "failed": int(pc.sum(staging.failed(rows)).as_py() or 0),
            "reasons": rows["reason"].drop_null().to_pylist(),
            "alarms": int(pc.sum(rows["is_anomalous"]).as_py() or 0),
            "transient": int(pc.sum(staging.is_transient(rows)).as_py() or 0),
            "bytes": int(pc.sum(pc.max_element_wise(rows["image_bytes"], 0)).as_py() or 0),
            **{name: float(pc.sum(rows[name]).as_py() or 0) for name in SECONDS},
            "write_seconds": time.perf_counter() - started,
            "by_gpu": int(pc.sum(rows[BY_GPU]).as_py() or 0),
            "checked": len(rows) - rows[DIFFERENCE].null_count,
            "difference": float(pc.max(rows[DIFFERENCE]).as_py() or 0),
            "refused": int(pc.sum(rows[REFUSED]).as_py() or 0),
        }
        return pa.Table.from_pylist([receipt], RECEIPT)
