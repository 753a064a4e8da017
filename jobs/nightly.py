"""`fcdd nightly`: score what is new, decide, look for drift, tell, and end with a code that a scheduler understands.

    list what no run has scored -> score -> alarms, list, drift -> committed run -> webhook and command -> exit code

A scheduler may repeat it at will: a committed night is only reported again, an interrupted one is finished, and who
has been told is not told twice.
"""

import datetime as dt
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field, SecretStr

from fcdd.errors import BundleError, ConfigError, FCDDError
from fcdd.io import storage
from jobs.catalog import commit_records
from jobs.scoring import notify, runs, waves
from jobs.scoring.notify import NotTold
from jobs.scoring.options import ScoreSettings, aware
from jobs.shell import errors, process
from jobs.shell.settings import Night
from jobs.sources.locations import Locations
from schemas import Layout, RunRecord

PLACEHOLDER = "{date}"
REPORT_IMAGES = 50
# So few alarms are never too many.
FEW_ALARMS = 10
# So far back missed nights are caught up, and runs that nobody could be told of are told.
CATCH_UP_DAYS = 60

log = logging.getLogger(__name__)


class NightlySettings(ScoreSettings):
    """Score what is new since the last committed run, decide, look for drift, and tell.

    Exit codes: 0 fine, 1 failed, 2 you must change something, 3 too many unreadable images, 4 drifted, 5 more alarms
    than the limit, 6 another process is at it, 130 interrupted. All other options are those of `fcdd score`.
    """

    verb: ClassVar[str] = "nightly"

    images: list[str] = Field(
        default_factory=list,
        description="location of the images; {date} in it becomes the night; may be given again",
    )
    date: Night = Field(
        "yesterday", validate_default=True, description="the night: YYYY-MM-DD, today or yesterday (in UTC)"
    )
    since_last: bool = Field(
        True, description="score only images that no run of the collection has scored, with any bundle"
    )
    catch_up: bool = Field(
        False,
        description=f"first the nights that were missed, at most {CATCH_UP_DAYS} days back; one that fails does not "
        "stop the others, and the exit code is the gravest",
    )
    max_alarm_share: float = Field(
        0.1, ge=0, le=1, description=f"share of alarms above which the exit code is 5; {FEW_ALARMS} are never too many"
    )
    max_alarms: int | None = Field(None, ge=0, description="the same as a number; without the allowance")
    verdict_codes: bool = Field(
        True,
        description="the exit codes 4 and 5; --no-verdict-codes: 0 instead, for a scheduler that repeats what fails",
    )
    report: bool = Field(True, description="write the report of the run beside its record, as `fcdd report` does")
    webhook: SecretStr | None = Field(
        None,
        description="address that gets the run record as a JSON POST; only by FCDD_WEBHOOK or in the TOML file, since "
        "it may hold a secret and others see a command line",
    )
    command: SecretStr | None = Field(
        None,
        description="program that gets the run record on its input, and FCDD_RUN_ID, FCDD_VERDICT and FCDD_EXIT_CODE; "
        "only by FCDD_COMMAND or in the TOML file",
    )

    def alarm_limit(self, images: int) -> int:
        """How many alarms of so many images are no reason for another exit code."""
        return max(FEW_ALARMS, int(self.max_alarm_share * images)) if self.max_alarms is None else self.max_alarms


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: nightly(NightlySettings.parse(argv)))


def nightly(settings: NightlySettings) -> int:
    """The night, and those before it that were missed: all are tried, and the gravest exit code is returned.

    Raises NotTold at the end. Whatever stops a single night is raised.
    """
    webhook, command = _secret(settings.webhook), _secret(settings.command)
    notify.check(webhook, command)
    if settings.rescore:
        raise ConfigError("a nightly run only scores what is new; to score a night again use `fcdd score --rescore`")
    layout = Layout(storage.normalize(settings.results))
    nights = _nights(settings, layout)
    if settings.dry_run:
        for night in nights:
            if record := _committed(settings, layout, night):
                print(f"run          {record.run_id}  ({settings.collection}, {night}) is committed: nothing to do")
            else:
                runs.dry_run(_of_night(settings, night), any_bundle=True, may_be_empty=_dated(settings, night))
        return errors.DONE
    outcome = _Outcome()
    for night in nights:
        try:
            _do(settings, layout, night, outcome)
        except Exception as error:  # whatever is wrong with one night, the others are done
            if len(nights) == 1:
                raise
            outcome.undone.append(_explained(night, error))
            if isinstance(error, BundleError):
                break  # it would be the same for every night
    for record in _waiting(settings, layout, nights):
        code, _ = verdict(settings, record)
        try:
            outcome.failures += notify.tell(layout, record, code, webhook=webhook, command=command)
        except FCDDError as error:
            outcome.failures.append(f"run {record.run_id} is committed, but nobody could be told: {error}")
    if outcome.failures:
        raise NotTold(f"{'; '.join(outcome.failures)}; the same command tries again")
    # Nights that are not done come first. Whoever is told of a run, and its metrics, say what its verdict's code would.
    found = [code for code in outcome.verdicts if code and settings.verdict_codes]
    return min(outcome.undone or found, default=errors.FAILED if outcome.unwritten else errors.DONE)


@dataclass
class _Outcome:
    """What came of several nights: codes of those that were not done, of verdicts, and who could not be told."""

    undone: list[int] = field(default_factory=list)
    verdicts: list[int] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def _do(settings: NightlySettings, layout: Layout, night: dt.date, outcome: _Outcome) -> None:
    """Score one night, unless that is done, and tell of it."""
    record = _committed(settings, layout, night) or runs.score(
        _of_night(settings, night), any_bundle=True, may_be_empty=_dated(settings, night)
    )
    code = _shown(settings, record)
    outcome.verdicts.append(code)
    webhook, command = _secret(settings.webhook), _secret(settings.command)
    outcome.failures += notify.tell(layout, record, code, webhook=webhook, command=command)
    outcome.unwritten += _report_once(settings, layout, record)


def _explained(night: dt.date, error: Exception) -> int:
    """Say why a night was not done; its exit code."""
    if not isinstance(error, FCDDError):
        log.error("%s was not done", night, exc_info=error)
        return errors.FAILED
    print(f"error: {night}: {process.sentence(error)}", file=sys.stderr)
    return errors.exit_code(error)


def _shown(settings: NightlySettings, record: RunRecord) -> int:
    """Print the summary of a committed run and its verdict; the exit code of the verdict."""
    waves.show(record)
    code, why = verdict(settings, record)
    if why:
        print(f"exit code {code}: {why}" + ("" if settings.verdict_codes else " (0 is asked for)"))
    return code


def _report_once(settings: NightlySettings, layout: Layout, record: RunRecord) -> list[str]:
    """The report of a run, unless it is there; the run, if it could not be written: the same command tries again.

    Others have been told by now: whatever happens to a report, they know of the run.
    """
    if not settings.report:
        return []
    uri = layout.report(record.collection, record.day, record.run_id)
    try:
        from jobs.viewing import html_report  # it loads torch, to draw

        if storage.exists(uri):
            return []
        given = [_of(place, record.day) for place in settings.images]
        locations = Locations.of(layout.results, (record,), given)
        storage.write(uri, html_report.build(layout.results, record, images=REPORT_IMAGES, locations=locations))
    except Exception as error:  # whatever is wrong with a picture or a page, the verdict stands
        log.error("run %s is committed, but its report could not be written: %s", record.run_id, error, exc_info=True)
        return [record.run_id]
    print(f"report       {uri}")
    return []


def verdict(settings: NightlySettings, record: RunRecord) -> tuple[int, str]:
    """The exit code of a committed run, and why; drift comes first, since alarms of a drifted run mean little."""
    limit = settings.alarm_limit(record.num_scored)
    if record.drift.verdict == "drifted":
        return errors.DRIFTED, "the images are not those that the bundle was calibrated for"
    if record.num_anomalous > limit:
        return errors.ALARMS_ABOVE_LIMIT, f"{record.num_anomalous} alarms, the limit is {limit}"
    return errors.DONE, ""


def _committed(settings: NightlySettings, layout: Layout, night: dt.date) -> RunRecord | None:
    """The night's run, whatever command made it."""
    current = commit_records.current(commit_records.history(layout, settings.collection))
    record = next((record for record in current if record.day == night), None)
    if record:
        log.info("run %s of %s was committed at %s", record.run_id, night, record.committed_at)
        runs.warn_of_other_rates(record, settings.alpha or record.alpha, settings.fdr)
    return record


def _waiting(settings: NightlySettings, layout: Layout, done: list[dt.date]) -> list[RunRecord]:
    """Recent runs that were made to be told of, and of which nobody has been told: an attempt died, or gave up."""
    since = settings.date - dt.timedelta(days=CATCH_UP_DAYS)
    asked = [way for way, target in (("webhook", settings.webhook), ("command", settings.command)) if target]
    current = commit_records.current(commit_records.history(layout, settings.collection))
    recent = [record for record in current if record.day >= since and record.day not in done]
    return [r for r in recent if notify.untold(layout, r, (way for way in asked if r.settings.get(way)))]


def _nights(settings: NightlySettings, layout: Layout) -> list[dt.date]:
    """The nights to do, oldest first."""
    if not settings.catch_up:
        return [settings.date]
    done = {record.day for record in commit_records.history(layout, settings.collection)}
    before = [day for day in done if day < settings.date]
    if not before:
        return [settings.date]
    earliest = settings.date - dt.timedelta(days=CATCH_UP_DAYS)
    # By folders any night can be made up for; by time the next one has taken the images of a night between two others.
    first = max(earliest, min(before) if _dated(settings, settings.date) else max(before))
    days = (first + dt.timedelta(days=n) for n in range((settings.date - first).days + 1))
    missed = [day for day in days if day not in done or day == settings.date]
    log.info("nights to do: %s", ", ".join(map(str, missed)))
    return missed


def _of_night(settings: NightlySettings, night: dt.date) -> ScoreSettings:
    """The options of one night: its folders, or what was written until its end."""
    for place in settings.images:
        _check_parent(place)
    changes: dict[str, Any] = {"date": night, "images": [_of(place, night) for place in settings.images]}
    if not _dated(settings, night) and not settings.image_list:
        end = dt.datetime.combine(night + dt.timedelta(days=1), dt.time(), dt.UTC)
        given = aware(settings.modified_before)
        changes["modified_before"] = min(end, given) if given else end
    return settings.model_copy(update=changes)


def _of(place: str, night: dt.date) -> str:
    return place.replace(PLACEHOLDER, night.isoformat())


def _dated(settings: NightlySettings, night: dt.date) -> list[str]:
    """Folders of one night: the cameras may have been off, so they need not be there."""
    return [_of(place, night) for place in settings.images if PLACEHOLDER in place]


def _check_parent(place: str) -> None:
    """Raises ConfigError when there is nothing at all where folders of nights should be: a mistyped location."""
    before, placeholder, _ = place.partition(PLACEHOLDER)
    parent, slash, _ = before.rpartition("/")
    if not placeholder or not slash or parent.endswith((":", ":/", "/")) or not parent:
        return  # a location without a date, or a bucket, or the current folder: nothing above it to look at
    parent = storage.normalize(parent)
    if not any(page for page in storage.pages(parent)):
        raise ConfigError(
            f"there is nothing under {parent}, where the folders of the nights should be; correct --images"
        )


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None


if __name__ == "__main__":
    process.leave(main())
