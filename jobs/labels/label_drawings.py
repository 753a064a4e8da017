"""What reviewers draw: boxes, and masks of the image's size that are kept beside the labels."""

import base64
import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from PIL import Image, ImageChops, ImageDraw
from pydantic import BaseModel, ConfigDict, Field

from fcdd.errors import ConfigError, ImageError
from fcdd.images import Limits
from fcdd.io import isolation, storage
from fcdd.io.isolation import DecoderPool

MAX_BOXES, MAX_MASK_CHARACTERS = 200, 8_000_000
_MAX_MASK_PIXELS = 4_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
Side = Annotated[int, Field(ge=0, le=1_000_000)]


class Box(BaseModel):
    """Pixels [x0, x1) x [y0, y1) of the original image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    x0: Side
    y0: Side
    x1: Side
    y1: Side


class BadDrawing(Exception):
    """A box or mask that cannot be decoded, or lies outside of the image."""


def kept(
    image: Mapping[str, Any], before: Mapping[str, Any] | None, boxes: Sequence[Box] | None, paint: str | None, to: str
) -> tuple[list[dict[str, int]], str]:
    """All boxes of an image, and where the mask of all that was ever drawn is kept below `to`; "" if there is none.

    `before` is its label until now; `boxes` replace those, `paint` (a PNG in base64) is added to what was painted, and
    with neither all stays. Raises BadDrawing; ConfigError when the mask until now is gone.
    """
    drawn, mask_uri = (before["boxes"], before["mask_uri"]) if before else ([], "")
    if boxes is None and paint is None:
        return drawn, mask_uri
    size = (image["width"], image["height"])
    if boxes is not None:
        drawn = [_clipped(box, *size) for box in boxes]
    mask = _stored(mask_uri, size) if mask_uri else Image.new("L", size)
    if paint is not None:
        mask = ImageChops.lighter(mask, _decoded(paint).resize(size, Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(mask)
    for box in drawn:
        draw.rectangle((box["x0"], box["y0"], box["x1"] - 1, box["y1"] - 1), fill=255)
    if not mask.getbbox():
        return drawn, ""
    sink = io.BytesIO()
    mask.save(sink, "PNG")
    uri = storage.join(to, f"{hashlib.sha256(sink.getvalue()).hexdigest()[:32]}.png")
    storage.write(uri, sink.getvalue())
    return drawn, uri


def _stored(mask_uri: str, size: tuple[int, int]) -> Image.Image:
    """The mask that was kept before. Raises ConfigError when it is gone or another one."""
    try:
        mask = isolation.picture(storage.read(mask_uri), mode="L")
    except (FileNotFoundError, ImageError) as error:
        raise ConfigError(f"the mask {mask_uri} is gone or damaged; clear the drawing and draw again") from error
    if mask.size != size:
        raise ConfigError(f"the mask {mask_uri} is not of its image's size; clear the drawing and draw again")
    return mask


def _clipped(box: Box, width: int, height: int) -> dict[str, int]:
    clipped = {"x0": box.x0, "y0": box.y0, "x1": min(box.x1, width), "y1": min(box.y1, height)}
    if clipped["x0"] >= clipped["x1"] or clipped["y0"] >= clipped["y1"]:
        raise BadDrawing(f"expected a box within {width} x {height} pixels, got {box}")
    return clipped


def _decoded(mask: str) -> Image.Image:
    """Grey 0 or 255 of a painted PNG."""
    try:
        data = base64.b64decode(mask, validate=True)
    except ValueError as error:
        raise BadDrawing("the mask is no PNG in base64") from error
    if not data.startswith(_PNG):
        raise BadDrawing("the mask is no PNG in base64")
    try:
        opacity = _decoders().picture(data, mode="A")
    except ImageError as error:
        raise BadDrawing(f"expected a mask of at most {_MAX_MASK_PIXELS} pixels that can be read: {error}") from error
    return opacity.point([255 if alpha >= 128 else 0 for alpha in range(256)])


@functools.cache
def _decoders() -> DecoderPool:
    """The decoders of masks that reviewers send."""
    return DecoderPool(processes=1, limits=Limits(encoded_bytes=MAX_MASK_CHARACTERS, pixels=_MAX_MASK_PIXELS))
