"""`fcdd score`: a bundle and an image collection -> one committed run of scores and heatmaps.

    list (goes on meanwhile) -> [ fetch + decode ] -> [ score ] -> [ staged Parquet ] -> proof -> published parts
    -> decisions -> commit record

Every listed image ends exactly once in the scores or in the quarantine. The same command again finishes an interrupted
run, and does nothing for a committed one.
"""

from collections.abc import Sequence

from jobs import _console, _score_run, _scoring
from jobs._score_settings import ScoreSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: _main(ScoreSettings.parse(argv)))


def _main(settings: ScoreSettings) -> None:
    if settings.dry_run:
        _score_run.dry_run(settings)
    else:
        _scoring.show(_score_run.score(settings))


if __name__ == "__main__":
    _console.leave(main())
