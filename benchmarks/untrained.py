"""A bundle with random weights, for measurements of speed: the arithmetic is that of a trained one."""

import numpy as np
import numpy.typing as npt
import torch

from fcdd import bundle, detector, networks, resizing
from fcdd.bundle import BundleSpec
from fcdd.calibration import STATISTICS, Calibration, Nominal
from fcdd.detector import Detector
from fcdd.inference import Runner
from fcdd.normalization import Normalization
from fcdd.scores import summarise


def scaling(channels: int) -> Normalization:
    """To about -2 to 2."""
    return Normalization(kind="mean_std", shift=(0.5,) * channels, scale=(0.25,) * channels)


def save(network: str, pixels_nhwc: npt.NDArray[np.uint8], uri: str) -> None:
    """Calibrated on these pixels, so that one image in a hundred is anomalous."""
    side, channels = pixels_nhwc.shape[1:3], pixels_nhwc.shape[3]
    network = networks.for_size(network, side)
    torch.manual_seed(0)
    weights = detector.serialize(networks.build(network, in_channels=channels, image_size=side))
    runner = Runner(detector.deserialize(weights, network, channels, side), scaling(channels), side)
    scored = summarise(runner(pixels_nhwc))
    flat, count = np.zeros((len(pixels_nhwc), len(STATISTICS)), np.float32), len(pixels_nhwc)
    nominal = Nominal(scored.mean, scored.maximum, flat, ["PNG"] * count, [""] * count, scored.maps)
    record = bundle.TrainingRecord(
        images="none", num_training=0, num_calibration=count, data_digest="", options={}, versions={}
    )
    spec = BundleSpec(
        network=network,
        channels=channels,
        input_size=side,
        resizer=resizing.fastest(),
        normalization=scaling(channels),
        gaussian_std=max(1.0, side[0] / 20),
        score="mean",
        calibration=Calibration.fit(nominal, alpha=0.01),
        calibrated_on="none",
        training=record,
        weights_sha256=detector.sha256(weights),
    )
    Detector(spec, weights).save(uri)
