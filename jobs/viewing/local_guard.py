"""Who may use a page that is served on this machine: those with its token, under names of this machine."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Headers of every answer; the names that we go by; and the token, once in the address, then in a cookie."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str] | None, token: str) -> None:
        self._app, self._hosts, self._token = app, hosts, token
        # Cookies do not know ports: each review has one of its own.
        self._cookie = f"fcdd_{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer, with our headers."""
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


async def posted(request: Request, most: int) -> bytes | PlainTextResponse:
    """What our own page sent as JSON, of at most so many bytes; else the answer that refuses it."""
    origin = request.headers.get("origin")
    if origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host')}":
        return PlainTextResponse("labels are taken from our own page only", 403)
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return PlainTextResponse("expected application/json", 415)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            return PlainTextResponse(f"expected at most {most} bytes", 413)
    return bytes(body)


def _host_name(request: Request) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


def _same(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())
