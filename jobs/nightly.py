"""`fcdd nightly`: score what is new, decide, look for drift, notify, and end with a code that a scheduler understands.

    list what no run has scored -> score -> alarms, list, drift -> committed run -> webhook and command -> exit code

A scheduler may repeat it at will: a committed night is only reported again, an empty one is looked at again, an
interrupted one is resumed, and a notification of a run that was delivered is not sent twice.
"""

from collections.abc import Sequence

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.scoring import nights, notifications
from jobs.scoring.options import NightlyOptions
from jobs.scoring.settings import NightlySettings
from jobs.shell import errors, process
from jobs.sources.locations import Locations
from schemas import Layout, RunRecord

REPORT_IMAGES = 50


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: nightly(NightlySettings.parse(argv)))


def nightly(settings: NightlySettings) -> int:
    """Score, judge, notify and report; returns the gravest exit code."""
    options = settings.nightly_options()
    notifications.check(options.webhook, options.command)
    if settings.rescore:
        raise ConfigError("a nightly run only scores what is new; to score a night again use `fcdd score --rescore`")
    if settings.dry_run:
        nights.dry_run(options)
        return errors.DONE
    return nights.run(options, (lambda record: write_report(options, record)) if settings.report else None)


def write_report(options: NightlyOptions, record: RunRecord) -> None:
    """Write the report of a run beside its record, unless it is there."""
    from jobs.viewing import html_report  # it loads torch, to draw

    layout = Layout(storage.normalize(options.results))
    uri = layout.report(record.collection, record.day, record.run_id)
    if storage.exists(uri):
        return
    locations = Locations.of_records(layout.results, (record,), options.images_of(record.day))
    storage.write(uri, html_report.build(layout.results, record, images=REPORT_IMAGES, locations=locations))
    print(f"report       {uri}")


if __name__ == "__main__":
    process.exit_with(main())
