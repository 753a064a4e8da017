"""The manifest of a run: one row per image, in Parquet parts that are sealed while the listing goes on.

    locations -> pages (one thread each) -> sealed parts -> ... -> plan.json, which completes the manifest

A sealed part is final: what is in it has its row ids, and may be scored. Stores list by name, so a page that goes on
where the last one ended needs no memory of what came before. Whatever comes in another order (files of a disk,
explicit lists, pages out of turn) is spooled to this machine's disk and sorted there by DuckDB, with bounded memory.
An interrupted listing goes on behind its last sealed part.
"""

import hashlib
import itertools
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self

from fcdd.errors import FCDDError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import intents, manifest_parts
from jobs.scoring.sorting import Found, Spool
from jobs.shell import temporary
from jobs.sources import listing, lists
from jobs.sources.listing import OwnFiles, Selection
from schemas import Layout, RunRecord
from schemas.runs import Intent, ManifestPart, Plan

# The first parts are small, so that scoring can begin; the later ones are few.
FIRST_PARTS, FIRST_ROWS, PART_ROWS = 4, 8_192, 65_536

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """Where the images of a run come from: locations to list, or one explicit list."""

    prefixes: list[str]
    list_uri: str | None
    selection: Selection
    since_last: bool
    # Of `since_last`: images that another bundle scored are not new either.
    any_bundle: bool = False
    # Locations where it is no mistake that there is nothing.
    may_be_empty: tuple[str, ...] = ()

    def places(self) -> tuple[str, ...]:
        """What is listed: the explicit list, or the locations."""
        return (self.list_uri,) if self.list_uri else tuple(self.prefixes)


class Progress(NamedTuple):
    """What of the manifest is sealed, and whether that is all."""

    parts: tuple[ManifestPart, ...]
    complete: bool


class Listing:
    """Lists in the background; what is sealed can be read meanwhile. Use it as a context: leaving stops it.

    `history` are the collection's runs, which an incremental listing compares with.
    """

    def __init__(self, layout: Layout, intent: Intent, source: Source, history: Sequence[RunRecord] = ()) -> None:
        self._layout, self._intent, self._source, self._history = layout, intent, source, list(history)
        self._sealed = _Sealed(layout, intent)
        self._changed = threading.Condition()
        self._tally = _Tally()
        self._plan: Plan | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="listing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tally.stopped.set()
        self._thread.join()

    def wait(self, known: int = 0, patience_s: float = 0.0) -> Progress:
        """What is sealed, as soon as that is more than `known` parts, or all. Raises what the listing raised.

        With patience, a listing that is nearly done is waited for: one round of work is better than two.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._sealed.parts) > known or self._plan or self._error)
            self._changed.wait_for(lambda: self._plan or self._error, timeout=patience_s)
            if self._error:
                raise self._error
            return Progress(tuple(self._sealed.parts), self._plan is not None)

    def plan(self) -> Plan:
        """The complete manifest; waits for it."""
        while True:
            progress = self.wait(known=1 << 62)
            if progress.complete and self._plan:
                return self._plan

    def _work(self) -> None:
        plan, failure = None, None
        try:
            plan = self._list()
        except BaseException as error:  # raised again in the thread that waits
            failure = error
        self._report(plan, failure)

    def _report(self, plan: Plan | None, failure: BaseException | None) -> None:
        with self._changed:
            self._plan, self._error = plan, self._error or failure
            self._changed.notify_all()

    def _list(self) -> Plan:
        if plan := intents.read_plan(self._layout, self._intent.run_id):
            self._sealed.parts = list(plan.parts)
            return plan
        last = self._sealed.resume()
        with temporary.folder("listing") as folder, Spool(folder) as spool:
            if self._sorts_first():
                spool_all(self._source, spool, self._tally)
            else:
                places = enumerate(self._source.prefixes)
                _together(
                    [partial(self._stream, index, prefix, last.get(index), spool) for index, prefix in places],
                    self._tally,
                    self._report,
                )
            self._tally.check_places(self._source)
            deleted = self._sort(spool, resumed=bool(last))
            return self._complete(deleted)

    def _sorts_first(self) -> bool:
        """Whether nothing can be sealed before everything is listed."""
        source = self._source
        return source.since_last or source.list_uri is not None or not all(map(storage.lists_in_order, source.prefixes))

    def _stream(self, index: int, prefix: str, last: str | None, spool: Spool) -> None:
        """Seal what comes in order; spool what does not.

        A listing that once came out of order is listed from its beginning again when it is resumed: behind the last
        sealed image alone, what had been spooled would be missing.
        """
        marker = self._layout.unordered(self._intent.run_id, index)
        after = None if last and storage.exists(marker) else last
        rows: list[ObjectInfo] = []
        newest, marked = last or "", after is not last
        for page in storage.pages(prefix, after=after):
            chosen = self._tally.select(index, prefix, page, self._source.selection)
            late = []
            for info in chosen:
                if info.uri > newest:
                    newest = info.uri
                    rows.append(info)
                else:
                    late.append(info)
            if late and not marked:
                storage.write(marker, b"")
                marked = True
            spool.add(late)
            while len(rows) >= (size := self._sealed.next_size()):
                self._seal(rows[:size], index)
                rows = rows[size:]
        if last:
            self._tally.seen(index)
        if rows:
            self._seal(rows, index)

    def _seal(self, rows: list[ObjectInfo], source: int, known: Mapping[str, int] = MappingProxyType({})) -> None:
        self._sealed.add(rows, source, known)
        with self._changed:
            self._changed.notify_all()

    def _sort(self, spool: Spool, *, resumed: bool) -> int:
        """Seal what was spooled: sorted, once each, without what is sealed or (incremental) was scored before."""
        if not spool.rows and not self._source.since_last:
            return 0
        tally, incremental = self._tally, self._source.since_last
        with spool.database(self._layout.results) as database:
            database.use_sealed(self._layout, self._intent.run_id, len(self._sealed.parts))
            if incremental:
                database.use_history(self._layout.results, self._history)
            uri, batch, kept, known = None, list[ObjectInfo](), 0, dict[str, int]()
            digest = None if self._source.any_bundle else self._intent.bundle_digest
            for rows in database.to_do(digest, self._intent.day):
                tally.raise_if_stopped()
                for info, row_id in rows:
                    if info.uri == uri:
                        tally.duplicates += 1
                        continue
                    uri = info.uri
                    batch.append(info)
                    kept += 1
                    if row_id is not None and self._intent.keeps:  # it takes the place of that row
                        known[uri] = row_id
                while len(batch) >= (size := self._sealed.next_size()):
                    self._seal(batch[:size], -1, known)
                    batch = batch[size:]
                    known = {info.uri: known[info.uri] for info in batch if info.uri in known}
            if batch:
                self._seal(batch, -1, known)
            if not incremental and not resumed:
                tally.duplicates = spool.rows - kept  # also those that the sealed parts have
            if incremental:
                tally.scored_before = database.num_scored_before(digest, self._intent.day)
                if self._intent.keeps and (alike := database.num_under_other_names(digest, self._intent.day)):
                    log.warning(
                        "%d images that are added have the name and the size of images of this night that were not "
                        "listed: were they moved or copied? Then they are in it twice",
                        alike,
                    )
            if not incremental or self._source.list_uri:
                return 0
            return database.write_deleted(self._layout, self._intent, tally.with_images(self._source.prefixes))

    def _complete(self, deleted: int) -> Plan:
        sealed, tally = self._sealed, self._tally
        rows = sum(part.rows for part in sealed.parts)
        plan = Plan(
            intent=self._intent,
            num_images=self._intent.kept_images + sealed.num_new,
            num_rows=rows,
            num_bytes=sealed.bytes,
            num_duplicates=tally.duplicates,
            num_deleted=deleted,
            skipped=dict(tally.skipped) | ({listing.SCORED_BEFORE: tally.scored_before} if tally.scored_before else {}),
            manifest_digest=sealed.sha.hexdigest(),
            parts=tuple(sealed.parts),
        )
        intents.create_plan(self._layout, plan)
        words = (rows, sealed.bytes / 1e9, self._intent.run_id, listing.describe_counts(plan.skipped))
        log.info("listed %d images (%.1f GB) for run %s; skipped %s", *words)
        return plan


class _Tally:
    """What the threads of a listing count together, and how they are stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        self.duplicates = self.scored_before = 0
        self._own = OwnFiles()
        # Of each place: images that are chosen, and what is left out by rule.
        self._chosen: Counter[int] = Counter()
        self._skipped: defaultdict[int, Counter[str]] = defaultdict(Counter)

    @property
    def skipped(self) -> Counter[str]:
        """What is left out of all places, by rule."""
        return sum(self._skipped.values(), Counter())

    def select(
        self, place: int, prefix: str, page: Iterable[ObjectInfo], selection: Selection, *, named: bool = False
    ) -> list[ObjectInfo]:
        """The images of a page of one place; the others are counted by rule. `named`: they come from a list."""
        self.raise_if_stopped()
        with self._lock:
            own = None if named else self._own
            chosen = listing.selected(prefix, page, selection, self._skipped[place], own)
            self._chosen[place] += len(chosen)
            return chosen

    def seen(self, place: int) -> None:
        """A place was listed before."""
        with self._lock:
            self._chosen[place] += 1

    def check_places(self, source: Source) -> None:
        """Raises ConfigError for a place without a single image, or if no image at all is selected.

        An incremental run may find no new image, but an empty place would mean that everything was deleted. Markers of
        folders, and what an unmounted disk leaves behind, are no images; those of another time are.
        """
        for place, prefix in enumerate(source.places()):
            if not self._has_images(place) and prefix not in source.may_be_empty:
                raise listing.nothing_found([prefix], self._skipped[place], source.selection)
        if not source.since_last and not self._chosen.total():
            raise listing.nothing_found(source.places(), self.skipped, source.selection)

    def _has_images(self, place: int) -> bool:
        return self._chosen[place] + listing.of_another_time(self._skipped[place]) > 0

    def with_images(self, prefixes: list[str]) -> list[str]:
        """The locations where images were found: of the others nobody knows whether they were deleted."""
        return [prefix for place, prefix in enumerate(prefixes) if self._has_images(place)]

    def raise_if_stopped(self) -> None:
        """End this thread when nobody waits for it any more."""
        if self.stopped.is_set():
            raise KeyboardInterrupt


def _together(
    work: Sequence[Callable[[], None]], tally: _Tally, report: Callable[[None, BaseException], None] | None = None
) -> None:
    """Run each in a thread of its own. The first error stops the others, goes to `report` at once, and is raised."""
    errors: list[BaseException] = []

    def run(each: Callable[[], None]) -> None:
        try:
            each()
        except BaseException as error:  # raised again below
            errors.append(error)
            tally.stopped.set()
            if report:
                report(None, errors[0])

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class _Sealed:
    """The parts that are written; row ids are given here, so that they are dense whichever thread comes first."""

    def __init__(self, layout: Layout, intent: Intent) -> None:
        self._layout, self._run_id, self._first_id = layout, intent.run_id, intent.kept_images
        self._lock = threading.Lock()
        self.parts: list[ManifestPart] = []
        self.bytes = self.num_new = 0
        self.sha = hashlib.sha256()

    def next_size(self) -> int:
        """Rows of the next part."""
        return FIRST_ROWS if len(self.parts) < FIRST_PARTS else PART_ROWS

    def resume(self) -> dict[int, str]:
        """Take up what an interrupted listing sealed; the last image of each of its locations."""
        last: dict[int, str] = {}
        while True:
            try:
                table = manifest_parts.read(self._layout, self._run_id, len(self.parts))
            except FileNotFoundError:
                return last
            source = int(table.schema.metadata[b"source"])
            infos = manifest_parts.rows_of(table)
            last[source] = infos[-1].uri
            self._count(infos, source, table["row_id"].to_pylist())

    def add(self, rows: list[ObjectInfo], source: int, known: Mapping[str, int]) -> None:
        """Seal a part. Images that are `known` by their locations have the row ids given there."""
        with self._lock:
            following = itertools.count(self._first_id + self.num_new)
            ids = [known[info.uri] if info.uri in known else next(following) for info in rows]
            data = manifest_parts.to_bytes(rows, ids, source)
            try:
                storage.create(self._layout.manifest_part(self._run_id, len(self.parts)), data)
            except FileExistsError as error:
                raise FCDDError(f"another process lists for run {self._run_id}; run the same command again") from error
            self._count(rows, source, ids)

    def _count(self, rows: list[ObjectInfo], source: int, row_ids: Iterable[int]) -> None:
        self.num_new += sum(row_id >= self._first_id for row_id in row_ids)
        start = self.parts[-1].start + self.parts[-1].rows if self.parts else 0
        for info in rows:
            self.sha.update(listing.digested(info.uri, info.etag, info.size))
            self.bytes += max(0, info.size)
        self.parts.append(ManifestPart(start=start, rows=len(rows), source=source, last_uri=rows[-1].uri))


def spool_all(source: Source, spool: Spool, tally: _Tally) -> None:
    """Everything that is listed, each location by a thread of its own."""

    def spool_pages(place: int, prefix: str, pages: Iterable[list[ObjectInfo]]) -> None:
        for page in pages:
            chosen = tally.select(place, prefix, page, source.selection, named=source.list_uri is not None)
            spool.add(chosen)
            if source.since_last and len(chosen) < len(page):
                spool.add(set(page).difference(chosen), chosen=False)

    if source.list_uri:
        base = source.prefixes[0] if source.prefixes else None
        known = source.since_last or source.selection.by_time
        entries = lists.entries(source.list_uri, base, must_be_known=known)
        _together([partial(spool_pages, 0, base or "", entries)], tally)
    else:
        places = enumerate(source.prefixes)
        _together([partial(spool_pages, index, prefix, storage.pages(prefix)) for index, prefix in places], tally)


def survey(
    layout: Layout, source: Source, history: list[RunRecord], digest: str | None, night: date
) -> tuple[Found, dict[str, int]]:
    """List, write nothing, and count; scored is what these runs have scored with the bundle of this digest (None: any).

    The other value is what was left out, by rule. Raises ConfigError when nothing is found.
    """
    with temporary.folder("listing") as folder, Spool(folder) as spool:
        tally = _Tally()
        spool_all(source, spool, tally)
        tally.check_places(source)
        with spool.database(layout.results) as database:
            database.use_history(layout.results, history)
            return database.survey(digest, night), dict(tally.skipped)
