"""The stages of scoring as Ray Data operators; the chain that joins them is in `jobs.score`.

    pending rows of the manifest -> fetch, decode, resize (tasks; uint8) -> score (actors, a GPU if there is
    one) -> staged Parquet (tasks) -> receipts

Different CPU requests keep Ray from fusing the stages, and together they fit three CPUs, so that no
stage can starve the others. A bad image is a row with a reason from the stage that met it on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from fcdd import calibration, heatmap, regions
from fcdd.detector import Detector
from fcdd.errors import ConfigError, ImageError
from fcdd.images import DecodedImage
from fcdd.storage import ObjectInfo
from jobs import _images, _staging
from schemas.runs import Plan

READ_CPUS, DECODE_CPUS, SCORE_CPUS, WRITE_CPUS = 0.2, 0.5, 1.0, 0.3
# Rows of a block: 64 images of 224x224x3 are 10 MB, a size at which Ray's own overhead is small.
BLOCK_ROWS = 64

PIXELS = "pixels"
_DECODED = pa.schema([(PIXELS, pa.binary()), *(_staging.ROW.field(name) for name in _staging.DECODED_COLUMNS)])


def score_resources() -> dict[str, object]:
    """Arguments of the scoring stage: one actor per GPU, else two thirds of the cluster's CPUs."""
    total = ray.cluster_resources()
    if gpus := int(total.get("GPU", 0)):
        return {"compute": ActorPoolStrategy(size=gpus), "num_gpus": 1}
    return {"compute": ActorPoolStrategy(size=max(1, int(total["CPU"] * 2 / 3))), "num_cpus": SCORE_CPUS}


@dataclass(frozen=True, slots=True)
class PendingRows:
    """Manifest part -> its rows that are not staged yet, in blocks. `done` is a bitmap over row_id."""

    done: npt.NDArray[np.uint8]
    num_images: int

    def __call__(self, parts: pa.Table) -> Iterator[pa.Table]:
        """`parts` has one column "uri"; yields MANIFEST tables of at most BLOCK_ROWS rows."""
        done = np.unpackbits(self.done, count=self.num_images).astype(np.bool_)
        for uri in parts["uri"].to_pylist():
            table = _staging.read_table(uri)
            table = table.filter(pa.array(~done[table["row_id"].to_numpy()]))
            for start in range(0, table.num_rows, BLOCK_ROWS):
                yield table.slice(start, BLOCK_ROWS)


@dataclass(frozen=True, slots=True)
class FetchDecode:
    """MANIFEST rows -> the same rows with uint8 pixels of the network's size, or a stage and a reason."""

    input_size: tuple[int, int]
    channels: int

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Many requests in flight; bodies are checked against the listing."""
        columns = ("image_uri", "image_etag", "image_bytes", "image_last_modified")
        infos = [ObjectInfo(*values) for values in zip(*(rows[name].to_pylist() for name in columns), strict=True)]
        results = [_columns(r) for r in _images.fetch_all(infos, self.input_size, self.channels)]
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

    def __init__(self, plan: Plan) -> None:
        """Loads and verifies the bundle once per actor; all rows of a run carry one digest."""
        self.plan = plan
        self.detector = Detector.load(plan.bundle)
        if self.detector.spec.digest != plan.bundle_digest:
            raise ConfigError(f"the bundle at {plan.bundle} was replaced while run {plan.run_id} was scoring")
        self.nominal = np.array(self.detector.spec.calibration.scores)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Scores the readable rows; a score that is not finite becomes a reason."""
        spec = self.detector.spec
        encoded = rows[PIXELS].to_pylist()
        readable = [index for index, pixels in enumerate(encoded) if pixels is not None]
        joined = np.frombuffer(b"".join(encoded[index] for index in readable), np.uint8)
        scored = self.detector.score(joined.reshape(len(readable), *spec.input_size, spec.channels))
        p_values = calibration.p_values(scored.mean, self.nominal)
        sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
        results: list[dict[str, object]] = [{} for _ in encoded]
        for position, index in enumerate(readable):
            map_uv, score = scored.maps[position], float(scored.mean[position])
            if not np.isfinite(map_uv).all():
                detail = f"the anomaly map holds {np.count_nonzero(~np.isfinite(map_uv))} values that are not finite"
                results[index] = _failed("score", ImageError("non_finite_score", detail))
                continue
            results[index] = {
                "anomaly_score": score,
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
