"""`fcdd train`: nominal images -> a bundle, data-parallel with Ray Train.

list -> split (training / calibration) -> train -> calibrate -> bundle, written and read back
"""

import dataclasses
import logging
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import AfterValidator, Field

from fcdd import bundle, datasets, detector, networks, splits, storage, supervision
from fcdd.augmentation import Light
from fcdd.bundle import BundleSpec, Score, TrainingRecord
from fcdd.calibration import Calibration, conformal_threshold
from fcdd.detector import Detector
from fcdd.errors import ConfigError, FCDDError
from fcdd.normalization import Kind, Normalization
from fcdd.storage import ObjectInfo
from fcdd.training import TrainOptions
from jobs import _console, _images, _manifest
from jobs._images import ImageSet
from jobs._settings import ImageSize, JobSettings, height_and_width

VERSIONED = ("fcdd-at-scale", "torch", "ray", "numpy", "pillow")

log = logging.getLogger(__name__)


def _known_anomalies(name: str) -> str:
    if name not in supervision.SYNTHETIC:
        raise ValueError(f"choose one of: {', '.join(supervision.SYNTHETIC)}")
    return name


Anomalies = Annotated[str, AfterValidator(_known_anomalies)]


class TrainSettings(JobSettings):
    """Train a detector from nominal images; synthetic anomalies are the anomalous class.

    A share of the images is held out of training to calibrate the threshold. The bundle needs nothing
    else for scoring.
    """

    verb: ClassVar[str] = "train"

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
    workers: int = Field(2, ge=1, description="data-parallel training processes")
    gpu: bool = Field(False, description="one GPU per worker")
    checkpoints: str | None = Field(
        None, description="location shared by all machines for Ray Train's checkpoints; default: a temporary folder"
    )
    overwrite: bool = Field(False, description="replace a bundle that is already at that location")
    seed: int = Field(0, ge=0, description="seed of every random choice")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: train(TrainSettings.parse(argv)))


def train(settings: TrainSettings) -> None:
    """The whole job."""
    images_uri, bundle_uri = storage.normalize(settings.images), storage.normalize(settings.bundle)
    infos = _manifest.list_images(images_uri)
    _refuse_anomalous(infos, images_uri)
    training, calibration = _split(infos, images_uri, settings)
    start = _prepare(settings, bundle_uri, training, calibration)
    log.info("training on %d nominal images, calibrating on %d others", len(training), len(calibration))
    # Read before any worker starts: a prefix of unreadable images is found here.
    held_out = _images.load_set(calibration, _size(settings), networks.in_channels(settings.network))
    conformal_threshold(held_out.brightness, settings.alpha)  # enough of them are readable
    outliers = _manifest.list_images(storage.normalize(settings.outliers)) if settings.outliers else []
    fitted = _fit(settings, training, outliers, start)
    record = TrainingRecord(
        images=images_uri,
        num_training=fitted.num_images,
        num_calibration=len(held_out.pixels),
        data_digest=_manifest.digest(infos),
        options=settings.model_dump(
            mode="json", exclude={"config", "images", "bundle", "checkpoints", "overwrite", "weights"}
        )
        | dataclasses.asdict(fitted.options, dict_factory=_scalars),
        versions={name: metadata.version(name) for name in VERSIONED} | {"python": platform.python_version()},
    )
    spec = _calibrate(settings, fitted, held_out, record)
    trained = Detector(spec, fitted.weights)
    trained.save(bundle_uri)
    if Detector.load(bundle_uri).spec.digest != spec.digest:
        raise ConfigError(f"{bundle_uri} was overwritten while it was being written; train again")
    print(f"bundle     {bundle_uri}\ndigest     {spec.digest}")
    print(f"threshold  {spec.calibration.threshold:.6g} for a false-alarm rate of {settings.alpha:g}")


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


def _split(
    infos: list[ObjectInfo], images_uri: str, settings: TrainSettings
) -> tuple[list[ObjectInfo], list[ObjectInfo]]:
    held_out = [splits.is_held_out(info.uri.removeprefix(images_uri), settings.calibration_share) for info in infos]
    return (
        [info for info, out in zip(infos, held_out, strict=True) if not out],
        [info for info, out in zip(infos, held_out, strict=True) if out],
    )


class Start(NamedTuple):
    """The network's initial weights, and the spread of one map cell in the heatmap in input pixels."""

    weights: bytes
    gaussian_std: float


def _prepare(
    settings: TrainSettings, bundle_uri: str, training: list[ObjectInfo], calibration: list[ObjectInfo]
) -> Start:
    """Find everything that can be wrong before any worker starts."""
    torch.manual_seed(settings.seed)
    channels = networks.in_channels(settings.network)
    network = networks.build(settings.network, in_channels=channels, image_size=_size(settings))
    if settings.batch_size % settings.workers:
        raise ConfigError(
            f"a global batch of {settings.batch_size} does not divide among {settings.workers} workers; change one"
        )
    if len(training) < settings.batch_size:
        raise ConfigError(f"a batch of {settings.batch_size} needs as many training images, got {len(training)}")
    conformal_threshold(torch.zeros(len(calibration)).numpy(), settings.alpha)
    if storage.exists(storage.join(bundle_uri, bundle.SPEC_FILE)) and not settings.overwrite:
        raise ConfigError(f"there is a bundle at {bundle_uri}, and runs may name it; choose another or add --overwrite")
    storage.check_writable(bundle_uri)
    if settings.pretrained and networks.is_pretrained(settings.network):
        networks.load_pretrained(network, settings.network, settings.weights)
    std = settings.gaussian_std or network.receptive_field.stride / 2
    return Start(detector.serialize(network), std)


class TrainingFailed(FCDDError):
    """A worker raised: the message is its last line."""


class Fitted(NamedTuple):
    """The last epoch's weights, what belongs to them, and how many images were readable."""

    options: TrainOptions

    weights: bytes
    normalization: Normalization
    num_images: int


def _fit(settings: TrainSettings, training: list[ObjectInfo], outliers: list[ObjectInfo], start: Start) -> Fitted:
    """Train with Ray Train."""
    # Imported late: a wrong option is answered in a second, not after five of Ray's import.
    import ray.train
    from ray.train.torch import TorchTrainer

    from jobs import _ray, _train_loop

    options = _options(settings, start)
    whitened = _whitened(settings)
    began = time.perf_counter()
    with (
        _ray.session(cpus=settings.workers + 1, gpus=settings.workers if settings.gpu else 0),
        _ray.worker_logs() as logs,
        tempfile.TemporaryDirectory() as folder,
    ):
        trainer = TorchTrainer(
            _train_loop.train_worker,
            train_loop_config={
                "loop": _train_loop.LoopConfig(
                    images=training,
                    network=settings.network,
                    channels=networks.in_channels(settings.network),
                    input_size=_size(settings),
                    initial_weights=start.weights,
                    normalization=settings.normalization,
                    moving_statistics=(
                        not settings.pretrained if settings.moving_statistics is None else settings.moving_statistics
                    ),
                    frozen=settings.freeze_backbone,
                    anomalies=settings.anomalies,
                    outliers=outliers,
                    outlier_share=settings.outlier_share,
                    augmentation=settings.augmentation or ("none" if whitened else "all"),
                    options=options,
                    logs=logs,
                )
            },
            scaling_config=ray.train.ScalingConfig(num_workers=settings.workers, use_gpu=settings.gpu),
            run_config=ray.train.RunConfig(
                storage_path=settings.checkpoints or folder,
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {})
            reason = next(iter(failures.values()), error)
            raise TrainingFailed(f"training failed: {str(reason).strip().splitlines()[-1]}") from error
        except SystemExit as error:  # what Ray Train makes of Ctrl-C
            raise KeyboardInterrupt from error
        assert result.checkpoint is not None
        with result.checkpoint.as_directory() as checkpoint:
            weights = Path(checkpoint, _train_loop.WEIGHTS_FILE).read_bytes()
            scaling = Normalization.model_validate_json(Path(checkpoint, _train_loop.NORMALIZATION_FILE).read_text())
    log.info("trained in %.0f s, Ray's start and stop included", time.perf_counter() - began)
    assert result.metrics is not None
    return Fitted(options, weights, scaling, int(result.metrics["num_images"]))


def _options(settings: TrainSettings, start: Start) -> TrainOptions:
    """Few epochs suffice where the statistics of nominal images do most of the work, and more make it worse."""
    whitened = _whitened(settings)
    return TrainOptions(
        epochs=settings.epochs or (3 if whitened else 12),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=(0.0 if whitened else 1e-4) if settings.weight_decay is None else settings.weight_decay,
        loss=settings.loss,
        gaussian_std=start.gaussian_std,
        gaussian_extent=settings.gaussian_extent,
        seed=settings.seed,
    )


def _size(settings: TrainSettings) -> tuple[int, int]:
    return height_and_width(settings.image_size)


def _whitened(settings: TrainSettings) -> bool:
    parts = networks.parse(settings.network)
    return parts is not None and parts.kind == networks.WHITENED


def _scalars(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if isinstance(value, str | int | float | None)}


def _calibrate(
    settings: TrainSettings,
    fitted: Fitted,
    held_out: ImageSet,
    record: TrainingRecord,
) -> BundleSpec:
    """The bundle's specification, with scores of the held-out nominal images."""
    size, channels = _size(settings), networks.in_channels(settings.network)
    network = detector.for_inference(detector.deserialize(fitted.weights, settings.network, channels, size))
    scored = detector.score_pixels(network, fitted.normalization, held_out.pixels)
    return BundleSpec(
        network=settings.network,
        channels=channels,
        input_size=size,
        normalization=fitted.normalization,
        gaussian_std=fitted.options.gaussian_std,
        gaussian_extent=settings.gaussian_extent,
        score=settings.score,
        calibration=Calibration.fit(
            getattr(scored, settings.score),
            scored.maximum,
            held_out.brightness,
            held_out.contrast,
            alpha=settings.alpha,
        ),
        training=record,
        weights_sha256=detector.sha256(fitted.weights),
    )


if __name__ == "__main__":
    sys.exit(main())
