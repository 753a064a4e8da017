"""The charts of a report, in units of their drawings: alarms by night, scores of the run and the calibration, time."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fcdd.bundle import BundleSpec
from jobs.results import Results
from jobs.viewing import charts
from jobs.viewing.charts import Bar
from schemas import RunRecord

_BINS = 60


def nights(records: Sequence[RunRecord], alpha: float) -> dict[str, Any]:
    """The share of alarms of each night as bars of a 640 x 120 drawing, with its axes."""
    shares = [record.num_anomalous / max(1, record.num_scored) for record in records]
    top = max([*shares, 2 * alpha])
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
        "alpha": 120 * (1 - alpha / top),
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
    smallest = 0.5 / max(record.num_scored, len(nominal), 1)
    return {
        "bars": [*_bars(_counts(run, low, high), low, high, record.threshold, smallest)],
        "line": _line(np.histogram(nominal, _BINS, (low, high))[0], smallest) if len(nominal) else "",
        "threshold": 640 * (record.threshold - low) / (high - low),
        "along": charts.ticks_and_ends(low, high, 640, count=8),
        "up": charts.log_share_ticks(smallest, 160),
        "high": high,
        "largest": highest,
        "num_calibration": len(nominal),
    }


def _counts(run: Results, low: float, high: float) -> npt.NDArray[np.int64]:
    """How many images of the run fall into each bin; those beyond count in the last one."""
    question = (
        f"SELECT greatest(least(floor((anomaly_score - $low) / $width), {_BINS - 1}), 0)::INT AS bin, count(*) "
        "FROM scores GROUP BY ALL"
    )
    counts = np.zeros(_BINS, np.int64)
    for index, count in run.sql(question, {"low": low, "width": (high - low) / _BINS}).fetchall():
        counts[index] = count
    return counts


def _bars(counts: npt.NDArray[np.int64], low: float, high: float, threshold: float, smallest: float) -> Iterator[Bar]:
    step, width = 640 / _BINS, (high - low) / _BINS
    for index, count in enumerate(counts.tolist()):
        share, start = count / counts.sum(), low + index * width
        beyond = " and more" if index == _BINS - 1 else f" to {start + width:.3g}"
        title = f"{start:.3g}{beyond}: {count:,} images ({share:.3%})"
        tall = _height(share, smallest)
        yield Bar(index * step + 0.5, 160 - tall, step - 1, tall, title, "above" if start >= threshold else "")


def _line(counts: npt.NDArray[np.int64], smallest: float) -> str:
    """The upper edges of the bars of these counts, as the points of a line."""
    step, heights = 640 / _BINS, [160 - _height(share, smallest) for share in (counts / counts.sum()).tolist()]
    return " ".join(f"{x * step:.1f},{y:.1f}" for index, y in enumerate(heights) for x in (index, index + 1))


def _height(share: float, smallest: float) -> float:
    """Of a share, on a logarithmic scale from `smallest` (0) to all (160)."""
    return 160 * max(0.0, 1 - math.log(max(share, smallest)) / math.log(smallest))


def stages(record: RunRecord) -> dict[str, Any]:
    """Where the time went, as bars of a drawing 400 wide: of the workers together, then of the run."""
    seconds = {name: value for name, value in record.stage_seconds.items() if value > 0}
    longest = max(seconds.values(), default=1.0)
    bars = [
        Bar(0, 22 * index, 400 * value / longest, 16, f"{name.replace('_', ' ')}  {value:,.1f} s")
        for index, (name, value) in enumerate(sorted(seconds.items(), key=lambda item: -item[1]))
    ]
    return {"bars": bars, "along": charts.ticks(0, longest, 400, count=4, unit=" s"), "height": 22 * len(bars) or 22}
