"""One training, from its options to the bundle: alone, or data-parallel with Ray Train.

list -> split (training / calibration) -> train, with checkpoints -> calibrate -> bundle, written and read back
"""

import importlib.util
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from fcdd import bundle, scorer
from fcdd.calibration import conformal_threshold
from fcdd.detector import Detector
from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.runtime import Runtime
from jobs.sources import fetching, listing
from jobs.sources.fetching import ImageSet
from jobs.timing.stopwatch import Stopwatch
from jobs.training import checks, chosen, data_set, finish, ignoring, prepare, train_loop
from jobs.training.checkpoints import Checkpoints
from jobs.training.prepare import Inputs
from jobs.training.settings import TrainSettings, view_of, with_preset
from jobs.training.train_loop import LoopConfig

log = logging.getLogger(__name__)


def train(settings: TrainSettings) -> Detector:
    """Train, calibrate and write the bundle. Raises ConfigError for whatever can be found before the first step."""
    given, settings = settings.model_fields_set, with_preset(settings)
    location = storage.normalize(settings.checkpoints or storage.join(settings.bundle, "_checkpoints"))
    store = Checkpoints(location, settings.keep_checkpoints)
    checks.check_options(settings)
    checks.check_places(settings, store)
    checks.warn_of_ignored_options(given, settings)
    watch = Stopwatch()
    with watch.measure("listing, and reading what calibrates"):
        listed = prepare.list_nominal(settings)
        settings = chosen.with_image_size(settings, listed)
        inputs = prepare.find_inputs(settings, listed)
        prepare.check_enough(settings, inputs)
        conditions = checks.conditions(settings, listing.digest(listed))
        checks.check_resumable(settings, store, conditions)
        settings = chosen.with_full_scale(settings, inputs.training)
        calibrating, not_trained_on = _read_calibrating(settings, inputs)
        settings = chosen.with_stages(chosen.with_variants(settings, calibrating.pixels))
        ignored = ignoring.ignored_cells(settings, ignoring.sizes_of(calibrating))
        weights = prepare.initial_weights(settings)
    loop = prepare.loop_config(settings, inputs, not_trained_on, weights, location, conditions)
    if settings.overwrite and not settings.resume:
        store.clear()
    with _stoppable(settings, store):
        with watch.measure("training, statistics of nominal images included"):
            known = _run(settings, loop, keeps=inputs.is_leave_one_out)
        found = store.latest()
        if found is None:
            raise ConfigError(f"the checkpoints at {loop.checkpoints} are gone or damaged; train again")
        trained = finish.finish(settings, inputs, calibrating, found[0], watch, ignored, known)
        bundle_uri = storage.normalize(settings.bundle)
        if Detector.load(bundle_uri).spec.digest != trained.spec.digest:
            raise ConfigError(f"{bundle_uri} was overwritten while it was being written; train again")
    store.clear()
    _convert_for_this_machine(trained)
    return trained


def _convert_for_this_machine(trained: Detector) -> None:
    """Its first run here would do it, and show nothing meanwhile; torch is loaded now."""
    if importlib.util.find_spec("openvino") and not torch.cuda.is_available():
        scorer.load(trained.spec, trained.weights, Runtime(backend="openvino"))


def _read_calibrating(settings: TrainSettings, inputs: Inputs) -> tuple[ImageSet, frozenset[str]]:
    """The calibration images, and the digests of all pixels that must not be trained on as nominal.

    They are read before any worker starts: a location of unreadable images, or an unusable mask, is found here. The
    few labelled anomalies are read again by every worker.
    """
    view = view_of(settings)
    known, _ = data_set.read_anomalies(*prepare.unzipped(inputs.anomalous), view)
    log.info(
        "training on %d nominal images, calibrating on %s",
        len(inputs.training),
        _LEAVE_ONE_OUT if inputs.is_leave_one_out else f"{len(inputs.calibration)} others",
    )
    anomalous = frozenset(map(data_set.pixel_digest, known))
    loaded = fetching.load_set(inputs.calibration, view)
    calibrating = data_set.without(loaded, inputs.calibration, anomalous)
    conformal_threshold(calibrating.positions, settings.alpha)  # enough of them are readable
    if inputs.is_leave_one_out:
        return calibrating, anomalous
    return calibrating, anomalous | set(map(data_set.pixel_digest, calibrating.pixels))


_LEAVE_ONE_OUT = "the same ones, each scored by statistics that did not see it (--calibration held-out takes a share)"


@contextmanager
def _stoppable(settings: TrainSettings, store: Checkpoints) -> Iterator[None]:
    """Ctrl-C says what is left of the training, and which command goes on with it."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_left(settings, store)) from error


def _left(settings: TrainSettings, store: Checkpoints) -> str:
    bundle_uri = storage.normalize(settings.bundle)
    try:
        if not settings.overwrite and storage.exists(storage.join(bundle_uri, bundle.SPEC_FILE)):
            return f"stopped; the bundle is there already: {bundle_uri}"
        stored = store.list()
    except ConfigError as error:
        return f"stopped; --resume goes on if there is a checkpoint at {store.location} ({error})"
    if not stored:
        return "stopped before the first checkpoint: the same command starts again"
    again = "the same command" if settings.resume else "the same command with --resume"
    return f"stopped; the last checkpoint is {stored[-1].uri}: {again} goes on"


def _run(settings: TrainSettings, loop: LoopConfig, *, keeps: bool) -> Mapping[int, torch.Tensor]:
    """Train in this process, or on the workers of Ray Train.

    Returns the components that this process remembers, if it `keeps` them.
    """
    if settings.num_workers == 0:
        remembering = train_loop.train(loop, train_loop.Alone())
        return remembering.components if remembering and keeps else {}
    # Imported late: a wrong option is answered in a second, not after five of Ray's import.
    from jobs.training import ray_train

    with tempfile.TemporaryDirectory() as folder:
        ray_train.fit(
            loop,
            workers=settings.num_workers,
            min_workers=settings.min_workers,
            gpu=settings.gpu,
            wait_s=settings.cluster_wait_s,
            max_failures=settings.max_failures,
            storage_path=folder,
        )
    return {}
