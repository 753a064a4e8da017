"""The review page and its few answers: images and heatmaps out, labels in. Starlette; no page but ours may use it."""

import datetime as dt
import hashlib
import hmac
import io
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fcdd import heatmap
from fcdd.errors import FCDDError, ImageError
from jobs.catalog.label_drawings import MAX_MASK_CHARACTERS, BadDrawing
from jobs.catalog.label_store import Labels, Outdated, Verdict
from jobs.shell import formatting
from jobs.sources.locations import Locations
from jobs.viewing import pages, rendering
from jobs.viewing.rendering import Heatmaps
from schemas import RunRecord

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LONG_SIDE, _LAYER_SIDE = 1600, 400
_MAX_BODY = MAX_MASK_CHARACTERS + 100_000
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Records = Callable[[Mapping[str, Any]], RunRecord]


class Review:
    """What there is to review. `rows` are of the scores table; images go by their number in it, never by their key."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        record_of: Records,
        labels: Labels,
        reviewer: str,
        locations: Locations,
    ) -> None:
        self._rows, self._record_of, self._labels, self._reviewer = rows, record_of, labels, reviewer
        self._locations = locations
        self._heatmaps = Heatmaps()

    def warm(self) -> None:
        """Load the bundle before the first heatmap is requested; each heatmap will report what is wrong with it."""
        with suppress(FCDDError):
            self._heatmaps(self._rows[0]["heatmap"], self._record_of(self._rows[0]))

    async def page(self, request: Request) -> Response:
        """Answer with the HTML of the page."""
        text, policy = pages.review()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    async def items(self, request: Request) -> Response:
        """Everything but pictures, by number."""
        return JSONResponse([self._item(index) for index in range(len(self._rows))])

    def picture(self, request: Request) -> Response:
        """The original, at most 1600 pixels long."""
        row = self._row(request)
        if row is None:
            return PlainTextResponse("there is no such image", 404)
        try:
            picture = rendering.original(row, self._locations, (_LONG_SIDE, _LONG_SIDE))
        except ImageError as error:
            return PlainTextResponse(f"not as, or where, it was scored: {error}", 410)
        return _image(picture, quality=90)

    def layer(self, request: Request) -> Response:
        """The heatmap, to lie over the original."""
        row = self._row(request)
        if row is None:
            return PlainTextResponse("there is no such image", 404)
        try:
            record = self._record_of(row)
            values = self._heatmaps(row["heatmap"], record)
        except FCDDError as error:
            return PlainTextResponse(f"no heatmap: {error}", 410)
        size = (row["width"], row["height"])
        layer = heatmap.small_layer(values, record.map_threshold, size=size, long_side=_LAYER_SIDE)
        return _image(layer, quality=80)

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
        row = self._row(request)
        if row is None:
            return PlainTextResponse("there is no such image", 404)
        origin = request.headers.get("origin")
        if origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host')}":
            return PlainTextResponse("labels are taken from our own page only", 403)
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return PlainTextResponse("expected application/json", 415)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _MAX_BODY:
                return PlainTextResponse(f"expected at most {_MAX_BODY} bytes", 413)
        try:
            verdict = Verdict.model_validate_json(bytes(body))
            now = dt.datetime.now(dt.UTC)
            await run_in_threadpool(self._labels.set, row, verdict, reviewer=self._reviewer, now=now)
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
            "width": row["width"],
            "height": row["height"],
            "regions": row["regions"],
            "label": label["label"] if label else None,
            "boxes": label["boxes"] if label else [],
            "mask": bool(label and label["mask_uri"]),
            "seen": said_at.isoformat() if said_at else None,
            "replaced": said_at is not None and label is None,
        }


def _index(request: Request) -> int:
    """The number in the address, -1 for what is none."""
    text = request.path_params["index"]
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def application(review: Review, *, hosts: Sequence[str] | None, token: str) -> Starlette:
    """The whole server: under these names only (any, if None), and for whoever has the token."""
    return Starlette(
        routes=[
            Route("/", review.page),
            Route("/items", review.items),
            Route("/picture/{index}", review.picture),
            Route("/layer/{index}", review.layer),
            Route("/mask/{index}", review.mask),
            Route("/label/{index}", review.label, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, hosts=hosts, token=token)],
    )


class _Guard:
    """Headers of every answer; the names that we go by; and the token, once in the address, then in a cookie."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, token: str) -> None:
        self._app, self._hosts, self._token = app, hosts, token
        # Cookies do not know ports: each review has one of its own.
        self._cookie = f"fcdd_{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        answer = self._refusal(Request(scope))
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Callable[[Scope, Receive, Send], Awaitable[None]] | None:
        if self._hosts is not None and _host_name(request) not in self._hosts:
            # Another name that was made to point to this machine: a page of somebody else would be asking.
            return PlainTextResponse("not a name of this machine", 400)
        if _same(request.cookies.get(self._cookie), self._token):
            return None
        if request.method == "GET" and _same(request.query_params.get("token"), self._token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("open the address that `fcdd review` printed, with its token", 401)


def _host_name(request: Request) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


def _same(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


def _image(picture: Image.Image, **options: Any) -> Response:
    sink = io.BytesIO()
    picture.save(sink, "WEBP", **options)
    return Response(sink.getvalue(), media_type="image/webp")
