"""From the options of a training to what every worker gets: which images, whose labels and masks, what weights."""

import itertools
import logging
import math
from datetime import datetime
from typing import NamedTuple

import torch

from fcdd import detector, grouping, leave_one_out, networks, splits, windows
from fcdd.calibration import images_needed, smallest_alpha
from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from fcdd.paper import datasets
from fcdd.training import STATISTICS_IMAGES
from jobs.labels import label_files
from jobs.sources import listing
from jobs.training.settings import TrainSettings, options_of, size_of, view_of
from jobs.training.train_loop import LoopConfig

log = logging.getLogger(__name__)

# A share that is held out should be so many times what the false-alarm rate needs at the least.
_FIRM = 2


class LabelledInfo(NamedTuple):
    """An object and its label: 0 nominal, 1 anomalous."""

    uri: str
    etag: str
    size: int
    last_modified: datetime
    label: int


class Inputs(NamedTuple):
    """The images of a training, as they were listed."""

    # All of the location, which the digest is of.
    listed: list[ObjectInfo]
    training: list[ObjectInfo]
    # Those that are held out; all that are trained on, if each of them is left out of its statistics.
    calibration: list[ObjectInfo]
    is_leave_one_out: bool
    # To measure the finished bundle on.
    labelled: list[LabelledInfo]
    # Known anomalies, each with its mask if it has one.
    anomalous: list[tuple[ObjectInfo, ObjectInfo | None]]
    # Outlier exposure.
    outliers: list[ObjectInfo]


def list_nominal(settings: TrainSettings) -> list[ObjectInfo]:
    """Every image of the location. Raises ConfigError for what are not nominal images alone."""
    images_uri = storage.normalize(settings.images)
    listed = listing.list_images(images_uri)
    _refuse_anomalous(listed, images_uri)
    return listed


def find_inputs(settings: TrainSettings, listed: list[ObjectInfo]) -> Inputs:
    """List everything else, and split the nominal images. Raises ConfigError for what cannot be trained on."""
    images_uri = storage.normalize(settings.images)
    grouping.compile_pattern(settings.group_pattern)
    labelled, anomalous = _labelled(settings), known_anomalies(settings)
    outliers = listing.list_images(storage.normalize(settings.outliers)) if settings.outliers else []
    # Known anomalies, their masks, outliers and images to measure on may lie among the nominal ones; none is nominal.
    not_nominal = {info.uri for info in (*labelled, *outliers, *itertools.chain(*anomalous)) if info is not None}
    usable = [info for info in listed if info.uri not in not_nominal]
    is_leave_one_out = _is_leave_one_out(settings, len(usable))
    training, calibration = (usable, usable) if is_leave_one_out else _split(usable, images_uri, settings)
    return Inputs(listed, training, calibration, is_leave_one_out, labelled, anomalous, outliers)


def _is_leave_one_out(settings: TrainSettings, num_images: int) -> bool:
    """Whether all images calibrate, because a share of them would set the threshold by one single image.

    Raises ConfigError when that is asked for and their features do not fit in memory, or statistics would not be of
    all of them.
    """
    if settings.calibration == "held-out" or not networks.needs_statistics(settings.network):
        return False
    size, channels = size_of(settings), networks.in_channels(settings.network)
    network = networks.build(networks.for_size(settings.network, size), in_channels=channels, image_size=size)
    needed_gb = (leave_one_out.feature_bytes(network, num_images) + num_images * math.prod(size) * channels) / 1e9
    fits = needed_gb <= settings.memory_gb and num_images <= STATISTICS_IMAGES
    if settings.calibration == "leave-one-out" and not fits:
        raise ConfigError(
            f"--calibration leave-one-out is for at most {STATISTICS_IMAGES:,} images whose features fit in memory: "
            f"{num_images:,} take {needed_gb:.2g} GB, --memory-gb is {settings.memory_gb:g}; hold a share out"
        )
    is_few = settings.calibration_share * num_images < _FIRM * images_needed(settings.alpha)
    return fits and (is_few or settings.calibration == "leave-one-out")


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
    usable: list[ObjectInfo], images_uri: str, settings: TrainSettings
) -> tuple[list[ObjectInfo], list[ObjectInfo]]:
    """Training and calibration images, by a hash of the key; copies of calibration images are not trained on."""
    held_out = {
        info.uri: splits.is_held_out(info.uri.removeprefix(images_uri), settings.calibration_share) for info in usable
    }
    calibration = [info for info in usable if held_out[info.uri]]
    known = {(info.etag, info.size) for info in calibration if info.etag}
    training = [info for info in usable if not held_out[info.uri] and (info.etag, info.size) not in known]
    copies = len(usable) - len(calibration) - len(training)
    if copies:
        log.info("%d images are copies of calibration images and not trained on", copies)
    return training, calibration


def check_enough(settings: TrainSettings, inputs: Inputs) -> None:
    """Raises ConfigError with everything that is missing, and what would do."""
    needed, share = images_needed(settings.alpha), settings.calibration_share
    training, calibration = len(inputs.training), len(inputs.calibration)
    if training >= settings.batch_size and calibration >= needed:
        return
    if inputs.is_leave_one_out:
        found = f"{training} nominal images are too few: a batch needs {settings.batch_size}"
        found += f", a false-alarm rate of {settings.alpha:g} {needed}"
        total = max(needed, settings.batch_size)
    else:
        found = f"{training + calibration} nominal images are too few: {training} to train on, where a batch needs "
        found += f"{settings.batch_size}, and {calibration} held out, where a false-alarm rate of {settings.alpha:g} "
        found += f"needs {needed}"
        total = math.ceil(1.1 * max(needed / share, settings.batch_size / (1 - share)))  # the split is by a hash
    instead = [f"--alpha {smallest_alpha(calibration):g}"] if 0 < calibration < needed else []
    instead += [f"--batch-size {max(2, training)}"] if training < settings.batch_size else []
    raise ConfigError(f"{found}; bring about {total}" + (f", or give {' '.join(instead)}" if instead else ""))


def initial_weights(settings: TrainSettings, *, writes: bool = True) -> bytes:
    """The network's weights before the first step. Finds what can be wrong with them and with the places written to.

    `writes`: the location of the bundle is tried by a probe, and an experiment is made in MLflow.
    """
    torch.manual_seed(settings.seed)
    channels = networks.in_channels(settings.network)
    network = networks.build(settings.network, in_channels=channels, image_size=size_of(settings))
    if settings.mlflow and writes:
        from jobs.training import report

        report.connect_mlflow(settings.mlflow)
    if settings.pretrained and networks.is_pretrained(settings.network):
        networks.load_pretrained(network, settings.network, settings.weights)
    if writes:
        storage.check_writable(storage.normalize(settings.bundle))  # last: on a disk it leaves a folder
    return detector.serialize(network)


def loop_config(
    settings: TrainSettings,
    inputs: Inputs,
    held_out: frozenset[str],
    weights: bytes,
    checkpoints: str,
    conditions: dict[str, object],
) -> LoopConfig:
    """What every training process gets; `conditions` are those under which another run may go on with it."""
    size, channels = size_of(settings), networks.in_channels(settings.network)
    decoded_gb = len(inputs.training) * size[0] * size[1] * channels / 1e9
    stream = decoded_gb > settings.memory_gb
    log.info(
        "%d training images are %.1f GB decoded, %s the %g GB of --memory-gb: %s",
        *(len(inputs.training), decoded_gb, "more than" if stream else "within", settings.memory_gb),
        "streamed from the store in every epoch" if stream else "decoded once to every worker's memory",
    )
    moving, processes = settings.moving_statistics, settings.loader_processes
    labelled, masks = unzipped(inputs.anomalous)
    is_in_parts = math.prod(size) > windows.WHOLE_AREA
    if is_in_parts and networks.needs_statistics(settings.network) and settings.augmentation in ("flips", "all"):
        raise ConfigError(
            f"--augmentation {settings.augmentation} mixes positions, which statistics of each position do not allow "
            "on parts of large images; leave it out, or give brightness"
        )
    if is_in_parts and None in masks:
        log.warning(
            "labelled anomalies without a mask are anomalous everywhere: on parts of large images that is wrong for "
            "most parts; give --masks"
        )
    on_gpu = settings.gpu or (settings.num_workers == 0 and torch.cuda.is_available())
    return LoopConfig(
        images=inputs.training,
        held_out=held_out,
        network=settings.network,
        view=view_of(settings),
        initial_weights=weights,
        normalization=settings.normalization,
        moving_statistics=not settings.pretrained if moving is None else moving,
        frozen=settings.freeze_backbone,
        anomalies=settings.anomalies,
        outliers=inputs.outliers,
        outlier_share=settings.outlier_share,
        labelled=labelled,
        masks=masks,
        labelled_share=settings.anomalous_share,
        augmentation=settings.augmentation or ("none" if networks.needs_statistics(settings.network) else "all"),
        options=options_of(settings),
        stream=stream,
        loader_processes=(4 if stream or on_gpu else 0) if processes is None else processes,
        compile=settings.compile,
        checkpoints=checkpoints,
        keep_checkpoints=settings.keep_checkpoints,
        checkpoint_steps=settings.checkpoint_steps,
        conditions=conditions,
    )


def unzipped(
    anomalous: list[tuple[ObjectInfo, ObjectInfo | None]],
) -> tuple[list[ObjectInfo], list[ObjectInfo | None]]:
    """Images, and their masks."""
    return [image for image, _ in anomalous], [mask for _, mask in anomalous]


def known_anomalies(settings: TrainSettings) -> list[tuple[ObjectInfo, ObjectInfo | None]]:
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
