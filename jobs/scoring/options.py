"""The options of `fcdd score`, and what they mean to the parts of the job."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import ClassVar

from pydantic import Field

from fcdd.errors import ConfigError
from fcdd.images import EXTENSIONS, Limits
from fcdd.io import storage
from fcdd.runtime import Runtime
from jobs.scoring.manifests import Source
from jobs.shell.settings import FixedNight, JobSettings
from jobs.sources import listing
from jobs.sources.listing import Selection

# So many unreadable images are no sign of a wrong place, however few there are.
FEW = 3


class ScoreSettings(JobSettings):
    """Score every image under one or several locations and commit one run of results.

    Credentials and AWS_ENDPOINT_URL come from the environment. Unreadable images are quarantined with a
    reason and never stop the job.
    """

    verb: ClassVar[str] = "score"

    bundle: str = Field(description="location of the bundle that `fcdd train` wrote")
    images: list[str] = Field(
        default_factory=list,
        description="location of the images, listed recursively (s3://, gs://, az:// or a folder); may be given again",
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
    modified_since: datetime | None = Field(
        None, description="score only objects written at this time or later (ISO 8601)"
    )
    modified_before: datetime | None = Field(None, description="score only objects written before this time (ISO 8601)")
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
        None, ge=0, description="scoring processes; default: what the cluster has; 0: in this process, without Ray"
    )
    gpu: bool | None = Field(
        None, description="one GPU per scoring process; default: where the cluster has any; --no-gpu: CPUs only"
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
    backend: str = Field(
        "torch", pattern="^(torch|openvino)$", description="library of the forward pass: torch, openvino"
    )
    precision: str = Field("float32", pattern="^(float32|bfloat16)$", description="float32 or bfloat16")
    compile: bool = Field(False, description="torch.compile: slow to start, faster on a GPU")
    max_image_mb: float = Field(256, gt=0, description="larger files are quarantined without being fetched")
    max_megapixels: float = Field(89.5, gt=0, le=500, description="larger images are quarantined without being decoded")
    max_frames: int = Field(
        1000, ge=1, le=2**31 - 1, description="files of more pictures (pages, frames) are quarantined"
    )
    image_timeout_s: float = Field(30, gt=0, description="seconds an image may take to decode")

    def quarantine_limit(self, images: int) -> int:
        """How many of so many images may be quarantined."""
        limit = max(FEW, int(self.max_quarantine_share * images))
        return limit if self.max_quarantine is None else min(limit, self.max_quarantine)

    def runtime(self) -> Runtime:
        """How the forward pass runs."""
        return Runtime.model_validate({"backend": self.backend, "precision": self.precision, "compile": self.compile})

    def limits(self) -> Limits:
        """What one image may cost."""
        return Limits(
            encoded_bytes=int(self.max_image_mb * 2**20),
            pixels=int(self.max_megapixels * 1e6),
            frames=self.max_frames,
        )

    def source(self, *, any_bundle: bool = False, may_be_empty: Sequence[str] = ()) -> Source:
        """Where the images come from, see `Source`. Raises ConfigError for nowhere."""
        if not self.images and not self.image_list:
            raise ConfigError("say where the images are: --images or --image-list")
        if self.image_list and len(self.images) > 1:
            raise ConfigError("with --image-list give at most one --images, which its relative names are below")
        selection = Selection(
            include=tuple(self.include),
            exclude=tuple(self.exclude),
            extensions=tuple(each.lower() for each in self.extensions),
            modified_since=aware(self.modified_since),
            modified_before=aware(self.modified_before),
        )
        list_uri = storage.normalize(self.image_list) if self.image_list else None
        lenient = tuple(storage.normalize(place) for place in may_be_empty)
        return Source(listing.outermost(self.images), list_uri, selection, self.since_last, any_bundle, lenient)


def aware(time: datetime | None) -> datetime | None:
    """A time that does not say where it is, is UTC."""
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)
