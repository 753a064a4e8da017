"""The page of an evaluation: curves, shares by group and kind of defect, and what was missed; one file of HTML."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_curve, roc_curve

from jobs.measuring import evaluation
from jobs.measuring.evaluation import SCORES, Evaluation, Joined
from jobs.viewing import charts, pages
from schemas import RunRecord

_SIZE = 300
_EXAMPLES = 20


def build(found: Evaluation, joined: Joined, records: Sequence[RunRecord]) -> bytes:
    """The page. It shows figures and names, no pictures: those are for `fcdd heatmap` and `fcdd report`."""
    own = found.metrics["anomaly_score"]
    context = {
        "found": found,
        "own": own,
        "scores": [(name, found.metrics[column], name == found.score) for column, name in SCORES.items()],
        "advice": evaluation.advice(found),
        "records": records,
        "collection": records[-1].collection,
        "size": _SIZE,
        "ticks": charts.ticks(0, 1, _SIZE),
        "up": [charts.Tick(_SIZE - at, text) for at, text in charts.ticks(0, 1, _SIZE)],
        "curves": [_curves(joined, column, name) for column, name in SCORES.items()],
        "base": _SIZE * (1 - own.num_anomalous / (own.num_anomalous + own.num_nominal)),
        "at": _operating_point(found),
        "missed": _named(joined, (joined.labels == 1) & ~joined.alarms, lowest=True),
        "alarmed": _named(joined, (joined.labels == 0) & joined.alarms, lowest=False),
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


def _named(joined: Joined, chosen: npt.NDArray[np.bool_], *, lowest: bool) -> list[dict[str, Any]]:
    """Some of the chosen images (a mask (N,)), those with the lowest or highest score first."""
    places = np.flatnonzero(chosen)
    scores = joined.scores["anomaly_score"][places]
    order = places[np.argsort(scores if lowest else -scores, kind="stable")][:_EXAMPLES]
    return [
        {"uri": joined.uris[i], "score": joined.scores["anomaly_score"][i], "kind": joined.kinds[i]}
        for i in order.tolist()
    ]
