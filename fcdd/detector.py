"""A trained detector: encoded images or pixels in, anomaly maps and scores out.

The last link of the chain: bundle -> network -> objective -> scores; used by every job that scores.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError

from fcdd import bundle, contours, cropping, grouping, networks, regions, upsampling
from fcdd import sample as sample_rule
from fcdd.bundle import BundleSpec
from fcdd.calibration import Decider
from fcdd.contours import Contour
from fcdd.errors import BundleError
from fcdd.inference import Runner
from fcdd.io import storage
from fcdd.io.isolation import DecoderPool
from fcdd.networks import FCDDNetwork
from fcdd.regions import Region
from fcdd.runtime import Runtime
from fcdd.scores import Scored, summarise


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image by one bundle: its score, p-value, whether it is anomalous, its hot regions, and its map (U,V).

    Regions are in pixels of the original, whose size is `height`, `width`.
    """

    anomaly_score: float
    p_value: float
    is_anomalous: bool
    regions: list[Region]
    map: npt.NDArray[np.float32] = field(repr=False)
    height: int
    width: int


class Detector:
    """A network in evaluation mode with its bundle; create it with `load` or from trained weights."""

    def __init__(
        self,
        spec: BundleSpec,
        weights: bytes,
        runtime: Runtime = Runtime(),  # noqa: B008
        sample: bytes | None = None,
    ) -> None:
        """`sample` is that of the bundle, as it is stored.

        Raises BundleError when the weights do not fit the network or are not finite, ConfigError as `Runner`, and for a
        precision in which the sample does not score as it did.
        """
        runtime.check()
        self.spec = spec
        self.weights = weights
        self.sample = sample
        network = deserialize(weights, spec.network, spec.channels, spec.input_size)
        self.receptive_field = network.receptive_field
        cells = np.shape(spec.calibration.pooled.map_mean)
        if cells != (self.receptive_field.height, self.receptive_field.width):
            raise BundleError(f"the calibration is of maps of {cells}, and network {spec.network!r} makes others")
        if spec.ignored_cells is not None and spec.ignored_cells.shape != cells:
            raise BundleError(f"the ignored cells are of maps of {spec.ignored_cells.shape}, those here have {cells}")
        self._decoders = DecoderPool(spec.view, processes=1)
        self._runner = Runner(network, spec.normalization, spec.input_size, runtime)
        if runtime.precision != "float32":
            known = bundle.sample_of(sample)
            sample_rule.check(known, runtime.precision, self.score, spec.thresholds, spec.network)

    @classmethod
    def load(cls, uri: str, runtime: Runtime = Runtime()) -> Self:  # noqa: B008
        """Read and verify a bundle. Raises BundleError, or ConfigError for a location that cannot be read."""
        spec, weights = bundle.load(uri)
        return cls(spec, weights, runtime, bundle.load_sample(uri, spec))

    def save(self, uri: str) -> None:
        """Write its files: `bundle.save`."""
        bundle.save(uri, self.spec, self.weights, self.sample)

    def score(self, batch: Sequence[bytes] | npt.NDArray[np.uint8]) -> Scored:
        """Score encoded images, decoded apart from this process, or pixels (N,H,W,C) uint8 of the input size.

        Raises ImageError for encoded images that cannot be decoded, ValueError for pixels of another shape.
        """
        size, channels = self.spec.input_size, self.spec.channels
        if not isinstance(batch, np.ndarray):
            decoded = [self._decoders.decode(data).pixels for data in batch]
            batch = np.stack(decoded) if decoded else np.empty((0, *size, channels), np.uint8)
        if batch.shape[1:] != (*size, channels):
            raise ValueError(f"expected pixels of shape (N, {size[0]}, {size[1]}, {channels}), got {batch.shape}")
        return summarise(self._runner(batch), self.spec.ignored_cells)

    def predict(self, image: str | bytes, *, alpha: float | None = None, location: str = "") -> Prediction:
        """One image, by its location or as encoded bytes, at the bundle's false-alarm rate or `alpha`.

        `location` is where the bytes came from. Groups are those of the bundle's pattern, by the location; folders of
        a collection are not known here. Raises
        ImageError when it cannot be decoded, FileNotFoundError when it does not exist, ConfigError for a rate that the
        calibration cannot support.
        """
        spec = self.spec
        named = image if isinstance(image, str) else location
        uri = storage.normalize(named) if named else ""
        decoded = self._decoders.decode(storage.read(uri) if isinstance(image, str) else image)
        scored = self.score(decoded.pixels[None])
        pattern = grouping.compile_pattern(spec.calibration.group_pattern)
        chosen = getattr(scored, spec.score)
        decide = Decider(spec.calibration, alpha or spec.calibration.alpha)
        p_values, alarms = decide(chosen, scored.maximum, [grouping.group_of(uri, (), pattern)])
        found = regions.find(
            scored.maps[0],
            decide.map_threshold,
            receptive_field=self.receptive_field,
            input_size=spec.input_size,
            image_size=(decoded.height, decoded.width),
            crop=spec.view.crop,
        )
        return Prediction(
            anomaly_score=float(chosen[0]),
            p_value=float(p_values[0]),
            is_anomalous=bool(alarms[0]),
            regions=found,
            map=scored.maps[0],
            height=decoded.height,
            width=decoded.width,
        )

    def heatmap(
        self, map_uv: npt.NDArray[np.float32], image_size: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        """Full-resolution heatmap (H,W) of one map, in the map's units, without border loss.

        It is that of the network's input. For an image of `image_size` (height, width) it is of all of the image, at
        the same resolution, and 0 where the bundle's crop does not reach.
        """
        maps = torch.from_numpy(map_uv)[None, None]
        field = upsampling.with_extent(self.receptive_field, self.spec.gaussian_extent)
        heatmap = upsampling.upsample(maps, field, self.spec.input_size, self.spec.gaussian_std, normalized=True)
        found: npt.NDArray[np.float32] = heatmap[0, 0].numpy()
        crop = self.spec.view.crop
        return cropping.around(found, crop.box(image_size), image_size) if crop and image_size else found

    def contours(
        self,
        map_uv: npt.NDArray[np.float32],
        image_size: tuple[int, int],
        levels: Sequence[float] = contours.LEVELS,
    ) -> list[Contour]:
        """Lines of equal evidence, in pixels of the image, whose size is (height, width); level 1 outlines regions.

        Levels are multiples of the bundle's map threshold.
        """
        threshold, inputs = self.spec.calibration.map_threshold, self.spec.input_size
        rings = partial(contours.rings, map_uv, receptive_field=self.receptive_field, input_size=inputs)
        crop = self.spec.view.crop
        return [(level, rings(level * threshold, image_size=image_size, crop=crop)) for level in levels]


def serialize(network: torch.nn.Module) -> bytes:
    """Weights and buffers as safetensors bytes."""
    return safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    )


def sha256(weights: bytes) -> str:
    """The digest by which a bundle names its weights."""
    return hashlib.sha256(weights).hexdigest()


def deserialize(
    weights: bytes,
    name: str,
    channels: int,
    input_size: tuple[int, int],
    *,
    moving_statistics: bool = False,
    frozen: bool = False,
) -> FCDDNetwork:
    """Network `name` with the weights of `serialize`; `moving_statistics` and `frozen` matter for training only.

    Raises BundleError when the weights do not fit or are not finite.
    """
    network = networks.build(
        name, in_channels=channels, image_size=input_size, moving_statistics=moving_statistics, frozen=frozen
    )
    try:
        state = safetensors.torch.load(weights)
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"the weights do not fit network {name!r}: {error}") from error
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise BundleError("the weights hold NaN or infinity: training diverged; lower the learning rate")
    return network
