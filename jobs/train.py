"""`fcdd train`: nominal images -> a bundle, alone or data-parallel with Ray Train.

list -> split (training / calibration) -> train, with checkpoints -> calibrate -> bundle, written and read back
"""

import itertools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fcdd import bundle, detector, grouping, networks, splits
from fcdd.calibration import conformal_threshold
from fcdd.detector import Detector
from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from fcdd.paper import datasets
from jobs.catalog import label_files
from jobs.shell import process
from jobs.sources import fetching, listing
from jobs.training import checks, data_set, finish, train_loop
from jobs.training.checkpoints import Checkpoints
from jobs.training.finish import LabelledInfo
from jobs.training.options import TrainSettings, options_of, size_of, with_preset
from jobs.training.train_loop import LoopConfig

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: train(TrainSettings.parse(argv)))


def train(settings: TrainSettings) -> None:
    """The whole job."""
    given, settings = settings.model_fields_set, with_preset(settings)
    images_uri, bundle_uri = storage.normalize(settings.images), storage.normalize(settings.bundle)
    location = storage.normalize(settings.checkpoints or storage.join(settings.bundle, "_checkpoints"))
    store = Checkpoints(location, settings.keep_checkpoints)
    checks.check_options(settings)
    checks.check_places(settings, store)
    checks.say_what_is_not_taken(given, settings)
    infos = listing.list_images(images_uri)
    _refuse_anomalous(infos, images_uri)
    grouping.compile_pattern(settings.group_pattern)
    labelled = _labelled(settings)
    masked = _masked(settings)
    outliers = listing.list_images(storage.normalize(settings.outliers)) if settings.outliers else []
    # Known anomalies, their masks, outliers and images to measure on may lie among the nominal ones; none is nominal.
    not_nominal = {info.uri for info in (*labelled, *outliers, *itertools.chain(*masked)) if info is not None}
    training, calibration = _split(infos, images_uri, settings, not_nominal)
    weights = _prepare(settings, bundle_uri, training, calibration)
    digest = listing.digest(infos)
    checks.check_resumable(settings, store, digest)
    size, channels = size_of(settings), networks.in_channels(settings.network)
    # The few labelled anomalies are read here, and again by every worker: an unusable mask is found now.
    known, _ = data_set.read_anomalies(*_unzipped(masked), size, channels)
    log.info("training on %d nominal images, calibrating on %d others", len(training), len(calibration))
    # Read before any worker starts: a prefix of unreadable images is found here.
    anomalous = frozenset(map(data_set.pixel_digest, known))
    held_out = data_set.without(fetching.load_set(calibration, size, channels), calibration, anomalous)
    conformal_threshold(held_out.positions, settings.alpha)  # enough of them are readable
    not_trained_on = anomalous | set(map(data_set.pixel_digest, held_out.pixels))
    loop = _loop_config(settings, training, outliers, not_trained_on, masked, weights, digest, location)
    if settings.overwrite and not settings.resume:
        store.clear()
    with _stoppable(settings, store):
        _run(settings, loop)
        found = store.latest()
        if found is None:
            raise ConfigError(f"the checkpoints at {loop.checkpoints} are gone or damaged; train again")
        trained = finish.finish(settings, infos, calibration, held_out, labelled, found[0])
        if Detector.load(bundle_uri).spec.digest != trained.spec.digest:
            raise ConfigError(f"{bundle_uri} was overwritten while it was being written; train again")
    store.clear()
    print(f"bundle     {bundle_uri}\ndigest     {trained.spec.digest}")
    print(f"threshold  {trained.spec.calibration.threshold:.6g} for a false-alarm rate of {settings.alpha:g}")
    for name, value in sorted(trained.spec.training.metrics.items()):
        print(f"{name:10} {value:.4f}")


def _refuse_anomalous(infos: list[ObjectInfo], images_uri: str) -> None:
    """A location one level too high would train on anomalies as if they were nominal, and nobody would notice."""
    suspicious = {*datasets.ANOMALOUS_FOLDERS, *datasets.MASK_FOLDERS}
    for info in infos:
        parts = info.uri.removeprefix(images_uri).strip("/").lower().split("/")[:-1]
        if found := suspicious & set(parts):
            raise ConfigError(
                f"{images_uri} holds a folder {found.pop()!r} ({info.uri}): training needs nominal images only; "
                "name the folder that has just those"
            )


def _labelled(settings: TrainSettings) -> list[LabelledInfo]:
    """The labelled images to measure on."""
    if settings.labels is None:
        return []
    table = label_files.read_decided(settings.labels, opened=True)
    try:
        infos = [storage.stat(uri) for uri in table["image_uri"].to_pylist()]
    except FileNotFoundError as error:
        raise ConfigError(f"the labelled image {error} does not exist; correct {settings.labels}") from error
    labels = table["label"].to_pylist()
    if len(set(labels)) < 2:
        raise ConfigError(f"expected nominal (0) and anomalous (1) images in {settings.labels}, got one kind")
    return [LabelledInfo(*info, label) for info, label in zip(infos, labels, strict=True)]


def _split(
    infos: list[ObjectInfo], images_uri: str, settings: TrainSettings, not_nominal: set[str]
) -> tuple[list[ObjectInfo], list[ObjectInfo]]:
    """Training and calibration images, by a hash of the key; copies of calibration images are not trained on."""
    held_out = {
        info.uri: splits.is_held_out(info.uri.removeprefix(images_uri), settings.calibration_share) for info in infos
    }
    usable = [info for info in infos if info.uri not in not_nominal]
    calibration = [info for info in usable if held_out[info.uri]]
    known = {(info.etag, info.size) for info in calibration if info.etag}
    training = [info for info in usable if not held_out[info.uri] and (info.etag, info.size) not in known]
    copies = len(usable) - len(calibration) - len(training)
    if copies:
        log.info("%d images are copies of calibration images and not trained on", copies)
    return training, calibration


def _prepare(
    settings: TrainSettings, bundle_uri: str, training: list[ObjectInfo], calibration: list[ObjectInfo]
) -> bytes:
    """Find everything that can be wrong before any worker starts; the network's initial weights."""
    torch.manual_seed(settings.seed)
    channels = networks.in_channels(settings.network)
    network = networks.build(settings.network, in_channels=channels, image_size=size_of(settings))
    if len(training) < settings.batch_size:
        raise ConfigError(f"a batch of {settings.batch_size} needs as many training images, got {len(training)}")
    conformal_threshold(torch.zeros(len(calibration)).numpy(), settings.alpha)
    storage.check_writable(bundle_uri)
    if settings.mlflow:
        from jobs.training import report

        report.connect_mlflow(settings.mlflow)
    if settings.pretrained and networks.is_pretrained(settings.network):
        networks.load_pretrained(network, settings.network, settings.weights)
    return detector.serialize(network)


def _loop_config(
    settings: TrainSettings,
    training: list[ObjectInfo],
    outliers: list[ObjectInfo],
    held_out: frozenset[str],
    masked: list[tuple[ObjectInfo, ObjectInfo | None]],
    weights: bytes,
    data_digest: str,
    checkpoints: str,
) -> LoopConfig:
    """What every training process gets."""
    size, channels = size_of(settings), networks.in_channels(settings.network)
    decoded_gb = len(training) * size[0] * size[1] * channels / 1e9
    stream = decoded_gb > settings.memory_gb
    log.info(
        "%d training images are %.1f GB decoded, %s the %g GB of --memory-gb: %s",
        *(len(training), decoded_gb, "more than" if stream else "within", settings.memory_gb),
        "streamed from the store in every epoch" if stream else "decoded once to every worker's memory",
    )
    moving, processes = settings.moving_statistics, settings.loader_processes
    labelled, masks = _unzipped(masked)
    return LoopConfig(
        images=training,
        held_out=held_out,
        network=settings.network,
        channels=channels,
        input_size=size,
        initial_weights=weights,
        normalization=settings.normalization,
        moving_statistics=not settings.pretrained if moving is None else moving,
        frozen=settings.freeze_backbone,
        anomalies=settings.anomalies,
        outliers=outliers,
        outlier_share=settings.outlier_share,
        labelled=labelled,
        masks=masks,
        labelled_share=settings.anomalous_share,
        augmentation=settings.augmentation or ("none" if networks.needs_statistics(settings.network) else "all"),
        options=options_of(settings),
        stream=stream,
        loader_processes=(4 if stream or settings.gpu else 0) if processes is None else processes,
        compile=settings.compile,
        checkpoints=checkpoints,
        keep_checkpoints=settings.keep_checkpoints,
        checkpoint_steps=settings.checkpoint_steps,
        conditions=checks.conditions(settings, data_digest),
    )


def _unzipped(
    masked: list[tuple[ObjectInfo, ObjectInfo | None]],
) -> tuple[list[ObjectInfo], list[ObjectInfo | None]]:
    return [image for image, _ in masked], [mask for _, mask in masked]


def _masked(settings: TrainSettings) -> list[tuple[ObjectInfo, ObjectInfo | None]]:
    """The labelled anomalies, each with its mask if there is a location of masks."""
    if not settings.anomalous:
        return []
    if label_files.is_file(settings.anomalous):
        listed = label_files.read_anomalies(settings.anomalous)
        try:
            looked = [(storage.stat(each.image), storage.stat(each.mask) if each.mask else None) for each in listed]
        except FileNotFoundError as error:
            raise ConfigError(f"{error} does not exist; correct {settings.anomalous}") from error
        same = [each.etag in ("", image.etag) for each, (image, _) in zip(listed, looked, strict=True)]
        if not any(same):
            raise ConfigError(f"all {len(same)} images of {settings.anomalous} changed since they were labelled")
        if not all(same):
            changed = listed[same.index(False)].image
            log.warning("left out %d images that changed since they were labelled: %s", same.count(False), changed)
        return list(itertools.compress(looked, same))
    root = storage.normalize(settings.anomalous)
    found = listing.list_images(root)
    if not settings.masks:
        return [(info, None) for info in found]
    mask_root = storage.normalize(settings.masks)
    masks = {_stem(info.uri, mask_root).removesuffix("_mask"): info for info in listing.list_images(mask_root)}
    missing = [info.uri for info in found if _stem(info.uri, root) not in masks]
    if missing:
        raise ConfigError(f"{missing[0]} has no mask in {mask_root}; give all anomalous images masks, or none")
    return [(info, masks[_stem(info.uri, root)]) for info in found]


def _stem(uri: str, root: str) -> str:
    return uri.removeprefix(root).strip("/").rpartition(".")[0]


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


def _run(settings: TrainSettings, loop: LoopConfig) -> None:
    """Train in this process, or on the workers of Ray Train."""
    if settings.workers == 0:
        train_loop.train(loop, train_loop.Alone())
        return
    # Imported late: a wrong option is answered in a second, not after five of Ray's import.
    from jobs.training import ray_train

    with tempfile.TemporaryDirectory() as folder:
        ray_train.fit(
            loop,
            workers=settings.workers,
            min_workers=settings.min_workers,
            gpu=settings.gpu,
            wait_s=settings.cluster_wait_s,
            max_failures=settings.max_failures,
            storage_path=folder,
        )


if __name__ == "__main__":
    process.leave(main())
