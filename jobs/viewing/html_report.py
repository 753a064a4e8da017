"""The report of a run as one HTML file that needs nothing else: no server, no network, no script for what stands still.

    records, SQL over its parts, the bundle's calibration, the worst images -> a context -> templates/report.html.j2

Only counts, the worst images and a sample of the quarantine are ever in memory, so it does not grow with the run.
"""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from fcdd import bundle, contours, drift, heatmap
from fcdd.bundle import BundleSpec
from fcdd.drift import AlarmLaw
from fcdd.errors import FCDDError, ImageError
from jobs.catalog import bundles, commit_records
from jobs.results import Results
from jobs.sources.locations import Locations
from jobs.viewing import pages, queries, rendering
from jobs.viewing.queries import MAX_COMPARED
from schemas import IDENTITY, Layout, RunRecord

NIGHTS = 30
_BINS = 60
_EXAMPLES, _GROUPS = 20, 50
# Long sides; and the bytes of one picture, so that 200 of them stay below 10 MB in base64.
_THUMBNAIL, _LAYER, _PICTURE_BYTES = 320, 120, 30_000
_QUALITIES = (80, 60, 40, 20)
# Pictures that are read at once.
_READS_IN_FLIGHT = 4
_COLUMNS = ", ".join((*IDENTITY, "anomaly_score", "score_mean", "score_max", "p_value", "is_anomalous", "regions"))
_COLUMNS += ", image_group, width, height, image_hash, heatmap, model_digest"


log = logging.getLogger(__name__)


class Bar(NamedTuple):
    """A bar of a chart, in units of its drawing; `title` is what it says."""

    x: float
    y: float
    width: float
    height: float
    title: str
    kind: str = ""


def build(results: str, record: RunRecord, *, images: int, locations: Locations) -> bytes:
    """The report of a run with its `images` worst images, which are opened below `locations` only.

    Raises ConfigError when its parts cannot be read.

    Images or a bundle that are no longer there are missing from the report, which says so.
    """
    run = Results(results, (record,))
    loaded, without = _bundle(record)
    spec = loaded[0] if loaded else None
    worst, missing = _worst(run, record, images, loaded, locations)
    if missing:
        log.warning("%d of %d images cannot be shown, the first since %s", len(missing), len(worst), missing[0])
    history = commit_records.history(Layout(results), record.collection)
    before = [each for each in commit_records.current(history) if each.day <= record.day]
    context = {
        "record": record,
        "expected": _expected(record),
        "nights": _nights(before[-NIGHTS:]),
        "history": before[-NIGHTS:][::-1],
        "histogram": _histogram(run, record, spec),
        "groups": list(run.rows(_BY_GROUP)),
        "max_groups": _GROUPS,
        "worst": worst,
        "missing": len(missing),
        "why_missing": missing[0] if missing else "",
        "alike": [each for each in worst if each["alike"]],
        "quarantine": list(run.rows(f"FROM quarantine ORDER BY reason, image_uri LIMIT {_EXAMPLES}")),
        "drift": [_scope(row) for row in run.rows(_SCOPES)],
        "max_scopes": _GROUPS,
        "stages": _stages(record),
        "spec": spec,
        "card": Markup(Markup.escape(bundle.model_card(spec))) if spec else "",
        "without_bundle": without,
        "scale": rendering.data_uri(heatmap.colours(128), "PNG"),
    }
    return pages.report(context).encode()


_BY_GROUP = (
    "SELECT image_group, count(*) AS images, count_if(is_anomalous) AS alarms, avg(anomaly_score) AS mean, "
    f"max(anomaly_score) AS worst FROM scores GROUP BY ALL ORDER BY alarms / images DESC, image_group LIMIT {_GROUPS}"
)


# The collection first, then the gravest.
_SCOPES = (
    "FROM drift ORDER BY scope != 'collection', list_position(['drifted', 'watch', 'ok'], verdict), image_group "
    f"LIMIT {_GROUPS}"
)


def _bundle(record: RunRecord) -> tuple[tuple[BundleSpec, bytes] | None, str]:
    """The bundle of the run, or why it is not there."""
    try:
        return bundles.of_run(record), ""
    except FCDDError as error:
        return None, str(error)


def _expected(record: RunRecord) -> str:
    if record.group_thresholds:
        return "thresholds by group"
    low, high = drift.alarm_interval([AlarmLaw.at(record.num_scored, record.num_calibration, record.alpha)])
    return f"{low:,} to {high:,} expected of nominal images"


def _worst(
    run: Results, record: RunRecord, count: int, loaded: tuple[BundleSpec, bytes] | None, locations: Locations
) -> tuple[list[dict[str, Any]], list[str]]:
    """The worst images with thumbnails, one of each group of near-duplicates; why some cannot be shown."""
    question = queries.top(count=max(MAX_COMPARED, count), columns=_COLUMNS)
    rows = run.sql(*question).to_arrow_table()
    first = queries.alike(rows)
    leaders = np.unique(first)[:count]
    uris = rows["image_uri"].to_pylist()
    found = [
        row | {"rank": rank, "alike": [uris[i] for i in np.flatnonzero(first == leader).tolist() if i != leader]}
        for rank, (leader, row) in enumerate(
            zip(leaders.tolist(), rows.take(leaders).to_pylist(), strict=True), start=1
        )
    ]
    heatmaps = rendering.Heatmaps([loaded]) if loaded and found else None
    thumbnail = partial(_thumbnail, locations)
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        pictures = list(pool.map(thumbnail, found[:_READS_IN_FLIGHT]))
        if any(not isinstance(each, ImageError) or each.reason != "forbidden" for each in pictures):
            pictures += pool.map(thumbnail, found[_READS_IN_FLIGHT:])
    pictures += pictures[-1:] * (len(found) - len(pictures))  # no credentials: to ask for all would take minutes
    for row, picture in zip(found, pictures, strict=True):
        row["picture"], row["layer"] = ("" if isinstance(picture, ImageError) else picture), ""
        row["outline"] = contours.box_path(row["regions"])
        if heatmaps and row["picture"]:
            row["layer"] = _layer(heatmaps(row["heatmap"], record), row, record.map_threshold)
            row["outline"] = contours.path(heatmaps.outline(row["heatmap"], record, (row["width"], row["height"])))
    return found, [str(each) for each in pictures if isinstance(each, ImageError)]


def _thumbnail(locations: Locations, row: dict[str, Any]) -> str | ImageError:
    """A small WebP of the original as a data URI, or why there is none."""
    try:
        picture = rendering.original(row, locations, (_THUMBNAIL, _THUMBNAIL))
    except ImageError as error:
        return error
    for quality in _QUALITIES:
        uri = rendering.data_uri(picture, "WEBP", quality=quality)
        if len(uri) < _PICTURE_BYTES * 4 / 3:
            break
    return uri


def _layer(values: npt.NDArray[np.float32], row: dict[str, Any], threshold: float) -> str:
    """The heatmap of the image's shape, to lie over the thumbnail."""
    size = (row["width"], row["height"])
    return rendering.data_uri(heatmap.small_layer(values, threshold, size=size, long_side=_LAYER), "WEBP", quality=60)


def _nights(records: Sequence[RunRecord]) -> dict[str, Any]:
    """The share of alarms of each night as bars of a 640 x 120 drawing."""
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
    return {"bars": bars, "top": top, "alpha": 120 * (1 - records[-1].alpha / top) if records else 0.0}


def _histogram(run: Results, record: RunRecord, spec: BundleSpec | None) -> dict[str, Any] | None:
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
        "low": low,
        "high": high,
        "largest": highest,
        "num_calibration": len(nominal),
    }


def _scope(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the drift table with its maps as pictures on one scale."""
    average = heatmap.decode(row["average_map"])
    nominal = heatmap.decode(row["nominal_map"]) if row["nominal_map"] else None
    top = float(max(average.max(), 0.0 if nominal is None else nominal.max())) or 1.0
    maps = {"average map of the run": average / top}
    if nominal is not None and nominal.shape == average.shape:
        rise = average - nominal
        maps |= {"of the calibration": nominal / top, "what is more": rise.clip(0) / (float(rise.max()) or 1.0)}
    findings = sorted(row["findings"], key=lambda each: -drift.VERDICTS.index(each["verdict"]))
    return row | {"maps": [(name, _map_picture(values)) for name, values in maps.items()], "findings": findings}


def _map_picture(values: npt.NDArray[np.float32]) -> str:
    """A map of values in [0,1], one pixel a cell, in the colours of the scale."""
    colours = np.asarray(heatmap.colours(256))[0]
    return rendering.data_uri(Image.fromarray(colours[(values.clip(0, 1) * 255).round().astype(np.uint8)]), "PNG")


def _stages(record: RunRecord) -> list[Bar]:
    """Where the time went, as bars of a drawing 400 wide: of the workers together, then of the run."""
    seconds = {name: value for name, value in record.stage_seconds.items() if value > 0}
    longest = max(seconds.values(), default=1.0)
    return [
        Bar(0, 22 * index, 400 * value / longest, 16, f"{name.replace('_', ' ')}  {value:,.1f} s")
        for index, (name, value) in enumerate(sorted(seconds.items(), key=lambda item: -item[1]))
    ]
