"""The options of `fcdd train`, and what they mean to the training."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field

from fcdd import networks, resizing, supervision
from fcdd.augmentation import Light
from fcdd.calibration import Score
from fcdd.cropping import Crop
from fcdd.images import View
from fcdd.normalization import Kind
from fcdd.resizing import Resizer
from fcdd.training import TrainOptions
from jobs.shell.settings import ImageSize, JobSettings, height_and_width


def _known_anomalies(name: str) -> str:
    if name not in supervision.SYNTHETIC:
        raise ValueError(f"choose one of: {', '.join(supervision.SYNTHETIC)}")
    return name


Anomalies = Annotated[str, AfterValidator(_known_anomalies)]


_WORKERS_ON_RAY = 2


class TrainSettings(JobSettings):
    """Train a detector from nominal images; synthetic anomalies are the anomalous class.

    A share of the images is held out of training to calibrate the threshold, or, of few images, each is left out in
    turn. The bundle needs nothing else for scoring.
    """

    verb: ClassVar[str] = "train"
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "network": (
            *(
                "network",
                "image_size",
                "smallest_defect",
                "crop",
                "ignore",
                "full_scale",
                "resizer",
                "pretrained",
                "weights",
                "moving_statistics",
            ),
            *("freeze_backbone", "normalization", "score", "gaussian_std", "gaussian_extent"),
        ),
        "anomalies to learn from, and images to measure on": (
            *("anomalies", "outliers", "outlier_share", "anomalous", "masks", "anomalous_share", "labels"),
        ),
        "threshold": ("calibration", "calibration_share", "alpha", "group_pattern", "decide_by_group"),
        "optimisation": (
            *("preset", "epochs", "batch_size", "learning_rate", "weight_decay", "optimizer", "schedule", "decay"),
            *("milestones", "loss", "augmentation", "seed"),
        ),
        "machines": (
            *("workers", "min_workers", "gpu", "cluster_wait_s", "memory_gb", "loader_processes", "compile"),
            "max_failures",
        ),
        "checkpoints": ("resume", "overwrite", "checkpoints", "keep_checkpoints", "checkpoint_steps"),
    }

    preset: Literal["fmnist", "cifar10", "imagenet30", "mvtec", "voc", "custom"] | None = Field(
        None,
        description="network, optimiser, schedule, loss and anomalies as published for that data set, where no option "
        "says otherwise; without it, our recommended ones",
    )
    images: str = Field(description="location of nominal images (s3://, gs://, az:// or a folder)")
    bundle: str = Field(description="location to write the bundle to")
    network: str = Field(
        "whitened:efficientnet_lite0",
        description="architecture; a name that is not known lists them all. Product variants under one camera are "
        "counted; :1, :2 or :3 behind the default says how many, :anywhere is for endless material (sheet, web). "
        "It becomes the longer name that fits the images",
    )
    image_size: ImageSize | None = Field(
        None,
        description="of the network's input: pixels, or HEIGHTxWIDTH; default: the shape of the images, small ones as "
        "they are, those of more than 256x320 pixels scaled to the area of 224x224 (networks without a trunk: 224)",
    )
    crop: Annotated[str, AfterValidator(Crop.checked)] | None = Field(
        None,
        description="left, top, width and height of the part of each image that is looked at, in pixels, or with % for "
        "images of several sizes, as in 10%,0%,80%,100%",
    )
    smallest_defect: float | None = Field(
        None,
        gt=0,
        description="diameter of the smallest defect to be found, in pixels of the images: the input is made so large "
        "that it has 8 (docs/resolution.md)",
    )
    ignore: str | None = Field(
        None,
        description="location of a mask of the images' size, or of JSON of labelme with polygons and rectangles: "
        "what is white or inside does not count, in maps, scores and regions",
    )
    full_scale: float | None = Field(
        None,
        gt=0,
        description="value that is white in files of 16 bits, such as 4095, or 1.0 of floating-point ones; "
        "default: that of 10, 12, 14 or 16 bits, by the largest values of the images",
    )
    resizer: Resizer | None = Field(
        None,
        description="what makes images as small as the input: cykooz (six times as fast), or pillow for bundles that "
        "are to be used on Linux with ARM, too; default: cykooz where it is installed",
    )
    pretrained: bool = Field(True, description="start trunks, vgg and vgg_f from their ImageNet weights")
    weights: Path | None = Field(None, description="file with torchvision's weights of the trunk, not a download")
    moving_statistics: bool | None = Field(
        None, description="let batch-norms of trunks follow the batch (official vgg_f); default: if not pretrained"
    )
    freeze_backbone: bool = Field(False, description="train the head alone; whitened trunks are always frozen")
    normalization: Kind = Field("mean_std", description="of the input; trunks with ImageNet weights keep their own")
    score: Score | None = Field(
        None,
        description="of an image by its map: maximum, mean of the top 1 %, or mean (the paper's, and that of presets); "
        "default: the maximum, unless another finds significantly more synthetic anomalies of kinds not trained on",
    )
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
        "defects",
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
    calibration: Literal["auto", "held-out", "leave-one-out"] = Field(
        "auto",
        description="what the threshold comes from: images that are held out, or, for whitened networks, all images, "
        "each scored by statistics that did not see it; default: leave-one-out where a share would be too few",
    )
    calibration_share: float = Field(0.2, gt=0, lt=1, description="share of images that is held out")
    alpha: float = Field(0.01, gt=0, lt=1, description="false-alarm rate that the threshold promises")
    group_pattern: str | None = Field(
        None,
        description="regular expression whose first group names an image's camera; default: the first folder below "
        "--images. Drift is told by group",
    )
    decide_by_group: bool = Field(False, description="p-values and thresholds by group, where groups are large enough")
    workers: int | None = Field(
        None,
        ge=0,
        description="data-parallel training processes of Ray Train; 0: this process, without Ray; default: one for "
        "each GPU with --gpu, 2 on a cluster, else 0, which is as fast on the CPUs of one machine and starts at once",
    )
    min_workers: int | None = Field(
        None, ge=1, description="go on with so many workers when nodes are lost, and with more when they are back"
    )
    gpu: bool = Field(False, description="one GPU per worker; the network then computes in bfloat16")
    cluster_wait_s: float = Field(
        0,
        ge=0,
        description="the cluster grows by itself: wait so long for the machines of --workers, or of --min-workers",
    )
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
    dry_run: bool = Field(
        False, description="list, check, and say what would be trained and what is missing; write nothing"
    )

    @property
    def num_workers(self) -> int:
        """Training processes of Ray Train; 0: this process."""
        if self.workers is not None:
            return self.workers
        on_cluster = bool(os.environ.get("RAY_ADDRESS"))
        if not (on_cluster or self.gpu or self.cluster_wait_s or self.min_workers):
            return 0
        usual = torch.cuda.device_count() if self.gpu and not on_cluster else 0
        return max(usual or _WORKERS_ON_RAY, self.min_workers or 0)


def with_preset(settings: TrainSettings) -> TrainSettings:
    """The published values of a preset for every option that was not given."""
    if settings.preset is None:
        return settings
    from fcdd.paper.protocols import PROTOCOLS  # with scikit-learn, which most trainings do without

    protocol = PROTOCOLS[settings.preset]
    options = dataclasses.asdict(protocol.options)
    values = {name: options[name] for name in type(settings).model_fields if name in options and name != "seed"}
    values |= {
        "network": protocol.network,
        "image_size": f"{protocol.size[0]}x{protocol.size[1]}",
        "milestones": list(protocol.options.milestones),
        "anomalies": "confetti",
        "moving_statistics": True,
        "resizer": "pillow",
        "score": "mean",
        "normalization": "lcn_min_max" if settings.preset in ("fmnist", "mvtec") else "mean_std",
    }
    return settings.model_copy(
        update={name: value for name, value in values.items() if name not in settings.model_fields_set}
    )


def options_of(settings: TrainSettings) -> TrainOptions:
    """Few epochs suffice where the statistics of nominal images do most of the work, and more make it worse."""
    whitened = networks.needs_statistics(settings.network)
    stride = networks.geometry(settings.network, size_of(settings)).stride
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
    "cluster_wait_s",
    *("compile", "labels", "milestones", "group_pattern", "decide_by_group", "dry_run"),
}


def recorded(settings: TrainSettings) -> dict[str, Any]:
    """The options that make a training what it is, defaults filled in."""
    options = dataclasses.asdict(options_of(settings))
    options["milestones"] = ",".join(map(str, options["milestones"]))
    options["resizer"] = view_of(settings).resizer
    return {**settings.model_dump(mode="json", exclude=_NOT_RECORDED), **options}


def size_of(settings: TrainSettings) -> tuple[int, int]:
    """Height and width of the network's input, once it is chosen."""
    assert settings.image_size is not None, "chosen by the options or the images"
    return height_and_width(settings.image_size)


def view_of(settings: TrainSettings) -> View:
    """How images are decoded, once that is chosen."""
    seen = (settings.full_scale, crop_of(settings), settings.resizer or resizing.fastest())
    return View(size_of(settings), networks.in_channels(settings.network), *seen)


def crop_of(settings: TrainSettings) -> Crop | None:
    """The part of each image that is looked at."""
    return Crop.parse(settings.crop) if settings.crop else None
