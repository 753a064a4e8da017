"""`fcdd evaluate`: committed runs and labels -> AUROC, with the conditions it was measured under."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fcdd.errors import ConfigError
from fcdd.metrics import ImageMetrics, ThresholdMetrics, image_metrics, threshold_metrics
from jobs.catalog import commit_records, label_files, views
from jobs.shell import formatting, process
from jobs.shell.settings import JobSettings, Night

SCORES = ("anomaly_score", "score_mean", "score_max", "score_top1pct")


class EvaluateSettings(JobSettings):
    """Compare the scores of committed runs with labels. Published experiments: `fcdd reproduce`.

    The labels are a CSV or Parquet file with the columns image_uri (as `fcdd query` shows it) and label
    (0 nominal, 1 anomalous).
    Images without a label do not count; labelled images that were quarantined are reported.
    """

    verb: ClassVar[str] = "evaluate"

    results: str = Field(description="location of the results")
    collection: str = Field(description="name of the image collection")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: all nights of the latest bundle")
    labels: str = Field(description="location of the labels (.csv or .parquet)")
    format: Literal["text", "json"] = Field("text", description="text for people, json for programs")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics by score column, alarms at the bundle's threshold, and what they were measured on."""

    metrics: dict[str, ImageMetrics]
    alarms: ThresholdMetrics
    false_alarm_rate: float
    detection_rate: float
    alpha: float
    runs: list[str]
    model: str
    num_labels: int
    num_without_score: int


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: show(EvaluateSettings.parse(argv)))


@views.readable()
def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Join scores with labels and measure."""
    records = commit_records.of_latest_bundle(
        commit_records.committed(settings.results, settings.collection, first=settings.date, last=settings.date)
    )
    connection = views.connect(settings.results)
    views.scores(connection, settings.results, records)
    labels = label_files.read_decided(settings.labels)
    connection.register("labels", labels)
    joined = connection.sql(
        f"SELECT label, is_anomalous, {', '.join(SCORES)} FROM labels l JOIN scores s ON {label_files.IS_OF} "
        + views.latest_night("s.image_uri")
    ).fetchnumpy()
    truth = np.asarray(joined["label"])
    if not len(truth):
        raise ConfigError(
            f"none of the {labels.num_rows} labels is of an image scored in {settings.collection!r}; the first is of "
            f"{labels['image_uri'][0].as_py()!r}: image_uri must be the whole location, as `fcdd query` shows it"
        )
    alarms = np.asarray(joined["is_anomalous"])
    return Evaluation(
        metrics={name: image_metrics(truth, np.asarray(joined[name], np.float64)) for name in SCORES},
        # The threshold is each run's own, so the alarms themselves are measured.
        alarms=threshold_metrics(truth, alarms.astype(np.float64), 0.5),
        false_alarm_rate=float(alarms[truth == 0].mean()),
        detection_rate=float(alarms[truth == 1].mean()),
        alpha=records[-1].alpha,
        runs=[record.run_id for record in records],
        model=records[-1].bundle_digest,
        num_labels=labels.num_rows,
        num_without_score=labels.num_rows - len(truth),
    )


def show(settings: EvaluateSettings) -> None:
    """Print the evaluation with its conditions."""
    result = evaluate(settings)
    if settings.format == "json":
        print(json.dumps(formatting.json_values(result), indent=1))
        return
    first = result.metrics[SCORES[0]]
    print(f"runs        {', '.join(result.runs)}")
    print(f"model       {result.model[:12]}")
    print(
        f"images      {first.num_nominal} nominal, {first.num_anomalous} anomalous; "
        f"{result.num_without_score} of {result.num_labels} labelled images have no score"
    )
    for name, metrics in result.metrics.items():
        print(
            f"{name:14}  AUROC {metrics.auroc.value:.4f}  (95 % bootstrap interval {metrics.auroc.low:.4f} to "
            f"{metrics.auroc.high:.4f}), average precision {metrics.average_precision.value:.4f}"
        )
    print(
        f"at the threshold (promised false-alarm rate {result.alpha:g}): false alarms "
        f"{result.false_alarm_rate:.4f} of nominal, detected {result.detection_rate:.4f} of anomalous images"
    )
    print(
        "alarms          "
        + ", ".join(
            f"{name} {e.value:.4f} ({e.low:.4f} to {e.high:.4f})" for name, e in result.alarms._asdict().items()
        )
    )


if __name__ == "__main__":
    process.exit_with(main())
