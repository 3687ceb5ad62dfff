"""How the ring's processes find each other: ports, a try of every connection with a time limit, then MLX's own.

`mx.distributed.init` waits for its neighbours without end and holds Python's lock meanwhile (0.32.4), so nothing could
tell which machine is missing. So each pair connects before it by plain sockets.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from mlx_tasks.errors import UnavailableError

PORTS = 64
_INIT_S = 60


class Listener:
    """A port of this machine, held until the ring takes it.  Raises: UnavailableError where none is free.

    Attributes:
        port: the first free one of `first` to `first` + 63.
    """

    def __init__(self, address: str, first: int) -> None:
        for port in range(first, first + PORTS):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._socket.bind((address, port))
                self._socket.listen(1)
            except OSError as error:
                self._socket.close()
                reason = error
                continue
            self.port = port
            return
        raise UnavailableError(
            f"the ring found no free port of {first} to {first + PORTS - 1} at {address} ({reason}): free one, set "
            "train.hosts_port, or name the machine by an address that it has"
        )

    def close(self) -> None:
        """Free the port."""
        self._socket.close()

    def accept(self, token: str, seconds: float) -> bool:
        """Whether somebody who says the token connected in time; others are sent away."""
        self._socket.settimeout(seconds)
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.settimeout(seconds)
                    if connection.makefile("rb").readline(256) == _word(token):
                        return True
        return False


def dial(address: str, port: int, token: str, seconds: float) -> str | None:
    """Say the token to a listener; None if it could be reached, else why not."""
    try:
        with socket.create_connection((address, port), timeout=seconds) as connection:
            connection.sendall(_word(token))
    except OSError as error:
        return f"{address}:{port}: {error.strerror or error}"
    return None


def join(addresses: Sequence[str], rank: int) -> tuple[mx.distributed.Group, list[int]]:
    """MLX's ring over "ADDRESS:PORT" of each rank, and the descriptors of this process's connections in it.

    The process ends (code 1) where the ring does not close in a minute.  Raises: UnavailableError.
    """
    before = _open_sockets()
    with tempfile.TemporaryDirectory() as folder:
        hostfile = Path(folder) / "hosts.json"
        hostfile.write_text(json.dumps([[address] for address in addresses]))
        os.environ |= {"MLX_HOSTFILE": str(hostfile), "MLX_RANK": str(rank)}
        faulthandler.dump_traceback_later(_INIT_S, exit=True)
        try:
            group = mx.distributed.init(strict=True, backend="ring")
        except RuntimeError as error:
            raise UnavailableError(f"the ring of {', '.join(addresses)} could not be closed: {error}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
    return group, sorted(_open_sockets() - before)


def _open_sockets() -> set[int]:
    """File descriptors of this process that are sockets."""
    found = set()
    for descriptor in range(3, 4096):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found.add(descriptor)
    return found


def _word(token: str) -> bytes:
    return f"{token}\n".encode("ascii")
