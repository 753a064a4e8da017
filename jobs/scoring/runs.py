"""One run of scoring: its name, which attempt it is, the lease it is made under. What `fcdd score` and `nightly` do."""

import datetime as dt
import hashlib
import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

from fcdd.errors import ConfigError
from jobs.catalog import commit_records, intents, leases
from jobs.catalog.staging import Coverage
from jobs.scoring import manifests, progress, publishing, waves
from jobs.scoring.manifests import Listing, Source
from jobs.scoring.options import ScoreOptions
from jobs.scoring.sorting import Found
from jobs.scoring.waves import Job
from jobs.sources import listing
from schemas import RunRecord

# The rate of the largest of so many recent runs is expected of the next one.
_RECENT_RUNS = 10

log = logging.getLogger(__name__)


def score(options: ScoreOptions) -> RunRecord:
    """Score and commit, unless that is done: the record of the run."""
    check_begun(options.day)
    _warn_of_another_date(options)
    job = waves.prepare(options)
    # Whether an incremental command is done only a listing says: once, when no other process scores the night.
    if not options.source.since_last and (record := _nothing_to_do(job, next_attempt(job))):
        return record
    with leases.acquire(job.layout.lease(options.collection, options.day), name_run(job)) as lease:
        attempt = next_attempt(job)  # another process may have committed before it gave the lease back
        if record := _nothing_to_do(job, attempt):
            return record
        keep = _is_kept(job, attempt)
        _check_same_images(job, attempt)
        if keep and attempt.before and attempt.before.num_listed and attempt.before.alpha != job.alpha:
            raise ConfigError(
                f"run {attempt.before.run_id}, which this one adds to, has alarms for a false-alarm rate of "
                f"{attempt.before.alpha:g}, not {job.alpha:g}: give the same --alpha, or score the night again with "
                "--rescore instead of --since-last"
            )
        commit_records.check_free(job.layout, attempt.run_id)
        waves.check_precision(job)
        intent = intents.create_or_resume(job.layout, job.intent(attempt.run_id, attempt.before, keep=keep))
        with Listing(job.layout, intent, job.options.source, attempt.history) as listing:
            return waves.stage_and_commit(job, intent, listing, lease)


class Attempt(NamedTuple):
    """The next run of a command: its id, the run of the night by now, committed runs of the command, all runs."""

    run_id: str
    before: RunRecord | None
    committed: list[RunRecord]
    history: list[RunRecord]


def name_run(job: Job) -> str:
    """The same command has the same name: it finds what it left, whether committed or half done."""
    options, source = job.options, job.options.source
    selection = source.selection.model_dump_json()
    places = (*source.prefixes, source.list_uri or "", selection, str((source.since_last, source.any_bundle)))
    identity = "\0".join((options.collection, options.day.isoformat(), *places, job.spec.digest))
    return f"{options.day:%Y%m%d}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def next_attempt(job: Job) -> Attempt:
    """What is committed, and what comes next."""
    name, history = name_run(job), commit_records.history(job.layout, job.options.collection)
    committed = [r for r in history if r.run_id == name or r.run_id.startswith(f"{name}-")]
    before = next((record for record in commit_records.current(history) if record.day == job.options.day), None)
    return Attempt(_next_name(name, [record.run_id for record in committed]), before, committed, history)


def _next_name(name: str, taken: Sequence[str]) -> str:
    """The next of name, name-r2, name-r3, ...: one above the highest, since records may have been removed."""
    numbers = [re.match(rf"{re.escape(name)}-r(\d+)", run_id) for run_id in taken]
    return f"{name}-r{1 + max(int(number[1]) if number else 1 for number in numbers)}" if numbers else name


def check_begun(day: dt.date) -> None:
    """Raises ConfigError for a night that has begun nowhere."""
    if day > dt.datetime.now(dt.UTC).date() + dt.timedelta(days=1):  # somewhere it is tomorrow already
        raise ConfigError(f"the night of {day} has not begun; correct --date")


def _warn_of_another_date(options: ScoreOptions) -> None:
    """A folder that is named by a night is that night's."""
    for place in () if options.source.list_uri else options.source.prefixes:
        name = place.rstrip("/").rpartition("/")[2]
        if re.fullmatch(r"(\w+=)?\d{4}-\d\d-\d\d", name) and not name.endswith(options.day.isoformat()):
            log.warning("the images under %s are scored as the night of %s: is that --date right?", place, options.day)


def _is_kept(job: Job, attempt: Attempt) -> bool:
    """Whether the run adds to that of the night."""
    before = attempt.before
    return job.options.source.since_last and before is not None and before.bundle_digest == job.spec.digest


def _check_same_images(job: Job, attempt: Attempt) -> None:
    """Raises ConfigError where a run of other images would take the place of the night's run."""
    before = attempt.before
    if before is None or not before.num_listed or job.options.rescore or _is_kept(job, attempt):
        return
    if (others := _other_images(job, before)) is None:
        return
    add = "--since-last to add these images to that run, " if before.bundle_digest == job.spec.digest else ""
    raise ConfigError(
        f"the night of {before.day} has run {before.run_id} already, of {others}; give --date for another night, {add}"
        "or --rescore to put a run of these in its place"
    )


def _other_images(job: Job, before: RunRecord) -> str | None:
    """Which images a run has in words, where they are not those of the command."""
    source = job.options.source
    under = f"the images under {', '.join(before.images)}"
    if set(before.images) != set(source.places()):
        return under
    if before.bundle_digest != job.spec.digest:  # by another bundle the night is scored again
        return None
    if before.skipped.get(listing.SCORED_BEFORE) or (before.selection.get("since_last") and not source.since_last):
        return f"those that were new under {', '.join(before.images)}"
    chosen, now = before.selection, source.selection.model_dump(mode="json")
    differing = [name for name in now if chosen.get(name, now[name]) != now[name]]
    named = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
    return f"{under} by another {named}" if differing else None


def _nothing_to_do(job: Job, attempt: Attempt) -> RunRecord | None:
    """The record of a command that is done: of an incremental one, while no other image is there."""
    if not attempt.committed or job.options.rescore or _has_new_images(job, attempt):
        return None
    record, since_last = attempt.committed[-1], job.options.source.since_last
    how = "no image is new" if since_last else "--rescore does it again, --since-last adds images that came later"
    log.info("run %s was committed at %s; nothing to do (%s)", record.run_id, record.committed_at, how)
    warn_of_other_rates(record, job.alpha, job.options.fdr)
    if attempt.before and attempt.before not in attempt.committed:
        log.warning("since then run %s took its place: that is what readers see", attempt.before.run_id)
    publishing.clean_up(job.layout, record.run_id)  # what a crash after the commit may have left
    return record


def _has_new_images(job: Job, attempt: Attempt) -> bool:
    """Whether an incremental command, which was done once, finds images that were not scored."""
    source = job.options.source
    if not source.since_last:
        return False
    anywhere = source._replace(may_be_empty=source.places())  # what was scored may have been archived
    found, _ = _survey(job, anywhere, attempt)
    return found.images > found.scored


def _survey(job: Job, source: Source, attempt: Attempt) -> tuple[Found, dict[str, int]]:
    """`manifests.survey` of what the command may list."""
    digest = None if source.any_bundle else job.spec.digest
    return manifests.survey(job.layout, source, attempt.history, digest, job.options.day)


def warn_of_other_rates(record: RunRecord, alpha: float, fdr: float) -> None:
    """A committed run is left alone, also if the rates of this command differ."""
    if (record.alpha, record.fdr) != (alpha, fdr):
        log.warning(
            "run %s has alarms at %g and a list at %g, not %g and %g; `fcdd query --alpha` selects at any rate",
            *(record.run_id, record.alpha, record.fdr, alpha, fdr),
        )


def dry_run(options: ScoreOptions) -> tuple[int, dict[str, int]]:
    """Print what `score` would do; how many images there are, and what is left out, by rule."""
    check_begun(options.day)
    _warn_of_another_date(options)
    job = waves.prepare(options)
    attempt = next_attempt(job)
    _check_same_images(job, attempt)
    records = attempt.history
    source = options.source
    found, skipped = _survey(job, source, attempt)
    staged = Coverage.read(job.layout, attempt.run_id).count()
    if source.since_last:
        to_do, why = found.images - found.scored, "those that are not scored"
    elif attempt.committed and not options.rescore:
        to_do, why = 0, f"run {attempt.committed[-1].run_id} is committed; --rescore scores again"
    else:
        to_do, why = max(0, found.images - staged), f"{staged} are staged by an interrupted run" if staged else "all"
    timed = [record for record in records[-_RECENT_RUNS:] if record.images_per_second]
    same = [record for record in timed if record.bundle_digest == job.spec.digest] or timed
    print(f"run          {attempt.run_id}  ({options.collection}, {options.day}), not started")
    print(f"images       {found.images}  ({found.bytes / 1e9:.3f} GB)")
    if skipped:
        print(f"left out     {listing.describe_counts(skipped)}")
    print(f"scored       {found.scored}  (by a committed run of the collection, with this bundle)")
    print(f"to do        {to_do}  ({why})")
    if same:
        record = max(same, key=lambda record: record.num_bytes)  # the rate of a small run is mostly its start
        print(
            f"about        {progress.duration(to_do / record.images_per_second)}  (run {record.run_id} did "
            f"{record.images_per_second:.1f} images/s)"
        )
    else:
        print("about        unknown: no run of the collection tells how fast it goes")
    return found.images, skipped
