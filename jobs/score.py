"""`fcdd score`: a bundle and an image collection -> one committed run of scores and heatmaps.

    list (goes on meanwhile) -> [ fetch + decode ] -> [ score ] -> [ staged Parquet ] -> proof -> published parts
    -> decisions -> commit record

Every listed image ends exactly once in the scores or in the quarantine. The same command again finishes an interrupted
run, and does nothing for a committed one.
"""

from collections.abc import Sequence

from jobs.scoring import runs, waves
from jobs.scoring.options import ScoreSettings
from jobs.shell import process


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: _main(ScoreSettings.parse(argv)))


def _main(settings: ScoreSettings) -> None:
    if settings.dry_run:
        runs.dry_run(settings)
    else:
        waves.show(runs.score(settings))


if __name__ == "__main__":
    process.leave(main())
