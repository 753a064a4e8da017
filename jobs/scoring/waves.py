"""The rounds of scoring: what `fcdd score` and `fcdd retry-quarantine` do once they know what to do.

sealed manifest parts -> shards -> receipts of staged parts -> ... -> proof and commit
"""

import logging
import time
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from fcdd import bundle, grouping, resizing
from fcdd.bundle import BundleSpec
from fcdd.calibration import Decider
from fcdd.errors import ConfigError, FCDDError
from fcdd.io import storage
from fcdd.runtime import Runtime
from jobs.catalog import commit_records, shards
from jobs.catalog.leases import Lease
from jobs.catalog.staging import Coverage
from jobs.engines import choice
from jobs.engines.choice import Wishes
from jobs.engines.gpu_decoding import GpuDecoding
from jobs.engines.stages import Receipt
from jobs.engines.work import Engine, Work
from jobs.scoring import publishing
from jobs.scoring.manifests import Listing
from jobs.scoring.options import ScoreOptions
from jobs.scoring.progress import Progress
from jobs.scoring.publishing import Facts
from jobs.shell.versions import versions
from jobs.sources.locations import Locations
from schemas import Layout, RunRecord
from schemas.layout import is_name
from schemas.runs import DecodedOnGpu, Intent

VERSIONED = ("torch", "ray", "pyarrow", "pillow", "numpy", "obstore")
# Everything is driven once; what got lost, or failed for a reason of the store, at most twice more.
MAX_PASSES = 3
# A run of so many images is published by the driver itself; a larger one by the engine, with whatever that has.
PUBLISHED_HERE = 5_000

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """Everything that is fixed before the first image is looked at."""

    options: ScoreOptions
    layout: Layout
    spec: BundleSpec
    weights: bytes
    sample: bytes | None
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
            images=tuple(dict.fromkeys((*(before.images if before and keep else ()), *source.places()))),
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
    sample = bundle.load_sample(options.bundle, spec)
    options.runtime.check()
    _check_gpu(options)
    resizing.check(spec.resizer)
    grouping.compile_pattern(spec.calibration.group_pattern)
    allowed = None if source.list_uri else Locations(tuple(source.prefixes))
    job = Job(options, layout, spec, weights, sample, allowed)
    Decider(spec.calibration, job.alpha)  # the calibration supports it
    return job


def check_precision(job: Job) -> None:
    """Raises ConfigError for a precision in which the bundle's sample does not score alike here.

    Before the run has begun, since a run goes on as it was begun. Workers on other machines look for themselves.
    """
    runtime = job.options.runtime
    if runtime.precision != "float32":
        from fcdd import scorer  # late: it takes a second, and torch

        scorer.check(job.spec, job.weights, runtime, job.sample, gpu=job.options.gpu is not False)


def _check_gpu(options: ScoreOptions) -> None:
    """Raises ConfigError for a GPU that is asked for and cannot be had."""
    _check_decoder(options, on_gpu=choice.may_have_gpu(options.gpu))
    if options.gpu and options.workers == 0 and not choice.has_gpu():
        raise ConfigError("--gpu: this machine has none, and --workers 0 scores on it alone; leave one of them out")


def _check_decoder(options: ScoreOptions, *, on_gpu: bool) -> None:
    """Raises ConfigError where GPUs are to decode and the network is on none."""
    if options.decode == "gpu" and not (on_gpu and options.runtime.backend == "torch"):
        raise ConfigError("--decode gpu: no GPU scores here; leave it out, or say --decode auto")


def stage_and_commit(job: Job, intent: Intent, listing: Listing, lease: Lease) -> RunRecord:
    """Score and commit what is not done yet of a run."""
    started = time.perf_counter()
    before = commit_records.parse(job.layout.record(intent.keeps)) if intent.keeps else None
    with ExitStack() as cluster:
        with Progress() as progress:
            engine = stage_all(job, intent, listing, lease, progress, cluster)
        plan = listing.plan()
        staged = time.perf_counter()
        lease.check()
        if before and not (intent.is_retry or plan.num_rows or plan.num_deleted):
            log.info("no image is new; run %s stays as it is", before.run_id)
            publishing.clean_up(job.layout, intent.run_id)
            return before
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
            full_scale=job.spec.full_scale,
            gpu_decoding=_decoded_on_gpu(job, intent, progress, before),
        )
        return publishing.commit(
            job.layout,
            plan,
            job.spec.calibration,
            before=before,
            run=engine.map if engine and plan.num_rows > PUBLISHED_HERE else map,
            night=Night(job.layout, intent, lease),
            facts=facts,
        )


def _decoded_on_gpu(job: Job, intent: Intent, progress: Progress, before: RunRecord | None) -> DecodedOnGpu | None:
    """What the record says of images that GPUs decoded, or were not let to; `before`: the run whose rows are kept."""
    run, kept = _gpu_decoding(job, intent), before.gpu_decoding if before else None
    if not run.has_begun():
        return kept
    return DecodedOnGpu(
        images=progress.by_gpu + (kept.images if kept else 0),
        checked=progress.checked + (kept.checked if kept else 0),
        largest_difference=max(progress.largest_difference, kept.largest_difference if kept else 0.0),
        refused=run.refused() or (kept.refused if kept else None),
    )


def _still_by_gpu(work: Work, receipt: Receipt) -> bool:
    """Whether GPUs go on decoding; if not, the log says why."""
    if not work.gpu_decoding or not receipt["refused"]:
        return True
    log.warning("from here on CPUs decode the images of this run: %s", work.gpu_decoding.refused())
    return False


def _gpu_decoding(job: Job, intent: Intent) -> GpuDecoding:
    options = job.options
    given = (job.spec.view, options.limits, options.image_timeout_s)
    return GpuDecoding(job.layout.results, intent.run_id, *given)


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
                f"{intent.day} in place of {intent.supersedes or 'no run'}; nothing was committed; the same "
                "command begins again, or says what stands in its way"
            )
        if standing:
            self._earliest = standing.committed_at + timedelta(seconds=1)

    def commit_time(self) -> datetime:
        """The time of the commit: later than that of the run whose place it takes, also where clocks disagree."""
        return max(datetime.now(UTC), self._earliest)


def _resolved(options: ScoreOptions, intent: Intent) -> dict[str, Any]:
    """The options as they took effect: some are those of the attempt that began the run."""
    begun = {"alpha": intent.alpha, "fdr": intent.fdr, **_runtime(options, intent).model_dump()}
    return {**options.recorded, **begun}


def stage_all(
    job: Job, intent: Intent, listing: Listing, lease: Lease, progress: Progress, cluster: ExitStack
) -> Engine | None:
    """Stage every manifest row that is not staged yet: what is listed by now, then what was listed meanwhile.

    What got lost, and what the store did not give, is driven again. The engine that did it; None if there was nothing
    to do. Raises TooManyBadImages.
    """
    if not listing.wait().parts:
        return None  # nothing new; and what is wrong with the images is found before anything is started
    engine = _engine(job.options, listing, cluster)
    progress.workers = engine.workers
    known, passes, may_stop_early, by_gpu = -1, 0, True, True
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
            return engine
        progress.set_totals(done=done.count(), failed=done.most_failed(), total=rows, listed=listed)
        to_do = shards.cut(parts, done, job.spec.input_size, job.spec.channels, engine.decoders)
        work = _work(job, intent, engine)
        for receipt in engine.receipts(work, to_do) if to_do else ():
            progress.add(receipt)
            by_gpu = by_gpu and _still_by_gpu(work, receipt)
            lease.check_flag()
            if limit is not None and may_stop_early and progress.final_failures > limit:
                break


def _engine(options: ScoreOptions, listing: Listing, cluster: ExitStack) -> Engine:
    """By the number of images, where they are soon known."""
    parts, listed = listing.wait(0, patience_s=0.2)
    images = sum(part.rows for part in parts) if listed else None
    engine = choice.choose(Wishes(options.workers, options.gpu, options.cluster_wait_s), images, cluster)
    _check_decoder(options, on_gpu=engine.on_gpu)  # what a cluster has is known only now
    return engine


def _runtime(options: ScoreOptions, intent: Intent) -> Runtime:
    """As the run was begun; but the library, unless somebody chose it, is the one that is best here.

    Another machine may go on with a run, and libraries agree within the tolerance.
    """
    begun = Runtime.model_validate(intent.runtime)
    if options.recorded.get("backend"):
        return begun
    return begun.model_copy(update={"backend": options.runtime.backend})


def _work(job: Job, intent: Intent, engine: Engine) -> Work:
    """One attempt at what is to do."""
    options = job.options
    runtime, gpu_decoding = _runtime(job.options, intent), None
    if options.decode != "cpu" and engine.on_gpu and runtime.backend == "torch":
        gpu_decoding = _gpu_decoding(job, intent)
        gpu_decoding.begin()
    return Work(
        results=job.layout.results,
        run_id=intent.run_id,
        attempt=uuid.uuid4().hex[:8],
        collection=options.collection,
        spec=job.spec,
        weights=job.weights,
        sample=job.sample,
        runtime=runtime,
        alpha=intent.alpha,
        limits=options.limits,
        timeout_s=options.image_timeout_s,
        roots=intent.roots,
        allowed=job.allowed,
        gpu_decoding=gpu_decoding,
    )
