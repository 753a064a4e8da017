"""Scoring as a stage: the same rows whichever thread asks, and what they say of the time."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from fcdd.calibration import Calibration
from fcdd.detector import Detector
from fcdd.runtime import Runtime
from jobs.catalog import staging
from jobs.engines.rows import PIXELS, binary
from jobs.engines.stages import SECONDS, Score
from tests.detectors import make
from tests.nominal import nominal


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make(calibration=Calibration.fit(nominal(np.linspace(0, 0.03, 200)), alpha=0.01))


def decoded(detector: Detector, count: int, seed: int) -> pa.Table:
    """Rows as they come from the decoders: every seventh image could not be read."""
    random = np.random.default_rng(seed)
    readable = np.arange(count) % 7 != 6
    shape = (int(readable.sum()), *detector.spec.input_size, detector.spec.channels)
    columns = {field.name: pa.nulls(count, field.type) for field in staging.ROW}
    columns["position"] = pa.array(np.arange(count) + 1000 * seed)
    columns["image_group"] = pa.array([f"g{index % 2}" for index in range(count)])
    columns["width"] = columns["height"] = pa.array(np.full(count, 300, np.int32))
    columns["reason"] = pa.array([None if good else "corrupt" for good in readable])
    columns |= {name: pa.array(np.ones(count, np.float32)) for name in SECONDS[:2]}
    pixels = random.integers(0, 256, shape).astype(np.uint8)
    return pa.table(columns | {PIXELS: binary(pixels, readable)})


def rows(table: pa.Table) -> pa.Table:
    return table.select(staging.ROW.names)


def test_threads_that_share_a_network_give_the_rows_of_one_thread(detector: Detector) -> None:
    score = Score(detector.spec, detector.weights, Runtime(), 0.05)
    shards = [decoded(detector, 40, seed) for seed in range(9)]
    alone = [rows(score(shard)) for shard in shards]
    assert any(table["is_anomalous"].drop_null().to_pylist().count(True) for table in alone)
    with ThreadPoolExecutor(3) as pool:
        assert [rows(table) for table in pool.map(score, shards)] == alone


def test_shards_that_were_joined_have_the_rows_of_each(detector: Detector) -> None:
    """Ray joins small shards on their way to a GPU: their pixels then lie in several pieces."""
    score = Score(detector.spec, detector.weights, Runtime(), 0.05)
    small = [decoded(detector, 16, seed) for seed in range(3)]
    joined = pa.concat_tables(small)
    assert joined[PIXELS].num_chunks == 3
    found, expected = rows(score(joined)), pa.concat_tables([rows(score(each)) for each in small])
    assert found.select(["position", "reason", "is_anomalous"]) == expected.select(
        ["position", "reason", "is_anomalous"]
    )
    scores = [table["anomaly_score"].drop_null().to_numpy() for table in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def test_what_passes_beside_a_gpu_is_told_once_and_waiting_is_part_of_it(detector: Detector) -> None:
    score = Score(detector.spec, detector.weights, Runtime(), 0.05, beside_gpu=True)
    began = time.perf_counter()

    def told() -> Iterator[tuple[float, float]]:
        with ThreadPoolExecutor(3) as pool:
            for table in pool.map(score, [decoded(detector, 20, seed) for seed in range(6)]):
                yield tuple(float(np.sum(table[name].to_numpy())) for name in ("gpu_seconds", "gpu_wait_seconds"))

    passed, waited = np.sum(list(told()), axis=0)
    assert 0 < waited < passed <= (time.perf_counter() - began) * 1.001
