"""An untrained detector that is small and the same every time."""

import numpy as np
import torch

from fcdd import detector, networks
from fcdd.bundle import BundleSpec, TrainingRecord
from fcdd.calibration import Calibration
from fcdd.detector import Detector
from fcdd.normalization import Normalization
from tests.nominal import nominal


def make(weights: bytes | None = None, **changes: object) -> Detector:
    torch.manual_seed(0)
    network = networks.build("cnn32_s", in_channels=3, image_size=(32, 48))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics as after training, so that folding matters
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    weights = weights or detector.serialize(network)
    fields: dict[str, object] = {
        "network": "cnn32_s",
        "channels": 3,
        "input_size": (32, 48),
        "normalization": Normalization(kind="mean_std", shift=(0.5,) * 3, scale=(0.25,) * 3),
        "gaussian_std": 2.0,
        "calibration": Calibration.fit(nominal(np.linspace(0, 1, 200)), alpha=0.01),
        "calibrated_on": "s3://x",
        "training": TrainingRecord(
            images="s3://x", num_training=1, num_calibration=1, data_digest="0", options={}, versions={}
        ),
        "weights_sha256": detector.sha256(weights),
    }
    return Detector(BundleSpec(**(fields | changes)), weights)  # type: ignore[arg-type]
