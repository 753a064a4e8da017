"""`fcdd audit`: where on the image plane the evidence of a model lies, to find features that it should not use."""

import json
import sys
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from jobs.catalog import commit_records
from jobs.measuring import evidence_audit
from jobs.shell import process
from jobs.shell.settings import LookingSettings, Night
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves
from jobs.viewing import rendering


class AuditSettings(LookingSettings):
    """Show where a model's evidence lies, and flag what looks spurious: a border, a background, one fixed spot.

    With labels, anomalous and nominal images are told apart by them; without, alarms and the others.
    """

    verb: ClassVar[str] = "audit"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="image collection; needed where there are several")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: all nights")
    labels: str | None = Field(
        None, description="labels: a .csv or .parquet file, or a location of folders such as good/ and defect/"
    )
    object_mask: str | None = Field(
        None, description="picture that is white where the object is; default: found in the mean of nominal images"
    )
    sample: int = Field(64, ge=0, description="images to fetch for their mean; 0: fetch none")
    images: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    pictures: str | None = Field(None, description="local folder for a picture of the evidence over the mean image")
    format: Literal["text", "json"] = Field("text", description="text for people, json for programs")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: audit(AuditSettings.parse(argv)))


def audit(settings: AuditSettings) -> None:
    """Measure the evidence, print it, and draw it where pictures are wanted."""
    records = commit_records.of_one_collection(
        commit_records.committed(settings.results, settings.collection, first=settings.date, last=settings.date)
    )
    moves = Moves.parse(settings.moved)
    records = [moves.record(each) for each in commit_records.of_latest_bundle(records)]
    locations = Locations.of_records(settings.results, records, settings.images, moves)
    if settings.pictures:
        rendering.check_apart(settings.pictures, locations)
    folder = rendering.folder(settings.pictures) if settings.pictures else None
    found = evidence_audit.audit(
        settings.results,
        records,
        locations,
        labels=settings.labels,
        object_mask=settings.object_mask,
        sample=settings.sample,
    )
    if settings.format == "json":
        print(json.dumps(found.as_dict(), indent=1))
    else:
        evidence_audit.print_audit(found)
    if folder:
        path = folder / f"evidence-{records[-1].run_id}.png"
        evidence_audit.picture(found).save(path)
        out = sys.stderr if settings.format == "json" else sys.stdout
        print(f"picture     {path}  (mean of nominal images; evidence of {', '.join(found.kinds)})", file=out)


if __name__ == "__main__":
    process.exit_with(main())
