"""Commit records of a results location: how one is written and read, and which of them count.

A run exists for readers if and only if its record does. Loads neither torch nor Ray.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date

from pydantic import ValidationError

from fcdd.errors import ConfigError
from fcdd.io import storage
from schemas import Layout, RunRecord

_READS_IN_FLIGHT = 16
# Nights that an error names.
_NAMED = 20

log = logging.getLogger(__name__)


class NotARecord(ConfigError):
    """An object among the commit records is damaged, foreign, or of another version."""


def find(layout: Layout, run_id: str) -> RunRecord | None:
    """The commit record, None while the run is not committed."""
    try:
        return parse(layout.record(run_id))
    except FileNotFoundError:
        return None


def parse(uri: str) -> RunRecord:
    """The commit record at `uri`. Raises FileNotFoundError, or NotARecord when it is not a record."""
    try:
        record = RunRecord.model_validate_json(storage.read(uri))
    except ValidationError as error:
        raise NotARecord(f"{uri} is not a run record of this version; move it out of the runs folder") from error
    if uri.rsplit("/", 1)[-1] != f"{record.run_id}.json":
        raise NotARecord(f"{uri} is a copy of the record of run {record.run_id}; move it out of the runs folder")
    return record


def check_free(layout: Layout, run_id: str) -> None:
    """Raises ConfigError when there is an object of that name already: a run would be scored for nothing."""
    if storage.exists(uri := layout.record(run_id)):
        raise ConfigError(
            f"the next run of this command is {run_id}, and there is something at {uri} that is not its record; move "
            "it out of the runs folder"
        )


def write(layout: Layout, record: RunRecord) -> None:
    """Create the record, which makes the run exist for readers.

    Raises FileExistsError when another record of that name is there, and ValueError, before anything is written, when
    what would be written could not be read back.
    """
    # One line: the JSON tables of Athena, Trino and Spark have a record on each.
    data = f"{record.model_dump_json()}\n".encode()
    if RunRecord.model_validate_json(data) != record:
        raise ValueError(f"the record of run {record.run_id} would be read back as another one")
    storage.create(layout.record(record.run_id), data)


def history(layout: Layout, collection: str | None = None) -> list[RunRecord]:
    """All commit records (of a collection), oldest first, superseded ones too."""
    return sorted(
        (record for record in read_all(uris(layout)).values() if collection in (None, record.collection)),
        key=lambda record: (record.committed_at, record.run_id),
    )


def check_there(layout: Layout) -> None:
    """Raises ConfigError when there is nothing at all at the location: it is mistyped."""
    if not any(page for page in storage.pages(layout.results)):
        raise ConfigError(f"there is nothing at {layout.results}: no run was ever begun there; correct --results")


def uris(layout: Layout) -> list[str]:
    """Where the commit records lie; beside a record there may be a folder of what belongs to it."""
    prefix = f"{layout.runs()}/"
    listed = (info.uri for page in storage.pages(layout.runs()) for info in page)
    return [uri for uri in listed if uri.endswith(".json") and "/" not in uri.removeprefix(prefix)]


def read_all(uris: list[str]) -> dict[str, RunRecord]:
    """The records there by their locations, many read at a time.

    An object that is no record costs a warning and nothing else: whoever may write one object must not be able to hide
    all runs. One that was removed meanwhile is left out.
    """
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        found = dict(zip(uris, pool.map(_parsed, uris), strict=True))
    return {uri: record for uri, record in found.items() if record}


def _parsed(uri: str) -> RunRecord | None:
    try:
        return parse(uri)
    except FileNotFoundError:
        return None
    except NotARecord as error:
        log.warning("left out: %s", error)
        return None


def of_one_collection(records: Sequence[RunRecord]) -> Sequence[RunRecord]:
    """The records themselves. Raises ConfigError when they are of several collections."""
    names = sorted({record.collection for record in records})
    if len(names) > 1:
        raise ConfigError(f"there are several collections; choose one with --collection: {', '.join(names)}")
    return records


def of_latest_bundle(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs of the bundle of the last of `records`, since scores of different bundles cannot be compared.

    The others are named in the log.
    """
    latest = records[-1].bundle_digest
    others = sorted({str(record.day) for record in records if record.bundle_digest != latest})
    if others:
        shown = ", ".join([*others[:_NAMED], *(["..."] if len(others) > _NAMED else [])])
        log.warning(
            "left out nights of other bundles than %s, whose scores cannot be compared with its: %s; choose them with "
            "--date",
            *(latest[:12], shown),
        )
    return [record for record in records if record.bundle_digest == latest]


def of_night(layout: Layout, collection: str, day: date) -> RunRecord | None:
    """The run that counts for a night by now."""
    nights = current(history(layout, collection))
    return next((record for record in nights if record.day == day), None)


def committed(
    results: str, collection: str | None, *, first: date | None = None, last: date | None = None
) -> list[RunRecord]:
    """Commit records of a collection (of all if None) and of the nights from `first` to `last`, oldest night first.

    A night that was scored more than once counts with its latest run; the others are named in the log. Raises
    ConfigError when there is none.
    """
    layout = Layout(storage.normalize(results))
    everything = history(layout)
    matching = [
        record
        for record in everything
        if collection in (None, record.collection) and (first or date.min) <= record.day <= (last or date.max)
    ]
    if not matching:
        known = [f"{collection} {day}" for collection, day in sorted({(r.collection, r.day) for r in everything})]
        there = ", ".join([*(["..."] if len(known) > _NAMED else []), *known[-_NAMED:]])
        of = f" of {collection!r}" if collection else ""
        raise ConfigError(
            f"no committed run{of}{_nights(first, last)} under {layout.results}; "
            + (f"there are: {there}" if known else "score a collection with `fcdd score` first")
        )
    latest = current(matching)
    for record in matching:
        if record not in latest:
            log.info("left out run %s of %s: a later run took its place", record.run_id, record.day)
    return latest


def named(layout: Layout, run_id: str) -> RunRecord:
    """The commit record of a run that somebody named, superseded ones too. Raises ConfigError when there is none."""
    if record := find(layout, run_id):
        return record
    known = [record.run_id for record in history(layout)][-_NAMED:]
    there = f"there are: {', '.join(known)}" if known else "score a collection with `fcdd score` first"
    raise ConfigError(f"there is no committed run {run_id!r} under {layout.results}; {there}")


def _nights(first: date | None, last: date | None) -> str:
    if first == last:
        return f" on {first}" if first else ""
    return (f" from {first}" if first else "") + (f" until {last}" if last else "")


def current(records: list[RunRecord]) -> list[RunRecord]:
    """Of every night of every collection the run that counts, oldest night first.

    That is the one whose place no other took; if several are left, since a record between them was removed, the one
    that was committed last. Commit times grow from each run of a night to the one that takes its place, whatever the
    clocks say, so this is the newest run. The documented SQL goes by the same rule.
    """
    superseded = {record.supersedes for record in records}
    standing = sorted(
        (record for record in records if record.run_id not in superseded),
        key=lambda record: (record.committed_at, record.run_id),
    )
    nights = {(record.collection, record.day): record for record in standing}
    return [nights[night] for night in sorted(nights)]
