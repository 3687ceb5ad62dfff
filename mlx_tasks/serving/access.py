"""Who may call: the key, the host names that count as this server's, and how long and slow a body may be."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import re
from urllib.parse import unquote

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAWS = "/v1/images/generations"
"""The one route that takes a body."""
MAX_BODY_BYTES = 64 * 1024
OPEN = frozenset({"/livez", "/readyz"})
"""Routes that ask for no key: a prober has none."""
LEAST_KEY = 16


def refusal(
    status: int,
    message: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    code: str | None = None,
) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = "server_error" if status == 429 or status >= 500 else "invalid_request_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers=headers
    )


class Guard:
    """ASGI middleware that lets no request through without the key, under a strange host name, or with a long body.

    The key is looked at before a byte of a body is read, and a body is read whole before a route sees it.
    (Plain ASGI: a response-wrapping middleware would hide from the routes that a client has left.)

    Attributes:
        key: as a bearer, which OpenAI's client sends, or as the password of basic authentication, which a browser asks
            for; None: no key is needed.
        hosts: names under which the server is called; a page elsewhere whose name was pointed at this address gets
            nothing. Empty: any.
        body_s: within which a body must be there.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: frozenset[str], body_s: float = 15.0) -> None:
        self._app, self._key, self._hosts, self._body_s = app, key, hosts, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope = plain_form(scope)
        request = Request(scope)
        refused = self._refusal(request)
        if refused is None and request.method == "POST":
            body = await self._body(receive)
            if body is None:
                return None
            if isinstance(body, bytes):
                return await self._app(scope, _with_body(body, receive), send)
            refused = body
        if refused is not None and ("expect" in request.headers or _two_lengths(request)):
            # Whether this client sends its body now, or which end of it others see, nobody knows: no second request
            # can be told from it.
            refused.headers["Connection"] = "close"
        return await (refused or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> JSONResponse | None:
        # The header itself: a framework puts the socket's address in place of one that it cannot read.
        host = re.sub(r":\d+$", "", request.headers.get("host", "").lower()).strip("[]")
        if self._hosts and host not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            return refusal(421, f"this server is not called {host[:80] or 'nothing'}: it answers to {names}")
        given = request.headers.get("authorization")
        if self._key is not None and request.url.path not in OPEN and not _matches(given, self._key):
            challenge = {"WWW-Authenticate": 'Basic realm="images", charset="UTF-8"'}
            return refusal(401, "a key is needed: Authorization: Bearer KEY", None, challenge, "invalid_api_key")
        if request.method == "POST" and request.url.path != DRAWS:
            told = f"POST {request.url.path:.100}: images are drawn at POST {DRAWS}, from noise: no image is taken in"
            return refusal(404, told)
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", ""):
            return refusal(415, f"a body is taken as it is, without Content-Encoding, got {coding[:40]!r}")
        chunked = "transfer-encoding" in request.headers  # it would win over a length that is there too
        length = "" if chunked else request.headers.get("content-length", "")  # digits alone pass the parser
        if (request.method == "POST" and not length) or int(length[:20] or 0) > MAX_BODY_BYTES:
            return refusal(413, f"a body needs a length of at most {MAX_BODY_BYTES} bytes, got {length[:20] or 'none'}")
        if _two_lengths(request):
            return refusal(400, "a request has Content-Length or Transfer-Encoding, this one has both")
        kind = request.headers.get("content-type", "")
        if request.method == "POST" and kind.partition(";")[0].strip().lower() != "application/json":
            # Asked for by name, since a page elsewhere may send a browser's other kinds to this machine unasked.
            return refusal(
                400, f"a body is JSON and says so: Content-Type: application/json, got {kind[:80] or 'none'}"
            )
        return None

    async def _body(self, receive: Receive) -> bytes | JSONResponse | None:
        """A request's whole body, why it is not taken, or None where the client has left."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            close = {"Connection": "close"}
            return refusal(408, f"a body must be there within {self._body_s:g} s of its headers", headers=close)


def _two_lengths(request: Request) -> bool:
    return "transfer-encoding" in request.headers and "content-length" in request.headers


def plain_form(scope: Scope) -> Scope:
    """A request as the routes know it: HEAD as GET, an absolute URI as host and path, no slash at a path's end."""
    raw, headers = bytes(scope.get("raw_path") or scope["path"].encode()), scope["headers"]
    scheme, absolute, rest = raw.partition(b"://")
    if absolute and scheme.lower() in (b"http", b"https"):
        host, _, path = rest.partition(b"/")
        raw, headers = b"/" + path, [(b"host", host), *(pair for pair in headers if pair[0] != b"host")]
    raw = raw.rstrip(b"/") or b"/"
    method = "GET" if scope["method"] == "HEAD" else scope["method"]  # the server leaves its body away
    path = unquote(raw.decode("ascii", "replace"))
    return {**scope, "method": method, "path": path, "raw_path": raw, "headers": headers}


def _with_body(body: bytes, receive: Receive) -> Receive:
    """A receive that gives a body at once, and then what the connection says."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return first.pop() if first else await receive()

    return given


def loopback(host: str) -> bool:
    """Whether an address or name to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _matches(header: str | None, key: str) -> bool:
    scheme, _, told = (header or "").encode("latin-1").partition(b" ")  # the bytes that were sent
    given = told.strip()
    if scheme.lower() == b"basic":
        try:
            given = base64.b64decode(given, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != b"bearer":
        return False
    return hmac.compare_digest(given, key.encode())
