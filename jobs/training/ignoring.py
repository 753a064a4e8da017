"""What `--ignore` leaves out: a mask as an image, or shapes drawn with labelme (`pip install labelme`) as JSON."""

import logging
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydantic import BaseModel, Field, ValidationError, model_validator

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
# labelme puts the image itself into its file, unless it is told not to.
_MOST_BYTES, _FURTHEST = 500_000_000, 1e6

log = logging.getLogger(__name__)


_Coordinate = Annotated[float, Field(ge=-_FURTHEST, le=_FURTHEST, allow_inf_nan=False)]


class _Shape(BaseModel):
    """Points (x, y) in pixels: corners of a polygon, or two opposite or all corners of a rectangle."""

    shape_type: Literal["polygon", "rectangle"] = "polygon"
    points: Annotated[list[tuple[_Coordinate, _Coordinate]], Field(min_length=2)]

    @model_validator(mode="after")
    def _encloses_something(self) -> Self:
        if self.shape_type == "polygon" and len(self.points) < 3:
            raise ValueError("a polygon has at least three points")
        return self


class _Labelme(BaseModel):
    """Of a file of labelme, what an area needs. Its labels do not matter."""

    shapes: Annotated[list[_Shape], Field(min_length=1)]
    width: Annotated[int, Field(alias="imageWidth", gt=0)]
    height: Annotated[int, Field(alias="imageHeight", gt=0)]


def ignored_cells(settings: TrainSettings, of_images: set[tuple[int, int]]) -> Mask | None:
    """Cells of the map (U,V) of which at least half lies under the mask of `--ignore`, if there is one.

    `of_images` are the sizes (height, width) that images have. Raises ConfigError for a mask of another size, or one
    that leaves nothing.
    """
    if not settings.ignore:
        return None
    from fcdd import evidence  # with scikit-learn, which a training starts without

    try:
        info = storage.stat(storage.normalize(settings.ignore))
    except FileNotFoundError as error:
        raise ConfigError(f"the mask {error} of --ignore does not exist") from error
    if info.uri.lower().endswith(".json"):
        shapes = _read_shapes(info)
        _check_size(settings.ignore, (shapes.height, shapes.width), of_images)
        masked = _filled(shapes)
    else:
        masked = read_grey(info) > _MASKED
        _check_size(settings.ignore, masked.shape, of_images)
    top, left, bottom, right = box_of(crop_of(settings), masked.shape)
    field = networks.geometry(settings.network, size_of(settings))
    cells = evidence.to_cells(masked[top:bottom, left:right], (field.height, field.width))
    if cells.all():
        raise ConfigError(f"the mask {settings.ignore} leaves nothing to look at")
    log.info("%.0f %% of the map do not count: they lie under the mask %s", 100 * cells.mean(), settings.ignore)
    return cells if cells.any() else None


def sizes_of(images: ImageSet) -> set[tuple[int, int]]:
    """The sizes (height, width) that loaded images have in their files."""
    return {(int(height), int(width)) for width, height in images.statistics[:, _WIDTH_AND_HEIGHT].tolist()}


def _check_size(mask: str, shape: tuple[int, ...], of_images: set[tuple[int, int]]) -> None:
    """Raises ConfigError for a mask of none of the sizes (height, width) that images have."""
    if shape not in of_images:
        height, width = min(of_images)
        raise ConfigError(
            f"the mask {mask} has {shape[1]}x{shape[0]} pixels, and images have {width}x{height}: --ignore needs a "
            "mask of their size"
        )


def _read_shapes(info: ObjectInfo) -> _Labelme:
    """Raises ConfigError."""
    if info.size > _MOST_BYTES:
        raise ConfigError(
            f"{info.uri} of --ignore has {info.size:,} bytes: save it without the image (labelme --nodata)"
        )
    try:
        return _Labelme.model_validate_json(storage.read_checked(info))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{info.uri} of --ignore is no JSON of labelme with polygons or rectangles: {where}{': ' * bool(where)}"
            f"{first['msg']}"
        ) from error


def _filled(shapes: _Labelme) -> Mask:
    """(height, width)."""
    mask = Image.new("L", (shapes.width, shapes.height))
    draw = ImageDraw.Draw(mask)
    for shape in shapes.shapes:
        if shape.shape_type == "rectangle":
            columns, rows = zip(*shape.points, strict=True)
            draw.rectangle((min(columns), min(rows), max(columns), max(rows)), fill=255)
        else:
            draw.polygon(shape.points, fill=255)
    return np.asarray(mask) > _MASKED
