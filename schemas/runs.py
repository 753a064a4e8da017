"""The commit record of a run: written last, read first."""

from datetime import date, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Record):
    """One published Parquet file; `path` is relative to the results location."""

    path: str
    rows: int
    bytes: int
    sha256: str


class Plan(_Record):
    """What a run must do, fixed before it starts; kept beside the manifest while the run is staged."""

    run_id: str
    collection: str
    day: date
    images: str
    bundle: str
    bundle_digest: str
    manifest_digest: str
    num_images: int
    started_at: datetime


class RunRecord(_Record):
    """A committed run. num_listed = num_scored + num_quarantined, proved before this was written."""

    version: Literal[1] = 1
    plan: Plan
    committed_at: datetime
    num_listed: int
    num_scored: int
    num_quarantined: int
    num_anomalous: int
    num_duplicates_dropped: int
    quarantine_reasons: dict[str, int]
    threshold: float
    map_threshold: float
    alpha: float
    images_per_second: float
    stage_seconds: dict[str, float]
    versions: dict[str, str]
    scores: list[Part] = Field(description="published parts of the scores table")
    quarantine: list[Part] = Field(description="published parts of the quarantine table")
