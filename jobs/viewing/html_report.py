"""The report of a run as one HTML file that needs nothing else: no server, no network, no script for what stands still.

    records, SQL over its parts, the bundle's calibration, the worst images -> a context -> templates/report.html.j2

Only counts, the worst images and a sample of the quarantine are ever in memory, so it does not grow with the run.
"""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd import bundle, drift, heatmap
from fcdd.bundle import BundleSpec
from fcdd.drift import AlarmLaw
from fcdd.errors import FCDDError
from jobs.catalog import bundles, commit_records
from jobs.results import Results
from jobs.sources.locations import Locations
from jobs.viewing import colour_scale, pages, queries, rendering, report_charts, shown_images
from jobs.viewing.queries import MAX_COMPARED
from schemas import Layout, RunRecord

NIGHTS = 30
_EXAMPLES, _GROUPS = 20, 50
_COLUMNS = f"{shown_images.COLUMNS}, score_mean, score_max, p_value, is_anomalous, image_group, image_hash"
_COLUMNS += ", model_digest, date"


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
    return found, shown_images.add_pictures(found, lambda _: record, heatmaps, locations)


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
