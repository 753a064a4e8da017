"""Runs whose JPEGs a GPU decodes: what they say of it, and what a decoder that corrupts costs them.

Torchvision's decoder for CPUs takes the place of that for GPUs.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fcdd import batch_decoding
from fcdd.images import DecodedImage
from fcdd.io import storage
from fcdd.jpeg_files import JpegFile
from jobs.engines import choice
from jobs.scoring import publishing, waves
from schemas.runs import DecodedOnGpu
from tests.conftest import Fcdd
from tests.jpegs import jpeg, picture
from tests.places import NUM_IMAGES, Place

JPEGS, SMALLEST_SHARD = 150, 16
MEASURED = ("anomaly_score", "score_mean", "score_max", "score_top1pct")


@pytest.fixture
def place(tmp_path: Path, fcdd: Fcdd) -> Place:
    place = Place(f"file://{tmp_path}", fcdd)
    for index in range(JPEGS):
        storage.write(f"{place.images}/more/{index:04d}.jpg", jpeg(picture(index)))
    storage.write(f"{place.images}/more/cut.jpg", jpeg(picture(0))[:300])
    return place


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is a CPU."""
    monkeypatch.setattr(choice, "has_gpu", lambda: True)
    monkeypatch.setattr(waves, "GpuDecoding", functools.partial(waves.GpuDecoding, device="cpu"))


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("decode", ["gpu", "auto"])
def test_a_run_says_what_a_gpu_decoded_and_how_it_was_checked(place: Place, decode: str) -> None:
    said = place.score("--decode", decode)
    decoding = place.record().gpu_decoding
    assert decoding
    assert (decoding.images, decoding.refused) == (JPEGS, None)
    assert 1 < decoding.checked < JPEGS
    assert 0 <= decoding.largest_difference < 0.01
    assert re.search(rf"decoded by GPU +{JPEGS} +\({decoding.checked} of them compared with a CPU's", said.stdout)
    place.score("--backend", "torch", day=2)
    assert place.record(day=2).gpu_decoding is None
    by_gpu, by_cpu = place.rows("scores"), place.rows("scores", day=2)
    assert by_gpu.keys() == by_cpu.keys()
    assert len(by_gpu) == JPEGS + NUM_IMAGES
    for uri, row in by_gpu.items():
        other = by_cpu[uri]
        for name in ("is_anomalous", "width", "height", "num_frames", "image_format", "image_etag"):
            assert row[name] == other[name]
        assert [row[name] for name in MEASURED] == pytest.approx([other[name] for name in MEASURED], rel=0.05)
    [quarantined] = place.rows("quarantine").values()
    assert quarantined["reason"] == "truncated"


@pytest.mark.usefixtures("a_gpu")
def test_a_decoder_that_corrupts_is_caught_and_the_run_has_the_rows_of_cpus(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = batch_decoding.BatchDecoder.__call__

    def corrupt(self: batch_decoding.BatchDecoder, files: Sequence[JpegFile]) -> list[DecodedImage | None]:
        """All but the first ones are white."""
        found = decode(self, files)
        return [
            image and (replace(image, pixels=image.pixels | 255) if n > 3 else image) for n, image in enumerate(found)
        ]

    monkeypatch.setattr(batch_decoding.BatchDecoder, "__call__", corrupt)
    said = place.score("--decode", "gpu")
    decoding = place.record().gpu_decoding
    assert decoding
    assert decoding.images <= SMALLEST_SHARD
    assert decoding.refused
    assert "has other pixels than a CPU decodes" in decoding.refused
    assert f"from here on CPUs decode the images of this run: {decoding.refused}" in said.stderr
    assert "then by CPUs" in said.stdout
    place.score("--backend", "torch", day=2)
    found, expected = place.rows("scores"), place.rows("scores", day=2)
    assert found.keys() == expected.keys()
    for uri, row in found.items():
        assert row["brightness"] == pytest.approx(expected[uri]["brightness"], abs=0.5)
        assert [row[name] for name in MEASURED] == pytest.approx([expected[uri][name] for name in MEASURED], rel=0.05)


@pytest.mark.usefixtures("a_gpu")
def test_what_a_gpu_decoded_stays_in_the_record_of_later_attempts_and_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(publishing, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert place.score("--decode", "gpu", "--since-last", check=False).returncode == 130
    place.score("--decode", "cpu", "--since-last")  # all is staged: it has only to be committed
    decoding = place.record().gpu_decoding
    assert decoding == DecodedOnGpu(images=0, checked=0, largest_difference=0, refused=None)
    storage.write(f"{place.images}/more/late.jpg", jpeg(picture(JPEGS)))
    place.score("--decode", "gpu", "--since-last")
    first = place.record().gpu_decoding
    assert first
    assert first.images == 1
    storage.write(f"{place.images}/more/later.jpg", jpeg(picture(JPEGS + 1)))
    place.score("--decode", "cpu", "--since-last")
    assert place.record().num_scored == JPEGS + NUM_IMAGES + 2
    assert place.record().gpu_decoding == first


def test_decoding_by_a_gpu_that_is_not_there_is_refused_at_once(place: Place) -> None:
    done = place.score("--decode", "gpu", check=False)
    assert done.returncode == 2
    assert "--decode gpu: no GPU scores here; leave it out, or say --decode auto" in done.stderr
    place.score("--decode", "auto")
    assert place.record().gpu_decoding is None
