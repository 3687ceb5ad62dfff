"""Whether a client that sends no more is still there: its answer is begun, a byte at a time.

A client that closed its connection and one that has sent all and reads on look alike. But every answer begins with the
same bytes: what is sent of them to the first comes back as an error of the socket, and the second misses nothing.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

SAME = b"HTTP/1.1 "
FIRST_S = 1.0
"""From the first byte to the second; then twice as long each time, which makes two minutes of all."""


class Begun:
    """A transport whose next answer is begun; the app's first bytes are left away as far as they are sent."""

    def __init__(self, transport: asyncio.Transport, now: float) -> None:
        self._transport = transport
        self._sent, self._at, self._wait_s = 0, now, FIRST_S
        self.look(now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send the rest of what the app says."""
        left, self._sent, self._at = self._sent, max(0, self._sent - len(data)), float("inf")
        self._transport.write(data[left:])

    def look(self, now: float) -> bool:
        """Whether the client may still be there; now and then a byte goes out to see."""
        one: socket.socket | None = self._transport.get_extra_info("socket")
        if one is None or one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        if now >= self._at and self._sent < len(SAME):
            self._transport.write(SAME[self._sent : self._sent + 1])
            self._sent, self._at, self._wait_s = self._sent + 1, now + self._wait_s, 2 * self._wait_s
        return True
