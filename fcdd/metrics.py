"""How well scores and maps separate labelled images; scikit-learn's and SciPy's arithmetic where there is one.

Pixel metrics read one image at a time and keep counts only, so their memory does not grow with the number of images:
values are counted in bins whose edges are those of a float32 cut to its upper 20 bits (relative width 0.05 %).
Confidence intervals are 95 % bootstrap intervals over images, for pixel metrics by Poisson weights in the same pass, in
coarser bins.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats
from sklearn.metrics import auc, average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from fcdd.errors import ConfigError

Floats = npt.NDArray[np.float64]
Metric = Callable[..., float]
LEVEL = 0.95
AUPRO_LIMIT = 0.3
# Bits left of a non-negative float32, without the sign: for the value, and for its resamples.
_FINE, _COARSE = 19, 15


class Estimate(NamedTuple):
    """A value with the limits of its 95 % bootstrap interval; NaN limits when there were no resamples."""

    value: float
    low: float
    high: float


class ImageMetrics(NamedTuple):
    """AUROC and average precision of image scores."""

    auroc: Estimate
    average_precision: Estimate
    num_nominal: int
    num_anomalous: int


class ThresholdMetrics(NamedTuple):
    """Precision, recall and F1 of the alarms above a threshold."""

    precision: Estimate
    recall: Estimate
    f1: Estimate


class PixelMetricsResult(NamedTuple):
    """Pixel AUROC, and the normalised area under the per-region-overlap curve up to 30 % false positives."""

    auroc: Estimate
    aupro: Estimate
    num_images: int
    num_regions: int


def image_metrics(
    labels: npt.NDArray[np.int64], scores: Floats, *, resamples: int = 500, seed: int = 0
) -> ImageMetrics:
    """Metrics of (N,) scores against labels 0 nominal / 1 anomalous, resampled within each class.

    Raises ConfigError unless both classes occur, for other labels, or for scores that are not finite.
    """
    nominal, anomalous = by_label(labels, scores)
    auroc, precision = (
        _estimate(nominal, anomalous, metric, resamples, seed) for metric in (roc_auc_score, average_precision_score)
    )
    return ImageMetrics(auroc, precision, len(nominal), len(anomalous))


def threshold_metrics(
    labels: npt.NDArray[np.int64], scores: Floats, threshold: float, *, resamples: int = 500, seed: int = 0
) -> ThresholdMetrics:
    """Precision, recall and F1 of "score > threshold"; precision is 0 where nothing is alarmed. Errors as above."""
    nominal, anomalous = by_label(labels, scores)
    metrics = (precision_score, recall_score, f1_score)
    return ThresholdMetrics(
        *(
            _estimate(nominal, anomalous, functools.partial(_of_alarms, metric, threshold), resamples, seed)
            for metric in metrics
        )
    )


def _of_alarms(metric: Metric, threshold: float, labels: npt.NDArray[np.int64], scores: Floats) -> float:
    return metric(labels, scores > threshold, zero_division=0)


def by_label(labels: npt.NDArray[np.int64], scores: Floats) -> tuple[Floats, Floats]:
    """Scores of the nominal and of the anomalous images; ConfigError unless both occur and all is finite."""
    if labels.shape != scores.shape:
        raise ConfigError(f"expected one label per score, got {len(labels)} labels and {len(scores)} scores")
    wrong = sorted(set(np.unique(labels).tolist()) - {0, 1})
    if wrong:
        raise ConfigError(f"expected labels 0 (nominal) and 1 (anomalous), got {wrong}")
    if not np.isfinite(scores).all():
        raise ConfigError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    nominal, anomalous = scores[labels == 0], scores[labels == 1]
    if not len(nominal) or not len(anomalous):
        raise ConfigError(f"AUROC needs both classes, got {len(nominal)} nominal and {len(anomalous)} anomalous images")
    return nominal, anomalous


def _estimate(nominal: Floats, anomalous: Floats, metric: Metric, resamples: int, seed: int) -> Estimate:
    """The metric, and its interval by resampling within each class; NaN limits for a class of one image."""

    def statistic(nominal: Floats, anomalous: Floats) -> float:
        labels = np.repeat([0, 1], [len(nominal), len(anomalous)])
        return metric(labels, np.concatenate((nominal, anomalous)))

    value = float(statistic(nominal, anomalous))
    if not resamples or min(len(nominal), len(anomalous)) < 2:
        return Estimate(value, np.nan, np.nan)
    interval = stats.bootstrap(
        (nominal, anomalous), statistic, n_resamples=resamples, vectorized=False, method="percentile", rng=seed
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


class PixelMetrics:
    """Pixel AUROC and AUPRO of heatmaps, image by image.

    A region is an 8-connected part of a mask; the overlap of a threshold is the mean, over regions, of the share of
    its pixels above the threshold (Bergmann et al., MVTec AD, IJCV 2021).
    """

    def __init__(self, *, resamples: int = 100, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        # By kind of pixel: nominal, anomalous, anomalous weighted by 1 / size of its region.
        self._fine = np.zeros((3, 1, 1 << _FINE))
        # The first row counts every image once; the others by Poisson weights, which resample images as they come.
        self._coarse = np.zeros((3, 1 + resamples, 1 << _COARSE))
        self._num_images = self._num_regions = 0

    def add(self, heatmap_hw: npt.NDArray[np.float32], mask_hw: npt.NDArray[np.bool_]) -> None:
        """Count one image: values >= 0 and the mask of its anomalous pixels, both (H,W).

        Raises ConfigError for shapes that differ, negative values, or values that are not finite.
        """
        if mask_hw.dtype != np.bool_:
            raise ConfigError(f"expected a mask of booleans, got {mask_hw.dtype}")
        if heatmap_hw.shape != mask_hw.shape:
            raise ConfigError(f"expected a heatmap of the mask's size {mask_hw.shape}, got {heatmap_hw.shape}")
        if not np.isfinite(heatmap_hw).all() or heatmap_hw.min(initial=0) < 0:
            raise ConfigError("expected finite heatmap values >= 0")
        values = np.ascontiguousarray(heatmap_hw, np.float32) + np.float32(0)  # no negative zero
        regions, count = ndimage.label(mask_hw, structure=np.ones((3, 3)))
        share = np.append(0, 1 / np.bincount(regions.ravel(), minlength=count + 1)[1:].clip(1))
        weights = np.concatenate(([1], self._generator.poisson(1, self._coarse.shape[1] - 1)))
        for bits, counts in ((_FINE, self._fine), (_COARSE, self._coarse)):
            bins = (values.view(np.uint32) >> (31 - bits)).astype(np.int64)
            for kind, where, each in ((0, ~mask_hw, None), (1, mask_hw, None), (2, mask_hw, share[regions[mask_hw]])):
                used, inverse = np.unique(bins[where], return_inverse=True)
                histogram = np.bincount(inverse, each, minlength=len(used))
                counts[kind][:, used] += weights[: counts.shape[1], None] * histogram
        self._num_images += 1
        self._num_regions += count

    def result(self) -> PixelMetricsResult:
        """The metrics of what was added. Raises ConfigError unless there are nominal and anomalous pixels."""
        if not self._fine[0].any() or not self._fine[1].any():
            raise ConfigError("pixel metrics need anomalous and nominal pixels; are the masks empty or full?")
        auroc, aupro = (
            _interval(value[0], draws) for value, draws in zip(_areas(self._fine), _areas(self._coarse), strict=True)
        )
        return PixelMetricsResult(auroc, aupro, self._num_images, self._num_regions)


def _areas(counts: Floats) -> tuple[Floats, Floats]:
    """AUROC and AUPRO (R,) of counts (3,R,bins); resamples without anomalous or nominal pixels are left out."""
    sums = np.pad(np.cumsum(counts[:, :, ::-1], 2), ((0, 0), (0, 0), (1, 0)))
    false, true, overlap = (s / s[:, -1:] for s in sums[:, (sums[0, :, -1] > 0) & (sums[1, :, -1] > 0)])
    aurocs = np.array([auc(f, t) for f, t in zip(false, true, strict=True)])
    return aurocs, np.array([_area_until(f, o, AUPRO_LIMIT) for f, o in zip(false, overlap, strict=True)])


def _area_until(false_rates: Floats, overlaps: Floats, limit: float) -> float:
    """Area under the curve up to `limit`, divided by it."""
    inside = false_rates < limit
    end = np.interp(limit, false_rates, overlaps)
    return float(auc(np.append(false_rates[inside], limit), np.append(overlaps[inside], end)) / limit)


def _interval(value: float, draws: Floats) -> Estimate:
    """The value with the quantiles of its resamples, which are seen from the first draw, the value in their bins."""
    if len(draws) < 3:
        return Estimate(float(value), np.nan, np.nan)
    low, high = np.quantile(draws[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) - draws[0]
    return Estimate(float(value), float(value + low), float(value + high))
