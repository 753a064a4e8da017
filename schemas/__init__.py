"""What the Parquet tables and records promise to readers: schemas, versions, layout. pyarrow only."""

from schemas.layout import Layout
from schemas.runs import Part, RunRecord
from schemas.tables import DELETED, IDENTITY, MANIFEST, QUARANTINE, SCHEMA_VERSION, SCORES, conform

__all__ = [
    "DELETED",
    "IDENTITY",
    "MANIFEST",
    "QUARANTINE",
    "SCHEMA_VERSION",
    "SCORES",
    "Layout",
    "Part",
    "RunRecord",
    "conform",
]
