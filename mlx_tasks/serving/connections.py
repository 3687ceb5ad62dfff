"""Connections that cannot fill or block the server: uvicorn's HTTP/1.1 protocol with the limits that it lacks.

uvicorn has two parsers: httptools keeps a header of any length, h11 ends at a stated one, so h11 it is. Neither counts
connections before a request, nor ends a slow header, an unread answer, or requests sent far ahead.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import resource
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_tasks.errors import DataError
from mlx_tasks.serving.begun import Begun

SWEEP_S = 0.25
BACKLOG = 64
"""Connections that the system may hold before they are taken up; so many are taken up at once."""
SPARE_DESCRIPTORS = 64 + BACKLOG
"""For models, the window, the registry, and connections taken up before the oldest are closed."""
WANTED_DESCRIPTORS = 4096
FEWEST_CONNECTIONS = 16


@dataclass(frozen=True)
class Limits:
    """What one client may take.

    Attributes:
        connections: open at once, in all.
        per_address: of them, from one address.
        header_bytes: of a request's line and headers, or of one chunk's.
        ahead_bytes: that may come while the request before them is being answered.
        rest_bytes, rest_s: what is read, and for how long, of a body that was refused unread.
        idle_s: to a connection's first byte, and between two requests.
        client_s: for headers, and within which an answer of which much is unread must be taken further.
        taken_bytes: that a slow reader takes in that time at least.
    """

    connections: int = 512
    per_address: int = 256
    header_bytes: int = 16 * 1024
    ahead_bytes: int = 64 * 1024
    rest_bytes: int = 256 * 1024
    rest_s: float = 2.0
    idle_s: float = 15.0
    client_s: float = 15.0
    taken_bytes: int = 64 * 1024

    @classmethod
    def within(cls, descriptors: int, connections: int = 512, client_s: float = 15.0) -> Limits:
        """As many connections as the process' descriptors allow.  Raises: DataError where these are too few."""
        most = min(connections, descriptors - SPARE_DESCRIPTORS)
        if most < FEWEST_CONNECTIONS:
            needed = FEWEST_CONNECTIONS + SPARE_DESCRIPTORS
            raise DataError(
                f"a server needs {needed} file descriptors for {FEWEST_CONNECTIONS} connections; this process may have "
                f"{descriptors} and {connections} connections: raise `ulimit -n` or --connections"
            )
        return cls(most, max(1, most // 2), client_s=client_s)


def raise_descriptors() -> int:
    """File descriptors that this process may have, after raising the soft limit as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    for wanted in (WANTED_DESCRIPTORS, WANTED_DESCRIPTORS // 4):
        aim = wanted if hard == unlimited else min(wanted, hard)
        if soft == unlimited or soft >= aim:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
            break
        except (ValueError, OSError):  # macOS may allow less than it says
            continue
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED_DESCRIPTORS if soft == unlimited else soft


def address_of(host: str) -> str:
    """Whom an address counts for: itself, or its /64 network in IPv6, all of which one caller may own."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class Doors:
    """All connections of a server. uvicorn calls it for a protocol where it would call a protocol's class."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._held: dict[Connection, None] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def __call__(self, **given: Any) -> Connection:
        """A protocol for one connection."""
        return Connection(self, **given)

    def enter(self, comer: Connection) -> bool:
        """Whether there is room for a connection. Where all is taken, the one that was idle longest has to go.

        It is one of the comer's own address where that has its share, else one of the address that has most.
        """
        by_address = Counter(one.address for one in self._held)
        crowd = None
        if by_address[comer.address] >= self.limits.per_address:
            crowd = comer.address
        elif len(self._held) >= self.limits.connections:
            crowd = by_address.most_common(1)[0][0]
        if crowd is not None:
            idle = [one for one in self._held if one.address == crowd and not one.busy]
            if not idle:
                return False
            oldest = min(idle, key=lambda one: one.idle_since)
            oldest.transport.abort()
            self.leave(oldest)
        self._held[comer] = None
        if self._sweeper is None:
            self._sweeper = comer.loop.call_later(SWEEP_S, self._sweep, comer.loop)
        return True

    def leave(self, one: Connection) -> None:
        """A connection ended."""
        self._held.pop(one, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        for one in list(self._held):
            one.look(loop.time())
        self._sweeper = loop.call_later(SWEEP_S, self._sweep, loop) if self._held else None


class Connection(H11Protocol):
    """One client's connection, within the limits.

    Attributes:
        address: whom it counts for.
        idle_since: when it was taken up, or last got an answer (the loop's time).
    """

    def __init__(self, doors: Doors, **given: Any) -> None:
        super().__init__(**given)
        self.address, self.idle_since = "", self.loop.time()
        self._doors, self._limits = doors, doors.limits
        self._answers = self._rest = 0
        self._phase, self._phase_since = ("", 0), self.loop.time()
        self._unread, self._unread_since = 0, 0.0
        self._begun: Begun | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being answered, or its answer being taken."""
        return (self._answering and not self.flow.write_paused) or self.transport.get_write_buffer_size() > 0

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it up, or say that there is no room."""
        super().connection_made(transport)
        self.address = address_of(self.client[0]) if self.client else ""
        if not self._doors.enter(self):
            self._end(503, "all connections are taken by requests under way: come again in a few seconds")

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        self._doors.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, as far as the limits go."""
        self._unset_keepalive_if_required()
        if self._answering:
            ahead = self.conn.their_state is h11.DONE
            if ahead and len(self.conn.trailing_data[0]) + len(data) > self._limits.ahead_bytes:
                return self.transport.abort()
        elif self.conn.their_state is h11.SEND_BODY:
            self._rest += len(data)
            if self._rest > self._limits.rest_bytes:
                return self.transport.abort()
        # In pieces, since the parser looks at the length of a header only while that is incomplete.
        for start in range(0, len(data), self._limits.header_bytes):
            if self.transport.is_closing():
                return None
            self.conn.receive_data(data[start : start + self._limits.header_bytes])
            self.handle_events()
        return None

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that sends no more may still read: requests that are whole are answered before the end."""
        if not self._answering or self.conn.their_state is h11.SEND_BODY:
            return None
        self._begin()
        return True

    def on_response_complete(self) -> None:
        """The next request, if it is there already."""
        self._answers, self._rest, self._unread = self._answers + 1, 0, 0
        self.idle_since = self.loop.time()
        super().on_response_complete()
        if self._begun is not None:
            if self._answering:
                self._begin()
            else:
                self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read is answered and ends the connection."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            return self._end(431, f"a request's line and headers hold at most {self._limits.header_bytes} bytes")
        return self._end(400, f"this is no HTTP/1.1 request: {str(error or msg)[:100]}")

    def look(self, now: float) -> None:
        """End what takes too long. Called every SWEEP_S."""
        unread = self.transport.get_write_buffer_size()
        if unread == 0:
            self._unread = 0
        elif self._unread == 0 or unread <= self._unread - self._limits.taken_bytes:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since > self._limits.client_s:
            return self.transport.abort()
        if self._begun is not None and not self._begun.look(now):
            return self.transport.abort()
        phase = self._now(), self._answers
        if phase != self._phase:
            self._phase, self._phase_since = phase, now
        waited, limits = now - self._phase_since, self._limits
        if phase[0] == "idle" and waited > limits.idle_s:
            self.transport.close()
        elif phase[0] == "rest" and waited > limits.rest_s:
            self.transport.abort()
        elif phase[0] == "headers" and waited > limits.client_s:
            self._end(408, f"a request's headers must come within {limits.client_s:g} s")
        return None

    def _begin(self) -> None:
        """From now on see whether the client is there, which sends no more."""
        self._begun = Begun(self.transport, self.loop.time())
        self.cycle.transport = self._begun  # type: ignore[assignment]  # all that a cycle does with it

    def _now(self) -> str:
        if self._answering or self.transport.is_closing():
            return "answering"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest"
        return "headers" if self.conn.trailing_data[0] else "idle"

    def _end(self, status: int, message: str) -> None:
        """Last words, where no answer has begun, and the end. What the app still says goes nowhere."""
        if not self._answering or not self.cycle.response_started:
            self.transport.write(last_words(status, message))
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


def last_words(status: int, message: str) -> bytes:
    """A whole answer in OpenAI's error shape, after which the connection ends."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()
    retry = "Retry-After: 2\r\n" if status == 503 else ""
    phrase = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
    return (
        f"HTTP/1.1 {status} {phrase.get(status, 'Service Unavailable')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{retry}Connection: close\r\n\r\n"
    ).encode() + body
