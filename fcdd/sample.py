"""A few pictures and what the network made of them, kept in the bundle: whether it scores alike elsewhere is measured.

Two thirds are calibration images, from the least to the most anomalous one; one third are synthetic anomalies made from
others. The scores beside them are those of the network on a CPU in float32: what the bundle was calibrated with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from fcdd.calibration import SCORES, Floats, Score
from fcdd.errors import BundleError, ConfigError
from fcdd.scores import Scored

if TYPE_CHECKING:
    from fcdd.probes import Pictures

Pixels = npt.NDArray[np.uint8]
Precision = Literal["float32", "tf32", "bfloat16"]

# So many pictures, and no more bytes of pixels; of images above that there is no sample.
MOST, LARGEST_BYTES = 24, 5_000_000
_NOMINAL_SHARE = 2 / 3
_PIXELS = "pixels"
# The rule: what a score may be off by, relative to the threshold. The first is the documented tolerance of libraries
# and devices in float32, the other that of images that a GPU decodes (jobs.engines.gpu_decoding).
ALLOWED: Mapping[Precision, float] = MappingProxyType({"float32": 5e-4, "tf32": 1e-2, "bfloat16": 1e-2})
_SMALLEST = 1e-12
# Pictures, and pixels of them, on which float32 is checked whenever a network is loaded.
_FEW, _FEW_PIXELS = 4, 4 * 256 * 256


@dataclass(frozen=True, slots=True)
class Sample:
    """Pictures (K,H,W,C) uint8 of the network's size, and (K,) float32 of each score of their maps."""

    pixels: Pixels
    scores: Mapping[Score, Floats]

    def __len__(self) -> int:
        return len(self.pixels)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors: dict[str, npt.NDArray[Any]] = {_PIXELS: self.pixels}
        tensors |= {name: np.asarray(values, np.float32) for name, values in self.scores.items()}
        # What is a column of another array would be written as the memory beside it.
        return safetensors.numpy.save({name: np.ascontiguousarray(values) for name, values in tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Sample":
        """Raises BundleError for a file that is none."""
        try:
            tensors = safetensors.numpy.load(data)
            found = cls(tensors[_PIXELS], {name: tensors[name] for name in SCORES})
        except (SafetensorError, KeyError) as error:
            raise BundleError(f"the sample of the bundle cannot be read: {error}") from error
        whole = found.pixels.ndim == 4 and found.pixels.dtype == np.uint8 and len(found) > 0
        if not whole or any(values.shape != (len(found),) for values in found.scores.values()):
            raise BundleError("the sample of the bundle cannot be read: expected pictures and a score of each")
        return found

    def first(self, count: int) -> "Sample":
        """So many of them."""
        return Sample(self.pixels[:count], {name: values[:count] for name, values in self.scores.items()})


def take(
    nominal: Pixels, scores: Floats, anomalies: "Pixels | Pictures", score: Callable[[Pixels], Scored]
) -> Sample | None:
    """Of calibration images (N,H,W,C) with scores (N,), and of synthetic anomalies (M,H,W,C); None of larger images.

    `score` computes in float32. The most anomalous image comes first: of large ones there is no other.
    """
    count = min(MOST, LARGEST_BYTES // int(nominal[0].size))
    if not count:
        return None
    of_nominal = min(len(nominal), max(1, round(_NOMINAL_SHARE * count)))
    of_anomalies = min(len(anomalies), count - of_nominal)
    ranked = np.argsort(-scores, kind="stable")[_evenly(len(scores), of_nominal)]
    pictures = [nominal[index] for index in ranked.tolist()]
    pictures += [anomalies[index] for index in _evenly(len(anomalies), of_anomalies).tolist()]
    pixels = np.stack(pictures)
    found = score(pixels)
    return Sample(pixels, {name: getattr(found, name) for name in SCORES})


def _evenly(of: int, count: int) -> npt.NDArray[np.int64]:
    return np.rint(np.linspace(0, of - 1, count)).astype(np.int64) if count else np.empty(0, np.int64)


class Disagrees(ConfigError):
    """A precision, library or machine does not score as the bundle was calibrated."""


def compare(sample: Sample, score: Callable[[Pixels], Scored], thresholds: Mapping[Score, float]) -> float:
    """The largest difference of a score of the pictures from what it was: as a share of its threshold.

    Of a score above its threshold: as a share of the score. Scores without a threshold are not compared.
    """
    found, largest = score(sample.pixels), 0.0
    for name, threshold in thresholds.items():
        expected = sample.scores[name].astype(np.float64)
        off = np.abs(getattr(found, name) - expected) / np.maximum(np.abs(expected), max(threshold, _SMALLEST))
        largest = max(largest, float(off.max()) if np.isfinite(off).all() else np.inf)
    return largest


def check(
    sample: Sample | None,
    precision: Precision,
    score: Callable[[Pixels], Scored],
    thresholds: Mapping[Score, float],
    network: str,
) -> float | None:
    """The difference (`compare`), None for a bundle without a sample. Raises Disagrees for more than `ALLOWED`.

    Of float32 a few pictures are enough: it shows that nothing is broken. Without a sample whitened networks may not be
    computed in less than float32: they divide by the smallest deviations of their features, whose rounding to 8 bits
    made maps of ELPV cells 23 times too large.
    """
    if sample is None:
        if precision != "float32" and network.startswith("whitened:"):
            raise Disagrees(
                f"{precision} was found too coarse for whitened networks, and this bundle has no sample of images to "
                f"show that {network!r} is an exception; use float32"
            )
        return None
    if precision == "float32":
        sample = sample.first(max(1, min(_FEW, _FEW_PIXELS // int(sample.pixels[0, ..., 0].size))))
    off = compare(sample, score, thresholds)
    if not off <= ALLOWED[precision]:
        raise Disagrees(
            f"in {precision} scores of the bundle's own sample of {len(sample)} images are off by up to "
            f"{off:.2g} times the threshold ({ALLOWED[precision]:g} is allowed)"
        )
    return off
