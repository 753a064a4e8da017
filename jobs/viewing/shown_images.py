"""Images within a page: a small picture, the heatmap over it, outlines of its regions, and the hottest one closer."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd import contours, heatmap
from fcdd.cropping import Box
from fcdd.errors import ImageError
from fcdd.io import isolation
from jobs.sources.locations import Locations
from jobs.viewing import rendering
from jobs.viewing.rendering import Heatmaps
from schemas import IDENTITY, RunRecord

# Of the scores, what `add_pictures` needs of an image.
COLUMNS = ", ".join((*IDENTITY, "anomaly_score", "regions", "width", "height", "heatmap"))
# Long sides; and the bytes of one picture, so that 200 of them stay below 10 MB in base64.
_THUMBNAIL, _LAYER, _PICTURE_BYTES = 320, 120, 30_000
_QUALITIES = (80, 60, 40, 20)
# Of images that are so many times as large as their thumbnail the hottest region is shown as it is, and so much beside.
_LARGE, _LEAST_AROUND = 2, 32
# Pictures that are read at once.
_READS_IN_FLIGHT = 4


def add_pictures(
    rows: Sequence[dict[str, Any]],
    run_of: Callable[[dict[str, Any]], RunRecord],
    heatmaps: Heatmaps | None,
    locations: Locations,
) -> list[str]:
    """Give each row what macro `shown` of the templates draws; why some have no picture.

    `run_of` a row is the run that scored the image. Without `heatmaps` there are outlines of boxes only. Raises
    ConfigError when a map does not fit its bundle.
    """

    def thumbnail(row: dict[str, Any]) -> tuple[str, str] | ImageError:
        return _thumbnail(locations, run_of(row).full_scale, row)

    with ThreadPoolExecutor(_READS_IN_FLIGHT) as pool:
        pictures = list(pool.map(thumbnail, rows[:_READS_IN_FLIGHT]))
        if any(not isinstance(each, ImageError) or each.reason != "forbidden" for each in pictures):
            pictures += pool.map(thumbnail, rows[_READS_IN_FLIGHT:])
    pictures += pictures[-1:] * (len(rows) - len(pictures))  # no credentials: to ask for all would take minutes
    for row, picture in zip(rows, pictures, strict=True):
        row["picture"], row["detail"] = ("", "") if isinstance(picture, ImageError) else picture
        row["layer"], row["outline"] = "", contours.box_path(row["regions"])
        if heatmaps and row["picture"]:
            what = (row["heatmap"], run_of(row), (row["width"], row["height"]))
            row["layer"] = _layer(heatmaps(*what), row, run_of(row).map_threshold)
            row["outline"] = contours.path(heatmaps.outline(*what))
    return [str(each) for each in pictures if isinstance(each, ImageError)]


def _thumbnail(locations: Locations, full_scale: float | None, row: dict[str, Any]) -> tuple[str, str] | ImageError:
    """A small WebP of the original as a data URI, and one of its hottest region as it is, or why there is none.

    The region is left out, "", where the small picture shows enough of it.
    """
    try:
        data, size = rendering.encoded(row, locations), (_THUMBNAIL, _THUMBNAIL)
        picture = isolation.picture(data, within=size, full_scale=full_scale)
    except ImageError as error:
        return error
    detail = ""
    if row["regions"] and max(row["width"], row["height"]) > _LARGE * _THUMBNAIL:
        with suppress(ImageError):  # all of a picture may be too large where a smaller one was not
            part = _around(row["regions"][0])
            detail = _data_uri(isolation.picture(data, within=size, full_scale=full_scale, part=part))
    return _data_uri(picture), detail


def _around(region: dict[str, Any]) -> Box:
    """The region and as much beside it as shows what it is a region of."""
    more = max(_LEAST_AROUND, (region["x1"] - region["x0"]) // 4, (region["y1"] - region["y0"]) // 4)
    top, left = max(0, region["y0"] - more), max(0, region["x0"] - more)
    return Box(top, left, region["y1"] + more, region["x1"] + more)


def _data_uri(picture: Image.Image) -> str:
    for quality in _QUALITIES:
        uri = rendering.data_uri(picture, "WEBP", quality=quality)
        if len(uri) < _PICTURE_BYTES * 4 / 3:
            break
    return uri


def _layer(values: npt.NDArray[np.float32], row: dict[str, Any], threshold: float) -> str:
    """The heatmap of the image's shape, to lie over the thumbnail."""
    size = (row["width"], row["height"])
    return rendering.data_uri(heatmap.small_layer(values, threshold, size=size, long_side=_LAYER), "WEBP", quality=60)
