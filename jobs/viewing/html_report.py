"""The report of a run as one HTML file that needs nothing else: no server, no network, no script for what stands still.

    records, SQL over its parts, the bundle's calibration, the worst images -> a context -> templates/report.html.j2

Only counts, the worst images and a sample of the quarantine are ever in memory, so it does not grow with the run.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd import bundle, contours, drift, heatmap
from fcdd.bundle import BundleSpec
from fcdd.cropping import Box
from fcdd.drift import AlarmLaw
from fcdd.errors import FCDDError, ImageError
from fcdd.io import isolation
from jobs.catalog import bundles, commit_records
from jobs.results import Results
from jobs.sources.locations import Locations
from jobs.viewing import colour_scale, pages, queries, rendering, report_charts
from jobs.viewing.queries import MAX_COMPARED
from schemas import IDENTITY, Layout, RunRecord

NIGHTS = 30
_EXAMPLES, _GROUPS = 20, 50
# Long sides; and the bytes of one picture, so that 200 of them stay below 10 MB in base64.
_THUMBNAIL, _LAYER, _PICTURE_BYTES = 320, 120, 30_000
_QUALITIES = (80, 60, 40, 20)
# Of images that are so many times as large as their thumbnail the hottest region is shown as it is, and so much beside.
_LARGE, _LEAST_AROUND = 2, 32
# Pictures that are read at once.
_READS_IN_FLIGHT = 4
_COLUMNS = ", ".join((*IDENTITY, "anomaly_score", "score_mean", "score_max", "p_value", "is_anomalous", "regions"))
_COLUMNS += ", image_group, width, height, image_hash, heatmap, model_digest, date"


log = logging.getLogger(__name__)


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
        "nights": report_charts.nights(before[-NIGHTS:], record.alpha),
        "history": before[-NIGHTS:][::-1],
        "histogram": report_charts.histogram(run, record, spec),
        "groups": list(run.rows(_BY_GROUP)),
        "max_groups": _GROUPS,
        "worst": worst,
        "missing": len(missing),
        "why_missing": missing[0] if missing else "",
        "alike": [each for each in worst if each["alike"]],
        "quarantine": list(run.rows(f"FROM quarantine ORDER BY reason, image_uri LIMIT {_EXAMPLES}")),
        "drift": [_scope(row) for row in run.rows(_SCOPES)],
        "max_scopes": _GROUPS,
        "stages": report_charts.stages(record),
        "spec": spec,
        "card": pages.markdown(bundle.model_card(spec)) if spec else "",
        "without_bundle": without,
        "scale": rendering.data_uri(colour_scale.bar(128), "PNG"),
        "marks": colour_scale.marks(record.map_threshold),
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
    """The worst images with thumbnails; why some cannot be shown. Of near-duplicates that are no alarms, one."""
    question = queries.top(count=max(MAX_COMPARED, count), columns=_COLUMNS)
    rows = run.sql(*question).to_arrow_table()
    first, uris = queries.alike(rows), rows["image_uri"].to_pylist()
    is_shown = np.array(rows["is_anomalous"].to_pylist(), np.bool_) | (first == np.arange(rows.num_rows))
    shown = np.flatnonzero(is_shown)[:count]
    found = [
        row | {"rank": rank, "alike": [uris[i] for i in np.flatnonzero(first == at).tolist() if i != at]}
        for rank, (at, row) in enumerate(zip(shown.tolist(), rows.take(shown).to_pylist(), strict=True), start=1)
    ]
    heatmaps = rendering.Heatmaps([loaded]) if loaded and found else None
    thumbnail = partial(_thumbnail, locations, record.full_scale)
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        pictures = list(pool.map(thumbnail, found[:_READS_IN_FLIGHT]))
        if any(not isinstance(each, ImageError) or each.reason != "forbidden" for each in pictures):
            pictures += pool.map(thumbnail, found[_READS_IN_FLIGHT:])
    pictures += pictures[-1:] * (len(found) - len(pictures))  # no credentials: to ask for all would take minutes
    for row, picture in zip(found, pictures, strict=True):
        row["picture"], row["detail"] = ("", "") if isinstance(picture, ImageError) else picture
        row["layer"] = ""
        row["outline"] = contours.box_path(row["regions"])
        if heatmaps and row["picture"]:
            row["layer"] = _layer(
                heatmaps(row["heatmap"], record, (row["width"], row["height"])), row, record.map_threshold
            )
            row["outline"] = contours.path(heatmaps.outline(row["heatmap"], record, (row["width"], row["height"])))
    return found, [str(each) for each in pictures if isinstance(each, ImageError)]


def _thumbnail(locations: Locations, full_scale: float | None, row: dict[str, Any]) -> tuple[str, str] | ImageError:
    """A small WebP of the original as a data URI, and one of its hottest region as it is, or why there is none.

    The region is left out, "", where the small picture shows enough of it.
    """
    try:
        data, size = rendering.encoded(row, locations), (_THUMBNAIL, _THUMBNAIL)
        picture = isolation.picture(data, within=size, full_scale=full_scale)
    except ImageError as error:
        return error
    detail = ""
    if row["regions"] and max(row["width"], row["height"]) > _LARGE * _THUMBNAIL:
        with suppress(ImageError):  # all of a picture may be too large where a smaller one was not
            part = _around(row["regions"][0])
            detail = _data_uri(isolation.picture(data, within=size, full_scale=full_scale, part=part))
    return _data_uri(picture), detail


def _around(region: dict[str, Any]) -> Box:
    """The region and as much beside it as shows what it is a region of."""
    more = max(_LEAST_AROUND, (region["x1"] - region["x0"]) // 4, (region["y1"] - region["y0"]) // 4)
    top, left = max(0, region["y0"] - more), max(0, region["x0"] - more)
    return Box(top, left, region["y1"] + more, region["x1"] + more)


def _data_uri(picture: Image.Image) -> str:
    for quality in _QUALITIES:
        uri = rendering.data_uri(picture, "WEBP", quality=quality)
        if len(uri) < _PICTURE_BYTES * 4 / 3:
            break
    return uri


def _layer(values: npt.NDArray[np.float32], row: dict[str, Any], threshold: float) -> str:
    """The heatmap of the image's shape, to lie over the thumbnail."""
    size = (row["width"], row["height"])
    return rendering.data_uri(heatmap.small_layer(values, threshold, size=size, long_side=_LAYER), "WEBP", quality=60)


def _scope(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the drift table with its maps as pictures on one scale."""
    average = heatmap.decode(row["average_map"])
    nominal = heatmap.decode(row["nominal_map"]) if row["nominal_map"] else None
    top = float(max(average.max(), 0.0 if nominal is None else nominal.max())) or 1.0
    maps = {f"average map of the run: 0 to {top:.3g}": average / top}
    if nominal is not None and nominal.shape == average.shape:
        rise = (average - nominal).clip(0)
        most = float(rise.max())
        maps[f"of the calibration: 0 to {top:.3g}"] = nominal / top
        maps[f"what is more in the run: 0 to {most:.3g}"] = rise / (most or 1.0)
    findings = sorted(row["findings"], key=lambda each: -drift.VERDICTS.index(each["verdict"]))
    return row | {"maps": [(name, _map_picture(values)) for name, values in maps.items()], "findings": findings}


def _map_picture(values: npt.NDArray[np.float32]) -> str:
    """A map of values in [0,1], one pixel a cell, in the colours of the scale."""
    colours = np.asarray(heatmap.colours(256))[0]
    return rendering.data_uri(Image.fromarray(colours[(values.clip(0, 1) * 255).round().astype(np.uint8)]), "PNG")
