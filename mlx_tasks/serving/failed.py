"""What failed: versions that may never serve, kept over restarts, and what may be tried again later."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_tasks.errors import DataError
from mlx_tasks.files import write_json
from mlx_tasks.models.json_file import read_mapping

if TYPE_CHECKING:
    from mlx_tasks.serving.library import Served

logger = logging.getLogger(__name__)

MOST_WAIT_S = 60.0
"""Between two tries of what fails for a passing reason."""
MOST_REMEMBERED = 1000
MOST_CHARACTERS = 2000
"""Of a reason."""


class Refusals:
    """Versions that were tried and may not serve.

        FOLDER/NAME/VERSION.json    name, version, digest, content, reason, when

    Such a version is not tried again, by no server of this store, until its registered digest changes or somebody
    deletes its file. Without a folder they are remembered as long as the process lives.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._here: dict[str, tuple[list[str], str]] = {}

    def reason(self, served: Served) -> str | None:
        """Why a version may not serve; None where nothing is known against it."""
        if served.id in self._here:
            stamp, reason = self._here[served.id]
            return reason if stamp == served.stamp else None
        told = self._read(self._path(served))
        if told is None or [told.get("digest"), told.get("content")] != served.stamp:
            return None
        return f"{told['reason']} (tried {told['when']}; to have it tried again, delete {self._path(served)})"

    def add(self, served: Served, reason: str) -> None:
        """Never try it again."""
        reason, path = reason[:MOST_CHARACTERS], self._path(served)
        if path is not None:
            digest, content = served.stamp
            when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            told = {"name": served.name, "version": served.version, "digest": digest, "content": content}
            try:
                write_json(path, {**told, "reason": reason, "when": when})
                return
            except OSError as error:
                logger.warning("refused=%s kept in memory alone: %s", served.id, error)
        if len(self._here) < MOST_REMEMBERED:
            self._here[served.id] = (served.stamp, reason)

    def listed(self) -> dict[str, str]:
        """{NAME/VERSION: reason} of all that are refused."""
        found = {name: reason for name, (_, reason) in self._here.items()}
        if self._folder is not None:
            for path in sorted(self._folder.glob("*/*.json"))[:MOST_REMEMBERED]:
                told = self._read(path)
                if told is not None:
                    found[f"{told.get('name')}/{told.get('version')}"] = told["reason"]
        return found

    def _path(self, served: Served) -> Path | None:
        return None if self._folder is None else self._folder / served.name / f"{served.version}.json"

    def _read(self, path: Path | None) -> dict[str, Any] | None:
        if path is None:
            return None
        with contextlib.suppress(DataError):  # not there, or no longer what was written
            told = read_mapping(path)
            if isinstance(told.get("reason"), str) and isinstance(told.get("when"), str):
                return told
        return None


@dataclass
class _Wait:
    reason: str
    wait_s: float
    until: float


class Later:
    """What failed for a reason that may pass: tried again after twice the wait each time, up to `most_s`."""

    def __init__(self, first_s: float, most_s: float = MOST_WAIT_S) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._waits: dict[str, _Wait] = {}

    def failed(self, key: str, reason: str) -> None:
        """It failed now."""
        before = self._waits.pop(key, None)
        wait_s = min(self._most_s, self._first_s if before is None else 2 * before.wait_s)
        self._waits[key] = _Wait(reason, wait_s, time.monotonic() + wait_s)
        while len(self._waits) > MOST_REMEMBERED:
            del self._waits[next(iter(self._waits))]

    def passed(self, key: str) -> None:
        """It went well: the next failure is the first again."""
        self._waits.pop(key, None)

    def reason(self, key: str) -> str | None:
        """Why it is not tried now, and for how long; None where it may be."""
        wait = self._waits.get(key)
        left = 0.0 if wait is None else wait.until - time.monotonic()
        return None if wait is None or left <= 0 else f"{wait.reason} (tried again in {left:.0f} s)"
