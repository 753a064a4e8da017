"""The stages of scoring, as callables; what joins them is `jobs.engines.in_process` and `jobs.engines.over_ray`.

    shards of the manifest -> fetch, decode, resize (uint8) -> score -> staged Parquet -> receipts

A bad image is a row with a reason from the stage that met it on. Each stage keeps what is expensive (decoder
processes, a network) for the length of its process, and is for several threads at once. Only `Score` loads torch.
"""

import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
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
from fcdd.io.isolation import IsolatedDecoder
from fcdd.runtime import Runtime
from fcdd.spares import Spares
from jobs.catalog import manifest_parts, staging
from jobs.catalog.shards import Shard
from jobs.sources import fetching
from jobs.sources.locations import Locations
from jobs.timing.busy_clock import BusyClock
from schemas import IDENTITY, MANIFEST, Layout

# Preempted machines are not a reason to stop; a process that cannot live is.
MAX_DEATHS, MAX_DEATHS_PER_WORKER = 5, 2

PIXELS = "pixels"
# Seconds of work per row, by stage: summed up they say where the time goes. Those of a GPU are the time that passes,
# and what of it nobody asks for scores: then the GPU waits for pixels.
SECONDS = ("fetch_seconds", "decode_seconds", "score_seconds", "gpu_seconds", "gpu_wait_seconds")
# What is said of a staged shard: `reasons` one each for its failed rows.
RECEIPT = pa.schema(
    [
        *((name, pa.int64()) for name in ("rows", "failed", "transient", "alarms", "bytes")),
        ("reasons", pa.list_(pa.string())),
        *((name, pa.float64()) for name in (*SECONDS, "write_seconds")),
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


# Column -> attribute of a decoded image.
_DECODED_COLUMNS = {
    **{name: name for name in ("width", "height", "brightness", "contrast", "sharpness")},
    "num_frames": "frames",
    "image_format": "format",
    "image_hash": "hash",
}


@dataclass(frozen=True, slots=True)
class FetchDecode:
    """Shards -> their manifest rows with uint8 pixels of the network's size, or with a stage and a reason."""

    results: str
    run_id: str
    view: View
    limits: Limits
    timeout_s: float
    roots: tuple[str, ...]
    group_pattern: str | None
    attempt: str
    allowed: Locations | None = None

    def __call__(self, shards: pa.Table) -> Iterator[pa.Table]:
        """One table per shard."""
        for shard in shards.to_pylist():
            part = _manifest_part(self.results, self.run_id, self.attempt, shard["part"])
            yield self.load(part.slice(shard["start"] - shard["part_start"], shard["stop"] - shard["start"]), shard)

    def load(self, rows: pa.Table, shard: Shard) -> pa.Table:
        """Manifest rows of a shard, loaded."""
        with _decoders(self.view, self.limits, self.timeout_s).one() as decoder:
            loaded = fetching.load_isolated(manifest_parts.rows_of(rows), decoder, self.limits, self.allowed)
        columns = _source_columns(rows["row_id"], loaded.infos)
        columns["position"] = pa.array(range(shard["start"], shard["stop"]), pa.int64())
        columns |= _failure_columns(loaded.results)
        good = [image for image in loaded.results if isinstance(image, DecodedImage)]
        readable = np.array([isinstance(image, DecodedImage) for image in loaded.results], np.bool_)
        columns[PIXELS] = _binary(np.stack([i.pixels for i in good]) if good else np.empty((0, 1), np.uint8), readable)
        pattern = grouping.compile_pattern(self.group_pattern)
        columns["image_group"] = pa.array([grouping.group_of(info.uri, self.roots, pattern) for info in loaded.infos])
        for name, attribute in _DECODED_COLUMNS.items():
            values = [getattr(image, attribute) for image in good]
            columns[name] = _spread(pa.array(values, staging.ROW.field(name).type), readable)
        for name, seconds in zip(SECONDS, (loaded.fetch_seconds, loaded.decode_seconds), strict=False):
            columns[name] = pa.array(np.full(len(rows), seconds / len(rows), np.float32))
        return pa.table(columns)


@functools.lru_cache(maxsize=2)
def _manifest_part(results: str, run_id: str, attempt: str, index: int) -> pa.Table:
    """The shards of a part follow each other, so it is read once per worker and attempt.

    A run that begins again has another manifest under the same name.
    """
    return manifest_parts.read(Layout(results), run_id, index)


@functools.lru_cache(maxsize=1)
def _decoders(view: View, limits: Limits, timeout_s: float) -> Spares[IsolatedDecoder]:
    """One for each thread at work; they end when this process does, since their input ends."""
    return Spares(functools.partial(IsolatedDecoder, view, limits=limits, timeout_s=timeout_s))


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
    ) -> None:
        """The driver verified the bundle and passes it on, so all rows of a run carry one digest."""
        if starts:
            starts.add()
        self.spec, self.scorer = spec, scorer.load(spec, weights, runtime, threads=threads, gpu=gpu)
        self.decide = Decider(spec.calibration, alpha)
        self.then = then
        self._clock = BusyClock()
        self._waiting = _Waiting(self._clock) if beside_gpu or self.scorer.is_on_gpu else None

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Scores the readable rows; a score that is not finite becomes a reason."""
        started = time.perf_counter()
        spec = self.spec
        readable = pc.is_valid(rows[PIXELS]).to_numpy(zero_copy_only=False)
        pixels = _pixels(rows[PIXELS], (int(readable.sum()), *spec.input_size, spec.channels))
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
            columns[name] = _spread(pa.array(array, staging.ROW.field(name).type), has_score)
        if not finite.all():
            bad = readable & ~has_score
            for name, value in (("stage", "score"), ("reason", "non_finite_score"), ("attempts", 1)):
                columns[name] = pc.if_else(pa.array(bad), pa.scalar(value, columns[name].type), columns[name])
            detail = pa.scalar("the anomaly map holds values that are not finite")
            columns["detail"] = pc.if_else(pa.array(bad), detail, columns["detail"])
            for name in _DECODED_COLUMNS:
                columns[name] = pc.if_else(pa.array(bad), pa.scalar(None, columns[name].type), columns[name])
        columns["score_seconds"] = pa.array(
            np.full(len(rows), (time.perf_counter() - started) / max(1, len(rows))), pa.float32()
        )
        of_gpu = self._waiting.since_last(started) if self._waiting else (0.0, 0.0)
        for name, seconds in zip(SECONDS[-2:], of_gpu, strict=True):
            columns[name] = pa.array(np.full(len(rows), seconds / max(1, len(rows))), pa.float32())
        scored_rows = pa.table({name: columns[name] for name in (*staging.ROW.names, *SECONDS)})
        return self.then(scored_rows) if self.then else scored_rows

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

    def add(self) -> None:
        """Raises FCDDError when processes died too often to go on."""
        folder = Layout(self.results).starts(self.run_id, self.attempt)
        storage.write(storage.join(folder, uuid.uuid4().hex), b"")
        starts = sum(len(page) for page in storage.pages(folder))
        if starts > self.workers * (1 + MAX_DEATHS_PER_WORKER) + MAX_DEATHS:
            raise FCDDError(
                f"scoring processes died {starts - self.workers} times, of too little memory or in native code; what "
                "was scored is kept. Use fewer --workers or a smaller --max-image-mb, and run the same command again"
            )


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
        }
        return pa.Table.from_pylist([receipt], RECEIPT)


def _source_columns(row_ids: pa.ChunkedArray, infos: list[Any]) -> dict[str, Any]:
    values = zip(*infos, strict=True)
    return {"row_id": row_ids} | {
        name: pa.array(column, MANIFEST.field(name).type) for name, column in zip(IDENTITY, values, strict=True)
    }


def _failure_columns(results: list[DecodedImage | fetching.Failure]) -> dict[str, Any]:
    failures = [result if isinstance(result, fetching.Failure) else None for result in results]
    return {
        "stage": pa.array([f and f.stage for f in failures], pa.string()),
        "reason": pa.array([f and f.error.reason for f in failures], pa.string()),
        "detail": pa.array([f and f.error.detail for f in failures], pa.string()),
        "attempts": pa.array([f and 1 for f in failures], pa.int32()),
    }


def _spread(values: pa.Array, where: npt.NDArray[np.bool_]) -> pa.Array:
    """`values`, in order, at the rows `where` is true; null elsewhere."""
    if where.all():
        return values
    indices = pa.array(np.cumsum(where) - 1, mask=~where)
    return values.take(indices)


def _binary(values: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_]) -> pa.Array:
    """Each (N, ...) entry of `values` as bytes, at the rows `where` is true, null elsewhere; nothing is copied."""
    size = int(np.prod(values.shape[1:]))
    offsets = np.concatenate(([0], np.cumsum(where))).astype(np.int64) * size
    validity = pa.py_buffer(np.packbits(where, bitorder="little").tobytes())
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.large_binary(), len(where), buffers)


def _pixels(column: pa.ChunkedArray, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The bytes of all entries that are not null, as one array; they lie one after the other."""
    if not shape[0]:
        return np.empty(shape, np.uint8)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even a single one
    first = np.frombuffer(array.buffers()[1], np.int64)[array.offset]
    return np.frombuffer(array.buffers()[2], np.uint8, count=int(np.prod(shape)), offset=int(first)).reshape(shape)
