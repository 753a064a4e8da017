"""The quarantine of a committed night, tried again as its images are now.

The new run takes the place of the night's run: it keeps its published scores, and scores what was quarantined and can
be scored by now. Nothing is scored twice.
"""

from collections.abc import Callable, Sequence
from datetime import date

from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import bundles, commit_records, intents, leases, manifest_parts, part_files
from jobs.scoring import manifests, waves
from jobs.scoring.manifests import Listing
from jobs.scoring.options import ScoreOptions
from jobs.sources import listing
from jobs.sources.locations import Locations
from schemas import MANIFEST, Layout, RunRecord
from schemas.runs import Intent, ManifestPart, Plan


def retry(
    layout: Layout,
    collection: str,
    day: date,
    options_of: Callable[[RunRecord], ScoreOptions],
    locations: Sequence[str] = (),
) -> RunRecord:
    """The night's record afterwards: the old one, if not one image can be scored now.

    `options_of` makes the options of the retry from the record of the run that is retried; images below `locations`
    may be opened beside the run's own. Raises ConfigError when the night has no quarantine.
    """
    with leases.acquire(layout.lease(collection, day), "retry-quarantine") as lease:
        [before] = commit_records.committed(layout.results, collection, first=day, last=day)
        if not before.num_quarantined:
            raise ConfigError(f"run {before.run_id} has no quarantined images; there is nothing to try again")
        allowed = Locations.of_records(layout.results, (before,), locations)
        job = waves.prepare(options_of(before))._replace(allowed=allowed)
        bundles.check_of_run(job.spec, before)
        commit_records.check_free(layout, f"{before.run_id}-q")
        waves.check_precision(job)
        intent = intents.create_or_resume(layout, job.intent(f"{before.run_id}-q", before, keep=True, is_retry=True))
        if intents.read_plan(layout, intent.run_id) is None:
            _create_plan(layout, intent, before)
        with Listing(layout, intent, job.options.source) as found:
            return waves.stage_and_commit(job, intent, found, lease)


def _create_plan(layout: Layout, intent: Intent, before: RunRecord) -> None:
    """A manifest of the quarantined images, under their old row ids, to be looked up as they are now."""
    found: list[tuple[int, ObjectInfo]] = []
    for part in before.quarantine:
        rows = part_files.read_published(layout, part, MANIFEST.names).select(MANIFEST.names)
        unknown = map(listing.to_look_up, manifest_parts.rows_of(rows))
        found += zip(rows["row_id"].to_pylist(), unknown, strict=True)
    found.sort()
    parts = []
    for index, start in enumerate(range(0, len(found), manifests.PART_ROWS)):
        ids, infos = zip(*found[start : start + manifests.PART_ROWS], strict=True)
        storage.write(layout.manifest_part(intent.run_id, index), manifest_parts.to_bytes(list(infos), ids, -1))
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
