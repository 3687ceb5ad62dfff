"""Loopback ports for servers under test.

They lie below those that the system gives to outgoing connections (Linux: from 32768, macOS: from 49152), or one of
these could take a port between the look at it and the server's own bind, which is a minute for a whole stack.
"""

import os

from mlx_tasks.stack.layout import is_free

FIRST, SLICE = 18_100, 3_600
"""Each of the suite's processes has a slice (four of them); two suites at once begin at different places of it."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
_base = FIRST + _worker * SLICE
_given = os.getpid() * 37 % SLICE


def free_port(block: int = 1) -> int:
    """The first of `block` ports that are free, and that this process is not given again until all others were."""
    global _given
    while True:
        if _given + block > SLICE:
            _given = 0
        first = _base + _given
        _given += block
        if all(is_free(first + number) for number in range(block)):
            return first
