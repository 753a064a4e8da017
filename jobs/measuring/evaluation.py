"""How well the scores of committed runs separate labelled images: as a whole, by group and by kind of defect.

labels, scores -> joined -> metrics of each score, a score that would be better, shares by group and kind
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from fcdd import metrics
from fcdd.errors import ConfigError
from fcdd.metrics import Estimate, Floats, PixelMetricsResult, Separation, ThresholdMetrics
from jobs.catalog import views
from jobs.labels import label_files
from jobs.measuring import labelled, pixel_evaluation
from schemas import RunRecord

# The statistics of a map that can be its score, by their columns, as `fcdd train --score` names them.
SCORES = {"score_mean": "mean", "score_max": "maximum", "score_top1pct": "top1pct"}
_COLUMNS = ("image_uri", "image_group", "is_anomalous", "p_value", "anomaly_score", *SCORES)
# Promised false-alarm rates that somebody may want instead.
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


class ScoreMetrics(NamedTuple):
    """How one score separates the images; `detection`: what it finds at the promised share of false alarms."""

    auroc: Estimate
    average_precision: Estimate
    detection: Estimate
    num_nominal: int
    num_anomalous: int


class Better(NamedTuple):
    """Another score that separates these images better, and by how much, on the same resamples."""

    score: str
    auroc: Estimate
    detection: Estimate


class Rate(NamedTuple):
    """What would be found, and what false alarms there would be, at a promised rate `alpha`: shares of the images."""

    alpha: float
    detection_rate: float
    false_alarm_rate: float


class Group(NamedTuple):
    """Images of one camera or folder; the AUROC is theirs alone, NaN where one class is missing."""

    name: str
    num_nominal: int
    num_false_alarms: int
    num_anomalous: int
    num_detected: int
    auroc: float


class Kind(NamedTuple):
    """Anomalous images with one kind of defect; the AUROC is against all nominal images."""

    name: str
    num_images: int
    num_detected: int
    detection: Estimate
    auroc: float


@dataclass(frozen=True, slots=True)
class Joined:
    """The labelled images that have a score, each array (N,).

    Label, alarm, p-value, scores by column, group, kind, location.
    """

    labels: npt.NDArray[np.int64]
    alarms: npt.NDArray[np.bool_]
    p_values: Floats
    scores: dict[str, Floats]
    groups: npt.NDArray[np.object_]
    kinds: npt.NDArray[np.object_]
    uris: npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics by score column, alarms at the bundle's threshold and at others, and what they were measured on."""

    metrics: dict[str, ScoreMetrics]
    score: str
    better: Better | None
    alarms: ThresholdMetrics
    false_alarm_rate: float
    detection_rate: float
    alpha: float
    rates: list[Rate]
    groups: list[Group]
    kinds: list[Kind]
    pixels: PixelMetricsResult | None
    num_without_mask: int
    runs: list[str]
    model: str
    num_labels: int
    num_without_score: int


@views.readable()
def evaluate(
    results: str, records: Sequence[RunRecord], *, labels: str, masks: str | None
) -> tuple[Evaluation, Joined]:
    """Join the scores of one bundle's runs with labels, and measure; pixels where there are masks.

    Raises ConfigError for labels or masks that say nothing of these images.
    """
    connection = views.connect(results)
    views.scores(connection, results, records)
    table = labelled.read(connection, labels)
    connection.register("labels", table)
    found = connection.sql(
        f"SELECT l.label, l.defect_class, {', '.join(f's.{name}' for name in _COLUMNS)} "
        f"FROM labels l JOIN scores s ON {label_files.IS_OF} {views.latest_night('s.image_uri')} ORDER BY s.image_uri"
    ).fetchnumpy()
    if not len(found["label"]):
        raise ConfigError(
            f"none of the {table.num_rows} labels is of an image scored in {records[-1].collection!r}; the first is of "
            f"{table['image_uri'][0].as_py()!r}: image_uri must be the whole location, as `fcdd query` shows it, or "
            "the end of it, such as a file name"
        )
    joined = _joined(found)
    pixels, without = pixel_evaluation.measure(connection, records[-1], labels, masks)
    return _measured(joined, records, table.num_rows, pixels, without), joined


def _joined(found: dict[str, Any]) -> Joined:
    return Joined(
        labels=np.asarray(found["label"], np.int64),
        alarms=np.asarray(found["is_anomalous"], np.bool_),
        p_values=np.asarray(found["p_value"], np.float64),
        scores={name: np.asarray(found[name], np.float64) for name in ("anomaly_score", *SCORES)},
        groups=np.asarray(found["image_group"], object),
        kinds=np.asarray(found["defect_class"], object),
        uris=np.asarray(found["image_uri"], object),
    )


def _measured(
    joined: Joined, records: Sequence[RunRecord], num_labels: int, pixels: PixelMetricsResult | None, without: int
) -> Evaluation:
    truth, alarms, alpha = joined.labels, joined.alarms, records[-1].alpha
    separations = {name: metrics.separation(truth, joined.scores[name], rate=alpha) for name in joined.scores}
    own = next((name for name in SCORES if (joined.scores[name] == joined.scores["anomaly_score"]).all()), "")
    return Evaluation(
        metrics={name: _score_metrics(each, truth) for name, each in separations.items()},
        score=SCORES.get(own, "anomaly_score"),
        better=better(separations),
        # The threshold is each run's own, so the alarms themselves are measured.
        alarms=metrics.threshold_metrics(truth, alarms.astype(np.float64), 0.5),
        false_alarm_rate=float(alarms[truth == 0].mean()),
        detection_rate=float(alarms[truth == 1].mean()),
        alpha=alpha,
        rates=rates(joined, max(record.smallest_p_value for record in records)),
        groups=[_group(joined, name) for name in sorted(set(joined.groups))],
        kinds=[_kind(joined, name) for name in sorted(set(joined.kinds[truth == 1]))],
        pixels=pixels,
        num_without_mask=without,
        runs=[record.run_id for record in records],
        model=records[-1].bundle_digest,
        num_labels=num_labels,
        num_without_score=num_labels - len(truth),
    )


def _score_metrics(found: Separation, truth: npt.NDArray[np.int64]) -> ScoreMetrics:
    auroc, precision, detection = map(metrics.estimate, found)
    return ScoreMetrics(auroc, precision, detection, int((truth == 0).sum()), int((truth == 1).sum()))


def better(separations: dict[str, Separation]) -> Better | None:
    """The score that finds most at the promised rate, if it is better in one respect beyond chance and worse in none.

    Beyond chance: the 95 % interval of the difference, image by image the same resamples, is above 0.
    """
    own, found = separations["anomaly_score"], []
    for column, name in SCORES.items():
        other = separations[column]
        gains = [metrics.estimate(a - b) for a, b in ((other.auroc, own.auroc), (other.detection, own.detection))]
        if any(gain.low > 0 for gain in gains) and not any(gain.high < 0 for gain in gains):
            found.append(Better(name, *gains))
    return max(found, key=lambda each: (each.detection.value, each.auroc.value), default=None)


def rates(joined: Joined, smallest_p_value: float) -> list[Rate]:
    """At the rates that a calibration whose smallest p-value this is can promise."""
    alarms = {alpha: joined.p_values <= alpha for alpha in RATES if alpha >= smallest_p_value}
    return [
        Rate(alpha, float(at[joined.labels == 1].mean()), float(at[joined.labels == 0].mean()))
        for alpha, at in alarms.items()
    ]


def _group(joined: Joined, name: str) -> Group:
    here = joined.groups == name
    nominal, anomalous = (here & (joined.labels == label) for label in (0, 1))
    return Group(
        name,
        int(nominal.sum()),
        int(joined.alarms[nominal].sum()),
        int(anomalous.sum()),
        int(joined.alarms[anomalous].sum()),
        _auroc(joined, here),
    )


def _kind(joined: Joined, name: str) -> Kind:
    of_kind = (joined.kinds == name) & (joined.labels == 1)
    count, detected = int(of_kind.sum()), int(joined.alarms[of_kind].sum())
    interval = stats.binomtest(detected, count).proportion_ci(metrics.LEVEL, method="wilson")
    share = Estimate(detected / count, float(interval.low), float(interval.high))
    return Kind(name, count, detected, share, _auroc(joined, of_kind | (joined.labels == 0)))


def _auroc(joined: Joined, chosen: npt.NDArray[np.bool_]) -> float:
    """Of the chosen images by their anomaly score; NaN where one class is missing."""
    labels = joined.labels[chosen]
    if len(set(labels.tolist())) < 2:
        return float("nan")
    return float(metrics.separation(labels, joined.scores["anomaly_score"][chosen], resamples=0).auroc[0])


def advice(found: Evaluation) -> str:
    """Which score of the map would separate these images better, and by how much, as a sentence."""
    if found.better is None:
        return "no other score of the map separates these images better beyond chance"
    own, best = found.metrics["anomaly_score"], found.better
    other = next(found.metrics[column] for column, name in SCORES.items() if name == best.score)
    return (
        f"{best.score} would find {other.detection.value:.0%} of these images at {100 * found.alpha:g} % false alarms, "
        f"{found.score} {own.detection.value:.0%} (difference {_range(best.detection)}); AUROC {other.auroc.value:.4f} "
        f"and {own.auroc.value:.4f} (difference {_range(best.auroc)}); it would decide after "
        f"`fcdd calibrate --score {best.score}`"
    )


def _range(difference: Estimate) -> str:
    return f"{difference.low:+.3f} to {difference.high:+.3f}"
