"""`fcdd heatmap`: where the evidence lies, over the original: one image, a list, or the worst."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from fcdd.errors import BundleError, ConfigError
from jobs import results
from jobs.labels import label_files
from jobs.shell import formatting, process
from jobs.shell.settings import LookingSettings, Night
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves
from jobs.viewing import heatmap_files, rendering
from jobs.viewing.heatmap_files import Style

log = logging.getLogger(__name__)


class HeatmapSettings(LookingSettings):
    """Save pictures of scored images with their heatmaps over them: the worst of a night, some images, or a list.

    The same colour means the same evidence in every picture: invisible up to a quarter of the run's map threshold, red
    at the threshold. Needs the images and the bundle where the run found them.
    """

    verb: ClassVar[str] = "heatmap"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="only this image collection")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: all nights, of each image the latest")
    run: str | None = Field(None, description="id of a run instead, as `fcdd runs` lists them, superseded ones too")
    uri: list[str] = Field(
        default_factory=list, description="an image, by its location or the end of it; again for more"
    )
    uris: str | None = Field(None, description="file of images: .csv or .parquet with a column image_uri")
    top: int = Field(10, ge=1, le=10_000, description="otherwise the most anomalous ones, of near-duplicates the worst")
    alarms: bool = Field(False, description="of these only the alarms, near-duplicates too")
    style: Style = Field(
        "side-by-side",
        description="side-by-side: original and overlay; overlay: alone; outline: of what is above the threshold; "
        "contours: at 0.5, 1, 2 and 4 thresholds; 16-bit: grey PNG, 32768 is the threshold; "
        "numpy: float32 array (height, width) in the map's units",
    )
    regions: bool = Field(True, description="over the heatmap, outline what is above the map threshold")
    caption: bool = Field(True, description="write score, p-value and colour scale under the picture")
    images: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    output: str = Field("heatmaps", description="local folder for the pictures")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: draw(HeatmapSettings.parse(argv)))


def draw(settings: HeatmapSettings) -> None:
    """One file per image, named by rank, and index.csv, which says what each shows; no alarms, no files."""
    found = (
        results.open_run(settings.results, settings.run)
        if settings.run
        else results.open(settings.results, collection=settings.collection, since=settings.date, until=settings.date)
    )
    moves = Moves.parse(settings.moved)
    found = replace(found, records=tuple(map(moves.record, found.records)))
    uris = [*settings.uri, *(label_files.read_uris(settings.uris) if settings.uris else [])]
    if uris and settings.alarms:
        raise ConfigError("--alarms chooses among the most anomalous images; leave it out, or --uri and --uris")
    rows, num_images = heatmap_files.chosen(found, uris, settings.top, alarms=settings.alarms)
    if not rows and settings.alarms:
        print("no alarms")
        return
    heatmaps, index, failure = rendering.Heatmaps(), list[dict[str, Any]](), None
    locations = Locations.of_records(found.location, found.records, settings.images, moves)
    rendering.check_apart(settings.output, locations)
    folder = rendering.folder(settings.output)
    for rank, row in enumerate(rows, start=1):
        record = found.record_of(row["model_digest"])
        picture = rendering.original_or_warn(row, locations, record.full_scale)
        if picture is None:
            continue
        name = rendering.file_name(rank, len(rows), row["image_uri"], row["image_group"])
        path = folder / (Path(name).with_suffix(".npy") if settings.style == "numpy" else name)
        how = {"regions": settings.regions, "caption": settings.caption}
        try:
            heatmap_files.save(path, picture, row, record, heatmaps, settings.style, **how)
        except (BundleError, ConfigError) as error:  # the bundle of one night may be gone, and those of others not
            if len(found.records) == 1:
                raise
            log.warning("no picture of %s: %s", formatting.printable(row["image_uri"]), error)
            failure = error
            continue
        print(f"{path}  {row['anomaly_score']:.4g}  {formatting.printable(row['image_uri'])}")
        index.append({"file": path.name, **{name: row[name] for name in ("image_uri", "anomaly_score", "p_value")}})
    if not index:
        raise failure or ConfigError(
            "not one picture could be made; images that were moved since they were scored are found by --moved OLD=NEW"
        )
    if settings.alarms and len(rows) < num_images:
        print(f"not drawn   {num_images - len(rows)} of {num_images} alarms (--top {num_images}: all)")
    hidden = 0 if settings.alarms else sum(row.get("num_alike", 1) - 1 for row in rows)
    if hidden:
        alike = formatting.plural(hidden, "near-duplicate")
        print(f"not drawn   {alike} of these (`fcdd query --duplicates` lists them)")
    heatmap_files.write_index(folder, index)


if __name__ == "__main__":
    process.exit_with(main())
