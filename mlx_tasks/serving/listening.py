"""Whether a server can be where it is asked to be, told before anything is loaded."""

from __future__ import annotations

import errno
import socket

from mlx_tasks.errors import DataError


def check_listening(host: str, port: int) -> None:
    """Raises: DataError for a port that is none or taken, and for a host that is not this machine's."""
    if not 1 <= port <= 65535:
        raise DataError(f"--port must be 1 to 65535, got {port}")
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in places:
            with socket.socket(family, kind, protocol) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        raise DataError(f"--host must be a name or an address of this machine, got {host!r:.100} ({error})") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DataError(f"port {port} of {host} is taken: give another --port, or stop who has it") from None
        raise DataError(f"--host {host:.100} --port {port} cannot be listened on: {error.strerror}") from None
