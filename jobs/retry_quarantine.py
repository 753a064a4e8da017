"""`fcdd retry-quarantine`: the images that a night could not score are tried again, as they are now.

The new run takes the place of the night's run: it keeps its published scores, and scores what was quarantined and can
be scored by now. Nothing is scored twice.
"""

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import commit_records, intents, leases, part_files
from jobs.scoring import manifests, waves
from jobs.scoring.manifests import Listing
from jobs.scoring.options import ScoreSettings
from jobs.shell import process
from jobs.shell.settings import FixedNight, JobSettings
from jobs.sources import listing
from jobs.sources.locations import Locations
from schemas import MANIFEST, Layout, RunRecord
from schemas.runs import Intent, ManifestPart, Plan

# Options that are no part of what the run was to do: everything else the retry takes over.
_ITS_OWN = {
    "config",
    "dry_run",
    "rescore",
    "workers",
    "gpu",
    "cluster_wait_s",
    "max_quarantine",
    "max_quarantine_share",
}

log = logging.getLogger(__name__)


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
    return process.run(lambda: waves.show(retry(RetrySettings.parse(argv))))


def retry(settings: RetrySettings) -> RunRecord:
    """The night's record afterwards: the old one, if not one image can be scored now.

    Raises ConfigError when the night has no quarantine.
    """
    layout = Layout(storage.normalize(settings.results))
    with leases.hold(layout.lease(settings.collection, settings.date), "retry-quarantine") as lease:
        [before] = commit_records.committed(
            settings.results, settings.collection, first=settings.date, last=settings.date
        )
        if not before.num_quarantined:
            raise ConfigError(f"run {before.run_id} has no quarantined images; there is nothing to try again")
        locations = Locations.of(layout.results, (before,), settings.locations)
        job = waves.prepare(_score_settings(settings, before))._replace(allowed=locations)
        if job.spec.digest != before.bundle_digest:
            raise ConfigError(f"the bundle at {before.bundle} is not the one that run {before.run_id} used")
        commit_records.check_free(layout, f"{before.run_id}-q")
        intent = intents.fix_intent(layout, job.intent(f"{before.run_id}-q", before, keep=True, is_retry=True))
        if intents.read_plan(layout, intent.run_id) is None:
            _plan(layout, intent, before)
        with Listing(layout, intent, job.source) as found:
            return waves.stage_and_commit(job, intent, found, lease)


def _score_settings(settings: RetrySettings, before: RunRecord) -> ScoreSettings:
    """The options of the run that is retried, with those of this command."""
    kept = ScoreSettings.model_fields.keys() - _ITS_OWN
    options: dict[str, Any] = {name: value for name, value in before.settings.items() if name in kept}
    own = settings.model_dump(exclude={"config", "locations"}, exclude_none=True)
    decided = {"bundle": before.bundle, "alpha": before.alpha, "fdr": before.fdr}
    # Everything that is left may stay unreadable: that is no reason to refuse what became readable.
    return ScoreSettings.of(options | own | decided | {"max_quarantine_share": 1.0})


def _plan(layout: Layout, intent: Intent, before: RunRecord) -> None:
    """A manifest of the quarantined images, under their old row ids, to be looked up as they are now."""
    found: list[tuple[int, ObjectInfo]] = []
    for part in before.quarantine:
        rows = part_files.read_published(layout, part, MANIFEST.names).select(MANIFEST.names)
        unknown = map(listing.to_look_up, manifests.rows_of(rows))
        found += zip(rows["row_id"].to_pylist(), unknown, strict=True)
    found.sort()
    parts = []
    for index, start in enumerate(range(0, len(found), manifests.PART_ROWS)):
        ids, infos = zip(*found[start : start + manifests.PART_ROWS], strict=True)
        storage.write(layout.manifest_part(intent.run_id, index), manifests.part_bytes(list(infos), ids, -1))
        parts.append(ManifestPart(start=start, rows=len(ids), source=-1, last_uri=infos[-1].uri))
    intents.create_plan(
        layout,
        Plan(
            intent=intent,
            num_images=before.num_listed,
            num_rows=len(found),
            num_bytes=before.num_bytes,
            num_duplicates=before.num_listed_twice,
            skipped=before.skipped,
            manifest_digest=before.manifest_digest,
            parts=tuple(parts),
        ),
    )


if __name__ == "__main__":
    process.leave(main())
