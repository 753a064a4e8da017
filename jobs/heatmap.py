"""`fcdd heatmap`: where the evidence lies, over the original at full resolution: one image, a list, or the worst."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field

from fcdd import heatmap
from fcdd.errors import ConfigError
from jobs import results
from jobs.catalog import label_files, views
from jobs.results import Results
from jobs.shell import formatting, process, tables
from jobs.shell.settings import JobSettings, Night
from jobs.sources.locations import Locations
from jobs.viewing import queries, rendering
from jobs.viewing.queries import MAX_COMPARED
from schemas import IDENTITY, RunRecord

Style = Literal["side-by-side", "overlay", "16-bit", "numpy"]
_COLUMNS = ", ".join((*IDENTITY, "anomaly_score", "p_value", "is_anomalous", "heatmap", "image_hash", "regions"))
_COLUMNS += ", width, height, model_digest"

log = logging.getLogger(__name__)


class HeatmapSettings(JobSettings):
    """Save pictures of scored images with their heatmaps over them: the worst of a night, some images, or a list.

    The same colour means the same evidence in every picture: invisible up to a quarter of the run's map threshold, red
    at the threshold. Needs the images and the bundle where the run found them.
    """

    verb: ClassVar[str] = "heatmap"

    results: str = Field(description="location of the results")
    collection: str | None = Field(None, description="only this image collection")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: all nights, of each image the latest")
    run: str | None = Field(None, description="id of a run instead, as `fcdd runs` lists them, superseded ones too")
    uri: list[str] = Field(default_factory=list, description="an image, as `fcdd query` shows it; again for more")
    uris: str | None = Field(None, description="file of images: .csv or .parquet with a column image_uri")
    top: int = Field(10, ge=1, le=10_000, description="otherwise the most anomalous ones, near-duplicates left out")
    style: Style = Field(
        "side-by-side",
        description="side-by-side: original and overlay; overlay: alone; 16-bit: grey PNG, 32768 is the threshold; "
        "numpy: float32 array (height, width) in the map's units",
    )
    regions: bool = Field(True, description="draw boxes around the regions above the threshold")
    caption: bool = Field(True, description="write score, p-value and colour scale under the picture")
    images: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    output: str = Field("heatmaps", description="local folder for the pictures")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: draw(HeatmapSettings.parse(argv)))


def draw(settings: HeatmapSettings) -> None:
    """One file per image, named by rank, and index.csv, which says what each shows."""
    found = (
        results.open_run(settings.results, settings.run)
        if settings.run
        else results.open(settings.results, collection=settings.collection, since=settings.date, until=settings.date)
    )
    rows = chosen(found, settings)
    heatmaps, index = rendering.Heatmaps(), []
    locations = Locations.of(found.location, found.records, settings.images)
    rendering.check_apart(settings.output, locations)
    folder = rendering.folder(settings.output)
    for rank, row in enumerate(rows, start=1):
        picture = rendering.original_or_warn(row, locations)
        if picture is None:
            continue
        name = rendering.file_name(rank, len(rows), row["image_uri"])
        path = folder / (Path(name).with_suffix(".npy") if settings.style == "numpy" else name)
        record = found.record_of(row["model_digest"])
        save(path, picture, heatmaps(row["heatmap"], record), row, record, settings)
        print(f"{path}  {row['anomaly_score']:.4g}  {formatting.printable(row['image_uri'])}")
        index.append({"file": path.name, **{name: row[name] for name in ("image_uri", "anomaly_score", "p_value")}})
    if not index:
        raise ConfigError("not one picture could be made; the images are not where they were scored")
    columns = {name: [row[name] for row in index] for name in index[0]}
    tables.write(pa.table(columns).to_reader(), "csv", str(folder / "index.csv"))


def chosen(found: Results, settings: HeatmapSettings) -> list[dict[str, Any]]:
    """The rows to draw. Raises ConfigError for an image that was not scored."""
    if not settings.uri and not settings.uris:
        question = queries.top(count=max(MAX_COMPARED, settings.top), columns=_COLUMNS)
        with views.readable():
            rows = found.of_latest_bundle().sql(*question).to_arrow_table()
        return list(queries.without_duplicates(rows, settings.top).to_pylist())
    uris = [*settings.uri, *(label_files.read_uris(settings.uris) if settings.uris else [])]
    latest = "QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY date DESC) = 1"
    asked = f"SELECT {_COLUMNS} FROM scores WHERE list_contains($uris, image_uri) {latest}"
    by_uri = {row["image_uri"]: row for row in found.rows(asked, {"uris": uris})}
    if missing := [uri for uri in uris if uri not in by_uri]:
        raise ConfigError(
            f"{len(missing)} of {len(uris)} images were not scored in these runs, the first is {missing[0]!r}; an "
            "image is named by its whole location, as `fcdd query` shows it"
        )
    return [by_uri[uri] for uri in dict.fromkeys(uris)]


def save(
    path: Path,
    picture: Image.Image,
    values: npt.NDArray[np.float32],
    row: dict[str, Any],
    record: RunRecord,
    settings: HeatmapSettings,
) -> None:
    """One picture or array."""
    threshold = record.map_threshold
    if settings.style in ("16-bit", "numpy"):
        full = heatmap.at_size(values, *picture.size)
        if settings.style == "numpy":
            np.save(path, full)
        else:
            Image.fromarray(heatmap.to_16bit(full, threshold)).save(path, pnginfo=_about(row, threshold))
        return
    boxes = row["regions"] if settings.regions else []
    shown = rendering.boxed(heatmap.overlay(picture, values, threshold), boxes)
    if settings.style == "side-by-side":
        shown = rendering.side_by_side([picture, shown])
    if settings.caption:
        alarm = "alarm" if row["is_anomalous"] else "no alarm"
        regions = formatting.number(len(row["regions"]), "region")
        text = f"score {row['anomaly_score']:.4g}   p {row['p_value']:.4g}   {alarm}   {regions}"
        shown = rendering.captioned(shown, text, threshold)
    shown.save(path, pnginfo=_about(row, threshold))


def _about(row: dict[str, Any], threshold: float) -> PngInfo:
    """What the picture shows, for programs."""
    info = PngInfo()
    info.add_itxt("image_uri", row["image_uri"])
    info.add_text("anomaly_score", repr(row["anomaly_score"]))
    info.add_text("map_threshold", repr(threshold))
    return info


if __name__ == "__main__":
    process.leave(main())
