"""`fcdd train`: nominal images -> a bundle, alone or data-parallel with Ray Train.

list -> split (training / calibration) -> train, with checkpoints -> calibrate -> bundle, written and read back
"""

import dataclasses
import logging
import platform
import tempfile
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import AfterValidator, Field

from fcdd import bundle, checkpoint, datasets, detector, grouping, networks, splits, storage, supervision
from fcdd.augmentation import Light
from fcdd.bundle import BundleSpec, Score, TrainingRecord
from fcdd.calibration import Calibration, conformal_threshold
from fcdd.detector import Detector
from fcdd.errors import ConfigError
from fcdd.inference import Runner
from fcdd.normalization import Kind
from fcdd.storage import ObjectInfo
from fcdd.training import TrainOptions
from jobs import _calibrating, _console, _images, _listing, _train_loop, _training_data
from jobs._checkpoints import Checkpoints
from jobs._images import ImageSet
from jobs._settings import ImageSize, JobSettings, height_and_width
from jobs._train_loop import LoopConfig

VERSIONED = ("fcdd-at-scale", "torch", "ray", "numpy", "pillow")

log = logging.getLogger(__name__)


def _known_anomalies(name: str) -> str:
    if name not in supervision.SYNTHETIC:
        raise ValueError(f"choose one of: {', '.join(supervision.SYNTHETIC)}")
    return name


class LabelledInfo(NamedTuple):
    """An object and its label: 0 nominal, 1 anomalous."""

    uri: str
    etag: str
    size: int
    last_modified: datetime
    label: int


Anomalies = Annotated[str, AfterValidator(_known_anomalies)]


class TrainSettings(JobSettings):
    """Train a detector from nominal images; synthetic anomalies are the anomalous class.

    A share of the images is held out of training to calibrate the threshold. The bundle needs nothing
    else for scoring.
    """

    verb: ClassVar[str] = "train"

    preset: Literal["fmnist", "cifar10", "imagenet30", "mvtec", "voc", "custom"] | None = Field(
        None,
        description="network, optimiser, schedule, loss and anomalies as published for that data set, where no option "
        "says otherwise; without it, our recommended ones",
    )
    images: str = Field(description="location of nominal images (s3://, gs://, az:// or a folder)")
    bundle: str = Field(description="location to write the bundle to")
    network: str = Field(
        "whitened:efficientnet_lite0:stage4+stage3+stage5",
        description="architecture; a name that is not known lists them all. Add :2 or :3 to the default for that many "
        "product variants under one camera",
    )
    image_size: ImageSize = Field("224", description="of the network's input: pixels, or HEIGHTxWIDTH")
    pretrained: bool = Field(True, description="start trunks, vgg and vgg_f from their ImageNet weights")
    weights: Path | None = Field(None, description="file with torchvision's weights of the trunk, not a download")
    moving_statistics: bool | None = Field(
        None, description="let batch-norms of trunks follow the batch (official vgg_f); default: if not pretrained"
    )
    freeze_backbone: bool = Field(False, description="train the head alone; whitened trunks are always frozen")
    normalization: Kind = Field("mean_std", description="of the input; trunks with ImageNet weights keep their own")
    score: Score = Field("mean", description="of an image: mean (the paper's), maximum or top 1 % mean of its map")
    epochs: int | None = Field(None, ge=1, description="passes over the images; default: 3 if whitened, else 12")
    batch_size: int = Field(32, ge=2, description="global batch, over all workers")
    learning_rate: float = Field(1e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float | None = Field(None, ge=0, description="AdamW's; default: 0 if whitened, else 1e-4")
    optimizer: Literal["adamw", "sgd", "adam"] = Field("adamw", description="sgd has momentum 0.9 and Nesterov's step")
    schedule: Literal["one_cycle", "exponential", "milestones"] = Field(
        "one_cycle", description="of the learning rate; the published ones are the other two"
    )
    decay: float = Field(1.0, gt=0, description="factor per epoch (exponential) or milestone")
    milestones: list[int] = Field([], description="epochs after which the rate decays")
    loss: Literal["image", "pixel"] = Field("pixel", description="supervise the map's mean, or the map by masks")
    anomalies: Anomalies = Field(
        "mixed",
        description="synthetic anomalies: defects (cracks, scratches, patches, stains), cutpaste, perlin, all three "
        "mixed, or a published noise mode (confetti, ...)",
    )
    outliers: str | None = Field(
        None, description="location of images of other things (outlier exposure), read one by one while training"
    )
    outlier_share: float = Field(0.5, gt=0, le=1, description="share of the anomalies that are outliers, if there are")
    anomalous: str | None = Field(
        None,
        description="a few labelled anomalies, five are enough: a location of images, or a .csv or .parquet file with "
        "image_uri and, where there are masks, mask_uri",
    )
    masks: str | None = Field(
        None, description="location of their masks, named like the images; 0 nominal, 255 anomalous, of their size"
    )
    anomalous_share: float = Field(0.5, gt=0, le=1, description="share of the anomalies that are labelled ones")
    labels: str | None = Field(
        None, description="CSV or Parquet with image_uri and label: measured at the end, never trained on"
    )
    augmentation: Light | None = Field(
        None, description="of nominal images; default: none if whitened (flips would mix positions), else all"
    )
    gaussian_std: float | None = Field(
        None, gt=0, description="spread of one map cell in the heatmap, input pixels; default: half a cell's width"
    )
    gaussian_extent: int | None = Field(
        None, ge=1, description="pixels that one map cell can reach in the heatmap; default: its receptive field"
    )
    calibration_share: float = Field(0.2, gt=0, lt=1, description="share of images held out for the threshold")
    alpha: float = Field(0.01, gt=0, lt=1, description="false-alarm rate that the threshold promises")
    group_pattern: str | None = Field(
        None,
        description="regular expression whose first group names an image's camera; default: the first folder below "
        "--images. Drift is told by group",
    )
    decide_by_group: bool = Field(False, description="p-values and thresholds by group, where groups are large enough")
    workers: int = Field(2, ge=0, description="data-parallel training processes; 0: this process, without Ray")
    min_workers: int | None = Field(
        None, ge=1, description="go on with so many workers when nodes are lost, and with more when they are back"
    )
    gpu: bool = Field(False, description="one GPU per worker; the network then computes in bfloat16")
    memory_gb: float = Field(
        4.0,
        gt=0,
        description="decoded training images up to this size are kept in every worker's memory, more streamed",
    )
    loader_processes: int | None = Field(
        None,
        ge=0,
        description="processes per worker that draw samples ahead; default: 4 with a GPU or streaming, else 0",
    )
    compile: bool = Field(False, description="torch.compile the network: slower to start, faster on GPUs")
    checkpoints: str | None = Field(
        None, description="location of checkpoints, for all machines the same; default: below the bundle"
    )
    keep_checkpoints: int = Field(2, ge=1, description="the last ones kept, beside the one of the lowest loss")
    checkpoint_steps: int = Field(0, ge=0, description="also a checkpoint every so many steps within an epoch")
    resume: bool = Field(False, description="go on from the latest checkpoint, if there is one")
    max_failures: int = Field(3, ge=0, description="how often a lost worker restarts the training from a checkpoint")
    mlflow: str | None = Field(None, description="tracking URI to log the training to (needs mlflow-skinny)")
    overwrite: bool = Field(False, description="replace a bundle or checkpoints that are already there")
    seed: int = Field(0, ge=0, description="seed of every random choice")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: train(TrainSettings.parse(argv)))


def train(settings: TrainSettings) -> None:
    """The whole job."""
    settings = _with_preset(settings)
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
    held_out = _images.load_set(calibration, _size(settings), networks.in_channels(settings.network))
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


def _with_preset(settings: TrainSettings) -> TrainSettings:
    """The published values of a preset for every option that was not given."""
    if settings.preset is None:
        return settings
    from fcdd.protocols import PROTOCOLS  # with scikit-learn, which most trainings do without

    protocol = PROTOCOLS[settings.preset]
    options = dataclasses.asdict(protocol.options)
    values = {name: options[name] for name in type(settings).model_fields if name in options and name != "seed"}
    values |= {
        "network": protocol.network,
        "image_size": f"{protocol.size[0]}x{protocol.size[1]}",
        "milestones": list(protocol.options.milestones),
        "anomalies": "confetti",
        "moving_statistics": True,
        "normalization": "lcn_min_max" if settings.preset in ("fmnist", "mvtec") else "mean_std",
    }
    return settings.model_copy(
        update={name: value for name, value in values.items() if name not in settings.model_fields_set}
    )


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

    table = _labels.read(settings.labels)
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
    network = networks.build(settings.network, in_channels=channels, image_size=_size(settings))
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
    size, channels = _size(settings), networks.in_channels(settings.network)
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
        options=_options(settings),
        stream=stream,
        loader_processes=(4 if stream or settings.gpu else 0) if processes is None else processes,
        compile=settings.compile,
        checkpoints=storage.normalize(settings.checkpoints or storage.join(settings.bundle, "_checkpoints")),
        keep_checkpoints=settings.keep_checkpoints,
        checkpoint_steps=settings.checkpoint_steps,
        conditions={"data": data_digest, **_recorded(settings)},
    )


def _masked(settings: TrainSettings) -> list[tuple[ObjectInfo, ObjectInfo | None]]:
    """The labelled anomalies, each with its mask if there is a location of masks."""
    if not settings.anomalous:
        return []
    if settings.anomalous.endswith((".csv", ".parquet")):
        from jobs import _labels

        listed = _labels.read_anomalies(settings.anomalous)
        try:
            return [(storage.stat(image), storage.stat(mask) if mask else None) for image, mask in listed]
        except FileNotFoundError as error:
            raise ConfigError(f"{error} does not exist; correct {settings.anomalous}") from error
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


def _options(settings: TrainSettings) -> TrainOptions:
    """Few epochs suffice where the statistics of nominal images do most of the work, and more make it worse."""
    whitened = networks.needs_statistics(settings.network)
    stride = networks.build(
        settings.network, in_channels=networks.in_channels(settings.network), image_size=_size(settings)
    ).receptive_field.stride
    return TrainOptions(
        epochs=settings.epochs or (3 if whitened else 12),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=(0.0 if whitened else 1e-4) if settings.weight_decay is None else settings.weight_decay,
        loss=settings.loss,
        gaussian_std=settings.gaussian_std or stride / 2,
        gaussian_extent=settings.gaussian_extent,
        seed=settings.seed,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        decay=settings.decay,
        milestones=tuple(settings.milestones),
    )


# Where things are and how they are run does not change what is trained.
_NOT_RECORDED = {
    *("config", "preset", "images", "bundle", "checkpoints", "keep_checkpoints", "checkpoint_steps", "overwrite"),
    *("resume", "weights", "workers", "min_workers", "gpu", "memory_gb", "loader_processes", "max_failures", "mlflow"),
    *("compile", "labels", "milestones", "group_pattern", "decide_by_group"),
}


def _recorded(settings: TrainSettings) -> dict[str, Any]:
    """The options that make a training what it is, defaults filled in."""
    options = dataclasses.asdict(_options(settings))
    options["milestones"] = ",".join(map(str, options["milestones"]))
    return {**settings.model_dump(mode="json", exclude=_NOT_RECORDED), **options}


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
    size, channels = _size(settings), networks.in_channels(settings.network)
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
        gaussian_std=_options(settings).gaussian_std,
        gaussian_extent=settings.gaussian_extent,
        score=settings.score,
        calibration=calibration,
        calibrated_on=root,
        training=TrainingRecord(
            images=storage.normalize(settings.images),
            num_training=progress.num_images,
            num_calibration=len(held_out.pixels),
            data_digest=_listing.digest(infos),
            options=_recorded(settings),
            versions={name: metadata.version(name) for name in VERSIONED} | {"python": platform.python_version()},
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
    loaded = _images.load_set(infos, _size(settings), networks.in_channels(settings.network))
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


def _size(settings: TrainSettings) -> tuple[int, int]:
    return height_and_width(settings.image_size)


if __name__ == "__main__":
    _console.leave(main())
