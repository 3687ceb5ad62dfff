"""Lines that a stage's process says to the process that started it, between its lines for people.

One event is one line, `::mlx-tasks:: {json}`; it is written only where MLX_TASKS_EVENTS asks for it.
"""

from __future__ import annotations

import json
import os
from typing import Any

EVENTS_VARIABLE = "MLX_TASKS_EVENTS"
PREFIX = "::mlx-tasks:: "


def emit(event: str, **values: Any) -> None:
    """Say one event, if anyone listens."""
    if os.environ.get(EVENTS_VARIABLE):
        print(format_event({"event": event, **values}), flush=True)


def format_event(event: dict[str, Any]) -> str:
    """An event as its line.  Raises: ValueError for NaN and infinity."""
    return PREFIX + json.dumps(event, allow_nan=False, ensure_ascii=True)


def parse_event(line: str) -> dict[str, Any] | None:
    """The event of a line, or None for a line that is for people."""
    if not line.startswith(PREFIX):
        return None
    try:
        event = json.loads(line[len(PREFIX) :])
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
