"""What can be wrong with the options of `fcdd train`, found before anything is listed, read or decoded."""

import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from fcdd import bundle, checkpoint, networks, resizing
from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.labels import label_files
from jobs.training.checkpoints import Checkpoints
from jobs.training.settings import TrainSettings, recorded

log = logging.getLogger(__name__)


def check_options(settings: TrainSettings) -> None:
    """Raises ConfigError for an unknown network, and for options that contradict each other."""
    networks.check_name(settings.network)
    resizing.check(settings.resizer or "pillow")
    if settings.calibration == "leave-one-out" and not networks.needs_statistics(settings.network):
        raise ConfigError(
            f"--calibration leave-one-out is for networks on whitened features, whose statistics leave an image out; "
            f"{settings.network} has none: hold a share out"
        )
    if settings.num_workers and settings.batch_size % settings.num_workers:
        raise ConfigError(
            f"a global batch of {settings.batch_size} does not divide among {settings.num_workers} workers; change one"
        )
    if (settings.min_workers or 0) > settings.num_workers:
        most = settings.num_workers
        raise ConfigError(f"expected at most {most} workers as --min-workers, got {settings.min_workers}")
    if settings.masks and not settings.anomalous:
        raise ConfigError("--masks are those of the images of --anomalous: give both")
    if settings.masks and settings.anomalous and label_files.is_file(settings.anomalous):
        raise ConfigError(f"--masks belong to a location of images; {settings.anomalous} names its masks as mask_uri")


def warn_of_ignored_options(given: AbstractSet[str], settings: TrainSettings) -> None:
    """A warning for each of the `given` options that has no effect beside the others; presets are filled in."""
    for option, reason in _not_taken(settings).items():
        if option in given:
            log.warning("--%s is not taken: %s", option.replace("_", "-"), reason)
    if settings.preset is not None:
        log.info(
            "of the preset, network, input size, optimiser, schedule, loss and score are taken; its repeated passes, "
            "augmentation and outliers are not: `fcdd reproduce %s` repeats the published experiment",
            settings.preset,
        )


def _not_taken(settings: TrainSettings) -> dict[str, str]:
    """Options without an effect beside the others, and why."""
    network = settings.network
    is_trunk = networks.parse(network) is not None
    rules = {
        "outlier_share": (not settings.outliers, "there are no --outliers"),
        "anomalous_share": (not settings.anomalous, "there are no --anomalous"),
        "masks": (settings.loss == "image", "--loss image looks at whole images"),
        "decay": (settings.schedule == "one_cycle", "--schedule one_cycle has no decay"),
        "milestones": (settings.schedule != "milestones", "they belong to --schedule milestones"),
        "pretrained": (
            settings.pretrained and not networks.is_pretrained(network),
            f"there are no ImageNet weights of {network}",
        ),
        "weights": (
            not (settings.pretrained and networks.is_pretrained(network)),
            f"this training of {network} starts from no ImageNet weights",
        ),
        "normalization": (is_trunk, f"{network} keeps that of its ImageNet weights"),
        "moving_statistics": (
            networks.needs_statistics(network) or not (is_trunk or network == "vgg_f"),
            f"{network} has no batch-norms that could be kept",
        ),
        "freeze_backbone": (
            settings.freeze_backbone and not is_trunk,
            f"{network} has no backbone",
        ),
        "smallest_defect": (settings.image_size is not None or not is_trunk, "--image-size decides"),
        **dict.fromkeys(("gpu", "max_failures", "cluster_wait_s"), (settings.num_workers == 0, _ALONE)),
    }
    return {option: reason for option, (holds, reason) in rules.items() if holds}


_ALONE = "one process trains without Ray, and takes a GPU if there is one (--workers N is Ray's)"


def check_places(settings: TrainSettings, store: Checkpoints) -> None:
    """Raises ConfigError when the bundle would lie among the images, or something is there that must stay."""
    images_uri, bundle_uri = storage.normalize(settings.images), storage.normalize(settings.bundle)
    if bundle_uri == images_uri:
        raise ConfigError(f"--bundle is the location of the images, {images_uri}; give one of its own")
    if not settings.overwrite and storage.exists(storage.join(bundle_uri, bundle.SPEC_FILE)):
        raise ConfigError(f"there is a bundle at {bundle_uri}, and runs may name it; choose another or add --overwrite")
    if not settings.overwrite and not settings.resume and store.list():
        raise ConfigError(
            f"there are checkpoints of an unfinished training at {store.location}; add --resume to go on with it, or "
            "--overwrite to start anew"
        )


def conditions(settings: TrainSettings, data_digest: str) -> dict[str, object]:
    """What a checkpoint must agree with to be continued."""
    return {"data": data_digest, **recorded(settings)}


def check_resumable(settings: TrainSettings, store: Checkpoints, now: dict[str, object]) -> None:
    """Raises ConfigError when a training is to be resumed and its checkpoints are of another one than `now`."""
    if not settings.resume:
        return
    found = store.latest()
    if found is None:
        log.info("there is no checkpoint at %s: training from the start", store.location)
        return
    # Trainings of before resized by Pillow, and did not say so.
    before = {"resizer": "pillow", **checkpoint.read_progress(found[0]).conditions}
    if other := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
        raise ConfigError(
            f"the checkpoints at {store.location} are of another training: {_told(other, before, now)}; give the same "
            "options and images, or --overwrite without --resume"
        )


def _told(other: Sequence[str], before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """What differs, with its values where that is little."""
    if len(other) > _FEW:
        return f"{', '.join(other)} differ"
    return ", ".join(
        "the images differ" if name == "data" else f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in other
    )


_FEW = 3
