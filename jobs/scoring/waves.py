"""The engine of scoring: what `fcdd score` and `fcdd retry-quarantine` do once they know what to do.

sealed manifest parts -> shards -> receipts of staged parts -> ... -> proof and commit
"""

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from fcdd import bundle, grouping
from fcdd.bundle import BundleSpec
from fcdd.calibration import Decider
from fcdd.errors import ConfigError, FCDDError
from fcdd.io import storage
from fcdd.runtime import Runtime
from jobs.catalog import commit_records, shards
from jobs.catalog.leases import Lease
from jobs.catalog.shards import Shard
from jobs.catalog.staging import Coverage
from jobs.scoring import publishing, stages
from jobs.scoring.decisions import Map
from jobs.scoring.manifests import Listing
from jobs.scoring.options import ScoreOptions
from jobs.scoring.progress import Progress
from jobs.scoring.publishing import Facts
from jobs.scoring.stages import Receipt
from jobs.shell.versions import versions
from jobs.sources.locations import Locations
from schemas import Layout, RunRecord
from schemas.layout import is_name
from schemas.runs import Intent

if TYPE_CHECKING:
    from jobs.on_ray.machines import Stages

VERSIONED = ("torch", "ray", "pyarrow", "pillow", "numpy", "obstore")
# Everything is driven once; what got lost, or failed for a reason of the store, at most twice more.
MAX_PASSES = 3
# A run of so many images is published by the driver itself; a larger one on the cluster, so that the driver's memory
# does not depend on it.
PUBLISHED_HERE = 5_000
# Blocks that Ray keeps track of at once; of a larger run each holds several shards.
MAX_BLOCKS = 4096

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """Everything that is fixed before the first image is looked at."""

    options: ScoreOptions
    layout: Layout
    spec: BundleSpec
    weights: bytes
    # Where the images of the run may lie; None: wherever the user's list says.
    allowed: Locations | None

    @property
    def alpha(self) -> float:
        """The false-alarm rate of the options, else the bundle's."""
        return self.options.alpha or self.spec.calibration.alpha

    def intent(self, run_id: str, before: RunRecord | None, *, keep: bool, is_retry: bool = False) -> Intent:
        """What the run is to do. `before` is the run of the night whose place it takes; its rows are kept if `keep`."""
        options, source = self.options, self.options.source
        return Intent(
            run_id=run_id,
            collection=options.collection,
            day=options.day,
            images=source.places(),
            selection=source.selection.model_dump(mode="json") | {"since_last": source.since_last},
            bundle=options.bundle,
            bundle_digest=self.spec.digest,
            supersedes=before.run_id if before else None,
            keeps=before.run_id if before and keep else None,
            kept_images=before.num_listed if before and keep else 0,
            is_retry=is_retry,
            roots=tuple(source.prefixes),
            alpha=self.alpha,
            fdr=options.fdr,
            runtime=options.runtime.model_dump(),
            started_at=datetime.now(UTC),
        )


def prepare(options: ScoreOptions) -> Job:
    """Find everything that can be wrong before anything is started."""
    if not is_name(options.collection):
        raise ConfigError(f"expected a collection of lower-case letters, digits, - and _, got {options.collection!r}")
    layout = Layout(storage.check_results(options.results))
    source = options.source
    for option, place in (("--results", layout.results), ("--bundle", options.bundle)):
        if place in source.prefixes:
            raise ConfigError(f"{option} and --images are the same location, {place}; give each one of its own")
    spec, weights = bundle.load(options.bundle)
    options.runtime.check(spec.network)
    grouping.compile_pattern(spec.calibration.group_pattern)
    allowed = None if source.list_uri else Locations(tuple(source.prefixes))
    job = Job(options, layout, spec, weights, allowed)
    Decider(spec.calibration, job.alpha)  # the calibration supports it
    return job


def stage_and_commit(job: Job, intent: Intent, listing: Listing, lease: Lease) -> RunRecord:
    """Score and commit what is not done yet of a run."""
    started = time.perf_counter()
    before = commit_records.parse(job.layout.record(intent.keeps)) if intent.keeps else None
    with ExitStack() as cluster:
        with Progress() as progress:
            stage_all(job, intent, listing, lease, progress, cluster)
        plan = listing.plan()
        staged = time.perf_counter()
        lease.check()
        if before and intent.is_retry and Coverage.read(job.layout, intent.run_id).count_failed() == plan.num_rows:
            log.info("not one of the %d images can be scored now; run %s stays as it is", plan.num_rows, before.run_id)
            publishing.clean_up(job.layout, intent.run_id)
            return before

        seconds = {"stage": staged - started, "to_first_image": progress.seconds_to_first()}
        seconds |= {f"workers_{stage}": value for stage, value in progress.seconds.items()}
        facts = Facts(
            images_per_second=progress.rate(),
            stage_seconds=seconds,
            settings=_resolved(job.options, intent),
            versions=versions(*VERSIONED),
        )
        parallel = plan.num_rows > PUBLISHED_HERE and job.options.workers != 0
        return publishing.commit(
            job.layout,
            plan,
            job.spec.calibration,
            before=before,
            run=_map_on_ray() if parallel else map,
            night=Night(job.layout, intent, lease),
            facts=facts,
        )


class Superseded(FCDDError):
    """Another run was committed for the night while this one was made."""


class Night:
    """The night that a run is about to be committed for."""

    def __init__(self, layout: Layout, intent: Intent, lease: Lease) -> None:
        self._layout, self._intent, self._lease = layout, intent, lease
        self._earliest = datetime.min.replace(tzinfo=UTC)

    def check(self) -> None:
        """Raises LeaseLost, or Superseded when the run that counts is not the one that the intent names."""
        self._lease.check()
        intent = self._intent
        standing = commit_records.of_night(self._layout, intent.collection, intent.day)
        found = standing.run_id if standing else None
        if found not in (intent.supersedes, intent.run_id):
            raise Superseded(
                f"while run {intent.run_id} was made, {found or 'no run'} came to count for {intent.collection} "
                f"{intent.day} in place of {intent.supersedes or 'no run'}; nothing was committed, and the same "
                "command begins again"
            )
        if standing:
            self._earliest = standing.committed_at + timedelta(seconds=1)

    def commit_time(self) -> datetime:
        """The time of the commit: later than that of the run whose place it takes, also where clocks disagree."""
        return max(datetime.now(UTC), self._earliest)


def _resolved(options: ScoreOptions, intent: Intent) -> dict[str, Any]:
    """The options as they took effect: some are those of the attempt that began the run."""
    begun = {"alpha": intent.alpha, "fdr": intent.fdr, **intent.runtime}
    return {**options.recorded, **begun}


def _stages(options: ScoreOptions, cluster: ExitStack) -> "Stages | None":
    """Where the stages will run, with Ray at hand; None: all of them in this process."""
    if options.workers == 0:
        return None
    # Late: Ray's import costs seconds that a wrong option should not wait for.
    from jobs.on_ray import machines, session

    session.join(cluster, int(shards.SHARD_PIXEL_BYTES / machines.DECODE_CPUS))
    return machines.wait_for_scoring(machines.Request(options.workers, options.gpu, options.cluster_wait_s))


def _map_on_ray() -> Map:
    from jobs.on_ray import session

    return session.parallel_map


def stage_all(job: Job, intent: Intent, listing: Listing, lease: Lease, progress: Progress, cluster: ExitStack) -> None:
    """Stage every manifest row that is not staged yet: what is listed by now, then what was listed meanwhile.

    What got lost, and what the store did not give, is driven again. Raises TooManyBadImages.
    """
    if not listing.wait().parts:
        return  # nothing new; and what is wrong with the images is found before Ray is started
    where = _stages(job.options, cluster)
    progress.workers, decoders = (where.workers, where.decoders) if where else (1, 1)
    known, passes, may_stop_early = -1, 0, True
    while True:
        parts, listed = listing.wait(known, patience_s=1.0)
        known, rows = len(parts), sum(part.rows for part in parts)
        done = Coverage.read(job.layout, intent.run_id)
        if listed and done.count() == rows:
            done.count_transient_as_missing()
        limit = job.options.quarantine_limit(rows) if listed else job.options.max_quarantine
        may_stop_early = may_stop_early and not publishing.check_quarantine(done, limit, intent, final=False)
        passes += listed
        if listed and (done.count() == rows or passes > MAX_PASSES):
            publishing.check_quarantine(done, limit, intent, final=True)
            return
        progress.set_totals(done=done.count(), failed=done.most_failed(), total=rows, listed=listed)
        to_do = shards.cut(parts, done, job.spec.input_size, job.spec.channels, decoders)
        for receipt in receipts(job, intent, to_do, where) if to_do else ():
            progress.add(receipt)
            lease.check_flag()
            if limit is not None and may_stop_early and progress.final_failures > limit:
                break


def receipts(job: Job, intent: Intent, to_do: list[Shard], where: "Stages | None") -> Iterator[Receipt]:
    """Drive shards through the stages, here or on Ray; a receipt for each staged part."""
    options, spec, run_id = job.options, job.spec, intent.run_id
    runtime, attempt = Runtime.model_validate(intent.runtime), uuid.uuid4().hex[:8]
    limits, timeout_s = options.limits, options.image_timeout_s
    named = (intent.roots, spec.calibration.group_pattern)
    fetch_decode = stages.FetchDecode(
        job.layout.results, run_id, spec.input_size, spec.channels, limits, timeout_s, *named, attempt, job.allowed
    )
    stage_parts = stages.StageParts(job.layout.results, run_id, attempt)
    if where is None:
        score_and_stage = stages.Score(spec, job.weights, runtime, intent.alpha, stage_parts)
        for shard in to_do:
            for decoded in fetch_decode(pa.Table.from_pylist([dict(shard)])):
                yield from score_and_stage(decoded).to_pylist()
        return
    import ray.data

    from jobs.on_ray import session
    from jobs.scoring.live_metrics import LiveMetrics

    write = where.write
    log_book = stages.StartLog(job.layout.results, run_id, attempt, where.workers)
    blocks = min(len(to_do), MAX_BLOCKS)
    chain = (
        ray.data.from_items([dict(shard) for shard in to_do], override_num_blocks=blocks)
        .map_batches(fetch_decode, batch_size=None, batch_format="pyarrow", **where.decode)
        .map_batches(
            stages.Score,
            fn_constructor_args=(spec, job.weights, runtime, intent.alpha, None if write else stage_parts, log_book),
            # Ray wants a number where there are GPUs: then shards are joined up to it, or cut.
            batch_size=shards.largest_shard(spec.input_size, spec.channels) if write else None,
            batch_format="pyarrow",
            **where.actors,
        )
    )
    if write:  # a GPU does not wait for the store
        chain = chain.map_batches(stage_parts, batch_size=None, batch_format="pyarrow", **write)
    live, waiting = LiveMetrics(options.collection), sum(shard["stop"] - shard["start"] for shard in to_do)
    live.waiting(waiting)
    with session.translated_errors():
        for block in chain.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for receipt in block.to_pylist():  # type: ignore[union-attr, operator]
                waiting -= receipt["rows"]
                live.count(receipt)
                live.waiting(waiting)
                yield receipt
