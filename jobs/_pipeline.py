"""The stages of scoring as Ray Data operators; the chain that joins them is in `jobs.score`.

    slices of the manifest -> fetch, decode, resize (tasks; uint8) -> score (actors, a GPU if there is one)
    -> staged Parquet (tasks) -> receipts

Different CPU requests keep Ray from fusing the stages, and together they fit three CPUs, so that no
stage can starve the others. A bad image is a row with a reason from the stage that met it on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from fcdd import calibration, heatmap, regions
from fcdd.bundle import BundleSpec
from fcdd.detector import Detector
from fcdd.errors import ImageError
from fcdd.images import DecodedImage
from fcdd.storage import ObjectInfo
from jobs import _images, _staging
from schemas.runs import Plan

DECODE_CPUS, SCORE_CPUS, WRITE_CPUS = 0.6, 1.0, 0.2
# Rows of a block between stages, if they are not more than 16 MB (106 images of 224x224x3).
BLOCK_ROWS = 64
_BLOCK_PIXEL_BYTES = 16 * 1024**2
# Ray joins the blocks a task yields up to this size: small, so that scoring starts with the first block.
BLOCK_BYTES = 4 * 1024**2
# Manifest rows of one decode task; a small run is cut finer, so that all cores take part.
SLICE_ROWS = 2048

PIXELS = "pixels"
_DECODED = pa.schema([(PIXELS, pa.binary()), *(_staging.ROW.field(name) for name in _staging.DECODED_COLUMNS)])


def score_resources() -> dict[str, Any]:
    """Keyword arguments of the scoring stage: one actor per GPU, else actors on two thirds of the CPUs."""
    total = ray.cluster_resources()
    if gpus := int(total.get("GPU", 0)):
        return {"compute": ActorPoolStrategy(size=gpus), "num_gpus": 1}
    return {"compute": ActorPoolStrategy(size=max(1, int(total.get("CPU", 0) * 2 / 3))), "num_cpus": SCORE_CPUS}


class Slice(TypedDict):
    """Rows [start, stop) of one manifest part."""

    uri: str
    start: int
    stop: int


def slices(part_uris: list[str], part_rows: int, num_images: int) -> list[Slice]:
    """The manifest cut into decode tasks; part i holds rows [i * part_rows, (i + 1) * part_rows)."""
    size = min(SLICE_ROWS, max(BLOCK_ROWS, num_images // int(4 * ray.cluster_resources()["CPU"])))
    return [
        Slice(uri=uri, start=start, stop=min(start + size, part_rows))
        for index, uri in enumerate(part_uris)
        for start in range(0, min(part_rows, num_images - index * part_rows), size)
    ]


@dataclass(frozen=True, slots=True)
class FetchDecode:
    """Slices -> their MANIFEST rows with uint8 pixels of the network's size, or with a stage and a reason.

    `done` is a bitmap over row_id of what is staged already and is not fetched again.
    """

    done: npt.NDArray[np.uint8]
    num_images: int
    input_size: tuple[int, int]
    channels: int

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Tables of at most BLOCK_ROWS rows; many requests are in flight within each."""
        done = np.unpackbits(self.done, count=self.num_images).astype(np.bool_)
        for part in batch.to_pylist():
            rows = _staging.read_table(part["uri"]).slice(part["start"], part["stop"] - part["start"])
            rows = rows.filter(pa.array(~done[rows["row_id"].to_numpy()]))
            image_bytes = self.input_size[0] * self.input_size[1] * self.channels
            count = max(1, min(BLOCK_ROWS, _BLOCK_PIXEL_BYTES // image_bytes))
            for start in range(0, rows.num_rows, count):
                yield self._decode(rows.slice(start, count))

    def _decode(self, rows: pa.Table) -> pa.Table:
        columns = ("image_uri", "image_etag", "image_bytes", "image_last_modified")
        infos = [ObjectInfo(*values) for values in zip(*(rows[name].to_pylist() for name in columns), strict=True)]
        results = [_columns(result) for result in _images.fetch_all(infos, self.input_size, self.channels)]
        decoded = pa.Table.from_pylist(results, schema=_DECODED)
        for name in _DECODED.names:
            rows = rows.append_column(name, decoded[name])
        return rows


def _columns(result: DecodedImage | _images.Failure) -> dict[str, object]:
    if isinstance(result, DecodedImage):
        return {
            PIXELS: result.pixels.tobytes(),
            "width": result.width,
            "height": result.height,
            "brightness": result.brightness,
            "contrast": result.contrast,
        }
    return _failed(result.stage, result.error)


def _failed(stage: str, error: ImageError) -> dict[str, object]:
    return {"stage": stage, "reason": error.reason, "detail": error.detail, "attempts": 1}


class Score:
    """Decoded rows -> scored rows: the columns of SCORES and of QUARANTINE, each null where not its table's."""

    def __init__(self, plan: Plan, spec: BundleSpec, weights: bytes) -> None:
        """The driver verified the bundle and passes it on, so all rows of a run carry one digest."""
        self.plan = plan
        self.detector = Detector(spec, weights)
        self.nominal = np.array(self.detector.spec.calibration.scores)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Scores the readable rows; a score that is not finite becomes a reason."""
        spec = self.detector.spec
        encoded = rows[PIXELS].to_pylist()
        readable = [index for index, pixels in enumerate(encoded) if pixels is not None]
        joined = np.frombuffer(bytearray().join(encoded[index] for index in readable), np.uint8)
        scored = self.detector.score(joined.reshape(len(readable), *spec.input_size, spec.channels))
        chosen: npt.NDArray[np.float32] = getattr(scored, spec.score)
        p_values = calibration.p_values(chosen, self.nominal)
        sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
        results: list[dict[str, object]] = [{} for _ in encoded]
        for position, index in enumerate(readable):
            map_uv, score = scored.maps[position], float(chosen[position])
            if not np.isfinite(map_uv).all():
                detail = f"the anomaly map holds {np.count_nonzero(~np.isfinite(map_uv))} values that are not finite"
                results[index] = _failed("score", ImageError("non_finite_score", detail))
                continue
            results[index] = {
                "anomaly_score": score,
                "score_mean": float(scored.mean[position]),
                "score_max": float(scored.maximum[position]),
                "score_top1pct": float(scored.top1pct[position]),
                "p_value": float(p_values[position]),
                "is_anomalous": score > spec.calibration.threshold,
                "heatmap": heatmap.encode(map_uv),
                "heatmap_height": map_uv.shape[0],
                "heatmap_width": map_uv.shape[1],
                "regions": [region._asdict() for region in self._regions(map_uv, sizes[index])],
            }
        return _staging.assemble(rows.drop_columns([PIXELS]), results, self.plan)

    def _regions(self, map_uv: npt.NDArray[np.float32], image_size: tuple[int, int]) -> list[regions.Region]:
        return regions.find(
            map_uv,
            self.detector.spec.calibration.map_threshold,
            receptive_field=self.detector.receptive_field,
            input_size=self.detector.spec.input_size,
            image_size=image_size,
        )
