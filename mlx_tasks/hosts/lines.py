"""What rank 0 and the other ranks say to each other beside the ring: JSON lines over a member's stdin and stdout.

A member may be at the other end of ssh, so the pipe is also how each learns of the other's end: EOF, or silence, since
both write an empty line every second. What a login shell prints carries no mark and is passed over.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MARK = "::mlx-tasks-ring:: "
BEAT_S = 1.0
"""Between two signs of life (seconds)."""
PAUSE_S = 3.0
"""Whoever finds its own beat this late stood still itself (a Mac slept), so that the other's silence says nothing."""

_CODE = (
    "config_base.py", "config_training.py", "data/loader.py", "diffusion", "errors.py", "hardware.py", "hosts",
    "models", "training",
)  # fmt: skip


def line(**message: Any) -> bytes:
    """One message, with its newline."""
    return f"{MARK}{json.dumps(message)}\n".encode()


def beat() -> bytes:
    """A sign of life."""
    return b"\n"


def message(text: str) -> dict[str, Any] | None:
    """The message of a line, or None for a sign of life or what somebody else printed."""
    if not text.startswith(MARK):
        return None
    try:
        return json.loads(text[len(MARK) :])
    except ValueError:
        return None


def code_digest(package: Path | None = None) -> str:
    """Digest of the code that a weight depends on (16 hex digits).  package: the folder mlx_tasks."""
    package = package or Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for name in _CODE:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(package).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]
