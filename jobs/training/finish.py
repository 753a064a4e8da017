"""The bundle of a finished training: its weights calibrated on the held-out images, measured, and written."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from fcdd import checkpoint, detector, networks, sample, supervision
from fcdd.bundle import BundleSpec, TrainingRecord
from fcdd.calibration import Calibration, Score
from fcdd.detector import Detector
from fcdd.inference import Runner
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.scores import Scored, summarise
from jobs.calibration import evidence, measurement, threshold
from jobs.calibration.evidence import Evidence
from jobs.shell.versions import versions
from jobs.sources import fetching, listing
from jobs.sources.fetching import ImageSet
from jobs.timing.stopwatch import Stopwatch
from jobs.training import page
from jobs.training.prepare import Inputs, LabelledInfo
from jobs.training.settings import TrainSettings, options_of, recorded, size_of, view_of

Mask = npt.NDArray[np.bool_]
VERSIONED = ("torch", "ray", "numpy", "pillow")


def finish(
    settings: TrainSettings,
    inputs: Inputs,
    calibrating: ImageSet,
    state: bytes,
    watch: Stopwatch,
    ignored: Mask | None,
    known: Mapping[int, torch.Tensor],
) -> Detector:
    """The bundle, calibrated on the images that were held out (or left out), and what belongs beside it.

    `ignored` are cells of the map (U,V) that do not count, `known` the components of training images by their numbers,
    where this process has them.
    """
    from jobs.training import report

    progress, weights = checkpoint.read_progress(state), checkpoint.network_weights(state)
    size, channels = size_of(settings), networks.in_channels(settings.network)
    with watch.measure("calibration"):
        trained_network = detector.deserialize(weights, settings.network, channels, size)
        found = _evidence(settings, inputs, calibrating, trained_network, progress.normalization, ignored, known)
    choice = found.choose(settings.alpha)
    score = settings.score or choice.score
    uris = [inputs.calibration[position].uri for position in calibrating.positions]
    calibration = _calibration(settings, inputs, calibrating, found.nominal, score)
    threshold.explain(getattr(found.nominal, score), found.nominal.maximum, uris, calibration.threshold)
    evidence.tell(choice, settings.score, found.found(score, calibration.threshold), settings.alpha)
    measured = {name: progress.history[-1][name] for name in ("loss", "loss_nominal", "loss_anomalous")}
    measured |= evidence.figures(choice, score)
    if inputs.labelled:
        runner = Runner(detector.deserialize(weights, settings.network, channels, size), progress.normalization, size)
        measured |= _measure(settings, score, runner, inputs.labelled, calibration.threshold, ignored)
    kept = _sample(found, calibrating, score, trained_network, progress.normalization, ignored)
    record = _record(settings, inputs, progress.num_images, len(calibrating.pixels), measured)
    spec = BundleSpec(
        network=settings.network,
        channels=channels,
        input_size=size,
        full_scale=settings.full_scale,
        crop=settings.crop,
        resizer=view_of(settings).resizer,
        ignored=() if ignored is None else tuple("".join("01"[cell] for cell in row) for row in ignored.tolist()),
        normalization=progress.normalization,
        gaussian_std=options_of(settings).gaussian_std,
        gaussian_extent=settings.gaussian_extent,
        score=score,
        calibration=calibration,
        calibrated_on=record.images,
        training=record,
        weights_sha256=detector.sha256(weights),
        sample_sha256=detector.sha256(kept) if kept else None,
    )
    trained, bundle_uri = Detector(spec, weights, sample=kept), storage.normalize(settings.bundle)
    shown = page.build(trained, found, calibrating.pixels, uris, progress.history, watch.seconds)
    report.write(bundle_uri, progress.history, shown)
    trained.save(bundle_uri)
    if settings.mlflow:
        report.to_mlflow(settings.mlflow, bundle_uri, trained, progress.history)
    return trained


def _sample(
    found: Evidence,
    calibrating: ImageSet,
    score: Score,
    network: FCDDNetwork,
    scaling: Normalization,
    ignored: Mask | None,
) -> bytes | None:
    """What the bundle keeps to compare other precisions and machines with: by the reference, torch on a CPU."""
    runner = Runner(network, scaling, calibrating.pixels.shape[1:3], gpu=False)
    scores = getattr(found.nominal, score)
    taken = sample.take(calibrating.pixels, scores, found.pictures, lambda pixels: summarise(runner(pixels), ignored))
    return taken.to_bytes() if taken else None


def _evidence(
    settings: TrainSettings,
    inputs: Inputs,
    calibrating: ImageSet,
    network: FCDDNetwork,
    scaling: Normalization,
    ignored: Mask | None,
    known: Mapping[int, torch.Tensor],
) -> Evidence:
    return evidence.measure(
        *(network, scaling, calibrating.pixels, supervision.SYNTHETIC[settings.anomalies]),
        is_leave_one_out=inputs.is_leave_one_out,
        seed=settings.seed,
        ignored=ignored,
        known=_of_calibration(known, inputs, calibrating),
    )


def _of_calibration(
    known: Mapping[int, torch.Tensor], inputs: Inputs, calibrating: ImageSet
) -> dict[int, torch.Tensor]:
    """By positions among the calibration images, where these are what was trained on."""
    if not inputs.is_leave_one_out:
        return {}
    numbers = enumerate(calibrating.positions.tolist())
    return {position: known[number] for position, number in numbers if number in known}


def _record(
    settings: TrainSettings, inputs: Inputs, num_training: int, num_calibration: int, measured: dict[str, float]
) -> TrainingRecord:
    return TrainingRecord(
        images=storage.normalize(settings.images),
        num_training=num_training,
        num_calibration=num_calibration,
        data_digest=listing.digest(inputs.listed),
        options=recorded(settings),
        versions=versions(*VERSIONED),
        metrics=measured,
    )


def _calibration(
    settings: TrainSettings, inputs: Inputs, images: ImageSet, scored: Scored, score: Score
) -> Calibration:
    root = storage.normalize(settings.images)
    return Calibration.fit(
        measurement.nominal(scored, score, images, inputs.calibration, [root], settings.group_pattern),
        alpha=settings.alpha,
        group_pattern=settings.group_pattern,
        decide_by_group=settings.decide_by_group,
        is_leave_one_out=inputs.is_leave_one_out,
    )


def _measure(
    settings: TrainSettings,
    score: Score,
    runner: Runner,
    labelled: list[LabelledInfo],
    at: float,
    ignored: Mask | None,
) -> dict[str, float]:
    """Figures on the labelled images."""
    from fcdd import metrics

    infos = [ObjectInfo(*each[:4]) for each in labelled]
    loaded = fetching.load_set(infos, view_of(settings))
    scored = summarise(runner(loaded.pixels), ignored)
    labels = np.array([each.label for each in labelled], np.int64)[loaded.positions]
    scores = getattr(scored, score).astype(np.float64)
    image = metrics.image_metrics(labels, scores, resamples=0)
    alarms = metrics.threshold_metrics(labels, scores, at, resamples=0)
    return {
        "auroc": image.auroc.value,
        "average_precision": image.average_precision.value,
        **{name: estimate.value for name, estimate in alarms._asdict().items()},
    }
