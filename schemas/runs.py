"""The records of a run: what it is to do, what it listed, and the commit record that makes it exist for readers."""

from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field


def _in_reach(moment: datetime) -> datetime:
    """Times are added to and compared, so those at the ends of the calendar are refused."""
    if not 1970 <= moment.year <= 9000:
        raise ValueError("expected a time from 1970 to 9000")
    return moment


# JSON has no NaN and no infinity, and times without a zone cannot be compared with others.
_Time = Annotated[AwareDatetime, AfterValidator(_in_reach)]
# What the tables of records can hold.
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_PART = (
    r"^(scores|quarantine|deleted|drift)/collection=[a-z0-9][a-z0-9_-]*/date=\d{4}-\d{2}-\d{2}/run=[A-Za-z0-9_-]+/"
    r"[A-Za-z0-9_-]+\.parquet$"
)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Part(_Record):
    """One published Parquet file; `path` is relative to the results location, and never leads out of it."""

    path: str = Field(pattern=_PART)
    rows: _Count
    bytes: _Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Intent(_Record):
    """What a run is to do, fixed by its command before anything is listed."""

    run_id: str
    collection: str
    day: date
    images: tuple[str, ...] = Field(description="locations that are listed; or the one explicit list")
    selection: dict[str, Any] = Field(description="which objects below them are images of this run")
    bundle: str
    bundle_digest: str
    supersedes: str | None = Field(None, description="run of the same night whose place this one takes")
    keeps: str | None = Field(None, description="run whose published rows are part of this one; what it superseded")
    kept_images: int = Field(0, description="images it accounts for, whose row ids come first")
    is_retry: bool = Field(False, description="its quarantined images are tried again: only its scores are kept")
    roots: tuple[str, ...] = Field((), description="locations below which the first folder is an image's group")
    alpha: float = Field(description="false-alarm rate of its alarms, also when resumed")
    fdr: float = Field(description="false-discovery rate of its list")
    runtime: dict[str, Any] = Field(default_factory=dict, description="how the forward pass runs, also when resumed")
    started_at: _Time


class ManifestPart(_Record):
    """A part of the manifest: rows at positions [start, start + rows)."""

    start: int
    rows: int
    source: int = Field(description="index of the location it was listed from; -1: several, sorted afterwards")
    last_uri: str = Field(description="its last image: where an interrupted listing goes on")


class Plan(_Record):
    """The complete manifest of a run. num_rows is less than num_images only where a run retries another,
    or adds to it.
    """

    intent: Intent
    num_images: int = Field(description="images the run accounts for; row ids are below it")
    num_rows: int = Field(description="rows of the manifest: images the run itself has to score")
    num_bytes: int = Field(description="their encoded size, as far as it was listed")
    num_duplicates: int = Field(description="names listed again, counted once")
    num_deleted: int = Field(0, description="images scored by an earlier run that are gone")
    skipped: dict[str, int] = Field(description="objects that are no images of this run, by rule; of the last listing")
    manifest_digest: str = Field(description="sha256 over (uri, etag, size) in the order of the manifest")
    parts: tuple[ManifestPart, ...]


# How reasons begin that say why nothing was compared.
UNJUDGED = ("only ", "nothing was scored")


# Reasons of a drift that are no sign of another camera, lamp or product.
_NO_OTHER_IMAGES = ("alarms: ", "most anomalous images: ", "calibration images", "groups: not told apart")


class Drift(_Record):
    """How far the images of a run are from the calibration; `part` is its drift table, None if nothing was scored."""

    verdict: Literal["ok", "watch", "drifted"]
    reasons: tuple[str, ...] = Field(description="why it is not ok, the gravest first; or what could not be judged")
    part: Part | None

    @property
    def in_words(self) -> str:
        """The verdict, for people: what is "ok" since there was too little to compare was not judged."""
        unjudged = any(reason.startswith(UNJUDGED) for reason in self.reasons)
        return "not judged" if self.verdict == "ok" and unjudged else self.verdict

    @property
    def is_of_defects_alone(self) -> bool:
        """Whether it drifted, and nothing but the number or the extent of anomalous images is other than before."""
        changed = [reason for reason in self.reasons if not any(words in reason for words in _NO_OTHER_IMAGES)]
        return self.verdict == "drifted" and not changed

    @property
    def explained(self) -> str:
        """What "drifted" may mean, for people; empty for the other verdicts."""
        if self.verdict != "drifted":
            return ""
        if self.is_of_defects_alone:
            return (
                "more anomalous images, or more extreme ones, than nominal images explain, and all else is as before: "
                "most likely defects; look at them before you calibrate anew"
            )
        return "the images are not those that the bundle was calibrated for"


class DecodedOnGpu(_Record):
    """JPEGs that GPUs decoded; some were decoded and scored by CPUs as well.

    The counts are those of the attempt that committed the run, and of the run whose rows it keeps: attempts before it
    may have decoded more.
    """

    images: _Count
    checked: _Count
    largest_difference: float = Field(description="of their scores, as a share of the threshold")
    refused: str | None = Field(description="why the run went on with CPUs, None if it did not")


class RunRecord(_Record):
    """A committed run. num_listed = num_scored + num_quarantined, proved before this was written."""

    version: Literal[3] = 3
    run_id: str
    collection: str
    day: date
    images: tuple[str, ...]
    selection: dict[str, Any]
    bundle: str
    bundle_digest: str
    supersedes: str | None
    started_at: _Time
    committed_at: _Time = Field(description="of the runs of a night that none superseded, the latest by this counts")
    num_listed: _Count
    num_scored: _Count
    num_quarantined: _Count
    num_anomalous: _Count
    num_deleted: _Count
    num_listed_twice: _Count
    num_duplicates_dropped: _Count
    num_bytes: _Count
    skipped: dict[str, _Count]
    quarantine_reasons: dict[str, _Count]
    manifest_digest: str
    threshold: float = Field(description="scores above it are anomalous, except in groups of their own")
    group_thresholds: dict[str, float] = Field(description="of groups that are judged by their own calibration")
    map_threshold: float
    full_scale: float | None = Field(
        None, exclude_if=lambda value: value is None, description="what was white in images of 16 bits"
    )
    gpu_decoding: DecodedOnGpu | None = Field(
        None, exclude_if=lambda value: value is None, description="None: CPUs decoded all of it"
    )
    alpha: float = Field(description="promised false-alarm rate of the alarms")
    num_calibration: _Count
    smallest_p_value: float = Field(
        description="no image can have less: 1 / (num_calibration + 1), twice that if regions decide"
    )
    fdr: float = Field(description="promised false-discovery rate of the list of images with p <= fdr_p_value")
    fdr_p_value: float = Field(description="the list's largest p-value; 0 for an empty list")
    num_discoveries: _Count = Field(description="images on that list")
    drift: Drift
    images_per_second: float
    stage_seconds: dict[str, float]
    settings: dict[str, Any] = Field(description="the resolved options of the command; never a secret")
    versions: dict[str, str]
    scores: tuple[Part, ...] = Field(description="published parts of the scores table")
    quarantine: tuple[Part, ...] = Field(description="published parts of the quarantine table")
    deleted: tuple[Part, ...] = Field(description="published parts of the deleted table")

    def parts(self) -> tuple[Part, ...]:
        """Every file that belongs to the run."""
        return (*self.scores, *self.quarantine, *self.deleted, *([self.drift.part] if self.drift.part else []))
