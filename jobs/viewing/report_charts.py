"""The charts of a report, in units of their drawings: alarms by night, scores of the run and the calibration, time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fcdd.bundle import BundleSpec
from jobs.results import Results
from jobs.viewing import charts
from jobs.viewing.charts import Bar
from schemas import RunRecord

_BINS = 60


def nights(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The share of alarms of each night as bars of a 640 x 120 drawing, with its axes."""
    shares = [record.num_anomalous / max(1, record.num_scored) for record in records]
    top = max([*shares, *(2 * record.alpha for record in records)], default=1.0)
    width = min(40.0, 640 / max(1, len(records)))
    bars = [
        Bar(
            x=index * width + 1,
            y=120 * (1 - share / top),
            width=width - 2,
            height=max(1.0, 120 * share / top),
            title=f"{record.day}: {record.num_anomalous:,} alarms of {record.num_scored:,} ({share:.2%}), "
            f"{record.num_quarantined:,} quarantined, {record.drift.verdict}",
            kind=record.drift.verdict,
        )
        for index, (record, share) in enumerate(zip(records, shares, strict=True))
    ]
    return {
        "bars": bars,
        "up": charts.share_ticks(top, 120),
        "days": charts.name_ticks([f"{record.day:%m-%d}" for record in records], width, room=38),
        "alpha": 120 * (1 - records[-1].alpha / top) if records else 0.0,
    }


def histogram(run: Results, record: RunRecord, spec: BundleSpec | None) -> dict[str, Any] | None:
    """Shares of images by score, of the run as bars and of the calibration as a line, on a logarithmic scale."""
    [(lowest, usual, highest)] = run.sql(
        "SELECT min(anomaly_score), approx_quantile(anomaly_score, 0.999), max(anomaly_score) FROM scores"
    ).fetchall()
    if lowest is None:
        return None
    nominal = np.array(spec.calibration.pooled.scores) if spec else np.empty(0)
    low = min([lowest, *nominal[:1].tolist()])
    # What is beyond counts in the last bar, so that one monster does not press all others together.
    high = min(highest, max(usual, 3 * record.threshold)) if record.threshold > 0 else highest
    high = max([high, *nominal[-1:].tolist(), record.threshold])
    high = max(high, low + max(1e-6, 1e-6 * abs(low)))  # scores that are all the same are a chart, too
    width = (high - low) / _BINS
    question = (
        f"SELECT greatest(least(floor((anomaly_score - $low) / $width), {_BINS - 1}), 0)::INT AS bin, count(*) "
        "FROM scores GROUP BY ALL"
    )
    counts = np.zeros(_BINS)
    for index, count in run.sql(question, {"low": low, "width": width}).fetchall():
        counts[index] = count
    calibrated = np.histogram(nominal, _BINS, (low, high))[0] if len(nominal) else np.zeros(_BINS)
    smallest = 0.5 / max(record.num_scored, len(nominal), 1)

    def height(share: float) -> float:
        return 160 * max(0.0, 1 - math.log(max(share, smallest)) / math.log(smallest))

    step = 640 / _BINS
    bars = []
    for index, count in enumerate(counts.tolist()):
        tall = height(count / counts.sum()) if count else 0.0
        start = low + index * width
        beyond = " and more" if index == _BINS - 1 else f" to {start + width:.3g}"
        title = f"{start:.3g}{beyond}: {count:,.0f} images ({count / counts.sum():.3%})"
        kind = "above" if start >= record.threshold else ""
        bars.append(Bar(index * step + 0.5, 160 - tall, step - 1, tall, title, kind))
    line = []
    for index, count in enumerate(calibrated.tolist()):
        y = 160 - (height(count / len(nominal)) if count else 0.0)
        line += [f"{index * step:.1f},{y:.1f}", f"{(index + 1) * step:.1f},{y:.1f}"]
    return {
        "bars": bars,
        "line": " ".join(line) if len(nominal) else "",
        "threshold": 640 * (record.threshold - low) / (high - low),
        "along": charts.ticks(low, high, 640, count=8),
        "up": charts.log_share_ticks(smallest, 160),
        "high": high,
        "largest": highest,
        "num_calibration": len(nominal),
    }


def stages(record: RunRecord) -> dict[str, Any]:
    """Where the time went, as bars of a drawing 400 wide: of the workers together, then of the run."""
    seconds = {name: value for name, value in record.stage_seconds.items() if value > 0}
    longest = max(seconds.values(), default=1.0)
    bars = [
        Bar(0, 22 * index, 400 * value / longest, 16, f"{name.replace('_', ' ')}  {value:,.1f} s")
        for index, (name, value) in enumerate(sorted(seconds.items(), key=lambda item: -item[1]))
    ]
    return {"bars": bars, "along": charts.ticks(0, longest, 400, count=4, unit=" s"), "height": 22 * len(bars) or 22}
