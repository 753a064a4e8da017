"""What dead runs left behind is removed; what a record names, or a live run needs, never is.

Parts are listed before the records are read, so a run that is committed meanwhile is seen as committed; a run that
still has staging keeps its parts.
"""

import logging
from datetime import datetime, timedelta

from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import commit_records, intents, leases
from jobs.labels import label_store
from jobs.shell import formatting
from jobs.shell.errors import LeaseHeld
from schemas import Layout

TABLES = ("scores", "quarantine", "deleted", "drift")

log = logging.getLogger(__name__)


def collect(layout: Layout, older_than: timedelta, *, dry_run: bool) -> None:
    """Remove what was written longer ago than `older_than` and belongs to nobody; print what."""
    commit_records.check_there(layout)
    # Ages are differences of the store's own times, which may be whole seconds: with a wrong clock here, what is new
    # would look old.
    before = leases.store_time(layout.leases()) - older_than
    parts = [info for table in TABLES for info in _objects(f"{layout.results}/{table}")]
    staged = {run_id: _objects(layout.staging(run_id)) for run_id in intents.staged(layout)}
    marks = _objects(layout.leases())  # before this process takes some itself
    there = commit_records.uris(layout)
    records = commit_records.read_all(there)
    committed = {record.run_id for record in records.values()}
    named = {f"{layout.results}/{part.path}" for record in records.values() for part in record.parts()}
    removed: list[ObjectInfo] = []
    if len(records) < len(there):
        log.warning("published parts are left alone: a record that cannot be read may name them; see above")
        parts = []
    for run_id, objects in staged.items():
        if run_id in committed or all(info.last_modified <= before for info in objects):
            leftovers = [info for info in parts if _run_of(info.uri) == run_id and info.uri not in named]
            removed += _remove_run(layout, run_id, objects, leftovers, dry_run)
    for info in parts:
        if info.uri not in named and _run_of(info.uri) not in staged and info.last_modified <= before:
            removed += _remove([info], f"part that no record names: {info.uri}", dry_run)
    collections = sorted({record.collection for record in records.values()})
    unused = [info for each in collections for info in _unused_masks(layout, each, before)]
    removed += _remove(unused, "masks that no label names", dry_run)
    for folder in sorted({info.uri.rsplit("/", 1)[0] for info in marks}):
        old = [info for info in marks if info.uri.rsplit("/", 1)[0] == folder and info.last_modified <= before]
        if old and leases.state(folder) is None:
            removed += _remove(old, f"lease of nobody: {folder}", dry_run)
    print(f"{'would remove' if dry_run else 'removed'} {_size(removed)}")


def _unused_masks(layout: Layout, collection: str, before: datetime) -> list[ObjectInfo]:
    """Drawings that were replaced, or taken back; none where the labels cannot be read."""
    try:
        kept = label_store.Labels(layout, collection).masks()
    except ConfigError as error:
        log.warning("the masks of collection %s are left alone: %s", collection, error)
        return []
    drawn = _objects(layout.masks(collection))
    return [info for info in drawn if info.uri not in kept and info.last_modified <= before]


def _run_of(uri: str) -> str:
    """The run that a part belongs to."""
    return uri.split("/run=")[-1].split("/")[0]


def _remove_run(
    layout: Layout, run_id: str, objects: list[ObjectInfo], leftovers: list[ObjectInfo], dry_run: bool
) -> list[ObjectInfo]:
    """What a run left: nothing, if somebody has taken it up since `objects` were listed.

    The lease of its night is held meanwhile. What is left of an interrupted removal does not look like work that is
    done. A run that was begun by another version is left to that version.
    """
    what = f"staging of {run_id}"
    try:
        intent = intents.read_intent(layout, run_id)
    except ConfigError as error:
        log.warning("left %s: %s", what, error)
        return []
    infos = {info.uri: info for info in objects}
    ordered = [infos[uri] for group in intents.in_order_of_removal(list(infos)) for uri in group]
    garbage = [*leftovers, *ordered]
    if dry_run or intent is None:
        return _remove(garbage, what, dry_run)
    try:
        with leases.acquire(layout.lease(intent.collection, intent.day), "gc"):
            if set(_objects(layout.staging(run_id))) != set(objects):
                log.info("left %s: it was taken up meanwhile", what)
                return []
            return _remove(garbage, what, dry_run)
    except LeaseHeld as error:
        log.info("left %s: %s", what, error)
        return []


def _remove(objects: list[ObjectInfo], what: str, dry_run: bool) -> list[ObjectInfo]:
    if objects:
        print(f"{formatting.printable(what)}: {_size(objects)}")
    if not dry_run:
        storage.delete_all([info.uri for info in objects])
    return objects


def _objects(prefix: str) -> list[ObjectInfo]:
    return [info for page in storage.pages(prefix) for info in page]


def _size(objects: list[ObjectInfo]) -> str:
    return f"{len(objects)} objects, {sum(info.size for info in objects) / 1e6:.1f} MB"
