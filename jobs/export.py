"""`fcdd export`: a run for the tools that people look at images with, a bundle for the runtimes of other programs."""

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

import numpy as np
from PIL import Image
from pydantic import Field
from pydantic_settings import CliPositionalArg

from fcdd import heatmap
from fcdd.errors import ConfigError, ImageError
from fcdd.io import storage
from jobs import results
from jobs.catalog import views
from jobs.results import Results
from jobs.shell import formatting, local_files, process
from jobs.shell.settings import JobSettings, Night
from jobs.sources.locations import Locations
from jobs.viewing import rendering
from schemas import IDENTITY

_COLUMNS = ", ".join((*IDENTITY, "image_group", "width", "height", "collection", "date", "anomaly_score", "p_value"))
_COLUMNS += ", is_anomalous, regions, heatmap, model_digest"

_READS_IN_FLIGHT = 8

log = logging.getLogger(__name__)


class ExportSettings(JobSettings):
    """Write a run, or a bundle, in the format of another tool.

    coco      regions as annotations of a COCO file, with peaks as scores; images by their locations
    fiftyone  a folder for fiftyone.Dataset.from_dir(DIR, fiftyone.types.FiftyOneDataset): images, scores, regions, maps
    onnx      a bundle as one ONNX model, pixels to anomaly map and scores, checked against the original to 1e-4
    """

    verb: ClassVar[str] = "export"

    format: CliPositionalArg[Literal["coco", "fiftyone", "onnx"]] = Field(description="format to write")
    results: str | None = Field(None, description="coco, fiftyone: location of the results")
    collection: str | None = Field(None, description="coco, fiftyone: only this image collection")
    date: Night | None = Field(None, description="coco, fiftyone: night, YYYY-MM-DD; default: all nights")
    all: bool = Field(False, description="coco, fiftyone: all scored images, not only alarms")
    bundle: str | None = Field(None, description="onnx: location of the bundle")
    images: list[str] = Field(
        default_factory=list,
        description="fiftyone: further location whose images may be opened; the run's own always may",
    )
    output: str = Field(description="file to write (coco, onnx), or folder (fiftyone)")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: export(ExportSettings.parse(argv)))


def export(settings: ExportSettings) -> None:
    """Write it, and say what."""
    if settings.format == "onnx":
        _onnx(settings)
        return
    if settings.results is None:
        raise ConfigError("--results is missing: the location of the results")
    found = results.open(settings.results, collection=settings.collection, since=settings.date, until=settings.date)
    if settings.format == "fiftyone":
        rendering.check_apart(settings.output, Locations.of(found.location, found.records))
    with views.readable():
        (_coco if settings.format == "coco" else _fiftyone)(found, settings)


def _rows(found: Results, settings: ExportSettings) -> Iterator[dict[str, Any]]:
    which = "" if settings.all else "WHERE is_anomalous"
    return found.rows(f"SELECT {_COLUMNS} FROM scores {which} ORDER BY collection, date, image_uri")


def _coco(found: Results, settings: ExportSettings) -> None:
    """Two passes over the rows, so that none has to be kept: images, then their regions."""
    images = regions = 0
    with local_files.appearing(settings.output) as path, path.open("w", encoding="utf-8") as file:
        info = {"description": "regions of anomaly maps above the map threshold", "version": "1.0"}
        info["runs"] = ", ".join(record.run_id for record in found.records)
        categories = [{"id": 1, "name": "anomaly", "supercategory": "anomaly"}]
        file.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": {json.dumps(categories)},\n')
        file.write('"images": [')
        for images, row in enumerate(_rows(found, settings), start=1):
            _append(file, images, _coco_image(images, row))
        file.write('],\n"annotations": [')
        for image_id, row in enumerate(_rows(found, settings), start=1):
            for region in row["regions"]:
                regions += 1
                _append(file, regions, _coco_region(regions, image_id, region))
        file.write("]}\n")
    print(f"coco        {settings.output}  ({images} images, {regions} regions)")


def _append(file: TextIO, number: int, item: dict[str, Any]) -> None:
    file.write(("\n" if number == 1 else ",\n") + json.dumps(item))


def _coco_image(image_id: int, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": image_id,
        "file_name": row["image_uri"],
        "width": row["width"],
        "height": row["height"],
        "date_captured": row["date"].isoformat(),
        "collection": row["collection"],
        "anomaly_score": row["anomaly_score"],
        "p_value": row["p_value"],
        "is_anomalous": row["is_anomalous"],
    }


def _coco_region(number: int, image_id: int, region: dict[str, Any]) -> dict[str, Any]:
    width, height = region["x1"] - region["x0"], region["y1"] - region["y0"]
    x0, y0, x1, y1 = (region[name] for name in ("x0", "y0", "x1", "y1"))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "bbox": [x0, y0, width, height],
        "area": width * height,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "iscrowd": 0,
        "score": region["peak"],
    }


def _fiftyone(found: Results, settings: ExportSettings) -> None:
    """Images are copied, since FiftyOne opens local files; heatmaps lie beside them, on the display scale."""
    samples = failed = 0
    heatmaps = rendering.Heatmaps()
    name = f"fcdd-{'-'.join(dict.fromkeys(record.collection for record in found.records))}"
    about = {"name": name, "media_type": "image", "info": {"runs": [record.run_id for record in found.records]}}
    with local_files.appearing(settings.output) as root:
        for folder in ("data", "fields/heatmap"):
            (root / folder).mkdir(parents=True)
        (root / "metadata.json").write_text(json.dumps(about))
        with (root / "samples.json").open("w", encoding="utf-8") as file:
            file.write('{"samples": [')
            locations = Locations.of(found.location, found.records, settings.images)
            for row, reading in _ahead(_rows(found, settings), locations):
                try:
                    data = reading.result()
                except ImageError as error:
                    log.warning("left out %s: %s", formatting.printable(row["image_uri"]), error)
                    failed += 1
                    continue
                samples += 1
                stem = Path(rendering.file_name(samples, 10**6, row["image_uri"])).stem
                image, picture = f"data/{stem}{Path(row['image_uri']).suffix.lower()}", f"fields/heatmap/{stem}.png"
                (root / image).write_bytes(data)
                threshold = found.record_of(row["model_digest"]).map_threshold
                values = heatmaps(row["heatmap"], found.record_of(row["model_digest"]))
                scaled = heatmap.display_scale(values, threshold)
                Image.fromarray((scaled * 255).round().astype(np.uint8)).save(root / picture)
                _append(file, samples, _fiftyone_sample(row, image, picture, threshold))
            file.write("]}\n")
    left_out = f", {failed} left out" if failed else ""
    print(f"fiftyone    {settings.output}  ({samples} images{left_out})")
    print(f"open        fiftyone.Dataset.from_dir({settings.output!r}, dataset_type=fiftyone.types.FiftyOneDataset)")


def _ahead(rows: Iterable[dict[str, Any]], locations: Locations) -> Iterator[tuple[dict[str, Any], Future[bytes]]]:
    """Each row and its image, of which a few are read while others are worked on."""
    waiting: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        for row in rows:
            waiting.append((row, pool.submit(rendering.encoded, row, locations)))
            if len(waiting) > _READS_IN_FLIGHT:
                yield waiting.popleft()
        yield from waiting


def _fiftyone_sample(row: dict[str, Any], image: str, heatmap_path: str, threshold: float) -> dict[str, Any]:
    width, height = row["width"], row["height"]
    regions = [
        {
            "_cls": "Detection",
            "label": "anomaly",
            "bounding_box": [
                region["x0"] / width,
                region["y0"] / height,
                (region["x1"] - region["x0"]) / width,
                (region["y1"] - region["y0"]) / height,
            ],
            # On the scale of the heatmap, as FiftyOne wants it: 0.5 is the threshold.
            "confidence": region["peak"] / (region["peak"] + threshold),
            "tags": [],
            "attributes": {},
        }
        for region in row["regions"]
    ]
    return {
        "filepath": image,
        "tags": ["alarm"] if row["is_anomalous"] else [],
        "image_uri": row["image_uri"],
        "image_group": row["image_group"],
        "collection": row["collection"],
        "night": row["date"].isoformat(),
        "anomaly_score": row["anomaly_score"],
        "p_value": row["p_value"],
        "regions": {"_cls": "Detections", "detections": regions},
        "heatmap": {"_cls": "Heatmap", "tags": [], "map_path": heatmap_path, "range": [0, 255]},
    }


def _onnx(settings: ExportSettings) -> None:
    if settings.bundle is None:
        raise ConfigError("--bundle is missing: the location of the bundle")
    from fcdd import onnx_export
    from fcdd.detector import Detector

    for name in ("onnxscript", "onnx_ir"):  # they tell of every initializer
        logging.getLogger(name).setLevel(logging.WARNING)
    found = onnx_export.export(Detector.load(settings.bundle))
    storage.write(storage.normalize(settings.output), found.model)
    print(f"onnx        {settings.output}  ({len(found.model) / 1e6:.1f} MB)")
    print(f"checked     outputs differ by at most {found.largest_difference:.1e} of the largest map value")


if __name__ == "__main__":
    process.leave(main())
