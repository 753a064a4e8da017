"""The review page and its few answers: images and heatmaps out, labels in. Starlette; no page but ours may use it."""

import datetime as dt
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fcdd import contours, heatmap
from fcdd.errors import FCDDError, ImageError
from jobs.labels.label_drawings import MAX_MASK_CHARACTERS, BadDrawing
from jobs.labels.label_store import Labels, Outdated, Verdict
from jobs.shell import formatting
from jobs.sources.locations import Locations
from jobs.viewing import colour_scale, local_guard, pages, rendering
from jobs.viewing.rendering import Heatmaps
from schemas import RunRecord

# Long sides of pictures: to look at, in the list, and zoomed in; and of the heatmap.
_SHOWN, _THUMBNAIL, _SHARP, _LAYER_SIDE = 1600, 160, 6000, 400
_MAX_BODY = MAX_MASK_CHARACTERS + 100_000
Records = Callable[[Mapping[str, Any]], RunRecord]


class Undo(BaseModel):
    """`seen` is the time of the label that the page showed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seen: dt.datetime | None


class Review:
    """What there is to review. `rows` are of the scores table; images go by their number in it, never by their key.

    `classes` of defects are offered beside those that labels have.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        record_of: Records,
        labels: Labels,
        reviewer: str,
        locations: Locations,
        classes: Sequence[str] = (),
    ) -> None:
        self._rows, self._record_of, self._labels, self._reviewer = rows, record_of, labels, reviewer
        self._locations, self._classes = locations, classes
        self._heatmaps = Heatmaps()

    def warm(self) -> None:
        """Load the bundle before the first heatmap is requested; each heatmap will report what is wrong with it."""
        row = self._rows[0]
        with suppress(FCDDError):
            record = self._record_of(row)
            self._heatmaps(row["heatmap"], record, (row["width"], row["height"]))
            self._heatmaps.contours(row["heatmap"], record, (row["width"], row["height"]))

    async def page(self, request: Request) -> Response:
        """Answer with the HTML of the page."""
        text, policy = pages.review(rendering.data_uri(colour_scale.bar(256), "PNG"))
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    async def items(self, request: Request) -> Response:
        """Everything but pictures, by number, and the classes of defects."""
        classes = list(dict.fromkeys([*self._classes, *self._labels.classes()]))
        return JSONResponse({"classes": classes, "items": [self._item(index) for index in range(len(self._rows))]})

    def picture(self, request: Request, long_side: int) -> Response:
        """The original, at most so many pixels long."""
        row = self._row(request)
        if row is None:
            return _no_image()
        try:
            picture = rendering.original(row, self._locations, self._record_of(row).full_scale, (long_side, long_side))
        except ImageError as error:
            return PlainTextResponse(f"not as, or where, it was scored: {error}", 410)
        # WebP is slow, and its pictures cannot be much larger.
        return _image(picture, "JPEG" if long_side == _SHARP else "WEBP", quality=90)

    def layer(self, request: Request) -> Response:
        """The heatmap, to lie over the original."""
        row = self._row(request)
        if row is None:
            return _no_image()
        try:
            record = self._record_of(row)
            values = self._heatmaps(row["heatmap"], record, (row["width"], row["height"]))
        except FCDDError as error:
            return PlainTextResponse(f"no heatmap: {error}", 410)
        size = (row["width"], row["height"])
        layer = heatmap.small_layer(values, record.map_threshold, size=size, long_side=_LAYER_SIDE)
        return _image(layer, "WEBP", quality=80)

    def contours(self, request: Request) -> Response:
        """Levels, in thresholds, with the path of each in the original's pixels; without the bundle, regions' boxes."""
        row = self._row(request)
        if row is None:
            return _no_image()
        try:
            found = self._heatmaps.contours(row["heatmap"], self._record_of(row), (row["width"], row["height"]))
        except FCDDError:  # the heatmap, which is asked for too, says why
            return JSONResponse([[1.0, contours.box_path(row["regions"])]])
        return JSONResponse([[level, contours.path(rings)] for level, rings in found])

    def mask(self, request: Request) -> Response:
        """Answer with the mask that was drawn before."""
        row = self._row(request)
        label = self._labels.get(row) if row else None
        if not label or not label["mask_uri"]:
            return PlainTextResponse("nothing was painted", 404)
        try:
            return Response(rendering.mask_layer(label["mask_uri"]), media_type="image/png")
        except FCDDError as error:
            return PlainTextResponse(str(error), 410)

    async def label(self, request: Request) -> Response:
        """Keep a verdict; the image as it is now."""
        return await self._change(request, self._say)

    async def undo(self, request: Request) -> Response:
        """Take back what was said of an image last; the image as it is now."""
        return await self._change(request, self._undo)

    def _say(self, row: Mapping[str, Any], body: bytes) -> None:
        verdict = Verdict.model_validate_json(body)
        self._labels.set(row, verdict, reviewer=self._reviewer, now=dt.datetime.now(dt.UTC))

    def _undo(self, row: Mapping[str, Any], body: bytes) -> None:
        if not self._labels.undo(row, Undo.model_validate_json(body).seen):
            raise Outdated("nothing was said of it since this review began")

    async def _change(self, request: Request, change: Callable[[Mapping[str, Any], bytes], None]) -> Response:
        row = self._row(request)
        if row is None:
            return _no_image()
        body = await local_guard.posted(request, _MAX_BODY)
        if isinstance(body, Response):
            return body
        try:
            await run_in_threadpool(change, row, body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            return PlainTextResponse(f"not a verdict: {'.'.join(map(str, first['loc']))}: {first['msg']}", 422)
        except BadDrawing as error:
            return PlainTextResponse(f"not a verdict: {error}", 422)
        except Outdated:
            return JSONResponse(self._item(_index(request)), 409)
        except FCDDError as error:
            return PlainTextResponse(f"it could not be kept: {error}", 503)
        return JSONResponse(self._item(_index(request)))

    def _row(self, request: Request) -> Mapping[str, Any] | None:
        index = _index(request)
        return self._rows[index] if 0 <= index < len(self._rows) else None

    def _scale(self, row: Mapping[str, Any]) -> list[colour_scale.Mark]:
        try:
            return colour_scale.marks(self._record_of(row).map_threshold)
        except FCDDError:  # the heatmap says why
            return []

    def _item(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        label, said_at = self._labels.get(row), self._labels.label_time(row["image_uri"])
        return {
            "name": formatting.printable(row["image_uri"]),
            "group": formatting.printable(row["image_group"]),
            "date": row["date"].isoformat(),
            "score": row["anomaly_score"],
            "p_value": row["p_value"],
            "is_anomalous": row["is_anomalous"],
            "scale": self._scale(row),
            "width": row["width"],
            "height": row["height"],
            "label": label["label"] if label else None,
            "defect_class": label["defect_class"] if label else None,
            "note": label["note"] if label else None,
            "boxes": label["boxes"] if label else [],
            "mask": bool(label and label["mask_uri"]),
            "seen": said_at.isoformat() if said_at else None,
            "replaced": said_at is not None and label is None,
        }


def _no_image() -> Response:
    return PlainTextResponse("there is no such image", 404)


def _index(request: Request) -> int:
    """The number in the address, -1 for what is none."""
    text = request.path_params["index"]
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def application(review: Review, *, hosts: Sequence[str] | None, token: str) -> Starlette:
    """The whole server: under these names only (any, if None), and for whoever has the token."""
    pictures = {"picture": _SHOWN, "thumbnail": _THUMBNAIL, "sharp": _SHARP}
    return Starlette(
        routes=[
            Route("/", review.page),
            Route("/items", review.items),
            *(Route(f"/{name}/{{index}}", partial(review.picture, long_side=side)) for name, side in pictures.items()),
            Route("/layer/{index}", review.layer),
            Route("/contours/{index}", review.contours),
            Route("/mask/{index}", review.mask),
            Route("/label/{index}", review.label, methods=["POST"]),
            Route("/undo/{index}", review.undo, methods=["POST"]),
        ],
        middleware=[Middleware(local_guard.Guard, hosts=hosts, token=token)],
    )


def _image(picture: Image.Image, kind: str, **options: Any) -> Response:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return Response(sink.getvalue(), media_type=f"image/{kind.lower()}")
