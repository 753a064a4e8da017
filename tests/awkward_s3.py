"""An S3 server that stores and lists keys exactly as Amazon's does: any UTF-8, never taken for a path.

SeaweedFS refuses or tidies up `//`, `/../` and control characters, so what real S3 lists cannot be tested against it.
ListObjectsV2 (with continuation, start-after, delimiter, url encoding), GET, HEAD, PUT (with If-None-Match and
If-Match), DELETE and DeleteObjects; ETags are MD5s, except of objects that are encrypted with a key of KMS.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote_plus, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass
class Stored:
    """An object: its bytes, when it came, and whether KMS encrypts it, so that its ETag is no MD5."""

    body: bytes
    kms: bool = False
    modified: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @property
    def etag(self) -> str:
        salt = b"kms" if self.kms else b""
        return hashlib.md5(salt + self.body, usedforsecurity=False).hexdigest()


@dataclass
class AwkwardS3:
    """A running server with one bucket; `objects` is what it holds, `requests` what was asked: (method, key)."""

    endpoint: str
    bucket: str = "awkward"
    objects: dict[str, Stored] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    # Keys whose next answers are damaged, and how often: a flipped byte, as it happens on the way.
    flipped: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, body: bytes, *, kms: bool = False) -> None:
        """Store an object."""
        self.objects[key] = Stored(body, kms)

    def environment(self) -> dict[str, str]:
        """Variables by which every S3 client finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def serve() -> Iterator[AwkwardS3]:
    """Run a server on a free loopback port."""

    class Handler(_Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Handler.s3 = AwkwardS3(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Handler.s3
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3: AwkwardS3

    def do_GET(self) -> None:
        key, query = self._target()
        if not key and "list-type" in query:
            self._answer(200, _listing(self.s3, query).encode(), {"Content-Type": "application/xml"})
        else:
            self._object(key)

    def do_HEAD(self) -> None:
        self._object(self._target()[0])

    def do_PUT(self) -> None:
        key, _ = self._target()
        body = self._body()
        with self.s3.lock:
            before = self.s3.objects.get(key)
            wanted = self.headers.get("If-Match")
            if (self.headers.get("If-None-Match") and before) or (
                wanted and (before is None or wanted.strip('"') != before.etag)
            ):
                return self._error(412, "PreconditionFailed")
            stored = self.s3.objects[key] = Stored(body, kms=bool(before and before.kms))
        return self._answer(200, b"", {"ETag": f'"{stored.etag}"'})

    def do_DELETE(self) -> None:
        self.s3.objects.pop(self._target()[0], None)
        self._answer(204, b"")

    def do_POST(self) -> None:
        _, query = self._target()
        if "delete" not in query:
            return self._error(501, "NotImplemented")
        document = ElementTree.fromstring(self._body())
        keys = [each.text or "" for each in document.iter() if each.tag.endswith("Key")]
        for key in keys:
            self.s3.objects.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{_text(key)}</Key></Deleted>" for key in keys)
        return self._answer(200, f'<DeleteResult xmlns="{_XMLNS}">{deleted}</DeleteResult>'.encode())

    def _target(self) -> tuple[str, dict[str, str]]:
        """The key as it was asked for, byte by byte, and the query."""
        path, _, query = self.path.partition("?")
        bucket, _, key = path.removeprefix("/").partition("/")
        assert bucket == self.s3.bucket, self.path
        key = unquote(key)
        self.s3.requests.append((self.command, key))
        return key, {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return body
        plain = b""
        while match := re.match(rb"([0-9a-f]+)[^\r]*\r\n", body):
            size = int(match[1], 16)
            plain += body[match.end() : match.end() + size]
            body = body[match.end() + size + 2 :]
            if not size:
                break
        return plain

    def _object(self, key: str) -> None:
        stored = self.s3.objects.get(key)
        if stored is None:
            return self._error(404, "NoSuchKey")
        headers = {
            "ETag": f'"{stored.etag}"',
            "Last-Modified": stored.modified.strftime("%a, %d %b %Y %H:%M:%S GMT"),
            "Accept-Ranges": "bytes",
        }
        if stored.kms:
            headers["x-amz-server-side-encryption"] = "aws:kms"
        body, status = stored.body, 200
        if self.command == "GET" and self.s3.flipped.get(key):
            self.s3.flipped[key] -= 1
            body = bytes([body[0] ^ 1]) + body[1:]
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            size = len(body)
            first, last = (int(asked[1]), int(asked[2] or size - 1)) if asked[1] else (size - int(asked[2]), size - 1)
            last, status = min(last, size - 1), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            body = body[first : last + 1]
        return self._answer(status, body, headers)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _listing(s3: AwkwardS3, query: dict[str, str]) -> str:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    limit = int(query.get("max-keys", "1000"))
    encode = quote_plus if query.get("encoding-type") == "url" else _text
    entries: dict[str, str] = {}
    with s3.lock:
        keys = sorted((key for key in s3.objects if key.startswith(prefix)), key=lambda key: key.encode())
    for key in keys:
        rest = key.removeprefix(prefix)
        if delimiter and delimiter in rest:
            common = prefix + rest.split(delimiter, 1)[0] + delimiter
            entries.setdefault(common, f"<CommonPrefixes><Prefix>{encode(common)}</Prefix></CommonPrefixes>")
        else:
            stored = s3.objects[key]
            entries[key] = (
                f"<Contents><Key>{encode(key)}</Key><LastModified>{stored.modified:%Y-%m-%dT%H:%M:%S.000Z}"
                f"</LastModified><ETag>&quot;{stored.etag}&quot;</ETag><Size>{len(stored.body)}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
    rest_of = [key for key in entries if key.encode() > after.encode()]
    page, more = rest_of[:limit], len(rest_of) > limit
    token = f"<NextContinuationToken>{_text(page[-1])}</NextContinuationToken>" if more else ""
    encoding = "<EncodingType>url</EncodingType>" if encode is quote_plus else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{_XMLNS}"><Name>{s3.bucket}</Name>'
        f"<Prefix>{encode(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>{limit}</MaxKeys>{encoding}"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(entries[key] for key in page)}"
        "</ListBucketResult>"
    )


def _text(key: str) -> str:
    """As S3 writes a key into XML when no encoding was asked for: control characters as references."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: f"&#x{ord(match[0]):x};", escape(key))
