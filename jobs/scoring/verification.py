"""Does a committed run hold what it promises? The parts are checked whole, a sample is scored again."""

import logging
import random
from typing import Any, NamedTuple

import numpy as np

from fcdd import heatmap
from fcdd.bundle import BundleSpec
from fcdd.errors import FCDDError, ImageError
from fcdd.images import DecodedImage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import bundles, part_files
from jobs.catalog.staging import Bitmap
from jobs.sources import fetching
from jobs.sources.fetching import Failure
from jobs.sources.locations import Locations
from schemas import IDENTITY, Layout, RunRecord

# Relative to the score, and to the largest value of the map beside the quantisation of the stored one.
TOLERANCES = {"float32": 5e-4, "tf32": 1e-2, "bfloat16": 5e-2}

log = logging.getLogger(__name__)


class NotAsPromised(FCDDError):
    """A committed run does not hold what its record says."""


class Checked(NamedTuple):
    """What was found right. `gone` sampled images cannot be read any more as they were scored."""

    parts: int
    rows: int
    compared: int
    gone: int
    worst_score: float
    worst_map: float


def verify(
    layout: Layout, record: RunRecord, locations: Locations, *, sample: int, seed: int, tolerance: float | None
) -> Checked:
    """Check the parts whole, and `sample` random images by scoring them again, below `locations`.

    `tolerance` is the largest relative deviation, None: that of the run's precision. Raises NotAsPromised for the
    first thing that is wrong.
    """
    promised = sum(part.rows for part in (*record.scores, *record.quarantine))
    if promised != record.num_listed:
        raise NotAsPromised(f"run {record.run_id} listed {record.num_listed} images, and its parts have {promised}")
    part_files.check(layout.results, record.parts())
    try:
        proof, chosen = Bitmap(record.num_listed), _Sample(sample, seed)
    except MemoryError as error:
        raise NotAsPromised(f"run {record.run_id} says that it has {record.num_listed} images") from error
    for table, parts, count in (
        ("scores", record.scores, record.num_scored),
        ("quarantine", record.quarantine, record.num_quarantined),
    ):
        rows = 0
        for part in parts:
            table_rows = part_files.read_published(layout, part)
            row_ids = table_rows["row_id"].to_numpy()
            if len(row_ids) and (row_ids.min() < 0 or row_ids.max() >= record.num_listed):
                raise NotAsPromised(f"{part.path} has row ids beyond {record.num_listed} images")
            if twice := proof.add(row_ids):
                raise NotAsPromised(f"{twice} images of {part.path} are in run {record.run_id} twice")
            rows += len(row_ids)
            if table == "scores":
                chosen.offer(table_rows)
        if rows != count:
            raise NotAsPromised(f"the record of run {record.run_id} promises {count} rows of {table}, there are {rows}")
    if (found := proof.count()) != record.num_listed:
        raise NotAsPromised(f"{record.num_listed - found} images of run {record.run_id} are in no part")
    for part in record.parts()[len(record.scores) + len(record.quarantine) :]:
        part_files.read_published(layout, part)
    compared, gone, score, map_ = _compare(record, locations, tolerance, chosen.rows)
    return Checked(len(record.parts()), found, compared, gone, score, map_)


class _Sample:
    """So many rows of all that are offered, each with the same chance, without keeping the others."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random, self._seen = size, random.Random(seed), 0
        self.rows: list[dict[str, Any]] = []

    def offer(self, table: Any) -> None:
        """Offer the rows of an Arrow table."""
        for index in range(table.num_rows):
            self._seen += 1
            place = len(self.rows) if len(self.rows) < self._size else self._random.randrange(self._seen)
            if place < self._size:
                [row] = table.slice(index, 1).to_pylist()
                self.rows[place : place + 1] = [row]


def _loaded(info: ObjectInfo, spec: BundleSpec, locations: Locations) -> DecodedImage | Failure:
    try:
        found = locations.find(info)
    except ImageError as error:
        return Failure("fetch", error)
    return fetching.fetch_and_decode(found, spec.view)


def _compare(
    record: RunRecord, locations: Locations, tolerance: float | None, rows: list[dict[str, Any]]
) -> tuple[int, int, float, float]:
    """(compared, gone, largest relative deviation of a score, of a map)."""
    if not rows:
        return 0, 0, 0.0, 0.0
    from fcdd.detector import Detector  # late: only this needs torch

    detector = Detector(*bundles.of_run(record))
    spec = detector.spec
    precision = str(record.settings.get("precision", "float32"))
    tolerance = tolerance or TOLERANCES[precision]
    gone, worst_score, worst_map = 0, 0.0, 0.0
    for row in rows:
        info = ObjectInfo(*(row[name] for name in IDENTITY))
        loaded = _loaded(info, spec, locations)
        if isinstance(loaded, Failure):
            log.warning("not compared: %s: %s", info.uri, loaded.error)
            gone += 1
            continue
        again = detector.score(loaded.pixels[None])
        score, map_uv = float(getattr(again, spec.score)[0]), again.maps[0]
        stored = heatmap.decode(row["heatmap"])
        largest = max(float(map_uv.max()), 1e-12)
        rounding = float(np.ptp(map_uv)) / 510 * 1.01
        deviation = max(0.0, float(np.abs(stored - map_uv).max()) - rounding) / largest
        worst_score = max(worst_score, abs(score - row["anomaly_score"]) / max(abs(score), 1e-12))
        worst_map = max(worst_map, deviation)
        if max(worst_score, worst_map) > tolerance:
            raise NotAsPromised(
                f"{info.uri} scores {score:.7g} now and {row['anomaly_score']:.7g} in run {record.run_id}; its map "
                f"differs by {deviation:.2g} of its largest value (tolerance {tolerance:g})"
            )
    return len(rows) - gone, gone, worst_score, worst_map
