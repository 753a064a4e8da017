"""`fcdd nightly`: score what is new, decide, look for drift, tell, and end with a code that a scheduler understands.

    list what no run has scored -> score -> alarms, list, drift -> committed run -> webhook and command -> exit code

A scheduler may repeat it at will: a committed night is only reported again, an interrupted one is finished, and who
has been told is not told twice.
"""

import datetime as dt
import logging
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SecretStr

from fcdd import storage
from fcdd.errors import ConfigError
from jobs import _console, _notify, _runs, _score_run, _scoring
from jobs._score_settings import ScoreSettings
from jobs._settings import strict_date
from schemas import Layout, RunRecord

PLACEHOLDER = "{date}"
# So few alarms are never too many.
FEW_ALARMS = 10
# More nights than this are not caught up: the date, or the results location, is mistyped.
MAX_NIGHTS = 400

log = logging.getLogger(__name__)


def _day(value: object) -> object:
    """Today and yesterday are those of UTC."""
    today = dt.datetime.now(dt.UTC).date()
    words = {"today": today, "yesterday": today - dt.timedelta(days=1)}
    return words[value] if isinstance(value, str) and value in words else strict_date(value)


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
    date: Annotated[dt.date, BeforeValidator(_day)] = Field(
        "today", validate_default=True, description="the night: YYYY-MM-DD, today or yesterday (in UTC)"
    )
    since_last: bool = Field(True, description="score only images that no committed run of the collection has scored")
    catch_up: bool = Field(
        False,
        description="first the nights that were missed since the last committed one: by {date}, or by when images were "
        "written",
    )
    max_alarm_share: float = Field(
        0.1, ge=0, le=1, description=f"share of alarms above which the exit code is 5; {FEW_ALARMS} are never too many"
    )
    max_alarms: int | None = Field(None, ge=0, description="the same as a number; without the allowance")
    webhook: SecretStr | None = Field(None, description="address that gets the run record as a JSON POST")
    command: SecretStr | None = Field(
        None,
        description="program that gets the run record on its input, and FCDD_RUN_ID, FCDD_VERDICT and FCDD_EXIT_CODE",
    )

    def alarm_limit(self, images: int) -> int:
        """How many alarms of so many images are no reason for another exit code."""
        return max(FEW_ALARMS, int(self.max_alarm_share * images)) if self.max_alarms is None else self.max_alarms


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: nightly(NightlySettings.parse(argv)))


def nightly(settings: NightlySettings) -> int:
    """The night, and those before it that were missed; the gravest exit code of them."""
    _notify.check(_secret(settings.webhook), _secret(settings.command))
    if settings.dry_run:
        _score_run.dry_run(_of_night(settings, settings.date))
        return _console.DONE
    layout = Layout(storage.normalize(settings.results))
    codes = []
    for night in _nights(settings, layout):
        record = _scored(settings, layout, night)
        _scoring.show(record)
        code = verdict(settings, record)
        codes.append(code)
        _notify.tell(layout, record, code, webhook=_secret(settings.webhook), command=_secret(settings.command))
    return min((code for code in codes if code), default=_console.DONE)


def verdict(settings: NightlySettings, record: RunRecord) -> int:
    """The exit code of a committed run: drift comes first, since alarms of a drifted run mean little."""
    limit = settings.alarm_limit(record.num_scored)
    if record.drift.verdict == "drifted":
        print(f"exit code {_console.DRIFTED}: the images are not those that the bundle was calibrated for")
        return _console.DRIFTED
    if record.num_anomalous > limit:
        print(f"exit code {_console.ALARMS_ABOVE_LIMIT}: {record.num_anomalous} alarms, the limit is {limit}")
        return _console.ALARMS_ABOVE_LIMIT
    return _console.DONE


def _scored(settings: NightlySettings, layout: Layout, night: dt.date) -> RunRecord:
    """The night's run: the committed one, whatever command made it, or a new one."""
    of_night = [r for r in _runs.current(_runs.records(layout, settings.collection)) if r.day == night]
    if of_night and not settings.rescore:
        log.info("run %s of %s was committed at %s", of_night[0].run_id, night, of_night[0].committed_at)
        return of_night[0]
    # The cameras may have been off: a folder that is not there is a night without images.
    return _score_run.score(_of_night(settings, night), may_be_empty=_is_dated(settings))


def _nights(settings: NightlySettings, layout: Layout) -> list[dt.date]:
    """The nights to do, oldest first."""
    if not settings.catch_up:
        return [settings.date]
    done = {record.day for record in _runs.records(layout, settings.collection)}
    before = [day for day in done if day < settings.date]
    if not before:
        return [settings.date]
    first = min(before) if _is_dated(settings) else max(before)
    if (settings.date - first).days > MAX_NIGHTS:
        raise ConfigError(f"more than {MAX_NIGHTS} nights lie between {first} and {settings.date}; is the date right?")
    days = (first + dt.timedelta(days=n) for n in range(1, (settings.date - first).days + 1))
    missed = [day for day in days if day not in done or day == settings.date]
    log.info("catching up: %s", ", ".join(map(str, missed)))
    return missed


def _of_night(settings: NightlySettings, night: dt.date) -> ScoreSettings:
    """The options of one night."""
    changes: dict[str, Any] = {"date": night}
    if _is_dated(settings):
        for place in settings.images:
            _check_parent(place)
        changes["images"] = [place.replace(PLACEHOLDER, night.isoformat()) for place in settings.images]
    elif night < settings.date:
        end = dt.datetime.combine(night + dt.timedelta(days=1), dt.time(), dt.UTC)
        changes["modified_before"] = min(end, settings.modified_before or end)
    return settings.model_copy(update=changes)


def _is_dated(settings: NightlySettings) -> bool:
    return any(PLACEHOLDER in place for place in settings.images)


def _check_parent(place: str) -> None:
    """Raises ConfigError when there is nothing at all where folders of nights should be: a mistyped location."""
    parent = storage.normalize(place.partition(PLACEHOLDER)[0].rpartition("/")[0])
    if not any(page for page in storage.pages(parent)):
        raise ConfigError(
            f"there is nothing under {parent}, where the folders of the nights should be; correct --images"
        )


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None


if __name__ == "__main__":
    _console.leave(main())
