"""Nights: what is new is scored, judged, reported and notified of, each night once.

    committed? or score -> verdict -> webhook and command -> report -> exit code

A scheduler may repeat it at will: a committed night is only judged again, an empty one is looked at again, an
interrupted one is resumed, and a notification of a run that was delivered is not sent twice.
"""

import datetime as dt
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from fcdd import bundle
from fcdd.errors import BundleError, ConfigError, FCDDError
from fcdd.io import storage
from jobs.catalog import commit_records
from jobs.scoring import notifications, runs, summary
from jobs.scoring.notifications import NotificationFailed
from jobs.scoring.options import CATCH_UP_DAYS, DATE_PLACEHOLDER, NightlyOptions
from jobs.shell import errors, process
from jobs.sources import listing
from schemas import Layout, RunRecord

log = logging.getLogger(__name__)


def run(options: NightlyOptions, write_report: Callable[[RunRecord], None] | None) -> int:
    """The night, and those before it that were missed: all are tried, and the gravest exit code is returned.

    `write_report` writes the report of a run, if there is none yet. Raises NotificationFailed at the end. Whatever
    stops a single night is raised.
    """
    layout = Layout(storage.normalize(options.results))
    nights = _nights(options, layout)
    outcome = _Outcome()
    for night in nights:
        try:
            _do(options, layout, night, outcome, write_report)
        except Exception as error:  # whatever is wrong with one night, the others are done
            if len(nights) == 1:
                raise
            outcome.undone.append(_log_failure(night, error))
            if isinstance(error, BundleError):
                break  # it would be the same for every night
    for record in _not_notified(options, layout, nights):
        code, _ = verdict(options, record)
        try:
            outcome.failures += _notify(options, layout, record, code)
        except FCDDError as error:
            outcome.failures.append(f"run {record.run_id} is committed, but the notification failed: {error}")
    if outcome.failures:
        raise NotificationFailed(f"{'; '.join(outcome.failures)}; the same command tries again")
    # Nights that are not done come first. Notifications and metrics carry the code of the verdict in any case.
    found = [code for code in outcome.verdicts if code and options.verdict_codes]
    return min(outcome.undone or found, default=errors.FAILED if outcome.unwritten else errors.DONE)


def dry_run(options: NightlyOptions) -> None:
    """Print what `run` would do."""
    layout = Layout(storage.normalize(options.results))
    for night in _nights(options, layout):
        if record := _committed(options, layout, night):
            print(f"run          {record.run_id}  ({options.collection}, {night}) is committed: nothing to do")
        else:
            _check_parents(options)
            _warn_of_no_images(options, night, *runs.dry_run(options.of_night(night)))


def verdict(options: NightlyOptions, record: RunRecord) -> tuple[int, str]:
    """The exit code of a committed run, and why; drift comes first, since alarms of a drifted run mean little.

    More anomalous images than nominal ones explain, and nothing else, are alarms: no lens is dirty.
    """
    limit = options.alarm_limit(record.num_scored)
    if record.drift.verdict == "drifted":
        code = errors.ALARMS_ABOVE_LIMIT if record.drift.is_of_defects_alone else errors.DRIFTED
        return code, record.drift.explained
    if record.num_anomalous > limit:
        return errors.ALARMS_ABOVE_LIMIT, f"{record.num_anomalous} alarms, the limit is {limit}"
    return errors.DONE, ""


@dataclass
class _Outcome:
    """What came of several nights: codes of those that were not done, of verdicts, and what could not be delivered."""

    undone: list[int] = field(default_factory=list)
    verdicts: list[int] = field(default_factory=list)
    # Runs whose report could not be written.
    unwritten: list[str] = field(default_factory=list)
    # Notifications that failed.
    failures: list[str] = field(default_factory=list)


def _do(
    options: NightlyOptions,
    layout: Layout,
    night: dt.date,
    outcome: _Outcome,
    write_report: Callable[[RunRecord], None] | None,
) -> None:
    """Score one night, unless that is done, and notify of it."""
    record = _committed(options, layout, night)
    if record is None:
        _check_parents(options)
        record = runs.score(options.of_night(night))
    summary.print_summary(record)
    _warn_of_no_images(options, record.day, record.num_listed, record.skipped)
    code, why = verdict(options, record)
    if why:
        print(f"exit code {code}: {why}" + ("" if options.verdict_codes else " (0 is asked for)"))
    outcome.verdicts.append(code)
    outcome.failures += _notify(options, layout, record, code)
    if write_report:
        try:
            write_report(record)
        except Exception as error:  # whatever is wrong with a picture or a page, the verdict stands
            message = "run %s is committed, but its report could not be written: %s"
            log.error(message, record.run_id, error, exc_info=True)
            outcome.unwritten.append(record.run_id)


def _warn_of_no_images(options: NightlyOptions, night: dt.date, images: int, skipped: Mapping[str, int]) -> None:
    """Cameras may be off, so an empty night is committed; but it may be a wrong date, or a folder that comes late."""
    if images:
        return
    before, later = skipped.get(listing.SCORED_BEFORE, 0), skipped.get(listing.NEWER, 0)
    said = "has no new images" if before else "is empty" if later else "has no images"
    if before:
        said += f": {before} are there that other nights have (`fcdd query history --uri IMAGE` says which)"
    if later:
        said += f"{', and' if before else ':'} {later} images were written after it; {_instead(options, night)}"
    else:
        said += f"; the same command with --date {night} adds those that come"
    log.warning("the night of %s %s", night, said)


def _instead(options: NightlyOptions, night: dt.date) -> str:
    """What was meant where images are there, but of another time."""
    for place in options.images:
        folder = f"{place.rstrip('/')}/{night}"
        with suppress(FCDDError):  # a hint is no reason for a night to fail
            if DATE_PLACEHOLDER not in place and any(storage.pages(storage.normalize(folder))):
                meant = f"{place.rstrip('/')}/{DATE_PLACEHOLDER}"
                return f"some lie in a folder of this night: did you mean --images '{meant}'?"
    return "did you mean --date today?"


def _notify(options: NightlyOptions, layout: Layout, record: RunRecord, code: int) -> list[str]:
    return notifications.send(layout, record, code, webhook=options.webhook, command=options.command)


def _log_failure(night: dt.date, error: Exception) -> int:
    """Print or log why a night was not done; its exit code."""
    if not isinstance(error, FCDDError):
        log.error("%s was not done", night, exc_info=error)
        return errors.FAILED
    print(f"error: {night}: {process.sentence(error)}", file=sys.stderr)
    return errors.exit_code(error)


def _committed(options: NightlyOptions, layout: Layout, night: dt.date) -> RunRecord | None:
    """The night's run, whatever command made it; an empty one is no reason not to look again."""
    record = commit_records.of_night(layout, options.collection, night)
    if record and not record.num_listed:
        return None
    if record:
        log.info(
            "run %s of %s was committed at %s; images that came since are added by `fcdd score --since-last --date %s`",
            *(record.run_id, night, record.committed_at, night),
        )
        runs.warn_of_other_rates(record, options.alpha or record.alpha, options.fdr)
        _warn_of_other_images(record, options.of_night(night).source.places())
        _warn_of_another_bundle(record, options.of_night(night).bundle)
    return record


def _warn_of_other_images(record: RunRecord, places: Iterable[str]) -> None:
    """A committed night is left alone, also by a command that names other images."""
    others = sorted(set(places) - set(record.images))
    if others:
        log.warning(
            "run %s is of the images under %s: none under %s are scored by this command; `fcdd score --since-last` "
            "adds them to the night",
            *(record.run_id, ", ".join(record.images), ", ".join(others)),
        )


def _warn_of_another_bundle(record: RunRecord, location: str) -> None:
    """A committed night is left alone, also by a command that names another bundle."""
    with suppress(FCDDError):  # a bundle that is gone or damaged matters to nights that are still to be scored
        digest = bundle.load(location)[0].digest
        if digest != record.bundle_digest:
            log.warning(
                "run %s was scored by the bundle %s, not by %s, which is %s: what follows is of that run; `fcdd score` "
                "with that bundle scores the night again, and the new run takes its place",
                *(record.run_id, record.bundle_digest[:12], location, digest[:12]),
            )


def _not_notified(options: NightlyOptions, layout: Layout, done: list[dt.date]) -> list[RunRecord]:
    """Recent runs whose notifications are still to be delivered: an attempt died, or gave up."""
    since = options.day - dt.timedelta(days=CATCH_UP_DAYS)
    channels = [name for name, target in (("webhook", options.webhook), ("command", options.command)) if target]
    current = commit_records.current(commit_records.history(layout, options.collection))
    recent = [record for record in current if record.day >= since and record.day not in done]
    return [r for r in recent if notifications.pending(layout, r, (name for name in channels if r.settings.get(name)))]


def _nights(options: NightlyOptions, layout: Layout) -> list[dt.date]:
    """The nights to do, oldest first."""
    runs.check_begun(options.day)
    if not options.catch_up:
        return [options.day]
    done = {record.day for record in commit_records.history(layout, options.collection)}
    before = [day for day in done if day < options.day]
    if not before:
        return [options.day]
    earliest = options.day - dt.timedelta(days=CATCH_UP_DAYS)
    # By folders any night can be made up for; by time the next one has taken the images of a night between two others.
    first = max(earliest, min(before) if options.folders_of(options.day) else max(before))
    days = (first + dt.timedelta(days=n) for n in range((options.day - first).days + 1))
    missed = [day for day in days if day not in done or day == options.day]
    log.info("nights to do: %s", ", ".join(map(str, missed)))
    return missed


def _check_parents(options: NightlyOptions) -> None:
    """Raises ConfigError when there is nothing at all where folders of nights should be: a mistyped location."""
    for place in options.images:
        before, placeholder, _ = place.partition(DATE_PLACEHOLDER)
        parent, slash, _ = before.rpartition("/")
        if not placeholder or not slash or parent.endswith((":", ":/", "/")) or not parent:
            continue  # a location without a date, or a bucket, or the current folder: nothing above it to look at
        parent = storage.normalize(parent)
        if not any(page for page in storage.pages(parent)):
            raise ConfigError(
                f"there is nothing under {parent}, where the folders of the nights should be; correct --images"
            )
