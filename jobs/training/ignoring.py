"""What `--ignore` leaves out: a mask as an image, or shapes drawn with labelme (`pip install labelme`) as JSON."""

import logging
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydantic import BaseModel, Field, ValidationError

from fcdd import networks
from fcdd.calibration import STATISTICS
from fcdd.cropping import box_of
from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.sources.fetching import ImageSet
from jobs.training.data_set import read_grey
from jobs.training.settings import TrainSettings, crop_of, size_of

Mask = npt.NDArray[np.bool_]
_MASKED = 127
_WIDTH_AND_HEIGHT = [STATISTICS.index("width"), STATISTICS.index("height")]
# Nobody draws more than this, and a file of gigabytes is none of labelme's.
_MOST_BYTES, _LONGEST_SIDE = 50_000_000, 100_000

log = logging.getLogger(__name__)


class _Shape(BaseModel):
    """Points (x, y) in pixels: corners of a polygon, or two opposite ones of a rectangle."""

    shape_type: Literal["polygon", "rectangle"] = "polygon"
    points: Annotated[list[tuple[float, float]], Field(min_length=2)]


class _Labelme(BaseModel):
    """Of a file of labelme, what an area needs. Its labels do not matter."""

    shapes: Annotated[list[_Shape], Field(min_length=1)]
    width: Annotated[int, Field(alias="imageWidth", gt=0, le=_LONGEST_SIDE)]
    height: Annotated[int, Field(alias="imageHeight", gt=0, le=_LONGEST_SIDE)]


def ignored_cells(settings: TrainSettings, images: ImageSet) -> Mask | None:
    """Cells of the map (U,V) of which at least half lies under the mask of `--ignore`, if there is one.

    Raises ConfigError for a mask of another size than the images, or one that leaves nothing.
    """
    if not settings.ignore:
        return None
    from fcdd import evidence  # with scikit-learn, which a training starts without

    try:
        info = storage.stat(storage.normalize(settings.ignore))
    except FileNotFoundError as error:
        raise ConfigError(f"the mask {error} of --ignore does not exist") from error
    masked = _drawn(info) if info.uri.lower().endswith(".json") else read_grey(info) > _MASKED
    of_images = {(int(height), int(width)) for width, height in images.statistics[:, _WIDTH_AND_HEIGHT].tolist()}
    if masked.shape not in of_images:
        height, width = min(of_images)
        raise ConfigError(
            f"the mask {settings.ignore} has {masked.shape[1]}x{masked.shape[0]} pixels, and images have "
            f"{width}x{height}: --ignore needs a mask of their size"
        )
    top, left, bottom, right = box_of(crop_of(settings), masked.shape)
    field = networks.geometry(settings.network, size_of(settings))
    cells = evidence.to_cells(masked[top:bottom, left:right], (field.height, field.width))
    if cells.all():
        raise ConfigError(f"the mask {settings.ignore} leaves nothing to look at")
    log.info("%.0f %% of the map do not count: they lie under the mask %s", 100 * cells.mean(), settings.ignore)
    return cells if cells.any() else None


def _drawn(info: ObjectInfo) -> Mask:
    """The shapes of a file of labelme, filled, (H,W). Raises ConfigError."""
    if info.size > _MOST_BYTES:
        raise ConfigError(f"{info.uri} of --ignore has {info.size:,} bytes: expected shapes drawn with labelme")
    try:
        found = _Labelme.model_validate_json(storage.read_checked(info))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{info.uri} of --ignore is no JSON of labelme with polygons or rectangles: {where}{': ' * bool(where)}"
            f"{first['msg']}"
        ) from error
    mask = Image.new("L", (found.width, found.height))
    draw = ImageDraw.Draw(mask)
    for shape in found.shapes:
        if shape.shape_type == "rectangle":
            (left, right), (top, bottom) = (sorted(along[:2]) for along in zip(*shape.points, strict=True))
            draw.rectangle((left, top, right, bottom), fill=255)
        else:
            draw.polygon(shape.points, fill=255)
    return np.asarray(mask) > _MASKED
