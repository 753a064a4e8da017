"""`fcdd train`: nominal images -> a bundle, alone or data-parallel with Ray Train.

list -> split (training / calibration) -> train, with checkpoints -> calibrate -> bundle, written and read back
"""

import itertools
import logging
import tempfile
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import torch

from fcdd import bundle, checkpoint, datasets, detector, grouping, networks, splits, storage
from fcdd.bundle import BundleSpec, TrainingRecord
from fcdd.calibration import Calibration, conformal_threshold
from fcdd.detector import Detector
from fcdd.errors import ConfigError
from fcdd.inference import Runner
from fcdd.storage import ObjectInfo
from jobs import _calibrating, _console, _images, _listing, _train_loop, _training_data
from jobs._checkpoints import Checkpoints
from jobs._images import ImageSet
from jobs._train_loop import LoopConfig
from jobs._train_settings import TrainSettings, options_of, recorded, size_of, with_preset
from jobs._versions import versions

VERSIONED = ("torch", "ray", "numpy", "pillow")

log = logging.getLogger(__name__)


class LabelledInfo(NamedTuple):
    """An object and its label: 0 nominal, 1 anomalous."""

    uri: str
    etag: str
    size: int
    last_modified: datetime
    label: int


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: train(TrainSettings.parse(argv)))


def train(settings: TrainSettings) -> None:
    """The whole job."""
    settings = with_preset(settings)
    images_uri, bundle_uri = storage.normalize(settings.images), storage.normalize(settings.bundle)
    infos = _listing.list_images(images_uri)
    _refuse_anomalous(infos, images_uri)
    grouping.compile_pattern(settings.group_pattern)
    labelled = _labelled(settings)
    masked = _masked(settings)
    # Known anomalies and images to measure on may lie among the nominal ones; neither is nominal for the training.
    not_nominal = {info.uri for info in labelled} | {info.uri for info, _ in masked}
    training, calibration = _split(infos, images_uri, settings, not_nominal)
    weights = _prepare(settings, bundle_uri, training, calibration)
    log.info("training on %d nominal images, calibrating on %d others", len(training), len(calibration))
    # Read before any worker starts: a prefix of unreadable images is found here.
    held_out = _images.load_set(calibration, size_of(settings), networks.in_channels(settings.network))
    conformal_threshold(held_out.positions, settings.alpha)  # enough of them are readable
    loop = _loop_config(settings, training, held_out, masked, weights, _listing.digest(infos))
    store = Checkpoints(loop.checkpoints, loop.keep_checkpoints)
    _check_checkpoints(store, loop, settings)
    _run(settings, loop, store)
    found = store.latest()
    if found is None:
        raise ConfigError(f"the checkpoints at {loop.checkpoints} are gone or damaged; train again")
    trained = _finish(settings, infos, calibration, held_out, labelled, found[0])
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
    from jobs import _labels

    table = _labels.read_decided(settings.labels)
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
    if settings.workers and settings.batch_size % settings.workers:
        raise ConfigError(
            f"a global batch of {settings.batch_size} does not divide among {settings.workers} workers; change one"
        )
    if (settings.min_workers or 0) > settings.workers:
        raise ConfigError(f"expected at most {settings.workers} workers as --min-workers, got {settings.min_workers}")
    if len(training) < settings.batch_size:
        raise ConfigError(f"a batch of {settings.batch_size} needs as many training images, got {len(training)}")
    conformal_threshold(torch.zeros(len(calibration)).numpy(), settings.alpha)
    if storage.exists(storage.join(bundle_uri, bundle.SPEC_FILE)) and not settings.overwrite:
        raise ConfigError(f"there is a bundle at {bundle_uri}, and runs may name it; choose another or add --overwrite")
    storage.check_writable(bundle_uri)
    if settings.masks and not settings.anomalous:
        raise ConfigError("--masks are those of the images of --anomalous: give both")
    if settings.mlflow:
        from jobs import _training_report

        _training_report.connect_mlflow(settings.mlflow)
    if settings.pretrained and networks.is_pretrained(settings.network):
        networks.load_pretrained(network, settings.network, settings.weights)
    return detector.serialize(network)


def _loop_config(
    settings: TrainSettings,
    training: list[ObjectInfo],
    held_out: ImageSet,
    masked: list[tuple[ObjectInfo, ObjectInfo | None]],
    weights: bytes,
    data_digest: str,
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
    return LoopConfig(
        images=training,
        held_out=frozenset(_training_data.pixel_digest(pixels) for pixels in held_out.pixels),
        network=settings.network,
        channels=channels,
        input_size=size,
        initial_weights=weights,
        normalization=settings.normalization,
        moving_statistics=not settings.pretrained if moving is None else moving,
        frozen=settings.freeze_backbone,
        anomalies=settings.anomalies,
        outliers=_listing.list_images(storage.normalize(settings.outliers)) if settings.outliers else [],
        outlier_share=settings.outlier_share,
        labelled=[image for image, _ in masked],
        masks=[mask for _, mask in masked],
        labelled_share=settings.anomalous_share,
        augmentation=settings.augmentation or ("none" if networks.needs_statistics(settings.network) else "all"),
        options=options_of(settings),
        stream=stream,
        loader_processes=(4 if stream or settings.gpu else 0) if processes is None else processes,
        compile=settings.compile,
        checkpoints=storage.normalize(settings.checkpoints or storage.join(settings.bundle, "_checkpoints")),
        keep_checkpoints=settings.keep_checkpoints,
        checkpoint_steps=settings.checkpoint_steps,
        conditions={"data": data_digest, **recorded(settings)},
    )


def _masked(settings: TrainSettings) -> list[tuple[ObjectInfo, ObjectInfo | None]]:
    """The labelled anomalies, each with its mask if there is a location of masks."""
    if not settings.anomalous:
        return []
    if settings.anomalous.endswith((".csv", ".parquet")):
        from jobs import _labels

        listed = _labels.read_anomalies(settings.anomalous)
        try:
            looked = [(storage.stat(each.image), storage.stat(each.mask) if each.mask else None) for each in listed]
        except FileNotFoundError as error:
            raise ConfigError(f"{error} does not exist; correct {settings.anomalous}") from error
        same = [each.etag in ("", image.etag) for each, (image, _) in zip(listed, looked, strict=True)]
        if not all(same):
            changed = listed[same.index(False)].image
            log.warning("left out %d images that changed since they were labelled: %s", same.count(False), changed)
        return list(itertools.compress(looked, same))
    root = storage.normalize(settings.anomalous)
    found = _listing.list_images(root)
    if not settings.masks:
        return [(info, None) for info in found]
    mask_root = storage.normalize(settings.masks)
    masks = {_stem(info.uri, mask_root).removesuffix("_mask"): info for info in _listing.list_images(mask_root)}
    missing = [info.uri for info in found if _stem(info.uri, root) not in masks]
    if missing:
        raise ConfigError(f"{missing[0]} has no mask in {mask_root}; give all anomalous images masks, or none")
    return [(info, masks[_stem(info.uri, root)]) for info in found]


def _stem(uri: str, root: str) -> str:
    return uri.removeprefix(root).strip("/").rpartition(".")[0]


def _check_checkpoints(store: Checkpoints, loop: LoopConfig, settings: TrainSettings) -> None:
    """Raises ConfigError when there are checkpoints of another training, or of one that was not asked to go on."""
    if not store.list():
        if settings.resume:
            log.info("there is no checkpoint at %s: training from the start", store.location)
        return
    if settings.overwrite and not settings.resume:
        store.clear()
        return
    if not settings.resume:
        raise ConfigError(
            f"there are checkpoints of an unfinished training at {store.location}; add --resume to go on with it, or "
            "--overwrite to start anew"
        )
    found = store.latest()
    if found is None:
        return
    before = checkpoint.read_progress(found[0]).conditions
    now = loop.conditions
    if other := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
        raise ConfigError(
            f"the checkpoints at {store.location} are of another training: {', '.join(other)} differ; give the same "
            "options and images, or --overwrite without --resume"
        )


def _run(settings: TrainSettings, loop: LoopConfig, store: Checkpoints) -> None:
    """Train in this process, or on the workers of Ray Train."""
    try:
        if settings.workers == 0:
            _train_loop.train(loop, _train_loop.Alone())
            return
        # Imported late: a wrong option is answered in a second, not after five of Ray's import.
        from jobs import _ray_train

        with tempfile.TemporaryDirectory() as folder:
            _ray_train.fit(
                loop,
                workers=settings.workers,
                min_workers=settings.min_workers,
                gpu=settings.gpu,
                wait_s=settings.cluster_wait_s,
                max_failures=settings.max_failures,
                storage_path=folder,
            )
    except KeyboardInterrupt:
        last = store.list()
        if last:
            log.info("stopped; the last checkpoint is %s: the same command with --resume goes on", last[-1].uri)
        raise


def _finish(
    settings: TrainSettings,
    infos: list[ObjectInfo],
    calibration_infos: list[ObjectInfo],
    held_out: ImageSet,
    labelled: list[LabelledInfo],
    state: bytes,
) -> Detector:
    """The bundle, with scores of the held-out nominal images, and what belongs beside it."""
    from jobs import _training_report

    progress, weights = checkpoint.read_progress(state), checkpoint.network_weights(state)
    size, channels = size_of(settings), networks.in_channels(settings.network)
    network = detector.deserialize(weights, settings.network, channels, size)
    runner = Runner(network, progress.normalization, size)
    scored = detector.summarise(runner(held_out.pixels))
    root = storage.normalize(settings.images)
    nominal = _calibrating.nominal(scored, settings.score, held_out, calibration_infos, [root], settings.group_pattern)
    calibration = Calibration.fit(
        nominal, alpha=settings.alpha, group_pattern=settings.group_pattern, decide_by_group=settings.decide_by_group
    )
    measured = {name: progress.history[-1][name] for name in ("loss", "loss_nominal", "loss_anomalous")}
    if labelled:
        measured |= _measure(settings, runner, labelled, calibration.threshold)
    spec = BundleSpec(
        network=settings.network,
        channels=channels,
        input_size=size,
        normalization=progress.normalization,
        gaussian_std=options_of(settings).gaussian_std,
        gaussian_extent=settings.gaussian_extent,
        score=settings.score,
        calibration=calibration,
        calibrated_on=root,
        training=TrainingRecord(
            images=storage.normalize(settings.images),
            num_training=progress.num_images,
            num_calibration=len(held_out.pixels),
            data_digest=_listing.digest(infos),
            options=recorded(settings),
            versions=versions(*VERSIONED),
            metrics=measured,
        ),
        weights_sha256=detector.sha256(weights),
    )
    trained, bundle_uri = Detector(spec, weights), storage.normalize(settings.bundle)
    _training_report.write(bundle_uri, progress.history, trained, held_out.pixels, scored)
    trained.save(bundle_uri)
    if settings.mlflow:
        _training_report.to_mlflow(settings.mlflow, bundle_uri, trained, progress.history)
    return trained


def _measure(
    settings: TrainSettings,
    runner: Runner,
    labelled: list[LabelledInfo],
    threshold: float,
) -> dict[str, float]:
    """Figures on the labelled images."""
    from fcdd import metrics

    infos = [ObjectInfo(*each[:4]) for each in labelled]
    loaded = _images.load_set(infos, size_of(settings), networks.in_channels(settings.network))
    scored = detector.summarise(runner(loaded.pixels))
    labels = np.array([each.label for each in labelled], np.int64)[loaded.positions]
    scores = getattr(scored, settings.score).astype(np.float64)
    image = metrics.image_metrics(labels, scores, resamples=0)
    alarms = metrics.threshold_metrics(labels, scores, threshold, resamples=0)
    return {
        "auroc": image.auroc.value,
        "average_precision": image.average_precision.value,
        **{name: estimate.value for name, estimate in alarms._asdict().items()},
    }


if __name__ == "__main__":
    _console.leave(main())
