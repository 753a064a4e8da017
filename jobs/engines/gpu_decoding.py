"""JPEGs decoded by the GPU of a scoring process, and watched: by a decoder that is trusted, in every shard.

The decoder of some GPUs was seen to return wrong pixels without a word. So the last image of every shard, and the first
ones of a process, are decoded by both, and scored both ways, before a row of the shard leaves the process. Where pixels
differ by more than decoders do, scores by more than `TOLERANCE` of the threshold, or an alarm does, the whole shard is
decoded again on CPUs, and so is all that follows: the run holds a note of why. So what was decoded since the last good
check was never staged.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fcdd import jpeg_files
from fcdd.errors import FCDDError
from fcdd.images import DecodedImage, Limits, View
from fcdd.io import storage
from fcdd.jpeg_files import JpegFile
from jobs.engines.decoders import decoders
from jobs.engines.rows import ENCODED, image_columns
from jobs.sources.fetching import Failure
from schemas import Layout

# Of the threshold: more than this a score must not depend on who decodes.
TOLERANCE = 0.01
# Of 255, in the mean of a picture: nvJPEG and Pillow were seen 0.8 apart.
PIXEL_TOLERANCE = 3.0
# Of a process, checked in its first shard; after that it is the last image of each.
FIRST_CHECKS = 4
# Columns of scored rows: who decoded, and what a check found, as a share of the threshold.
BY_GPU, DIFFERENCE = "by_gpu", "decoder_difference"

Indices = npt.NDArray[np.int64]
Decode = Callable[[Sequence[JpegFile]], list[DecodedImage | None]]


@dataclass(frozen=True, slots=True)
class GpuDecoding:
    """What a run lets GPUs decode, and whether it still does."""

    results: str
    run_id: str
    view: View
    limits: Limits
    timeout_s: float
    device: str = "cuda"

    def chosen(self, data: bytes) -> JpegFile | None:
        """A file that a GPU may decode: an ordinary JPEG that takes no more memory than its pixels will.

        Shards are cut by their pixels. Large photographs are decoded at a reduced scale on CPUs.
        """
        height, width = self.view.size
        most = height * width * self.view.channels
        return jpeg_files.examine(data, self.limits) if len(data) <= most else None

    def refused(self) -> str | None:
        """Why GPUs decode no more; None while they do."""
        note = self._note()
        return storage.read(note).decode() if storage.exists(note) else None

    def refuse(self, why: str) -> None:
        """From now on all processes of the run decode on CPUs."""
        storage.write(self._note(), why.encode())

    def _note(self) -> str:
        return Layout(self.results).gpu_decoding_refused(self.run_id)


class WatchedDecoder:
    """Rows with files -> scored rows, by a GPU's decoder while its checks are good; for several threads at once."""

    def __init__(
        self,
        run: GpuDecoding,
        threshold: float,
        make: Callable[[], Decode],
        score: Callable[[pa.Table], pa.Table],
    ) -> None:
        """`score` is what scores rows with pixels; `make` gives the GPU's decoder, or raises where there is none."""
        self._run, self._threshold, self._score = run, threshold, score
        self._first_checks = FIRST_CHECKS
        self._decode: Decode | None = None
        if not run.refused():
            try:
                self._decode = make()
            except (ImportError, RuntimeError, FCDDError) as error:
                run.refuse(f"the decoder cannot be loaded: {error}")

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Scored rows, with BY_GPU and DIFFERENCE."""
        where = np.flatnonzero(pc.is_valid(rows[ENCODED]).to_numpy(zero_copy_only=False))
        files = [JpegFile(**file) for file in rows[ENCODED].take(pa.array(where)).to_pylist()]
        difference: dict[int, float] = {}
        if files and self._decode and not self._run.refused():
            try:
                decoded = self._by_gpu(files, self._decode)
                scored = self._scored(rows, where, decoded)
                self._check(rows, where, files, decoded, scored, difference)
                return told(scored, by_gpu=where[decoded.by_gpu].tolist(), difference=difference)
            except _NotToBeTrusted as error:
                self._run.refuse(str(error))
        return told(self._scored(rows, where, self._by_cpu(files)), difference=difference)

    def _by_gpu(self, files: list[JpegFile], decode: Decode) -> "_Decoded":
        """What the GPU refuses a CPU decodes, or gives the reason. Raises _NotToBeTrusted."""
        started = time.perf_counter()
        try:
            found = decode(files)
        except Exception as error:  # whatever CUDA, nvJPEG and torchvision raise
            raise _NotToBeTrusted(f"the decoder failed: {type(error).__name__}: {error}") from error
        rest = iter(self._by_cpu([file for file, image in zip(files, found, strict=True) if image is None]).images)
        by_gpu = [index for index, image in enumerate(found) if image is not None]
        images = [next(rest) if image is None else image for image in found]
        return _Decoded(images, time.perf_counter() - started, by_gpu)

    def _by_cpu(self, files: Sequence[JpegFile]) -> "_Decoded":
        started = time.perf_counter()
        if not files:
            return _Decoded([], 0.0, [])
        with decoders(self._run.view, self._run.limits, self._run.timeout_s).one() as decoder:
            found = list(decoder.decode_each(file.data for file in files))
        images = [image if isinstance(image, DecodedImage) else Failure("decode", image) for image in found]
        return _Decoded(images, time.perf_counter() - started, [])

    def _scored(self, rows: pa.Table, where: Indices, decoded: "_Decoded") -> pa.Table:
        """Rows scored, in their order; those at `where` have the images that were decoded."""
        images = image_columns(decoded.images)
        plain = rows.drop_columns([ENCODED])
        others = np.setdiff1d(np.arange(len(rows)), where)
        filled = plain.take(pa.array(where))
        seconds = np.float32(decoded.seconds / max(1, len(where)))
        images["decode_seconds"] = pc.add(filled["decode_seconds"], pa.scalar(seconds))
        filled = pa.table({name: images.get(name, filled[name]) for name in filled.column_names})
        # Pixels are not put in order: that would copy them.
        table = pa.concat_tables([plain.take(pa.array(others)), filled]) if len(others) else filled
        return self._score(table).take(pa.array(np.argsort(np.concatenate([others, where]))))

    def _check(
        self,
        rows: pa.Table,
        where: Indices,
        files: list[JpegFile],
        decoded: "_Decoded",
        scored: pa.Table,
        difference: dict[int, float],
    ) -> None:
        """Compare with a CPU's images, and their scores; note how far scores are apart. Raises _NotToBeTrusted."""
        sample = sorted({*decoded.by_gpu[: self._first_checks], *decoded.by_gpu[-1:]})
        self._first_checks = 0
        if not sample:
            return
        trusted, chosen = self._by_cpu([files[index] for index in sample]), pa.array(where[sample])
        found = scored.select(["image_uri", "anomaly_score", "is_anomalous"]).take(chosen).to_pylist()
        for row, index, image in zip(found, sample, trusted.images, strict=True):
            if isinstance(image, Failure):
                raise _NotToBeTrusted(f"{row['image_uri']} is no picture for a CPU: {image.error}")
            apart = _apart(decoded.images[index], image)
            if apart > PIXEL_TOLERANCE:
                raise _NotToBeTrusted(
                    f"{row['image_uri']} has other pixels than a CPU decodes, {apart:.2g} of 255 apart in the mean"
                )
        again = self._scored(rows.take(chosen), np.arange(len(sample)), trusted)
        for row, index, expected in zip(found, where[sample], again.to_pylist(), strict=True):
            self._compare_scores(row, expected, int(index), difference)

    def _compare_scores(
        self, row: Mapping[str, Any], expected: Mapping[str, Any], index: int, difference: dict[int, float]
    ) -> None:
        score, other = row["anomaly_score"], expected["anomaly_score"]
        if score is None and other is None:  # the network has none for either
            return
        difference[index] = math.inf if score is None or other is None else abs(score - other) / self._threshold
        if difference[index] > TOLERANCE or row["is_anomalous"] != expected["is_anomalous"]:
            raise _NotToBeTrusted(
                f"{row['image_uri']} has score {score} as a GPU decodes it and {other} as a CPU does, with a threshold "
                f"of {self._threshold:.4g}"
            )


class _Decoded(NamedTuple):
    """Images of files, the seconds that they took, and which of them a GPU decoded."""

    images: Sequence[DecodedImage | Failure]
    seconds: float
    by_gpu: list[int]


def _apart(one: DecodedImage | Failure, other: DecodedImage) -> float:
    """Mean absolute difference of the pixels."""
    assert isinstance(one, DecodedImage)
    return float(np.abs(one.pixels.astype(np.int16) - other.pixels).mean())


class _NotToBeTrusted(Exception):
    """What a check found."""


def told(scored: pa.Table, *, by_gpu: Sequence[int] = (), difference: Mapping[int, float] = {}) -> pa.Table:
    """Scored rows with BY_GPU and DIFFERENCE."""
    decoded, found = np.zeros(len(scored), np.bool_), np.full(len(scored), np.nan, np.float32)
    decoded[list(by_gpu)] = True
    found[list(difference)] = list(difference.values())
    checked = pa.array(found, from_pandas=True)  # null where nothing was checked
    return scored.append_column(BY_GPU, pa.array(decoded)).append_column(DIFFERENCE, checked)
