"""Who made which version champion or put it into service, when, why and after what: kept with the versions.

Each entry is a tag of the version that it is about, written once under a name of its own and never changed.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from mlx_tasks.registry.mlflow_registry import Registry

EVENT_TAG = "mlx_tasks.event."


@dataclass(frozen=True)
class Event:
    """One entry.

    Attributes:
        at: UTC, ISO 8601.
        what: promoted, deployed, rolled back.
        model, version: what it is about; empty version for none.
        before: the version that had the title or served before.
        who: user@host.
        run: that did it; empty where it was done by hand.
        why: in words.
    """

    at: str
    what: str
    model: str
    version: str
    before: str
    who: str
    run: str
    why: str


def record(
    registry: Registry, model: str, version: str, what: str, *, before: str = "", run: str = "", why: str = ""
) -> None:
    """Write an entry. Where a run tries again, its first entry of a kind and version stands."""
    name = hashlib.sha256(f"{run} {what} {version}".encode()).hexdigest()[:16] if run else uuid.uuid4().hex[:16]
    if run and EVENT_TAG + name in registry.resolve(f"{model}/{version}").tags:
        return
    who = f"{_user()}@{socket.gethostname()}"
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    told = asdict(Event(at, what, model, version, before, who, run[:300], why[:2000]))
    registry.set_version_tag(model, version, EVENT_TAG + name, json.dumps(told))


def history(registry: Registry, model: str) -> list[Event]:
    """Every entry of a model, oldest first; what cannot be read is left out."""
    found = []
    for version in registry.versions(model):
        for tag, text in version.tags.items():
            if tag.startswith(EVENT_TAG):
                try:
                    found.append(Event(**json.loads(text)))
                except (TypeError, ValueError):
                    continue
    return sorted(found, key=lambda event: event.at)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
