"""`fcdd verify`: does a committed run hold what it promises? The parts are checked whole, a sample is scored again."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.catalog import commit_records
from jobs.scoring import verification
from jobs.shell import process
from jobs.shell.settings import FixedNight, LookingSettings
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves
from schemas import Layout


class VerifySettings(LookingSettings):
    """Check a committed run: parts, the proof that each image is there once, and a random sample scored again."""

    verb: ClassVar[str] = "verify"

    results: str = Field(description="location of the results")
    collection: str = Field(description="name of the image collection")
    date: FixedNight = Field(description="night to check, YYYY-MM-DD")
    images: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    sample: int = Field(50, ge=0, description="how many scored images to fetch and score again")
    seed: int = Field(0, description="of the random sample")
    tolerance: float | None = Field(
        None, gt=0, description="largest relative deviation; default: that of the run's precision"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: verify(VerifySettings.parse(argv)))


def verify(settings: VerifySettings) -> None:
    """Verify, and print what was checked."""
    [record] = commit_records.committed(settings.results, settings.collection, first=settings.date, last=settings.date)
    layout, moves = Layout(storage.normalize(settings.results)), Moves.parse(settings.moved)
    record = moves.record(record)
    locations = Locations.of_records(settings.results, (record,), settings.images, moves)
    checked = verification.verify(
        layout, record, locations, sample=settings.sample, seed=settings.seed, tolerance=settings.tolerance
    )
    print(f"run        {record.run_id}  ({record.collection}, {record.day})")
    print(f"parts      {checked.parts} files are whole, by size and sha256")
    print(f"proof      {checked.rows} of {record.num_listed} images are there, each once")
    gone = f"; {checked.gone} are not as they were" if checked.gone else ""
    found = f"scores within {checked.worst_score:.2g}, maps within {checked.worst_map:.2g} (relative)"
    print(f"sample     {checked.compared} scored again{f': {found}' if checked.compared else ''}{gone}")
    if checked.gone and not checked.compared:
        raise ConfigError(
            "not one image of the sample could be scored again: --moved OLD=NEW says where they lie by now, and "
            "--sample 0 checks the parts and the proof alone"
        )


if __name__ == "__main__":
    process.exit_with(main())
