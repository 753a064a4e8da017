"""The options of `fcdd score` and `fcdd nightly` as people give them: flags, environment, TOML."""

import datetime as dt
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SecretStr

from fcdd.errors import ConfigError
from fcdd.images import EXTENSIONS, Limits
from fcdd.io import storage
from fcdd.runtime import Runtime
from fcdd.sample import Precision
from jobs.engines import choice
from jobs.scoring.manifests import Source
from jobs.scoring.options import CATCH_UP_DAYS, DATE_PLACEHOLDER, FEW_ALARMS, NightlyOptions, ScoreOptions
from jobs.shell.settings import FixedNight, JobSettings, Night
from jobs.sources import listing
from jobs.sources.listing import Selection


def _moment(value: object) -> object:
    """A text of digits is a date; what else pydantic takes for seconds since 1970 is refused."""
    if isinstance(value, str) and value.strip().isdigit():
        with suppress(ValueError):
            return datetime.fromisoformat(value.strip())
    if isinstance(value, datetime | dt.date) or (isinstance(value, str) and not value.strip().isdigit()):
        return value
    raise ValueError("expected a time like 2026-11-24 or 2026-11-24T06:00Z")


Moment = Annotated[datetime, BeforeValidator(_moment)]


class ScoreSettings(JobSettings):
    """Score every image under one or several locations and commit one run of results.

    Credentials and AWS_ENDPOINT_URL come from the environment. Unreadable images are quarantined with a
    reason and never stop the job.
    """

    verb: ClassVar[str] = "score"
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "which images": (
            *("images", "image_list", "include", "exclude", "extensions", "modified_since", "modified_before"),
            "since_last",
        ),
        "nights": ("catch_up", "report", "verdict_codes", "max_alarm_share", "max_alarms", "webhook", "command"),
        "decisions": ("alpha", "fdr"),
        "machines": ("workers", "gpu", "cluster_wait_s", "backend", "precision", "compile", "decode"),
        "what an image may cost": ("max_image_mb", "max_megapixels", "max_frames", "image_timeout_s"),
        "unreadable images": ("max_quarantine_share", "max_quarantine"),
    }

    bundle: str = Field(description="location of the bundle that `fcdd train` wrote")
    images: list[str] = Field(
        default_factory=list,
        description="location of the images, listed recursively (s3://, gs://, az:// or a folder); {date} in it "
        "becomes the night; may be given again",
    )
    image_list: str | None = Field(
        None,
        description="instead of listing: a file that names the images (.txt, .csv, .parquet, .jsonl, the manifest.json "
        "of an S3 inventory, a .manifest of Lookout for Vision or SageMaker); relative names are below --images",
    )
    results: str = Field(description="location of the results, shared by all collections")
    collection: str = Field(description="name of the image collection: a partition of the results")
    date: FixedNight = Field(description="night this run stands for, YYYY-MM-DD: a partition of the results")
    include: list[str] = Field(
        default_factory=list,
        description="score only paths that match this glob (* also matches /); also hidden ones that it spells out",
    )
    exclude: list[str] = Field(default_factory=list, description="leave out paths that match this glob")
    extensions: list[str] = Field(list(EXTENSIONS), description="what the name of an image ends in")
    modified_since: Moment | None = Field(
        None, description="score only objects written at this time or later (ISO 8601)"
    )
    modified_before: Moment | None = Field(None, description="score only objects written before this time (ISO 8601)")
    since_last: bool = Field(
        False, description="score only images that no committed run of the collection has scored with this bundle"
    )
    rescore: bool = Field(False, description="score again although the run is committed; the new run takes its place")
    dry_run: bool = Field(False, description="list and say what would be done, and how long it may take; write nothing")
    max_quarantine_share: float = Field(
        0.5, gt=0, le=1, description="share of unreadable images above which nothing is committed (exit code 3)"
    )
    max_quarantine: int | None = Field(None, ge=0, description="the same as a number of images; the lower limit counts")
    workers: int | None = Field(
        None,
        ge=0,
        description="scoring processes on Ray, up to four of them on a GPU; 0: the threads of this process, without "
        "Ray; default: whichever is done first, on a cluster what it has",
    )
    gpu: bool | None = Field(
        None,
        description="a GPU, or a share of one, per scoring process; default: where the cluster has any; --no-gpu: CPUs "
        "only",
    )
    cluster_wait_s: float = Field(
        0,
        ge=0,
        description="the cluster grows by itself: wait so long for the machines of --workers, then go on with some",
    )
    alpha: float | None = Field(
        None, gt=0, lt=1, description="false-alarm rate of the alarms; default: the one the bundle was calibrated for"
    )
    fdr: float = Field(0.1, gt=0, lt=1, description="false-discovery rate of the run's list (Benjamini-Hochberg)")
    backend: Literal["torch", "openvino"] | None = Field(
        None,
        description="library of the forward pass; default: OpenVINO, the faster one on CPUs, where it is installed and "
        "there is no GPU, else torch",
    )
    precision: Precision = Field(
        "float32",
        description="of the forward pass; tf32 (GPUs) and bfloat16 are refused where scores of the bundle's own sample "
        "of images are off by more than 1 % of the threshold",
    )
    compile: bool = Field(False, description="torch.compile: slow to start, faster on a GPU")
    decode: Literal["auto", "cpu", "gpu"] = Field(
        "cpu",
        description="who decodes JPEGs: cpu, gpu (NVIDIA's decoder, compared with that of CPUs in every shard, which "
        "takes over where scores differ), or auto (GPUs where the network is on them)",
    )
    max_image_mb: float = Field(256, gt=0, description="larger files are quarantined without being fetched")
    max_megapixels: float = Field(89.5, gt=0, le=500, description="larger images are quarantined without being decoded")
    max_frames: int = Field(
        1000, ge=1, le=2**31 - 1, description="files of more pictures (pages, frames) are quarantined"
    )
    image_timeout_s: float = Field(30, gt=0, description="seconds an image may take to decode")

    def options(self, *, any_bundle: bool = False, may_be_empty: Sequence[str] = ()) -> ScoreOptions:
        """The options of one run; `any_bundle` and `may_be_empty` as for `Source`. Raises ConfigError for no images."""
        return ScoreOptions(
            bundle=storage.normalize(self.bundle),
            results=self.results,
            collection=self.collection,
            day=self.date,
            source=self._source(any_bundle, may_be_empty),
            alpha=self.alpha,
            fdr=self.fdr,
            runtime=Runtime(
                backend=self.backend or choice.backend(self.gpu, compiles=self.compile),
                precision=self.precision,
                compile=self.compile,
            ),
            limits=Limits(
                encoded_bytes=int(self.max_image_mb * 2**20),
                pixels=int(self.max_megapixels * 1e6),
                frames=self.max_frames,
            ),
            image_timeout_s=self.image_timeout_s,
            max_quarantine_share=self.max_quarantine_share,
            max_quarantine=self.max_quarantine,
            rescore=self.rescore,
            workers=self.workers,
            gpu=self.gpu,
            decode=self.decode,
            cluster_wait_s=self.cluster_wait_s,
            recorded=self.model_dump(mode="json", exclude={"config", "dry_run"}),
        )

    def _source(self, any_bundle: bool, may_be_empty: Sequence[str]) -> Source:
        if not self.images and not self.image_list:
            raise ConfigError("say where the images are: --images or --image-list")
        if self.image_list and len(self.images) > 1:
            raise ConfigError("with --image-list give at most one --images, which its relative names are below")
        selection = Selection(
            include=tuple(self.include),
            exclude=tuple(self.exclude),
            extensions=tuple(each.lower() for each in self.extensions),
            modified_since=in_utc(self.modified_since),
            modified_before=in_utc(self.modified_before),
        )
        list_uri = storage.normalize(self.image_list) if self.image_list else None
        lenient = tuple(storage.normalize(place) for place in may_be_empty)
        images = [place.replace(DATE_PLACEHOLDER, self.date.isoformat()) for place in self.images]
        return Source(listing.outermost(images), list_uri, selection, self.since_last, any_bundle, lenient)


class NightlySettings(ScoreSettings):
    """Score what is new since the last committed run, decide, look for drift, and notify.

    Exit codes: 0 fine, 1 failed, 2 you must change something, 3 too many unreadable images, 4 drifted, 5 more alarms
    than the limit, 6 another process is at it, 130 interrupted. All other options are those of `fcdd score`.
    """

    verb: ClassVar[str] = "nightly"
    refused: ClassVar[tuple[str, ...]] = ("rescore",)

    images: list[str] = Field(
        default_factory=list,
        description="location of the images; {date} in it becomes the night; may be given again",
    )
    date: Night = Field(
        "yesterday", validate_default=True, description="the night: YYYY-MM-DD, today or yesterday (in UTC)"
    )
    since_last: bool = Field(
        True, description="score only images that no run of the collection has scored, with any bundle"
    )
    catch_up: bool = Field(
        False,
        description=f"first the nights that were missed, at most {CATCH_UP_DAYS} days back; one that fails does not "
        "stop the others, and the exit code is the gravest",
    )
    max_alarm_share: float = Field(
        0.1, ge=0, le=1, description=f"share of alarms above which the exit code is 5; {FEW_ALARMS} are never too many"
    )
    max_alarms: int | None = Field(None, ge=0, description="the same as a number; without the allowance")
    verdict_codes: bool = Field(
        True,
        description="the exit codes 4 and 5; --no-verdict-codes: 0 instead, for a scheduler that repeats what fails",
    )
    report: bool = Field(True, description="write the report of the run beside its record, as `fcdd report` does")
    webhook: SecretStr | None = Field(
        None,
        description="address that gets the run record as a JSON POST; only by FCDD_WEBHOOK or in the TOML file, since "
        "it may hold a secret and others see a command line",
    )
    command: SecretStr | None = Field(
        None,
        description="program that gets the run record on its input, and FCDD_RUN_ID, FCDD_VERDICT and FCDD_EXIT_CODE; "
        "only by FCDD_COMMAND or in the TOML file",
    )

    def nightly_options(self) -> NightlyOptions:
        """The options of the whole command."""
        return NightlyOptions(
            results=self.results,
            collection=self.collection,
            day=self.date,
            images=tuple(self.images),
            of_night=self._of_night,
            alpha=self.alpha,
            fdr=self.fdr,
            catch_up=self.catch_up,
            max_alarm_share=self.max_alarm_share,
            max_alarms=self.max_alarms,
            verdict_codes=self.verdict_codes,
            webhook=self.webhook.get_secret_value() if self.webhook else None,
            command=self.command.get_secret_value() if self.command else None,
        )

    def _of_night(self, night: dt.date) -> ScoreOptions:
        """The options of one night: its folders, or what was written until its end."""
        options = self.nightly_options()
        changes: dict[str, Any] = {"date": night, "images": options.images_of(night)}
        if not options.folders_of(night) and not self.image_list:
            end = dt.datetime.combine(night + dt.timedelta(days=1), dt.time(), dt.UTC)
            given = in_utc(self.modified_before)
            changes["modified_before"] = min(end, given) if given else end
        settings = self.model_copy(update=changes)
        return settings.options(any_bundle=True, may_be_empty=options.folders_of(night))


def in_utc(time: datetime | None) -> datetime | None:
    """A time without a zone is UTC."""
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)
