"""Commit records as gauges for Prometheus.

A run's own metrics (jobs.engines.live_metrics) end with its process. Whether a night is missing can only be
seen by something that is there when no run is: these gauges, which are read anew from the records at every scrape.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time
from typing import Any, get_args

from fcdd.errors import FCDDError
from jobs.catalog import commit_records
from schemas import Layout, RunRecord
from schemas.runs import Drift

VERDICTS = get_args(Drift.model_fields["verdict"].annotation)

log = logging.getLogger(__name__)


class Records:
    """Collects the metrics; records never change, so each is read once."""

    def __init__(self, layout: Layout, collection: str | None) -> None:
        self._layout, self._collection = layout, collection
        self._known: dict[str, RunRecord] = {}
        self._num_left_out = 0
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Any]:
        """The gauges of one scrape; a store that cannot be read is a gauge, too, and what was read before is served."""
        from prometheus_client.core import GaugeMetricFamily

        readable = 1
        try:
            with self._lock:
                self._read()
        except (FCDDError, FileNotFoundError) as error:
            readable = 0
            log.error("the records cannot be read: %s", error)
        yield GaugeMetricFamily("fcdd_results_readable", "whether the records could be read just now", value=readable)
        strange = "objects among the records that are none, or of a later version; the log names them"
        yield GaugeMetricFamily("fcdd_records_left_out", strange, value=self._num_left_out)
        # Oldest night first, so each collection is left with its latest one.
        latest = {record.collection: record for record in commit_records.current(list(self._known.values()))}
        shown = [record for name, record in latest.items() if self._collection in (None, name)]
        for name, help_text, label, values in _GAUGES:
            labels = ["collection", *([label] if label else [])]
            family = GaugeMetricFamily(name, help_text, labels=labels)
            for record in shown:
                for value, number in values(record).items():
                    family.add_metric([record.collection, *([value] if label else [])], number)
            yield family

    def _read(self) -> None:
        there = commit_records.uris(self._layout)
        new = [uri for uri in there if uri not in self._known]
        self._known |= commit_records.read_all(new)
        # Who takes a record away wants the run not to count.
        self._known = {uri: self._known[uri] for uri in there if uri in self._known}
        self._num_left_out = len(there) - len(self._known)


def _midnight(record: RunRecord) -> float:
    return datetime.combine(record.day, time(), UTC).timestamp()


_Values = Callable[[RunRecord], dict[str, float]]
# Name, help, label beside the collection, and its values.
_GAUGES: tuple[tuple[str, str, str, _Values], ...] = (
    ("fcdd_last_night_timestamp_seconds", "midnight (UTC) of its latest night", "", lambda r: {"": _midnight(r)}),
    (
        "fcdd_last_commit_timestamp_seconds",
        "when that night's run was committed",
        "",
        lambda r: {"": r.committed_at.timestamp()},
    ),
    (
        "fcdd_last_run_seconds",
        "how long it took, from its first attempt on",
        "",
        lambda r: {"": (r.committed_at - r.started_at).total_seconds()},
    ),
    ("fcdd_last_run_images_per_second", "how fast it was", "", lambda r: {"": r.images_per_second}),
    (
        "fcdd_last_run_images",
        "its images",
        "outcome",
        lambda r: {"scored": float(r.num_scored), "quarantined": float(r.num_quarantined)},
    ),
    ("fcdd_last_run_quarantined_images", "its quarantined images", "reason", lambda r: {**r.quarantine_reasons}),
    ("fcdd_last_run_alarms", "its anomalous images", "", lambda r: {"": r.num_anomalous}),
    (
        "fcdd_last_run_drift",
        "1 for its verdict, 0 for the others",
        "verdict",
        lambda r: {verdict: float(verdict == r.drift.verdict) for verdict in VERDICTS},
    ),
)
