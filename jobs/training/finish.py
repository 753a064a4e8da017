"""The bundle of a finished training: its weights calibrated on the held-out images, measured, and written."""

import numpy as np

from fcdd import checkpoint, detector, networks
from fcdd.bundle import BundleSpec, TrainingRecord
from fcdd.calibration import Calibration
from fcdd.detector import Detector
from fcdd.inference import Runner
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.shell.versions import versions
from jobs.sources import fetching, listing
from jobs.sources.fetching import ImageSet
from jobs.training import measurement, threshold
from jobs.training.prepare import Inputs, LabelledInfo
from jobs.training.settings import TrainSettings, options_of, recorded, size_of

VERSIONED = ("torch", "ray", "numpy", "pillow")


def finish(settings: TrainSettings, inputs: Inputs, held_out: ImageSet, state: bytes) -> Detector:
    """The bundle, with scores of the held-out nominal images, and what belongs beside it."""
    from jobs.training import report

    progress, weights = checkpoint.read_progress(state), checkpoint.network_weights(state)
    size, channels = size_of(settings), networks.in_channels(settings.network)
    network = detector.deserialize(weights, settings.network, channels, size)
    runner = Runner(network, progress.normalization, size)
    scored = detector.summarise(runner(held_out.pixels))
    root = storage.normalize(settings.images)
    nominal = measurement.nominal(scored, settings.score, held_out, inputs.calibration, [root], settings.group_pattern)
    calibration = Calibration.fit(
        nominal, alpha=settings.alpha, group_pattern=settings.group_pattern, decide_by_group=settings.decide_by_group
    )
    threshold.explain(nominal.scores, [inputs.calibration[i].uri for i in held_out.positions], settings.alpha)
    measured = {name: progress.history[-1][name] for name in ("loss", "loss_nominal", "loss_anomalous")}
    if inputs.labelled:
        measured |= _measure(settings, runner, inputs.labelled, calibration.threshold)
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
            images=root,
            num_training=progress.num_images,
            num_calibration=len(held_out.pixels),
            data_digest=listing.digest(inputs.listed),
            options=recorded(settings),
            versions=versions(*VERSIONED),
            metrics=measured,
        ),
        weights_sha256=detector.sha256(weights),
    )
    trained, bundle_uri = Detector(spec, weights), storage.normalize(settings.bundle)
    report.write(bundle_uri, progress.history, trained, held_out.pixels, scored)
    trained.save(bundle_uri)
    if settings.mlflow:
        report.to_mlflow(settings.mlflow, bundle_uri, trained, progress.history)
    return trained


def _measure(
    settings: TrainSettings,
    runner: Runner,
    labelled: list[LabelledInfo],
    at: float,
) -> dict[str, float]:
    """Figures on the labelled images."""
    from fcdd import metrics

    infos = [ObjectInfo(*each[:4]) for each in labelled]
    loaded = fetching.load_set(infos, size_of(settings), networks.in_channels(settings.network))
    scored = detector.summarise(runner(loaded.pixels))
    labels = np.array([each.label for each in labelled], np.int64)[loaded.positions]
    scores = getattr(scored, settings.score).astype(np.float64)
    image = metrics.image_metrics(labels, scores, resamples=0)
    alarms = metrics.threshold_metrics(labels, scores, at, resamples=0)
    return {
        "auroc": image.auroc.value,
        "average_precision": image.average_precision.value,
        **{name: estimate.value for name, estimate in alarms._asdict().items()},
    }
