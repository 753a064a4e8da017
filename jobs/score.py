"""`fcdd score`: a bundle and an image collection -> one committed run of scores and heatmaps.

    list (goes on meanwhile) -> [ fetch + decode ] -> [ score ] -> [ staged Parquet ] -> proof -> published parts
    -> decisions -> commit record

Every listed image ends exactly once in the scores or in the quarantine. The same command again finishes an interrupted
run, and does nothing for a committed one; with `--since-last` it adds what came since.
"""

from collections.abc import Sequence

from jobs.scoring import runs, summary
from jobs.scoring.settings import ScoreSettings
from jobs.shell import process


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: score(ScoreSettings.parse(argv)))


def score(settings: ScoreSettings) -> None:
    """Score, or print what would be done."""
    if settings.dry_run:
        runs.dry_run(settings.options())
    else:
        summary.print_summary(runs.score(settings.options()))


if __name__ == "__main__":
    process.exit_with(main())
