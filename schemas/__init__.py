"""What the Parquet tables and records promise to readers: schemas, versions, layout. pyarrow only."""

from schemas.layout import Layout
from schemas.runs import Drift, Part, RunRecord
from schemas.tables import (
    DELETED,
    DRIFT,
    IDENTITY,
    LABELS,
    MANIFEST,
    QUARANTINE,
    RUNS,
    SCHEMA_VERSION,
    SCORES,
    conform,
)

__all__ = [
    "DELETED",
    "DRIFT",
    "IDENTITY",
    "LABELS",
    "MANIFEST",
    "QUARANTINE",
    "RUNS",
    "SCHEMA_VERSION",
    "SCORES",
    "Drift",
    "Layout",
    "Part",
    "RunRecord",
    "conform",
]
