"""JPEGs decoded by the GPU of a scoring process, and watched: by a decoder that is trusted, in every shard.

The decoder of some GPUs was seen to return wrong pixels without a word. So the last image of every shard, and the first
ones of a process, are decoded by both, and scored both ways, before a row of the shard leaves the process. Where scores
differ by more than `TOLERANCE` of the threshold, or an alarm does, the whole shard is decoded again on CPUs, and so is
all that follows: the run holds a note of why. So what a bad check could have missed was never staged.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
                return self._watched(rows, where, files, self._decode, difference)
            except _NotToBeTrusted as error:
                self._run.refuse(str(error))
        scored = self._scored(rows, where, lambda: self._by_cpu(files))
        return told(scored, difference=difference)

    def _watched(
        self, rows: pa.Table, where: Indices, files: list[JpegFile], decode: Decode, difference: dict[int, float]
    ) -> pa.Table:
        """Rows of a shard whose check was good. Raises _NotToBeTrusted."""
        by_gpu: list[int] = []

        def decoded() -> list[DecodedImage | Failure]:
            try:
                found = decode(files)
            except Exception as error:  # whatever CUDA, nvJPEG and torchvision raise
                raise _NotToBeTrusted(f"the decoder failed: {type(error).__name__}: {error}") from error
            refused = iter(self._by_cpu([file for file, image in zip(files, found, strict=True) if image is None]))
            by_gpu.extend(int(where[index]) for index, image in enumerate(found) if image is not None)
            return [next(refused) if image is None else image for image in found]

        scored = self._scored(rows, where, decoded)
        sample = sorted({*by_gpu[: self._first_checks], *by_gpu[-1:]})
        self._first_checks = 0
        if sample:
            self._compare(rows, where, files, scored, sample, difference)
        return told(scored, by_gpu=by_gpu, difference=difference)

    def _compare(
        self,
        rows: pa.Table,
        where: Indices,
        files: list[JpegFile],
        scored: pa.Table,
        sample: list[int],
        difference: dict[int, float],
    ) -> None:
        """Score the rows of the sample as CPUs decode them, and note the differences. Raises _NotToBeTrusted."""
        some = pa.array(sample)
        again = [files[index] for index in np.searchsorted(where, sample)]
        trusted = self._scored(rows.take(some), np.arange(len(sample)), lambda: self._by_cpu(again))
        columns = ("image_uri", "anomaly_score", "is_anomalous")
        pairs = zip(sample, scored.select(columns).take(some).to_pylist(), trusted.to_pylist(), strict=True)
        for index, found, expected in pairs:
            one, other = found["anomaly_score"], expected["anomaly_score"]
            if one is None and other is None:  # the network has no score for either
                continue
            if one is None or other is None:
                why = f"on a CPU the image is {expected['reason'] or 'readable'}"
                raise _NotToBeTrusted(f"{found['image_uri']}: {why}")
            difference[index] = abs(one - other) / self._threshold
            if difference[index] > TOLERANCE or found["is_anomalous"] != expected["is_anomalous"]:
                raise _NotToBeTrusted(
                    f"{found['image_uri']} has score {one:.4g} as a GPU decodes it and {other:.4g} as a CPU does, with a "
                    f"threshold of {self._threshold:.4g}"
                )

    def _by_cpu(self, files: Sequence[JpegFile]) -> list[DecodedImage | Failure]:
        if not files:
            return []
        with decoders(self._run.view, self._run.limits, self._run.timeout_s).one() as decoder:
            found = list(decoder.decode_each(file.data for file in files))
        return [image if isinstance(image, DecodedImage) else Failure("decode", image) for image in found]

    def _scored(
        self, rows: pa.Table, where: Indices, decode: Callable[[], Sequence[DecodedImage | Failure]]
    ) -> pa.Table:
        """Rows scored in their order, those at `where` as `decode` decodes their files."""
        started = time.perf_counter()
        images = image_columns(decode())
        seconds = np.float32((time.perf_counter() - started) / max(1, len(where)))
        plain = rows.drop_columns([ENCODED])
        others = np.setdiff1d(np.arange(len(rows)), where)
        decoded = plain.take(pa.array(where))
        images["decode_seconds"] = pc.add(decoded["decode_seconds"], pa.scalar(seconds))
        decoded = pa.table({name: images.get(name, decoded[name]) for name in decoded.column_names})
        # Pixels are not put in order: that would copy them.
        table = pa.concat_tables([plain.take(pa.array(others)), decoded]) if len(others) else decoded
        return self._score(table).take(pa.array(np.argsort(np.concatenate([others, where]))))


class _NotToBeTrusted(Exception):
    """What a check found."""


def told(scored: pa.Table, *, by_gpu: Sequence[int] = (), difference: Mapping[int, float] = {}) -> pa.Table:
    """Scored rows with BY_GPU and DIFFERENCE."""
    decoded, found = np.zeros(len(scored), np.bool_), np.full(len(scored), np.nan, np.float32)
    decoded[list(by_gpu)] = True
    found[list(difference)] = list(difference.values())
    checked = pa.array(found, from_pandas=True)  # null where nothing was checked
    return scored.append_column(BY_GPU, pa.array(decoded)).append_column(DIFFERENCE, checked)
