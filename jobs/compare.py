"""`fcdd compare RUN_A RUN_B`: what another bundle changes, on the images that both runs scored."""

import json
import sys
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from fcdd.io import storage
from jobs.catalog import commit_records
from jobs.measuring import comparison
from jobs.shell import formatting, process
from jobs.shell.settings import LookingSettings
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves
from jobs.viewing import rendering
from schemas import Layout


class CompareSettings(LookingSettings):
    """Compare two committed runs on the same images: superseded ones too, as `fcdd runs` lists them."""

    verb: ClassVar[str] = "compare"

    run_a: CliPositionalArg[str] = Field(description="id of one run")
    run_b: CliPositionalArg[str] = Field(description="id of the other run")
    results: str = Field(description="location of the results")
    top: int = Field(10, ge=1, le=1000, description="how many images that moved most")
    format: Literal["table", "json"] = Field("table", description="table for people, json for programs")
    images: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    pictures: str | None = Field(
        None, description="local folder for pictures of what moved most (else of flips): original, heatmap of each run"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: compare(CompareSettings.parse(argv)))


def compare(settings: CompareSettings) -> None:
    """Print the comparison; save pictures where they are wanted."""
    layout = Layout(storage.normalize(settings.results))
    moves = Moves.parse(settings.moved)
    a, b = (moves.record(commit_records.named(layout, run_id)) for run_id in (settings.run_a, settings.run_b))
    locations = Locations.of_records(layout.results, (a, b), settings.images, moves)
    if settings.pictures:
        rendering.check_apart(settings.pictures, locations)
    folder = rendering.folder(settings.pictures) if settings.pictures else None
    found = comparison.compare(layout.results, a, b, settings.top)
    hidden = ("width", "height", "heatmap_a", "heatmap_b")
    drawn_from = {id(row): [row.pop(name) for name in hidden] for rows in (found.flips, found.movers) for row in rows}
    if settings.format == "json":
        print(json.dumps(formatting.json_values(found), indent=1, default=str))
    else:
        comparison.print_comparison(found, a, b)
    if folder:
        heatmaps, out = rendering.Heatmaps(), sys.stderr if settings.format == "json" else sys.stdout
        drawn = found.movers or found.flips  # another calibration moves nothing, and flips alarms
        for rank, row in enumerate(drawn, start=1):
            if original := rendering.original_or_warn(row, locations, a.full_scale):
                width, height, *encoded = drawn_from[id(row)]
                both = zip("ab", (a, b), encoded, strict=True)
                runs = [(letter, run, heatmaps(each, run, (width, height))) for letter, run, each in both]
                path = folder / rendering.file_name(rank, len(drawn), row["image_uri"], row["image_group"])
                comparison.picture(original, row, runs).save(path)
                print(f"picture {rank:2d}  {path}", file=out)


if __name__ == "__main__":
    process.exit_with(main())
