"""How well scores and maps separate labelled images; scikit-learn's and SciPy's arithmetic where there is one.

Pixel metrics read one image at a time and keep counts only, so their memory does not grow with the number of images:
values are counted in bins whose edges are those of a float32 cut to its upper 20 bits (relative width 0.05 %).
Confidence intervals are 95 % bootstrap intervals over images: for image metrics of all resamples at once, for pixel
metrics by Poisson weights in the same pass, in coarser bins.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.metrics import auc

from fcdd.errors import ConfigError

Floats = npt.NDArray[np.float64]
LEVEL = 0.95
# Of images and their resamples that are counted at once: some 100 MB.
_AT_ONCE = 1_000_000
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


class Separation(NamedTuple):
    """How well scores separate the classes, each (1 + resamples,): of the images themselves, then of each resample.

    `detection` is the share of anomalous images that are found where at most a share of `rate` of the nominal images
    is a false alarm.
    """

    auroc: Floats
    average_precision: Floats
    detection: Floats


def image_metrics(
    labels: npt.NDArray[np.int64], scores: Floats, *, resamples: int = 500, seed: int = 0
) -> ImageMetrics:
    """Metrics of (N,) scores against labels 0 nominal / 1 anomalous, resampled within each class.

    Raises ConfigError unless both classes occur, for other labels, or for scores that are not finite.
    """
    found = separation(labels, scores, resamples=resamples, seed=seed)
    num_anomalous = int((labels == 1).sum())
    return ImageMetrics(
        estimate(found.auroc), estimate(found.average_precision), len(labels) - num_anomalous, num_anomalous
    )


def separation(
    labels: npt.NDArray[np.int64], scores: Floats, *, rate: float = 0.01, resamples: int = 500, seed: int = 0
) -> Separation:
    """Metrics of (N,) scores, and of resamples within each class, for which each class must have two images.

    The same labels and seed give the same resamples, so that two scores can be compared resample by resample. Errors
    as of `image_metrics`.
    """
    nominal, anomalous = by_label(labels, scores)
    if min(len(nominal), len(anomalous)) < 2:
        resamples = 0
    draws = [_separated(*counts, rate) for counts in _counted(nominal, anomalous, resamples, seed)]
    return Separation(*(np.concatenate(values) for values in zip(*draws, strict=True)))


def _counted(nominal: Floats, anomalous: Floats, resamples: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """How many images of each class have each distinct score, the largest first, (R,S) each; first without resampling.

    In pieces of some resamples, whose number depends on the number of images only.
    """
    scores, places = np.unique(-np.concatenate((nominal, anomalous)), return_inverse=True)
    classes, generator = (places[: len(nominal)], places[len(nominal) :]), np.random.default_rng(seed)
    yield _histograms(classes[0][None], len(scores)), _histograms(classes[1][None], len(scores))
    step = max(1, _AT_ONCE // len(places))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        first, second = (each[generator.integers(len(each), size=(size, len(each)))] for each in classes)
        yield _histograms(first, len(scores)), _histograms(second, len(scores))


def _histograms(places: npt.NDArray[np.int64], count: int) -> Floats:
    """How often each place below `count` occurs in each row."""
    rows = np.arange(len(places))[:, None] * count
    return np.bincount((places + rows).ravel(), minlength=len(places) * count).reshape(-1, count).astype(np.float64)


def _separated(nominal: Floats, anomalous: Floats, rate: float) -> Separation:
    """The metrics of each row of counts, which are ordered from the largest score to the smallest."""
    false, true = nominal.cumsum(1), anomalous.cumsum(1)
    num_nominal, num_anomalous = false[:, -1], true[:, -1]
    # An anomalous image is above the nominal ones that are still to come, and half above those of the same score.
    above = num_nominal[:, None] - false + nominal / 2
    found = np.where(false <= rate * num_nominal[:, None] + 1e-9, true, 0).max(1)
    return Separation(
        (anomalous * above).sum(1) / (num_nominal * num_anomalous),
        (anomalous * true / (true + false).clip(1)).sum(1) / num_anomalous,
        found / num_anomalous,
    )


def estimate(draws: Floats) -> Estimate:
    """The first value, with the quantiles of the others; NaN limits when there are none."""
    if len(draws) < 3:
        return Estimate(float(draws[0]), np.nan, np.nan)
    low, high = np.quantile(draws[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(float(draws[0]), float(low), float(high))


def threshold_metrics(
    labels: npt.NDArray[np.int64], scores: Floats, threshold: float, *, resamples: int = 500, seed: int = 0
) -> ThresholdMetrics:
    """Precision, recall and F1 of "score > threshold"; precision is 0 where nothing is alarmed. Errors as above."""
    nominal, anomalous = by_label(labels, scores)
    if min(len(nominal), len(anomalous)) < 2:
        resamples = 0
    generator = np.random.default_rng(seed)
    # Of a class that is resampled, the number of alarms is binomial.
    false, true = (
        np.append(alarms.sum(), generator.binomial(len(alarms), alarms.mean(), resamples)).astype(np.float64)
        for alarms in (nominal > threshold, anomalous > threshold)
    )
    precision, recall = true / (true + false).clip(1), true / len(anomalous)
    f1 = 2 * true / (true + false + len(anomalous))
    return ThresholdMetrics(estimate(precision), estimate(recall), estimate(f1))


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
                histogram = np.bincount(bins[where], each, minlength=1 << bits)
                used = np.flatnonzero(histogram != 0)
                counts[kind][:, used] += weights[: counts.shape[1], None] * histogram[used]
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
    filled = counts[:, :, counts.any((0, 1))]
    sums = np.pad(np.cumsum(filled[:, :, ::-1], 2), ((0, 0), (0, 0), (1, 0)))
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
    seen = estimate(draws)
    return Estimate(float(value), float(value + seen.low - seen.value), float(value + seen.high - seen.value))
