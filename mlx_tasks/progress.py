"""How far a stage is: lines for people and logs, and one small file that a follower reads."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from mlx_tasks.files import write_json


class Progress:
    """Progress of one stage, told to stdout (throttled) and to `FOLDER/STAGE.json` (for `mlx-tasks demo` and the UI).

    The file holds: stage, phase, done, total, unit, per_second, facts (name -> number or text), updated (Unix seconds).
    """

    def __init__(self, stage: str, folder: Path, *, every_s: float = 5.0, echo: Any = print) -> None:
        self.stage = stage
        self._path = folder / f"{stage}.json"
        self._every_s = every_s
        self._echo = echo
        self._last = 0.0
        self._phase = ""
        self._first: tuple[float, float] | None = None

    def update(self, done: float, total: float, unit: str = "steps", *, phase: str = "", **facts: float | str) -> None:
        """Say that `done` of `total` units of `phase` are done; the first, the last and one in `every_s` are shown."""
        now = time.monotonic()
        if self._first is None or phase != self._phase:
            self._phase, self._first, self._last = phase, (now, done), 0.0
        if done < total and now - self._last < self._every_s:
            return
        self._last = now
        elapsed = now - self._first[0]
        rate = (done - self._first[1]) / elapsed if elapsed > 0 else 0.0
        record = {
            "stage": self.stage,
            "phase": phase,
            "done": done,
            "total": total,
            "unit": unit,
            "per_second": rate,
            "facts": facts,
            "updated": time.time(),
        }
        self._tell(record)

    def say(self, text: str) -> None:
        """One line for people: what is being done where there is nothing to count."""
        self._tell({"stage": self.stage, "phase": "", "text": text, "updated": time.time()})

    def _tell(self, record: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk or a NaN fact must not end a training
            write_json(self._path, record)
        self._echo(format_progress(record), flush=True)


def format_progress(record: dict[str, Any]) -> str:
    """One line: what was said, or `[train 16 px] 120/600 steps  4.31/s  loss=0.123`."""
    if "text" in record:
        return f"[{record['stage']}] {record['text']}"
    head = " ".join(part for part in (record["stage"], record["phase"]) if part)
    rate = f"  {record['per_second']:.3g}/s" if record["per_second"] else ""
    facts = "".join(f"  {k}={v:.4g}" if isinstance(v, float) else f"  {k}={v}" for k, v in record["facts"].items())
    return f"[{head}] {record['done']:g}/{record['total']:g} {record['unit']}{rate}{facts}"
