import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score, roc_curve

from fcdd import metrics
from fcdd.errors import ConfigError
from fcdd.metrics import PixelMetrics


def scene(seed: int, shape: tuple[int, int] = (60, 80), regions: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A noisy heatmap that is brighter in its mask."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, np.bool_)
    for _ in range(regions):
        row, column = generator.integers((0, 0), (shape[0] - 20, shape[1] - 20))
        height, width = generator.integers(3, 20, 2)
        mask[row : row + height, column : column + width] = True
    heatmap = generator.gamma(2, 1, shape) + 1.5 * mask
    return heatmap.astype(np.float32), mask


SCENES = [scene(seed, regions=seed % 4) for seed in range(24)]


def measured(scenes: list, resamples: int = 0) -> metrics.PixelMetricsResult:
    pixels = PixelMetrics(resamples=resamples)
    for heatmap, mask in scenes:
        pixels.add(heatmap, mask)
    return pixels.result()


def aupro_by_definition(scenes: list, limit: float) -> float:
    """Bergmann et al.: the mean overlap over regions at every threshold, integrated over the false-positive rate."""
    values = np.concatenate([heatmap.ravel() for heatmap, _ in scenes])
    nominal = np.sort(np.concatenate([heatmap[~mask] for heatmap, mask in scenes]))
    regions = []
    for heatmap, mask in scenes:
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [np.sort(heatmap[labels == number]) for number in range(1, count + 1)]
    thresholds = np.sort(np.unique(values))[::-1]
    above = [1 - np.searchsorted(part, thresholds, "left") / len(part) for part in regions]
    rates = 1 - np.searchsorted(nominal, thresholds, "left") / len(nominal)
    overlap = np.mean(above, 0)
    rates, overlap = np.append(0, rates), np.append(0, overlap)
    end = np.interp(limit, rates, overlap)
    inside = rates < limit
    return float(np.trapezoid(np.append(overlap[inside], end), np.append(rates[inside], limit)) / limit)


def test_pixel_auroc_in_bins_is_that_of_all_pixels() -> None:
    values = np.concatenate([heatmap.ravel() for heatmap, _ in SCENES])
    truth = np.concatenate([mask.ravel() for _, mask in SCENES])
    assert measured(SCENES).auroc.value == pytest.approx(roc_auc_score(truth, values), abs=1e-4)


def test_a_large_offset_of_all_values_changes_nothing() -> None:
    shifted = [(heatmap + np.float32(100), mask) for heatmap, mask in SCENES]
    assert measured(shifted).auroc.value == pytest.approx(measured(SCENES).auroc.value, abs=1e-3)


def test_aupro_is_the_area_under_the_mean_overlap_of_regions() -> None:
    result = measured(SCENES)
    assert result.aupro.value == pytest.approx(aupro_by_definition(SCENES, 0.3), abs=1e-3)
    assert result.num_images == 24
    assert result.num_regions == sum(ndimage.label(mask, np.ones((3, 3)))[1] for _, mask in SCENES)


def test_a_small_region_counts_as_much_as_a_large_one_in_aupro_only() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[:20, :20], mask[30:32, 30:32] = True, True
    heatmap = np.where(mask, 2.0, 1.0).astype(np.float32)
    heatmap[30:32, 30:32] = 0.5  # the small one is missed
    result = measured([(heatmap, mask)])
    assert result.aupro.value == pytest.approx(0.5, abs=1e-6)
    assert result.auroc.value > 0.98


def test_perfect_and_useless_maps() -> None:
    mask = np.zeros((30, 30), np.bool_)
    mask[:10] = True
    perfect, useless = measured([(mask.astype(np.float32), mask)]), measured([(np.ones((30, 30), np.float32), mask)])
    assert (perfect.auroc.value, perfect.aupro.value) == (1, 1)
    assert useless.auroc.value == pytest.approx(0.5)
    assert useless.aupro.value == pytest.approx(0.15)  # the diagonal up to 0.3


def test_the_bootstrap_interval_is_that_of_resampled_images() -> None:
    result = measured(SCENES, resamples=200)
    generator = np.random.default_rng(5)
    draws = [measured([SCENES[i] for i in generator.integers(24, size=24)]) for _ in range(100)]
    for name in ("auroc", "aupro"):
        estimate = getattr(result, name)
        low, high = np.quantile([getattr(draw, name).value for draw in draws], (0.025, 0.975))
        assert estimate.low < estimate.value < estimate.high
        assert estimate.high - estimate.low == pytest.approx(high - low, rel=0.35)


def test_the_memory_of_pixel_metrics_does_not_grow() -> None:
    pixels = PixelMetrics(resamples=10)
    sizes = set()
    for heatmap, mask in SCENES:
        pixels.add(heatmap, mask)
        sizes.add(sum(value.nbytes for value in vars(pixels).values() if isinstance(value, np.ndarray)))
    assert len(sizes) == 1


def test_what_cannot_be_measured_is_a_clear_error() -> None:
    pixels = PixelMetrics()
    with pytest.raises(ConfigError, match="are the masks empty or full"):
        pixels.result()
    with pytest.raises(ConfigError, match=r"heatmap of the mask's size \(4, 4\), got \(2, 2\)"):
        pixels.add(np.zeros((2, 2), np.float32), np.zeros((4, 4), np.bool_))
    with pytest.raises(ConfigError, match="a mask of booleans, got uint8"):
        pixels.add(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8))  # type: ignore[arg-type]
    for value in (np.nan, -1.0):
        with pytest.raises(ConfigError, match="finite heatmap values >= 0"):
            pixels.add(np.full((4, 4), value, np.float32), np.zeros((4, 4), np.bool_))


def test_precision_recall_and_f1_of_hand_counted_alarms() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.4, 0.6, 0.7, 0.8])
    result = metrics.threshold_metrics(labels, scores, 0.5)
    assert result.precision.value == pytest.approx(3 / 4)
    assert result.recall.value == pytest.approx(3 / 4)
    assert result.f1.value == pytest.approx(3 / 4)
    assert result.recall.low < 0.75 < result.recall.high
    assert metrics.threshold_metrics(labels, scores, 2.0, resamples=0).precision.value == 0


def labelled(num_nominal: int, num_anomalous: int, seed: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores of so many digits: with few of them many are the same."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat([0, 1], [num_nominal, num_anomalous]))
    return labels, np.round(generator.normal(labels, 1), digits).astype(np.float64)


@pytest.mark.parametrize("digits", [0, 1, 12])
@pytest.mark.parametrize(("num_nominal", "num_anomalous"), [(2, 2), (90, 31), (400, 3)])
def test_image_metrics_are_those_of_scikit_learn(num_nominal: int, num_anomalous: int, digits: int) -> None:
    labels, scores = labelled(num_nominal, num_anomalous, 1, digits)
    found, alarms = metrics.image_metrics(labels, scores), scores > 0.5
    assert found.auroc.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.average_precision.value == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert (found.num_nominal, found.num_anomalous) == (num_nominal, num_anomalous)
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    for rate in (0.0, 0.1, 1.0):
        detection = metrics.separation(labels, scores, rate=rate, resamples=0).detection
        assert detection.tolist() == pytest.approx([true[false <= rate + 1e-9].max()])
    for name, by in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        value = getattr(metrics.threshold_metrics(labels, scores, 0.5), name).value
        assert value == pytest.approx(by(labels, alarms, zero_division=0), abs=1e-12)


def test_intervals_are_those_of_images_resampled_one_by_one() -> None:
    labels, scores = labelled(90, 40, 2, 1)
    classes = scores[labels == 0], scores[labels == 1]
    of_alarms = metrics.threshold_metrics(labels, scores, 0.5, resamples=4000)
    found = metrics.image_metrics(labels, scores, resamples=4000)._asdict() | of_alarms._asdict()
    for name, metric, is_alarm in (
        ("auroc", roc_auc_score, False),
        ("average_precision", average_precision_score, False),
        ("precision", precision_score, True),
    ):

        def statistic(nominal: np.ndarray, anomalous: np.ndarray, metric=metric, is_alarm=is_alarm) -> float:  # type: ignore[no-untyped-def]
            drawn = np.concatenate((nominal, anomalous))
            return metric(np.repeat([0, 1], [90, 40]), drawn > 0.5 if is_alarm else drawn)

        expected = stats.bootstrap(
            classes, statistic, n_resamples=150, vectorized=False, method="percentile", rng=1
        ).confidence_interval
        width = expected.high - expected.low
        assert found[name].low == pytest.approx(expected.low, abs=0.3 * width)
        assert found[name].high == pytest.approx(expected.high, abs=0.3 * width)


def test_scores_are_compared_on_the_same_resamples() -> None:
    """Whatever their values are, and however many are the same."""
    labels, scores = labelled(60, 30, 3, 12)
    first, second = metrics.separation(labels, scores), metrics.separation(labels, 3 * scores + 7)
    coarse = metrics.separation(labels, np.round(scores))
    assert (first.auroc == second.auroc).all()
    assert np.corrcoef(first.auroc, coarse.auroc)[0, 1] > 0.8


def test_more_images_than_are_counted_at_once_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = labelled(60, 30, 4, 1)
    monkeypatch.setattr(metrics, "_AT_ONCE", 7 * 90)
    found = metrics.separation(labels, scores, resamples=20)
    assert found.auroc.shape == found.average_precision.shape == found.detection.shape == (21,)
    assert len(set(found.auroc.tolist())) > 15


def test_one_image_of_a_class_gives_a_value_and_no_interval() -> None:
    result = metrics.image_metrics(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.3]))
    assert result.auroc.value == 1
    assert np.isnan(result.auroc.low)


def test_labels_and_scores_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected labels 0 .*, got \[-1, 2\]"):
        metrics.image_metrics(np.array([-1, 0, 1, 2]), np.zeros(4))
    with pytest.raises(ConfigError, match="1 of 2 scores are not finite"):
        metrics.image_metrics(np.array([0, 1]), np.array([0.0, np.nan]))
    with pytest.raises(ConfigError, match="one label per score, got 2 labels and 3 scores"):
        metrics.image_metrics(np.array([0, 1]), np.zeros(3))
