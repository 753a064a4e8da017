"""Runs in the formats of other tools: COCO annotations, a FiftyOne folder."""

import json
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from fcdd import heatmap
from fcdd.errors import ConfigError, ImageError
from fcdd.io import storage
from jobs.results import Results
from jobs.shell import formatting, local_files
from jobs.shell.look_ahead import ahead
from jobs.sources.locations import Locations
from jobs.viewing import rendering
from schemas import IDENTITY

_COLUMNS = ", ".join((*IDENTITY, "image_group", "width", "height", "collection", "date", "anomaly_score", "p_value"))
_COLUMNS += ", is_anomalous, regions, heatmap, model_digest"

_READS_IN_FLIGHT = 8

log = logging.getLogger(__name__)


def _rows(found: Results, only_alarms: bool) -> Iterator[dict[str, Any]]:
    which = "WHERE is_anomalous" if only_alarms else ""
    return found.rows(f"SELECT {_COLUMNS} FROM scores {which} ORDER BY collection, date, image_uri")


def coco(found: Results, output: str, *, only_alarms: bool, root: str | None = None) -> None:
    """Regions as a COCO file; two passes over the rows, so that none has to be kept: images, then their regions.

    With a `root` the names of images are relative to it. Raises ConfigError for an image that does not lie below it.
    """
    images = regions = 0
    with local_files.atomic_path(output) as path, path.open("w", encoding="utf-8") as file:
        info = {"description": "regions of anomaly maps above the map threshold", "version": "1.0"}
        info["runs"] = ", ".join(record.run_id for record in found.records)
        categories = [{"id": 1, "name": "anomaly", "supercategory": "anomaly"}]
        file.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": {json.dumps(categories)},\n')
        file.write('"images": [')
        for images, row in enumerate(_rows(found, only_alarms), start=1):
            _append(file, images, _coco_image(images, row, root))
        file.write('],\n"annotations": [')
        for image_id, row in enumerate(_rows(found, only_alarms), start=1):
            for region in row["regions"]:
                regions += 1
                _append(file, regions, _coco_region(regions, image_id, region))
        file.write("]}\n")
    print(f"coco        {output}  ({images} images, {regions} regions)")


def _append(file: TextIO, number: int, item: dict[str, Any]) -> None:
    file.write(("\n" if number == 1 else ",\n") + json.dumps(item))


def _coco_image(image_id: int, row: dict[str, Any], root: str | None) -> dict[str, Any]:
    uri = row["image_uri"]
    below = f"{root.rstrip('/')}/" if root else ""
    if not uri.startswith(below):
        raise ConfigError(f"{storage.spelled(uri)} does not lie below --relative-to {root}")
    return {
        "id": image_id,
        "file_name": uri.removeprefix(below),
        "coco_url": uri,
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


def fiftyone(found: Results, output: str, *, only_alarms: bool, locations: Locations) -> None:
    """A FiftyOne folder; images are copied, since it opens local files; heatmaps beside them, on the display scale."""
    samples = failed = 0
    heatmaps = rendering.Heatmaps()
    name = f"fcdd-{'-'.join(dict.fromkeys(record.collection for record in found.records))}"
    about = {"name": name, "media_type": "image", "info": {"runs": [record.run_id for record in found.records]}}
    with local_files.atomic_path(output) as root:
        for folder in ("data", "fields/heatmap"):
            (root / folder).mkdir(parents=True)
        (root / "metadata.json").write_text(json.dumps(about))
        with (root / "samples.json").open("w", encoding="utf-8") as file:
            file.write('{"samples": [')
            for row, reading in _read_ahead(_rows(found, only_alarms), locations):
                try:
                    data = reading.result()
                except ImageError as error:
                    log.warning("left out %s: %s", formatting.printable(row["image_uri"]), error)
                    failed += 1
                    continue
                samples += 1
                stem = Path(rendering.file_name(samples, 10**6, row["image_uri"], row["image_group"])).stem
                image, picture = f"data/{stem}{Path(row['image_uri']).suffix.lower()}", f"fields/heatmap/{stem}.png"
                (root / image).write_bytes(data)
                threshold = found.record_of(row["model_digest"]).map_threshold
                values = heatmaps(row["heatmap"], found.record_of(row["model_digest"]), (row["width"], row["height"]))
                scaled = heatmap.display_scale(values, threshold)
                Image.fromarray((scaled * 255).round().astype(np.uint8)).save(root / picture)
                _append(file, samples, _fiftyone_sample(row, image, picture, threshold))
            file.write("]}\n")
        if failed and not samples:
            raise ConfigError(
                f"not one of {failed} images could be read; --moved OLD=NEW says where they lie by now; nothing was "
                "written"
            )
    left_out = f", {failed} left out" if failed else ""
    print(f"fiftyone    {output}  ({samples} images{left_out})")
    print(f"open        fiftyone.Dataset.from_dir({output!r}, dataset_type=fiftyone.types.FiftyOneDataset)")


def _read_ahead(rows: Iterable[dict[str, Any]], locations: Locations) -> Iterator[tuple[dict[str, Any], Future[bytes]]]:
    """Each row and its image, of which a few are read while others are worked on."""
    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        yield from ahead(lambda row: pool.submit(rendering.encoded, row, locations), rows, _READS_IN_FLIGHT)


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
