"""`fcdd audit`: where on the image plane the evidence of a model lies, to find features that it should not use.

maps of committed runs -> evidence of anomalous and of nominal images -> shares at the border, outside the object,
at one spot -> flags, and a picture
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import duckdb
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from fcdd import bundle, evidence, heatmap
from fcdd.bundle import BundleSpec
from fcdd.errors import ConfigError, ImageError
from fcdd.evidence import Evidence
from fcdd.images import DecodedImage
from fcdd.io import isolation, storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import commit_records, label_files, views
from jobs.shell import process
from jobs.shell.settings import JobSettings, Night
from jobs.sources import fetching
from jobs.sources.locations import Locations
from jobs.viewing import rendering
from schemas import IDENTITY

_ROWS_AT_ONCE = 5_000

log = logging.getLogger(__name__)


class AuditSettings(JobSettings):
    """Show where a model's evidence lies, and flag what looks spurious: a border, a background, one fixed spot.

    With labels, anomalous and nominal images are told apart by them; without, alarms and the others.
    """

    verb: ClassVar[str] = "audit"

    results: str = Field(description="location of the results")
    collection: str = Field(description="name of the image collection")
    date: Night | None = Field(None, description="night, YYYY-MM-DD; default: all nights")
    labels: str | None = Field(None, description="CSV or Parquet with image_uri and label (0 nominal, 1 anomalous)")
    object_mask: str | None = Field(
        None, description="picture that is white where the object is; default: found in the mean of nominal images"
    )
    sample: int = Field(64, ge=0, description="images to fetch for their mean; 0: fetch none")
    images: list[str] = Field(
        default_factory=list, description="further location whose images may be opened; the run's own always may"
    )
    pictures: str | None = Field(None, description="local folder for a picture of the evidence over the mean image")
    output: Literal["text", "json"] = Field("text", description="what to print")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: audit(AuditSettings.parse(argv)))


@views.readable()
def audit(settings: AuditSettings) -> None:
    """Measure, print, draw."""
    records = commit_records.committed(settings.results, settings.collection, first=settings.date, last=settings.date)
    records = commit_records.of_latest_bundle(records)
    record = records[-1]
    locations = Locations.of(settings.results, records, settings.images)
    if settings.pictures:
        rendering.check_apart(settings.pictures, locations)
    folder = rendering.folder(settings.pictures) if settings.pictures else None
    spec, _ = bundle.load(record.bundle)
    if spec.digest != record.bundle_digest:
        raise ConfigError(f"the bundle at {record.bundle} is not the one that run {record.run_id} used")
    labels = label_files.read_decided(settings.labels) if settings.labels else None
    connection = views.connect(settings.results)
    views.scores(connection, settings.results, records)
    kind = "is_anomalous"
    if labels is not None:
        connection.register("labels", labels)
        connection.sql(
            f"SELECT s.*, l.label = 1 AS labelled FROM scores s JOIN labels l ON {label_files.IS_OF}"
        ).create_view("q")
        kind = "labelled"
    source = "scores" if labels is None else "q"
    names = ("anomalous", "nominal") if labels is not None else ("alarms", "others")
    kinds = dict(zip(names, (Evidence(np.array(spec.calibration.pooled.map_mean)) for _ in names), strict=True))
    for chosen, maps in _batches(connection.execute(f"SELECT {kind}, heatmap FROM {source}")):
        for name, here in zip(names, (chosen, ~chosen), strict=True):
            if here.any():
                kinds[name].add(maps[here])
    if not any(each.num_images for each in kinds.values()):
        labelled = f" that {settings.labels} labels" if settings.labels else ""
        raise ConfigError(f"there is no evidence to look at: the runs have scored no image{labelled}")
    rows = connection.sql(
        f"SELECT {', '.join(IDENTITY)} FROM {source} WHERE NOT {kind} ORDER BY md5(image_uri) LIMIT {settings.sample}"
    ).fetchall()
    mean = _mean_image([info for row in rows if locations.hold((info := ObjectInfo(*row)).uri)], spec)
    mask = _object_mask(settings, mean, spec)
    found = {name: each.concentrations(mask) for name, each in kinds.items()}
    if settings.output == "json":
        plain = {
            name: {"num_images": kinds[name].num_images, "evidence": kinds[name].share().round(5).tolist()}
            | {"concentrations": [each._asdict() for each in found[name]]}
            for name in names
        }
        print(json.dumps(plain | {"object_share": None if mask is None else float(mask.mean())}, indent=1))
    else:
        _print(found, {name: each.num_images for name, each in kinds.items()}, mask, spec)
    if folder:
        path = folder / f"evidence-{record.run_id}.png"
        _picture(mean, kinds, spec).save(path)
        out = sys.stderr if settings.output == "json" else sys.stdout
        print(f"picture     {path}  (mean of nominal images; evidence of {', '.join(names)})", file=out)


def _batches(
    result: duckdb.DuckDBPyConnection,
) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]]:
    while rows := result.fetchmany(_ROWS_AT_ONCE):
        yield np.array([row[0] for row in rows], np.bool_), heatmap.decode_each([row[1] for row in rows])


def _mean_image(infos: list[ObjectInfo], spec: BundleSpec) -> npt.NDArray[np.float64] | None:
    """Mean grey image (H,W) of what can still be read, None if nothing can."""
    loaded = fetching.fetch_each(infos, spec.input_size, spec.channels)
    pixels = [image.pixels.mean(2) for image in loaded if isinstance(image, DecodedImage)]
    return np.mean(pixels, axis=0) if pixels else None


def _object_mask(
    settings: AuditSettings, mean: npt.NDArray[np.float64] | None, spec: BundleSpec
) -> npt.NDArray[np.bool_] | None:
    cells = np.shape(spec.calibration.pooled.map_mean)
    if settings.object_mask:
        uri = storage.normalize(settings.object_mask)
        try:
            found = np.asarray(isolation.picture(storage.read(uri), mode="L")) > 127
        except FileNotFoundError as error:
            raise ConfigError(f"the object mask {uri} does not exist") from error
        except ImageError as error:
            raise ConfigError(f"the object mask {uri} cannot be read: {error}") from error
        if not found.any():
            raise ConfigError(f"the object mask {uri} is black everywhere: white is where the object is")
        return evidence.to_cells(found, (cells[0], cells[1]))
    found_object = evidence.find_object(mean) if mean is not None else None
    return None if found_object is None else evidence.to_cells(found_object, (cells[0], cells[1]))


def _print(
    found: dict[str, list[evidence.Concentration]],
    counts: dict[str, int],
    mask: npt.NDArray[np.bool_] | None,
    spec: BundleSpec,
) -> None:
    print(f"model       {spec.digest[:12]}  ({spec.network})")
    whole = "none was told from the background: it fills the picture, or give --object-mask"
    print(f"object      {whole if mask is None else f'{mask.mean():.0%} of the picture'}")
    flags = 0
    few = [name for name, count in counts.items() if count < evidence.MIN_IMAGES]
    for name, concentrations in found.items():
        print(f"{name:11} {counts[name]} images with evidence")
        for each in concentrations:
            mark = "  <-- suspicious" if each.flagged else ""
            subject = "of the images are hottest" if each.where.startswith(evidence.ONE_SPOT) else "of the evidence"
            print(f"            {each.share:4.0%} {subject} {each.where}, {each.area:.0%} of the area{mark}")
            flags += each.flagged
    if few:
        print(f"            fewer than {evidence.MIN_IMAGES} images say nothing: {', '.join(few)}")
    if flags:
        print(
            f"verdict     {flags} suspicious: look at the pictures (`fcdd heatmap`); if the model looks at "
            "what is not the product, crop or mask it before training"
        )
    else:
        print("verdict     nothing suspicious was found")


def _picture(mean: npt.NDArray[np.float64] | None, kinds: dict[str, Evidence], spec: BundleSpec) -> Image.Image:
    """The mean image, and over it the evidence of each kind of images, on a scale of its own."""
    height, width = spec.input_size
    grey = Image.fromarray((np.zeros((height, width)) if mean is None else mean).round().astype(np.uint8)).convert(
        "RGB"
    )
    shown = [grey]
    for each in kinds.values():
        share = each.share().astype(np.float32)
        # A cell of three times the even share is in the middle of the scale.
        shown.append(heatmap.overlay(grey, share, 3 / share.size))
    return rendering.side_by_side(shown)


if __name__ == "__main__":
    process.leave(main())
