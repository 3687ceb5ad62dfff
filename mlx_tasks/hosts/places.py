"""Which of train.hosts is this machine, and at which address the ring reaches each."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

from mlx_tasks.config_training import Train, is_loopback, ring_name
from mlx_tasks.errors import DataError, UnavailableError
from mlx_tasks.params import parse_config

HOSTS_VARIABLE = "MLX_TASKS_HOSTS"


@dataclass(frozen=True)
class Host:
    """One process's machine.

    Attributes:
        name: what ssh is told.
        address: IPv4 address of the ring.
        here: whether it is this machine, so that no ssh is needed.
    """

    name: str
    address: str
    here: bool


def machines(train: Train, environment: Mapping[str, str] = os.environ) -> Train:
    """The `train` branch with the machines that MLX_TASKS_HOSTS names instead: comma separated, or "none".

    Raises: DataError for names that the branch refuses.
    """
    asked = environment.get(HOSTS_VARIABLE)
    if not asked:
        return train
    hosts = [] if asked == "none" else [name.strip() for name in asked.split(",")]
    return parse_config({"train": {**train.model_dump(mode="json"), "hosts": hosts}}).train


def ordered(entries: Iterable[str]) -> list[Host]:
    """The machines in the order of their ranks: this one first, then the others as they stand; none for no entries.

    Raises: DataError where none is this machine, or several are and not by loopback; UnavailableError for a name
    that does not resolve.
    """
    entries = list(entries)
    if not entries:
        return []
    own = own_addresses()
    hosts = [_host(entry, own) for entry in entries]
    here = [host for host in hosts if host.here]
    if not here:
        raise DataError(
            f"none of train.hosts ({', '.join(host.name for host in hosts)}) is this machine, {socket.gethostname()} "
            f"({', '.join(sorted(own))}): name it, or let one of them take the stage"
        )
    if len(here) > 1 and not is_loopback(here[0].address):
        raise DataError(
            f"train.hosts names this machine more than once ({', '.join(host.name for host in here)}): only 127.0.0.1 "
            "may take several processes"
        )
    first = hosts.index(here[0])
    return [hosts[first], *hosts[:first], *hosts[first + 1 :]]


def own_addresses() -> set[str]:
    """IPv4 addresses of this machine's interfaces, loopback's included."""
    found = psutil.net_if_addrs().values()
    return {a.address for addresses in found for a in addresses if a.family == socket.AF_INET}


def _host(entry: str, own: set[str]) -> Host:
    name = entry.partition("=")[0]
    plain = name.rpartition("@")[2]
    address = _resolved(ring_name(entry))
    if address is None:
        raise UnavailableError(
            f"train.hosts has {entry!r}, whose name does not resolve to an IPv4 address: wake the machine, mend the "
            f"name, or write {name}=ADDRESS"
        )
    # With an address of its own the name is ssh's: an alias of its config need not resolve.
    seen = address if plain == ring_name(entry) else _resolved(plain)
    here = seen is not None and (is_loopback(seen) or seen in own)
    return Host(name, address, here)


def _resolved(name: str) -> str | None:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0])
