"""How well scores separate labelled images; the arithmetic is scikit-learn's."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from fcdd.errors import ConfigError


class ImageMetrics(NamedTuple):
    """AUROC and average precision of image scores, with a 95 % bootstrap interval of the AUROC."""

    auroc: float
    auroc_low: float
    auroc_high: float
    average_precision: float
    num_nominal: int
    num_anomalous: int


def image_metrics(
    labels: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], *, resamples: int = 500, seed: int = 0
) -> ImageMetrics:
    """Metrics of (N,) scores against labels 0 nominal / 1 anomalous, resampled within each class.

    Without resamples the interval is NaN. Raises ConfigError unless both classes occur.
    """
    nominal, anomalous = scores[labels == 0], scores[labels == 1]
    if not len(nominal) or not len(anomalous):
        raise ConfigError(f"AUROC needs both classes, got {len(nominal)} nominal and {len(anomalous)} anomalous images")
    generator = np.random.default_rng(seed)
    ordered = np.concatenate((np.zeros(len(nominal)), np.ones(len(anomalous))))
    draws = [
        roc_auc_score(ordered, np.concatenate([generator.choice(c, len(c)) for c in (nominal, anomalous)]))
        for _ in range(resamples)
    ]
    low, high = np.quantile(draws, (0.025, 0.975)) if draws else (np.nan, np.nan)
    return ImageMetrics(
        auroc=float(roc_auc_score(labels, scores)),
        auroc_low=float(low),
        auroc_high=float(high),
        average_precision=float(average_precision_score(labels, scores)),
        num_nominal=len(nominal),
        num_anomalous=len(anomalous),
    )
