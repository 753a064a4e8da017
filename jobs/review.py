"""`fcdd review`: a local page to go through the alarms of a night fast, with the labels kept beside the results."""

import logging
import secrets
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import uvicorn
from pydantic import Field

from fcdd.errors import ConfigError
from jobs import results
from jobs.catalog import leases, views
from jobs.labels import label_files
from jobs.labels.label_store import Labels
from jobs.results import Results
from jobs.shell import formatting, process
from jobs.shell.settings import LookingSettings, Night
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves
from jobs.viewing import local_guard, queries, review_app
from schemas import IDENTITY, Layout, RunRecord

# More alarms of a night are not gone through by hand.
MAX_IMAGES = 5_000
_COLUMNS = ", ".join((*IDENTITY, "anomaly_score", "p_value", "is_anomalous", "regions", "image_group", "date"))
_COLUMNS += ", run_id, width, height, heatmap, model_digest"

log = logging.getLogger(__name__)


class ReviewSettings(LookingSettings):
    """Serve a page on this machine to label alarms: defect, no defect, bad image; classes, notes, boxes and masks.

    Every label is written at once, to labels.parquet beside the results, for `fcdd calibrate --reviewed`,
    `fcdd train --anomalous` and `fcdd evaluate --labels`. Images and scores are never written. Ctrl-C ends it.
    """

    verb: ClassVar[str] = "review"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="image collection; needed where there are several")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: the latest")
    images: int = Field(
        50, ge=1, le=MAX_IMAGES, description="all alarms are shown; if they are fewer, so many of the most anomalous"
    )
    locations: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    defect_class: list[str] = Field(
        default_factory=list, description="class of defects to offer, beside those that were given; again for more"
    )
    reviewer: str = Field("", description="who labels, for the record")
    host: str = Field("127.0.0.1", description="address to listen on; whoever opens the page needs the printed token")
    port: int = Field(8765, ge=0, le=65535, description="port to listen on; 0: any that is free")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: review(ReviewSettings.parse(argv)))


def review(settings: ReviewSettings) -> None:
    """Serve until interrupted; then print what was labelled and the next command."""
    found = results.open(settings.results, collection=settings.collection, since=settings.date, until=settings.date)
    record = found.only_collection().records[-1]
    moves = Moves.parse(settings.moved)
    record = moves.record(record)
    night = Results(found.location, (record,))
    rows = chosen(night, settings.images)
    if not rows:
        raise ConfigError(f"run {record.run_id} scored no image, so there is nothing to review")
    layout = Layout(found.location)
    place = f"{layout.leases()}/labels/collection={record.collection}"
    with leases.acquire(place, "review", doing="at work on the labels of this collection as") as lease:
        labels = Labels(layout, record.collection, check=lease.check)
        locations = Locations.of_records(found.location, night.records, settings.locations, moves)
        record_of = partial(_record_of, night)
        page = review_app.Review(rows, record_of, labels, settings.reviewer, locations, settings.defect_class)
        page.warm()
        loopback = settings.host in local_guard.LOOPBACK
        token = secrets.token_urlsafe(24)  # on this machine, too: other users of it can reach the port
        application = review_app.application(page, hosts=local_guard.LOOPBACK if loopback else None, token=token)
        with _listening(settings.host, settings.port) as listener:
            port = listener.getsockname()[1]
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            print(f"{record.collection}, {record.day}: {_count(rows)}")
            print(f"open        http://{host}:{port}/?token={token}")
            print(f"labels      {labels.uri}  (Ctrl-C ends the review)", flush=True)
            server = uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False))
            with suppress(KeyboardInterrupt):  # how a review ends
                server.run(sockets=[listener])
    print(f"labelled    {_said(rows, labels)}")
    unseen = sum(row["is_anomalous"] and labels.get(row) is None for row in rows)
    if unseen:
        print(f"next        {formatting.plural(unseen, 'alarm')} without a label yet: the same command goes on")
    else:
        print(
            f"next        fcdd calibrate --bundle {record.bundle} --reviewed {labels.uri} --results {found.location} "
            f"--collection {record.collection} --date {record.day} --add --output NEW_BUNDLE  (--add: to the images "
            "that it was calibrated on; without it, these alone)"
        )


def _said(rows: Sequence[Mapping[str, Any]], labels: Labels) -> str:
    """How many images have which label, and of which classes the defects are."""
    said = [(label["label"], row["is_anomalous"], label["defect_class"]) for row in rows if (label := labels.get(row))]
    defects = [(is_alarm, name) for label, is_alarm, name in said if label == label_files.ANOMALOUS]
    nominal = [is_alarm for label, is_alarm, _ in said if label == label_files.NOMINAL]
    missed, false_alarms = sum(not is_alarm for is_alarm, _ in defects), formatting.plural(sum(nominal), "false alarm")
    bad = formatting.plural(len(said) - len(defects) - len(nominal), "bad image")
    text = (
        f"{len(said)} of {len(rows)}: {formatting.plural(len(defects), 'defect')} ({missed} without an alarm), "
        f"{len(nominal)} without a defect ({false_alarms}), {bad}"
    )
    classes = Counter(name for _, name in defects if name)
    kinds = ", ".join(f"{formatting.printable(name)} {count}" for name, count in classes.most_common())
    return f"{text}\nclasses     {kinds}" if kinds else text


def _record_of(night: Results, row: Mapping[str, Any]) -> RunRecord:
    return night.record_of(row["model_digest"])


def chosen(night: Results, at_least: int) -> list[dict[str, Any]]:
    """The alarms, and the most anomalous others up to `at_least` images; the most anomalous first."""
    with views.readable():
        rows = list(night.rows(*queries.top(count=MAX_IMAGES, columns=_COLUMNS, alarms=True)))
        if len(rows) == MAX_IMAGES:
            log.warning("only the %d most anomalous alarms are shown", MAX_IMAGES)
        if len(rows) >= at_least:
            return rows
        # Groups with thresholds of their own: some alarms have lower scores than images that are none.
        others = night.rows(*queries.top(count=at_least, columns=_COLUMNS))
        alarms = {row["image_uri"] for row in rows}
        rows += [row for row in others if row["image_uri"] not in alarms][: at_least - len(rows)]
    return sorted(rows, key=lambda row: (-row["anomaly_score"], row["image_uri"]))


def _count(rows: Sequence[dict[str, Any]]) -> str:
    alarms = sum(row["is_anomalous"] for row in rows)
    others = f", and the {len(rows) - alarms} most anomalous other images" if len(rows) > alarms else ""
    return f"{formatting.plural(alarms, 'alarm')}{others}"


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError when the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, or 0 for any"
        ) from error


if __name__ == "__main__":
    process.exit_with(main())
