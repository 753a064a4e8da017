"""JPEGs that a GPU decodes are watched: what a bad check could have missed never leaves the process.

Torchvision's decoder for CPUs takes the place of that for GPUs.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from fcdd import batch_decoding
from fcdd.calibration import Calibration
from fcdd.detector import Detector
from fcdd.images import DecodedImage, Limits
from fcdd.io import storage
from fcdd.jpeg_files import JpegFile
from fcdd.runtime import Runtime
from jobs.catalog import manifest_parts, staging
from jobs.catalog.shards import Shard
from jobs.engines import gpu_decoding
from jobs.engines.gpu_decoding import BY_GPU, DIFFERENCE, REFUSED, TOLERANCE, GpuDecoding, WatchedDecoder
from jobs.engines.rows import ENCODED, PIXELS
from jobs.engines.stages import FetchDecode, Score, StartLog
from schemas import Layout
from tests.detectors import make
from tests.jpegs import jpeg, picture
from tests.nominal import nominal
from tests.places import encoded

SHARD, PNG, CUT = 12, 3, 5
# What a decoder may leave where a picture should be.
SQUARES = np.kron(np.indices((4, 6)).sum(0) % 2, np.ones((8, 8)))[..., None].repeat(3, 2).astype(np.uint8) * 255


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make(calibration=Calibration.fit(nominal(np.linspace(0, 0.02, 200)), alpha=0.01))


class Folder:
    """Pictures of several kinds, listed for a run, and its stages."""

    def __init__(self, folder: Path, detector: Detector) -> None:
        self.detector, self.results = detector, f"{folder.as_uri()}/results"
        self.gpu = GpuDecoding(self.results, "run", detector.spec.view, Limits(), 30.0, device="cpu")
        for index in range(3 * SHARD):
            data = jpeg(picture(index), orientation=1 + index % 8)
            data = encoded(picture(index)) if index % SHARD == PNG else data
            storage.write(f"{folder.as_uri()}/images/{index:02d}", data[:400] if index % SHARD == CUT else data)
        [listed] = storage.pages(f"{folder.as_uri()}/images")
        storage.write(Layout(self.results).manifest_part("run", 0), manifest_parts.to_bytes(listed, range(36), 0))

    def loaded(self, gpu: GpuDecoding | None) -> list[pa.Table]:
        """The rows of all shards."""
        view = self.detector.spec.view
        load = FetchDecode(self.results, "run", view, Limits(), 30.0, (), None, "attempt", gpu=gpu)
        shards = [Shard(part=0, part_start=0, start=at, stop=at + SHARD) for at in range(0, 3 * SHARD, SHARD)]
        return list(load(pa.Table.from_pylist([dict(shard) for shard in shards])))

    def scorer(self, gpu: GpuDecoding | None, *, starts: StartLog | None = None) -> Score:
        spec = self.detector.spec
        return Score(spec, self.detector.weights, Runtime(), 0.05, starts=starts, gpu_decoding=gpu)

    def by_cpu(self) -> list[pa.Table]:
        score = self.scorer(None)
        return [score(rows) for rows in self.loaded(None)]


@pytest.fixture
def folder(tmp_path: Path, detector: Detector) -> Folder:
    return Folder(tmp_path, detector)


EXACT = [name for name in staging.ROW.names if name not in ("heatmap", "regions") and "score" not in name]


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    """Which images are computed together decides the last bit of a score."""
    assert [name for name in EXACT if found[name].to_pylist() != expected[name].to_pylist()] == []
    scores = [table["anomaly_score"].drop_null().to_numpy() for table in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=1e-5)


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[int, list[DecodedImage | None]], None]) -> None:
    """The decoder, with what `spoil` makes of the images of its call number so and so."""
    decode, calls = batch_decoding.BatchDecoder.__call__, iter(range(100))

    def worse(self: batch_decoding.BatchDecoder, files: Sequence[JpegFile]) -> list[DecodedImage | None]:
        found = decode(self, files)
        spoil(next(calls), found)
        return found

    monkeypatch.setattr(batch_decoding.BatchDecoder, "__call__", worse)


def test_ordinary_files_are_left_to_the_gpu_and_all_else_is_decoded_at_once(folder: Folder) -> None:
    for rows in folder.loaded(folder.gpu):
        left = [value is not None for value in rows[ENCODED].to_pylist()]
        assert left == [index not in (PNG, CUT) for index in range(SHARD)]
        assert rows["reason"].to_pylist()[CUT] == "truncated"
        assert [value is not None for value in rows[PIXELS].to_pylist()] == [i == PNG for i in range(SHARD)]
    small = replace(folder.gpu, view=folder.gpu.view._replace(size=(8, 8)))  # files take more than their pixels
    assert not pa.concat_tables(folder.loaded(small))[ENCODED].drop_null().to_pylist()


def test_rows_are_those_of_the_trusted_decoder_within_the_tolerance(folder: Folder) -> None:
    score, threshold = folder.scorer(folder.gpu), folder.detector.spec.calibration.threshold
    for number, (rows, expected) in enumerate(zip(folder.loaded(folder.gpu), folder.by_cpu(), strict=True)):
        found = score(rows)
        exact = ("position", "image_uri", "is_anomalous", "reason", "stage", "detail", "width", "height", "num_frames")
        assert found.select(exact) == expected.select(exact)
        scores = [table["anomaly_score"].drop_null().to_numpy() for table in (found, expected)]
        assert np.abs(scores[0] - scores[1]).max() <= TOLERANCE * threshold
        assert found[BY_GPU].to_pylist() == [index not in (PNG, CUT) for index in range(SHARD)]
        checked = [index for index, value in enumerate(found[DIFFERENCE].to_pylist()) if value is not None]
        assert checked == ([0, 1, 2, 4, 11] if number == 0 else [11])  # the first ones, and the last of each shard
    assert folder.gpu.refused() is None


def test_a_decoder_that_corrupts_is_caught_and_costs_no_wrong_row(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(call: int, found: list[DecodedImage | None]) -> None:
        if call == 1:  # from the middle of the second shard on
            for index in range(6, len(found)):
                image = found[index]
                assert image
                found[index] = replace(image, pixels=SQUARES)

    spoiled(monkeypatch, spoil)
    score, (first, *others) = folder.scorer(folder.gpu), folder.loaded(folder.gpu)
    good = score(first)
    assert True in good[BY_GPU].to_pylist()
    assert True not in good[REFUSED].to_pylist()
    expected = folder.by_cpu()
    for rows, trusted in zip(others, expected[1:], strict=True):
        found = score(rows)
        assert_same(found, trusted)
        assert True not in found[BY_GPU].to_pylist()
        assert found[REFUSED].to_pylist() == [index not in (PNG, CUT) for index in range(SHARD)]
        assert found[DIFFERENCE].null_count == SHARD
    why = folder.gpu.refused()
    assert why
    assert "23 has other pixels" in why  # the last image of the second shard
    # No process of the run decodes by a GPU any more, and no file is left to one.
    assert True not in folder.scorer(folder.gpu)(first)[BY_GPU].to_pylist()
    assert not pa.concat_tables(folder.loaded(folder.gpu))[ENCODED].drop_null().to_pylist()


def test_an_alarm_that_differs_is_enough(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    [*_, last] = folder.by_cpu()[0]["anomaly_score"].to_pylist()
    other = float(getattr(folder.scorer(None).scorer(SQUARES[None]), folder.detector.spec.score)[0])
    between = make(calibration=Calibration.fit(nominal(np.linspace(0, (last + other) / 2, 200)), alpha=0.01))
    assert min(last, other) < between.spec.calibration.threshold < max(last, other)
    monkeypatch.setattr(gpu_decoding, "TOLERANCE", 1e9)
    monkeypatch.setattr(gpu_decoding, "PIXEL_TOLERANCE", 255.0)
    second = Folder(tmp_path / "second", between)

    def spoil(_: int, found: list[DecodedImage | None]) -> None:
        assert found[-1]
        found[-1] = replace(found[-1], pixels=SQUARES)

    spoiled(monkeypatch, spoil)
    assert_same(second.scorer(second.gpu)(second.loaded(second.gpu)[0]), second.by_cpu()[0])
    assert second.gpu.refused()


def test_a_score_that_differs_is_enough(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_decoding, "PIXEL_TOLERANCE", 255.0)

    def spoil(_: int, found: list[DecodedImage | None]) -> None:
        assert found[-1]
        found[-1] = replace(found[-1], pixels=SQUARES)

    spoiled(monkeypatch, spoil)
    assert_same(folder.scorer(folder.gpu)(folder.loaded(folder.gpu)[0]), folder.by_cpu()[0])
    assert "11 has score" in (folder.gpu.refused() or "")


def test_a_decoder_that_fails_or_cannot_be_loaded_costs_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(call: int, found: list[DecodedImage | None]) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    spoiled(monkeypatch, fail)
    rows, expected = folder.loaded(folder.gpu)[0], folder.by_cpu()[0]
    assert_same(folder.scorer(folder.gpu)(rows), expected)
    assert folder.gpu.refused() == ("the decoder failed: RuntimeError: CUDA error: unspecified launch failure")


def test_a_machine_without_the_gpu_that_it_should_have_decodes_on_cpus(folder: Folder) -> None:
    gpu = replace(folder.gpu, device="cuda:99")
    assert_same(folder.scorer(gpu)(folder.loaded(gpu)[0]), folder.by_cpu()[0])
    assert "the decoder failed" in (gpu.refused() or "")


def test_what_the_gpu_refuses_a_cpu_decodes_or_gives_the_reason(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(monkeypatch, lambda _, found: found.__setitem__(slice(0, 2), [None, None]))
    score = folder.scorer(folder.gpu)
    for rows, expected in zip(folder.loaded(folder.gpu), folder.by_cpu(), strict=True):
        found = score(rows)
        assert_same(found.slice(0, 2), expected.slice(0, 2))
        assert found[BY_GPU].to_pylist()[:5] == [False, False, True, False, True]
    assert folder.gpu.refused() is None


def test_a_decoder_that_could_not_be_loaded_is_tried_again_by_the_next_attempt(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setattr(batch_decoding, "_is_built", lambda: False)
        folder.scorer(folder.gpu)
    assert folder.gpu.refused() == "the decoder cannot be loaded: torchvision is built without its decoders of images"
    folder.gpu.begin()
    assert folder.gpu.refused() is None
    folder.gpu.refuse("its pixels differ")
    folder.gpu.begin()
    assert folder.gpu.refused() == "its pixels differ"


@pytest.mark.parametrize("other", [None, 0.0, 3.0])
def test_scores_are_compared_also_where_one_is_missing_or_the_threshold_is_zero(
    folder: Folder, other: float | None
) -> None:
    watched = WatchedDecoder(folder.gpu, 0.0, lambda: lambda _: [], lambda rows: rows)
    row = {"image_uri": "a", "anomaly_score": 0.0, "is_anomalous": False}
    if other == 0:
        assert watched._compared(row, row) == 0
        return
    with pytest.raises(Exception, match="has score"):
        watched._compared(row, row | {"anomaly_score": other})


def test_large_photographs_and_strips_are_left_to_cpus(folder: Folder) -> None:
    wide = replace(folder.gpu, view=folder.gpu.view._replace(size=(64, 64)))
    sizes = {(64 * 32, 64): True, (64 * 32 + 1, 64): False, (64, 64 * 32 + 1): False}
    assert {size: wide.chosen(jpeg(Image.new("L", size))) is not None for size in sizes} == sizes


def test_processes_that_died_end_the_decoding_by_gpus(folder: Folder) -> None:
    starts = StartLog(folder.results, "run", "attempt", workers=1)
    folder.scorer(folder.gpu, starts=starts)
    assert folder.gpu.refused() is None
    folder.scorer(folder.gpu, starts=starts)
    assert folder.gpu.refused() == "1 scoring process died, perhaps of the GPU's decoder"


def test_threads_that_share_a_decoder_give_the_rows_of_one(folder: Folder) -> None:
    score, shards = folder.scorer(folder.gpu), folder.loaded(folder.gpu)
    alone = [score(rows) for rows in shards]
    with ThreadPoolExecutor(3) as pool:
        for found, expected in zip(pool.map(score, shards), alone, strict=True):
            assert_same(found, expected)


def test_shards_that_were_joined_have_the_rows_of_each(folder: Folder) -> None:
    """Ray joins small shards on their way to a GPU."""
    score, shards = folder.scorer(folder.gpu), folder.loaded(folder.gpu)
    joined = score(pa.concat_tables(shards))
    assert joined["position"].to_pylist() == list(range(3 * SHARD))
    assert_same(joined, pa.concat_tables([score(rows) for rows in shards]))
