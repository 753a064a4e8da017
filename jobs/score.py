"""`fcdd score`: a bundle and an image collection -> one committed run of scores and heatmaps.

    plan (list) -> fetch + decode -> score -> staged Parquet -> proof -> published parts -> commit record

Every listed image ends exactly once in the scores or in the quarantine. The same command again finishes
an interrupted run, and does nothing for a committed one.
"""

import logging
import platform
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fcdd import storage
from fcdd.detector import Detector
from fcdd.errors import ConfigError
from jobs import _commit, _console, _manifest, _records, _staging
from jobs._settings import JobSettings, Night
from schemas import Layout, RunRecord
from schemas.layout import is_name
from schemas.runs import Plan

if TYPE_CHECKING:
    import ray.data

VERSIONED = ("fcdd-at-scale", "torch", "ray", "pyarrow", "pillow", "numpy")
# Rows that a pass left unstaged are driven again; a third pass that loses some is a bug or a broken store.
MAX_PASSES = 3
PROGRESS_SECONDS = 10.0

log = logging.getLogger(__name__)


class ScoreSettings(JobSettings):
    """Score every image under a location and commit one run of results.

    Credentials and AWS_ENDPOINT_URL come from the environment. Unreadable images are quarantined with a
    reason and never stop the job.
    """

    verb: ClassVar[str] = "score"

    bundle: str = Field(description="location of the bundle that `fcdd train` wrote")
    images: str = Field(description="location of the images, listed recursively (s3://, gs://, az:// or a folder)")
    results: str = Field(description="location of the results, shared by all collections")
    collection: str = Field(description="name of the image collection: a partition of the results")
    date: Night = Field(description="night this run stands for, YYYY-MM-DD: a partition of the results")
    max_quarantine_share: float = Field(
        0.5, gt=0, le=1, description="share of unreadable images above which nothing is committed (exit code 3)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return _console.run(lambda: show(score(ScoreSettings.parse(argv))))


def score(settings: ScoreSettings) -> RunRecord:
    """The whole job; everything that can be wrong is found before Ray starts."""
    if not is_name(settings.collection):
        raise ConfigError(f"expected a collection of lower-case letters, digits, - and _, got {settings.collection!r}")
    layout = Layout(storage.normalize(settings.results))
    images_uri, bundle_uri = storage.normalize(settings.images), storage.normalize(settings.bundle)
    detector = Detector.load(bundle_uri)
    digest = detector.spec.digest
    run_id = _manifest.name_run(settings.collection, settings.date, images_uri, digest)
    if record := _records.read(layout, run_id):
        log.info("run %s was committed at %s; nothing to do", run_id, record.committed_at)
        storage.delete_prefix(layout.staging(run_id))  # what a crash after the commit may have left
        return record
    started = time.perf_counter()
    plan = _manifest.load_or_create_plan(
        layout,
        run_id=run_id,
        collection=settings.collection,
        day=settings.date,
        images_uri=images_uri,
        bundle=bundle_uri,
        bundle_digest=digest,
        now=datetime.now(UTC),
    )
    seconds = {"plan": time.perf_counter() - started}
    rate = stage_all(layout, plan, detector, seconds)
    versions = {name: metadata.version(name) for name in VERSIONED} | {"python": platform.python_version()}
    return _commit.commit(
        layout,
        plan,
        detector.spec,
        max_quarantine_share=settings.max_quarantine_share,
        now=datetime.now(UTC),
        stage_seconds=seconds,
        images_per_second=rate,
        versions=versions,
    )


def stage_all(layout: Layout, plan: Plan, detector: Detector, seconds: dict[str, float]) -> float:
    """Stage every manifest row that is not staged yet; adds to `seconds`, returns images per second."""
    done = _staging.done_rows(layout, plan, retry=True)
    if done.all():
        return 0.0
    from jobs import _ray  # late: Ray's import costs seconds that a wrong option should not wait for

    started = time.perf_counter()
    with _ray.session():
        seconds["ray_start"] = time.perf_counter() - started
        started, before = time.perf_counter(), int(done.sum())
        for _ in range(MAX_PASSES):
            if done.all():
                break
            _drain(_receipts(layout, plan, done, detector), total=plan.num_images, done=int(done.sum()))
            done = _staging.done_rows(layout, plan, retry=False)
        seconds["stage"] = time.perf_counter() - started
    return (int(done.sum()) - before) / seconds["stage"]


def _receipts(layout: Layout, plan: Plan, done: npt.NDArray[np.bool_], detector: Detector) -> "ray.data.Dataset":
    """The pipeline, one chain: what the design calls streams of manifest, pixels, scores and parts."""
    import ray.data

    from jobs import _pipeline as stages

    ray.data.DataContext.get_current().target_max_block_size = stages.BLOCK_BYTES
    spec = detector.spec
    slices = stages.slices(_manifest.part_uris(layout, plan), _manifest.PART_ROWS, plan.num_images)
    return (
        ray.data.from_items(slices, override_num_blocks=len(slices))
        .map_batches(
            stages.FetchDecode(np.packbits(done), plan.num_images, spec.input_size, spec.channels),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=stages.DECODE_CPUS,
        )
        .map_batches(
            stages.Score,
            fn_constructor_args=(plan, spec, detector.weights),
            batch_size=stages.BLOCK_ROWS,
            batch_format="pyarrow",
            **stages.score_resources(),
        )
        .map_batches(
            _staging.StageParts(layout.results, plan.run_id, attempt=uuid.uuid4().hex[:8]),
            batch_size=_staging.PART_ROWS,
            batch_format="pyarrow",
            num_cpus=stages.WRITE_CPUS,
        )
    )


def _drain(receipts: "ray.data.Dataset", *, total: int, done: int) -> None:
    """Run the pipeline to its end, with a line of progress now and then."""
    started = last = time.perf_counter()
    first, quarantined = done, 0
    for batch in receipts.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        done += int(batch["scores"].sum() + batch["quarantine"].sum())
        quarantined += int(batch["quarantine"].sum())
        now = time.perf_counter()
        if now - last >= PROGRESS_SECONDS or done == total:
            rate = (done - first) / (now - started)
            remaining = (total - done) / rate if rate else float("inf")
            log.info(
                "%d of %d images, %d quarantined, %.0f images/s, %.0f s to go",
                done,
                total,
                quarantined,
                rate,
                remaining,
            )
            last = now


def show(record: RunRecord) -> None:
    """The summary a person or a log reads."""
    plan = record.plan
    print(f"run          {plan.run_id}  ({plan.collection}, {plan.day})")
    print(f"listed       {record.num_listed}")
    print(f"scored       {record.num_scored}  ({record.num_anomalous} above the threshold {record.threshold:.6g})")
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(record.quarantine_reasons.items()))
    print(f"quarantined  {record.num_quarantined}" + (f"  ({reasons})" if reasons else ""))
    print(f"rate         {record.images_per_second:.1f} images/s")


if __name__ == "__main__":
    sys.exit(main())
