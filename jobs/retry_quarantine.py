"""`fcdd retry-quarantine`: the images that a night could not score are tried again, as they are now."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from fcdd.io import storage
from jobs.scoring import retry, summary
from jobs.scoring.options import ScoreOptions
from jobs.scoring.settings import ScoreSettings
from jobs.shell import process
from jobs.shell.settings import FixedNight, JobSettings
from schemas import Layout, RunRecord

# Options that are no part of what the run was to do: everything else the retry takes over.
_ITS_OWN = {
    "config",
    "dry_run",
    "rescore",
    "workers",
    "gpu",
    "decode",
    "cluster_wait_s",
    "max_quarantine",
    "max_quarantine_share",
}


class RetrySettings(JobSettings):
    """Try the quarantined images of a committed night again; the new run takes the place of the old one."""

    verb: ClassVar[str] = "retry-quarantine"

    results: str = Field(description="location of the results")
    collection: str = Field(description="name of the image collection")
    date: FixedNight = Field(description="night whose quarantine is tried again, YYYY-MM-DD")
    workers: int | None = Field(None, ge=0, description="as for `fcdd score`; 0: in this process, without Ray")
    locations: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    max_image_mb: float | None = Field(None, gt=0, description="as for `fcdd score`; default: the run's")
    max_megapixels: float | None = Field(None, gt=0, le=500, description="as for `fcdd score`; default: the run's")
    max_frames: int | None = Field(None, ge=1, le=2**31 - 1, description="as for `fcdd score`; default: the run's")
    image_timeout_s: float | None = Field(None, gt=0, description="as for `fcdd score`; default: the run's")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: retry_quarantine(RetrySettings.parse(argv)))


def retry_quarantine(settings: RetrySettings) -> None:
    """Try again, and print the summary of the run that counts then."""
    layout = Layout(storage.normalize(settings.results))

    def options_of(before: RunRecord) -> ScoreOptions:
        return _score_settings(settings, before).options()

    record = retry.retry(layout, settings.collection, settings.date, options_of, settings.locations)
    summary.print_summary(record)


def _score_settings(settings: RetrySettings, before: RunRecord) -> ScoreSettings:
    """The options of the run that is retried, with those of this command."""
    kept = ScoreSettings.model_fields.keys() - _ITS_OWN
    options: dict[str, Any] = {name: value for name, value in before.settings.items() if name in kept}
    own = settings.model_dump(exclude={"config", "locations"}, exclude_none=True)
    decided = {"bundle": before.bundle, "alpha": before.alpha, "fdr": before.fdr}
    # Everything that is left may stay unreadable: that is no reason to refuse what became readable.
    return ScoreSettings.from_values(options | own | decided | {"max_quarantine_share": 1.0})


if __name__ == "__main__":
    process.exit_with(main())
