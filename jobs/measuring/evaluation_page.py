"""The page of an evaluation: curves, shares by group and kind of defect, what was missed and why; one file of HTML."""

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve, roc_curve

from fcdd.errors import FCDDError
from jobs.catalog import bundles
from jobs.measuring import evaluation
from jobs.measuring.evaluation import SCORES, Evaluation, Joined
from jobs.results import Results
from jobs.sources.locations import Locations
from jobs.viewing import charts, pages, shown_images
from jobs.viewing.rendering import Heatmaps
from schemas import RunRecord

log = logging.getLogger(__name__)

_SIZE = 300
_EXAMPLES = 20


def build(found: Evaluation, joined: Joined, run: Results, locations: Locations) -> bytes:
    """The page, with pictures and heatmaps of what was missed and of false alarms, as far as they are still there.

    `run` has the runs that were evaluated; images are opened below `locations` only. Raises ConfigError when the parts
    of the runs cannot be read.
    """
    own = found.metrics["anomaly_score"]
    missed = _some(joined, (joined.labels == 1) & ~joined.alarms, lowest=True)
    alarmed = _some(joined, (joined.labels == 0) & joined.alarms, lowest=False)
    _add_pictures([*missed, *alarmed], run, locations)
    context = {
        "found": found,
        "own": own,
        "scores": [(name, found.metrics[column], name == found.score) for column, name in SCORES.items()],
        "advice": evaluation.advice(found),
        "records": run.records,
        "collection": run.records[-1].collection,
        "size": _SIZE,
        "ticks": charts.ticks(0, 1, _SIZE),
        "up": [charts.Tick(_SIZE - at, text) for at, text in charts.ticks(0, 1, _SIZE)],
        "curves": [_curves(joined, column, name) for column, name in SCORES.items()],
        "base": _SIZE * (1 - own.num_anomalous / (own.num_anomalous + own.num_nominal)),
        "at": _operating_point(found),
        "missed": missed,
        "alarmed": alarmed,
        "num_missed": int(((joined.labels == 1) & ~joined.alarms).sum()),
        "num_false": int(((joined.labels == 0) & joined.alarms).sum()),
    }
    return pages.evaluation(context).encode()


def _curves(joined: Joined, column: str, name: str) -> dict[str, Any]:
    """The ROC and the precision-recall curve of one score."""
    false, true, _ = roc_curve(joined.labels, joined.scores[column])
    precision, recall, _ = precision_recall_curve(joined.labels, joined.scores[column])
    return {"name": name, "roc": charts.line(false, true, _SIZE), "precision": charts.line(recall, precision, _SIZE)}


def _operating_point(found: Evaluation) -> dict[str, float]:
    """Where the alarms of the runs lie on the curves."""
    return {
        "false_alarms": _SIZE * found.false_alarm_rate,
        "found": _SIZE * (1 - found.detection_rate),
        "recall": _SIZE * found.detection_rate,
        "precision": _SIZE * (1 - found.alarms.precision.value),
    }


def _some(joined: Joined, chosen: npt.NDArray[np.bool_], *, lowest: bool) -> list[dict[str, Any]]:
    """Some of the chosen images (a mask (N,)), those with the lowest or highest score first."""
    places = np.flatnonzero(chosen)
    scores = joined.scores["anomaly_score"][places]
    order = places[np.argsort(scores if lowest else -scores, kind="stable")][:_EXAMPLES]
    return [{"image_uri": joined.uris[i], "kind": joined.kinds[i]} for i in order.tolist()]


def _add_pictures(images: list[dict[str, Any]], run: Results, locations: Locations) -> None:
    """Give images what the runs have of them, their latest row, and pictures."""
    question = f"SELECT {shown_images.COLUMNS}, date FROM scores WHERE list_contains($uris, image_uri) ORDER BY date"
    rows = {row["image_uri"]: row for row in run.rows(question, {"uris": [each["image_uri"] for each in images]})}
    for image in images:
        image |= rows[image["image_uri"]]
    by_day = {str(record.day): record for record in run.records}
    missing = shown_images.add_pictures(
        images,
        lambda image: by_day[str(image["date"])],
        _heatmaps(run.records[-1]),
        locations,
    )
    if missing:
        log.warning("%d of %d images cannot be shown, the first since %s", len(missing), len(images), missing[0])


def _heatmaps(record: RunRecord) -> Heatmaps | None:
    try:
        return Heatmaps([bundles.of_run(record)])
    except FCDDError as error:
        log.warning("the page has no heatmaps: %s", error)
        return None
