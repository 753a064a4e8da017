"""A trained network as it scores: pixels in, maps and scores out, with as little to load as its library allows.

    bundle -> network by torch, or by OpenVINO without torch -> maps -> three scores of each

Torch takes seconds to import. A network that OpenVINO runs is converted once (which needs torch) and kept in the user's
cache (`fcdd.io.network_cache`), under a name that holds everything it was made from.
"""

import dataclasses
import hashlib
import json
import logging
import math
import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fcdd import bundle, openvino_network, strips
from fcdd import sample as sample_rule
from fcdd.bundle import BundleSpec
from fcdd.io import network_cache
from fcdd.openvino_network import OpenvinoNetwork
from fcdd.receptive_field import ReceptiveField
from fcdd.runtime import Runtime
from fcdd.sample import Disagrees
from fcdd.scores import Scored, summarise

Pixels = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]

# What OpenVINO's maps may differ from torch's, relative to the largest value (`fcdd.inference`).
TOLERANCE, TOLERANCE_OF_THRESHOLD = 5e-4, 1e-2
# Raised whenever a network is converted otherwise.
_CONVERSION = 1
_MODEL, _GEOMETRY = "network.xml", "receptive_field.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Scorer:
    """Pixels (N,H,W,C) uint8 of a bundle's input size -> Scored, for several threads at once."""

    receptive_field: ReceptiveField
    is_on_gpu: bool
    run: Callable[[Pixels], Maps]
    ignored: npt.NDArray[np.bool_] | None = None

    def __call__(self, pixels_nhwc: Pixels) -> Scored:
        """Maps and scores."""
        if len(pixels_nhwc):
            return summarise(self.run(pixels_nhwc), self.ignored)
        return summarise(np.empty((0, self.receptive_field.height, self.receptive_field.width), np.float32))


def is_by_torch(spec: BundleSpec, runtime: Runtime) -> bool:
    """Whether torch computes a bundle's images: where it is asked for, and those too large for OpenVINO's memory."""
    return runtime.backend == "torch" or math.prod(spec.input_size) > strips.LARGEST


def load(
    spec: BundleSpec,
    weights: bytes,
    runtime: Runtime,
    *,
    threads: int = 1,
    gpu: bool = True,
    sample: bytes | None = None,
) -> Scorer:
    """The scorer of a bundle, for so many `threads` of the caller on CPUs; `gpu`: torch may use one.

    From then on torch computes each call on one CPU in this process, and one large image after the other on all of
    them; its features OpenVINO computes, where it may and can.

    Where the bundle's `sample` does not score as it did (`fcdd.sample`), or OpenVINO cannot compute the network within
    the tolerance, there is a warning, and float32, or torch, instead. Raises BundleError when the weights do not fit
    the network or are not finite, ConfigError for a runtime that is not to be had.
    """
    runtime.check()
    loaded = _load(spec, weights, runtime, threads=threads, gpu=gpu)
    is_reference = runtime.precision == "float32" and runtime.backend == "torch" and not loaded.is_on_gpu
    if is_reference:
        return loaded
    try:
        _compare(loaded, spec, runtime, sample)
    except Disagrees as error:
        other = _more_exact(runtime)
        instead = f"{other.backend} computes it in {other.precision}" if other else "look at this GPU"
        log.warning("%s; %s", error, instead)
        if other:
            return load(spec, weights, other, threads=threads, gpu=gpu and loaded.is_on_gpu, sample=sample)
    return loaded


def check(spec: BundleSpec, weights: bytes, runtime: Runtime, sample: bytes | None, *, gpu: bool = True) -> None:
    """Raises Disagrees where the bundle's sample does not score alike, and as `load`."""
    _compare(_load(spec, weights, runtime, threads=1, gpu=gpu), spec, runtime, sample)


def _compare(loaded: Scorer, spec: BundleSpec, runtime: Runtime, sample: bytes | None) -> None:
    off = sample_rule.check(bundle.sample_of(sample), runtime.precision, loaded, spec.thresholds, spec.network)
    if off is not None and runtime.precision != "float32":
        log.info("in %s the bundle's own sample scores within %.2g of the threshold", runtime.precision, off)


def _more_exact(runtime: Runtime) -> Runtime | None:
    """What to take instead."""
    if runtime.precision != "float32":
        return runtime.model_copy(update={"precision": "float32"})
    return runtime.model_copy(update={"backend": "torch"}) if runtime.backend == "openvino" else None


def _load(spec: BundleSpec, weights: bytes, runtime: Runtime, *, threads: int, gpu: bool) -> Scorer:
    is_large = math.prod(spec.input_size) > strips.LARGEST
    in_strips = is_large and runtime.backend == "openvino" and runtime.precision == "float32"
    if runtime.backend == "openvino":
        try:
            if not is_large:
                return _by_openvino(spec, weights, runtime, threads)
        except _NotComputed as error:
            log.warning("torch computes the network on CPUs: %s", error)
        runtime, gpu = runtime.model_copy(update={"backend": "torch"}), False
    import torch

    from fcdd import detector
    from fcdd.inference import Runner

    network = detector.deserialize(weights, spec.network, spec.channels, spec.input_size)
    given = (network, spec.normalization, spec.input_size, runtime)
    try:
        runner = Runner(*given, gpu=gpu, openvino_threads=threads if in_strips else 0)
    except Exception as error:  # whatever tracing, conversion and compilation may raise
        if not in_strips:
            raise
        log.warning("torch computes the network on CPUs: OpenVINO cannot compute %s: %s", spec.network, error)
        runner = Runner(*given, gpu=gpu)
    if runner.is_on_gpu:
        return Scorer(network.receptive_field, True, runner, spec.ignored_cells)
    torch.set_num_threads(threads if is_large else 1)
    return Scorer(network.receptive_field, False, _one_at_a_time(runner) if is_large else runner, spec.ignored_cells)


def _one_at_a_time(run: Callable[[Pixels], Maps]) -> Callable[[Pixels], Maps]:
    """Images that take gigabytes each are computed one after the other, whatever the number of threads that ask."""
    free = queue.SimpleQueue[None]()
    free.put(None)

    def waiting(pixels_nhwc: Pixels) -> Maps:
        turn = free.get()
        try:
            return run(pixels_nhwc)
        finally:
            free.put(turn)

    return waiting


class _NotComputed(Exception):
    """OpenVINO cannot do what torch does."""


def _by_openvino(spec: BundleSpec, weights: bytes, runtime: Runtime, threads: int) -> Scorer:
    """Raises _NotComputed, BundleError, ConfigError when OpenVINO is not installed."""
    key = _key(spec)
    if (found := network_cache.find(key)) is not None:
        try:
            field = ReceptiveField(**json.loads((found / _GEOMETRY).read_text()))
            model = openvino_network.read(found / _MODEL)
            return Scorer(field, False, OpenvinoNetwork(model, runtime.precision, threads=threads), spec.ignored_cells)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            log.warning("%s cannot be read and is made again: %s", found, error)
            network_cache.drop(key)
    from fcdd import detector, folding
    from fcdd.inference import Runner

    network = detector.deserialize(weights, spec.network, spec.channels, spec.input_size)
    field = network.receptive_field
    try:
        model = openvino_network.convert(folding.folded(network), spec.normalization, spec.input_size)
        computed = OpenvinoNetwork(model, runtime.precision, threads=threads)
        exact = computed if runtime.precision == "float32" else OpenvinoNetwork(model)
    except Exception as error:  # whatever tracing, conversion and compilation may raise
        raise _NotComputed(f"OpenVINO cannot convert {spec.network}: {error}") from error
    _check(exact, Runner(network, spec.normalization, spec.input_size, gpu=False), spec)

    def write(folder: Path) -> None:
        openvino_network.save(model, folder / _MODEL)
        (folder / _GEOMETRY).write_text(json.dumps(dataclasses.asdict(field)))

    network_cache.put(key, write)
    return Scorer(field, False, computed, spec.ignored_cells)


def _key(spec: BundleSpec) -> str:
    """Names everything that a converted network depends on; the weights say whether they are finite, and fit."""
    made_of = (
        *(_CONVERSION, openvino_network.version(), spec.weights_sha256, spec.network, spec.channels),
        *(spec.input_size, spec.normalization.model_dump(mode="json")),
    )
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def _check(computed: Callable[[Pixels], Maps], reference: Callable[[Pixels], Maps], spec: BundleSpec) -> None:
    """Compare with torch on pictures of coarse and fine noise: every cell of the map sees something else.

    Relative to the largest value, and to the threshold: noise has large maps, and what they are off by is about as
    large in the map of a nominal image. Raises _NotComputed.
    """
    random = np.random.default_rng(0)
    fine = random.integers(0, 256, (2, *spec.input_size, spec.channels)).astype(np.uint8)
    coarse = np.repeat(np.repeat(fine[:, ::16, ::16], 16, 1), 16, 2)[:, : spec.input_size[0], : spec.input_size[1]]
    pictures = np.concatenate([fine, coarse])
    expected, found = reference(pictures), computed(pictures)
    off = np.abs(found - expected)
    relative = float((off / expected.max((1, 2), keepdims=True)).max())
    of_threshold = float(off.max()) / spec.calibration.map_threshold
    if not (relative < TOLERANCE and of_threshold < TOLERANCE_OF_THRESHOLD):
        raise _NotComputed(
            f"OpenVINO's maps of this network differ from torch's by {relative:.1g} of their largest value and by "
            f"{of_threshold:.1g} of the bundle's threshold"
        )
