"""Who may call: the key, the host names that count as this server's, and how long a body may be."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

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

    (Plain ASGI: a response-wrapping middleware would hide from the routes that a client has left.)

    Attributes:
        key: as a bearer, which OpenAI's client sends, or as the password of basic authentication, which a browser asks
            for; None: no key is needed.
        hosts: names under which the server is called; a page elsewhere whose name was pointed at this address gets
            nothing. Empty: any.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: frozenset[str]) -> None:
        self._app, self._key, self._hosts = app, key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        refused = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refused or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> JSONResponse | None:
        # The header itself: a framework puts the socket's address in place of one that it cannot read.
        host = re.sub(r":\d+$", "", request.headers.get("host", "").lower()).strip("[]")
        if self._hosts and host not in self._hosts:
            names = ", ".join(sorted(self._hosts))
            return refusal(421, f"this server is not called {host or 'nothing'}: it answers to {names}")
        given = request.headers.get("authorization")
        if self._key is not None and request.url.path not in OPEN and not _matches(given, self._key):
            challenge = {"WWW-Authenticate": 'Basic realm="images", charset="UTF-8"'}
            return refusal(401, "a key is needed: Authorization: Bearer KEY", None, challenge, "invalid_api_key")
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not (length.isdigit() and int(length) <= MAX_BODY_BYTES):
            return refusal(413, f"a body needs a length of at most {MAX_BODY_BYTES} bytes, got {length or 'none'}")
        return None


def loopback(host: str) -> bool:
    """Whether an address or name to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _matches(header: str | None, key: str) -> bool:
    scheme, _, given = (header or "").partition(" ")
    given = given.strip()
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), key.encode())
