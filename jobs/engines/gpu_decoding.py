"""JPEGs decoded by the GPU of a scoring process, and watched: by a decoder that is trusted, in every shard.

The decoder of some GPUs was seen to return wrong pixels without a word. So the last image of every shard, and the first
ones of a process, are decoded by both, and scored both ways, before a row of the shard leaves the process. Where pixels
differ by more than decoders do, scores by more than `TOLERANCE` of the threshold, or an alarm does, the whole shard is
decoded again on CPUs, and so is all that follows: the run holds a note of why. So what was decoded since the last good
check was never staged.
"""

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
# A GPU decodes at full scale: no more pixels than that, and not so many times as many a side as the network sees.
_MOST_PIXELS, _MOST_SCALE = 32_000_000, 32
_SMALLEST_THRESHOLD = 1e-12
# How the note begins that says so; an attempt after it tries again.
_NOT_LOADED = "the decoder cannot be loaded: "
# Columns of scored rows: whether a GPU decoded; how far a CPU's score is from that, as a share of the threshold, null
# where it was not compared; whether a CPU decoded what was left to the GPU, because that is not trusted any more.
BY_GPU, DIFFERENCE, REFUSED = "by_gpu", "decoder_difference", "gpu_refused"

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

    def begin(self) -> None:
        """Note that GPUs may have decoded some of the run; a decoder that could not be loaded is tried again."""
        layout = Layout(self.results)
        storage.write(layout.gpu_decoding_begun(self.run_id), b"")
        if (self.refused() or "").startswith(_NOT_LOADED):
            storage.delete(layout.gpu_decoding_refused(self.run_id))

    def has_begun(self) -> bool:
        """Whether GPUs may have decoded some of the run, in this attempt or before."""
        return storage.exists(Layout(self.results).gpu_decoding_begun(self.run_id))

    def chosen(self, data: bytes) -> JpegFile | None:
        """A file that a GPU may decode: an ordinary JPEG that takes no more memory than its pixels will.

        Shards are cut by their pixels. Large photographs are decoded at a reduced scale on CPUs.
        """
        height, width = self.view.size
        if len(data) > height * width * self.view.channels:
            return None
        file = jpeg_files.examine(data, self.limits)
        if file is None or file.width * file.height > _MOST_PIXELS:
            return None
        shorter, longer = sorted((height, width)), sorted((file.height, file.width))
        fits = all(has <= _MOST_SCALE * seen for seen, has in zip(shorter, longer, strict=True))
        return file if fits else None

    def refused(self) -> str | None:
        """Why GPUs decode no more; None while they do."""
        note = Layout(self.results).gpu_decoding_refused(self.run_id)
        return storage.read(note).decode() if storage.exists(note) else None

    def refuse(self, why: str) -> None:
        """From now on all processes of the run decode on CPUs."""
        storage.write(Layout(self.results).gpu_decoding_refused(self.run_id), why.encode())


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
        self._run, self._threshold, self._score = run, max(threshold, _SMALLEST_THRESHOLD), score
        self._first_checks = FIRST_CHECKS
        self._decode: Decode | None = None
        if not run.refused():
            try:
                self._decode = make()
            except (ImportError, RuntimeError, FCDDError) as error:
                run.refuse(f"{_NOT_LOADED}{error}")

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Scored rows, with BY_GPU, DIFFERENCE and REFUSED."""
        where = np.flatnonzero(pc.is_valid(rows[ENCODED]).to_numpy(zero_copy_only=False))
        files = [JpegFile(**file) for file in rows[ENCODED].take(pa.array(where)).to_pylist()]
        if files and self._decode and not self._run.refused():
            try:
                return self._watched(rows, where, files, self._decode)
            except _NotToBeTrusted as error:
                self._run.refuse(str(error))
        scored, _ = self._scored(rows, where, self._by_cpu(files))
        return told(scored, refused=where)

    def _watched(self, rows: pa.Table, where: Indices, files: list[JpegFile], decode: Decode) -> pa.Table:
        """Rows of a shard whose check was good. Raises _NotToBeTrusted."""
        decoded = self._by_gpu(files, decode)
        sample = sorted({*decoded.by_gpu[: self._first_checks], *decoded.by_gpu[-1:]})
        self._first_checks = 0 if sample else self._first_checks
        trusted = self._by_cpu([files[index] for index in sample])
        uris = rows["image_uri"].take(pa.array(where[sample])).to_pylist()
        for uri, index, image in zip(uris, sample, trusted.images, strict=True):
            _compare_pixels(uri, decoded.images[index], image)
        both = _Decoded([*decoded.images, *trusted.images], decoded.seconds + trusted.seconds)
        scored, again = self._scored(rows, np.concatenate([where, where[sample]]), both, checks=len(sample))
        found = scored.take(pa.array(where[sample])).to_pylist()
        pairs = zip(where[sample].tolist(), found, again.to_pylist(), strict=True)
        difference = {index: self._compared(row, expected) for index, row, expected in pairs}
        return told(scored, by_gpu=where[decoded.by_gpu], difference=difference)

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
            return _Decoded([], 0.0)
        with decoders(self._run.view, self._run.limits, self._run.timeout_s).one() as decoder:
            found = list(decoder.decode_each(file.data for file in files))
        images = [image if isinstance(image, DecodedImage) else Failure("decode", image) for image in found]
        return _Decoded(images, time.perf_counter() - started)

    def _scored(
        self, rows: pa.Table, where: Indices, decoded: "_Decoded", *, checks: int = 0
    ) -> tuple[pa.Table, pa.Table]:
        """Rows scored, in their order; those at `where` have the images that were decoded.

        The last `checks` of `where` are there before, too: their rows with the other images come apart.
        """
        images = image_columns(decoded.images)
        plain = rows.drop_columns([ENCODED])
        others = np.setdiff1d(np.arange(len(rows)), where)
        filled = plain.take(pa.array(where))
        seconds = np.float32(decoded.seconds / max(1, len(where) - checks))
        images["decode_seconds"] = pc.add(filled["decode_seconds"], pa.scalar(seconds))
        filled = pa.table({name: images.get(name, filled[name]) for name in filled.column_names})
        # Rows are put in order when they are scored: with their pixels that would be a copy of these.
        table = pa.concat_tables([plain.take(pa.array(others)), filled]) if len(others) else filled
        scored = self._score(table)
        order = np.argsort(np.concatenate([others, where])[: len(rows)])
        return scored.take(pa.array(order)), scored.slice(len(rows))

    def _compared(self, row: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
        """How far the scores of an image are apart, as a share of the threshold. Raises _NotToBeTrusted."""
        score, other = row["anomaly_score"], expected["anomaly_score"]
        if score is None and other is None:  # the network has none for either
            return 0.0
        has_both = score is not None and other is not None
        apart = abs(score - other) / self._threshold if has_both else 0.0
        if not has_both or apart > TOLERANCE or row["is_anomalous"] != expected["is_anomalous"]:
            raise _NotToBeTrusted(
                f"{row['image_uri']} has score {score} as a GPU decodes it and {other} as a CPU does, with a threshold "
                f"of {self._threshold:.4g}"
            )
        return apart


class _Decoded(NamedTuple):
    """Images of files, the seconds that they took, and which of them a GPU decoded."""

    images: Sequence[DecodedImage | Failure]
    seconds: float
    by_gpu: Sequence[int] = ()


class _NotToBeTrusted(Exception):
    """What a check found."""


def _compare_pixels(uri: str, found: DecodedImage | Failure, trusted: DecodedImage | Failure) -> None:
    """Raises _NotToBeTrusted."""
    assert isinstance(found, DecodedImage)
    if isinstance(trusted, Failure):
        raise _NotToBeTrusted(f"{uri} is no picture for a CPU: {trusted.error}")
    apart = float(np.abs(found.pixels.astype(np.int16) - trusted.pixels).mean())
    if apart > PIXEL_TOLERANCE:
        raise _NotToBeTrusted(f"{uri} has other pixels than a CPU decodes, {apart:.2g} of 255 apart in the mean")


def told(
    scored: pa.Table,
    *,
    by_gpu: Indices | Sequence[int] = (),
    difference: Mapping[int, float] = {},
    refused: Indices | Sequence[int] = (),
) -> pa.Table:
    """Scored rows with BY_GPU, DIFFERENCE and REFUSED."""
    found = np.full(len(scored), np.nan, np.float32)
    found[list(difference)] = list(difference.values())
    for name, indices in ((BY_GPU, by_gpu), (REFUSED, refused)):
        flags = np.zeros(len(scored), np.bool_)
        flags[np.asarray(indices, np.int64)] = True
        scored = scored.append_column(name, pa.array(flags))
    return scored.append_column(DIFFERENCE, pa.array(found, from_pandas=True))  # null where nothing was compared
