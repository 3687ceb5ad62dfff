"""An append-only journal of what a stage recorded, on disk before it goes anywhere else.

    FOLDER/TARGET.jsonl      one JSON object a line: params, tags, metrics, image, artifact, status
    FOLDER/TARGET/           copies of the images and artifacts the lines name
    FOLDER/TARGET.run.json   whose it is (`identity`), its MLflow run, how many bytes are there (`offset`), and which
                             lines before that wait for a place that takes files (`kept`: offset and end of each)

A line is written with one call and no flush to the platters: it survives `kill -9` of its writer, and of a power cut it
loses the last seconds, never its middle. A torn last line is cut off when the journal is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_tasks.errors import BusyError
from mlx_tasks.files import read_json, write_json

logger = logging.getLogger(__name__)


class Journal:
    """One target's journal."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.lines_path = folder / f"{name}.jsonl"
        self.state_path = folder / f"{name}.run.json"
        self.files = folder / name
        self.lost = 0
        self._write_lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """What TARGET.run.json says; empty where there is none."""
        try:
            return read_json(self.state_path)
        except (FileNotFoundError, ValueError):
            return {}

    def set_state(self, **changes: Any) -> None:
        """Change some of TARGET.run.json.  Only one thread of one process does this at a time (`exclusive`)."""
        write_json(self.state_path, self.state() | changes)

    def append(self, entry: dict[str, Any]) -> None:
        """Write one line.  A disk that refuses costs this line and a warning, never the stage's work."""
        line = (json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n").encode()
        with self._write_lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with self.lines_path.open("ab", buffering=0) as file:
                    start = file.tell()
                    if file.write(line) != len(line):
                        file.truncate(start)
                        raise OSError("the line was cut short")
            except OSError as error:
                self.lost += 1
                if self.lost == 1:
                    logger.warning("journal=%s lost=1 reason=%s", self.lines_path, error)

    def read(self, offset: int = 0, limit: int = 4 << 20) -> tuple[list[dict[str, Any]], list[int]]:
        """Whole lines from a byte offset (about `limit` bytes, at least one line) and the offset after each of them."""
        try:
            with self.lines_path.open("rb") as file:
                file.seek(offset)
                data = file.read(limit) + file.readline()
        except FileNotFoundError:
            return [], []
        entries, ends = [], []
        for line in data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]:
            offset += len(line) + 1
            try:
                entries.append(json.loads(line))
            except ValueError:  # a damaged line costs itself, not the rest
                entries.append({"kind": "damaged"})
            ends.append(offset)
        return entries, ends

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every line from the start."""
        offset = 0
        while True:
            entries, ends = self.read(offset)
            if not ends:
                return
            yield from entries
            offset = ends[-1]

    def repair(self) -> None:
        """Cut off a torn last line."""
        with contextlib.suppress(FileNotFoundError), self.lines_path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            tail = min(size, 8 << 20)
            file.seek(size - tail)
            whole = file.read(tail).rfind(b"\n") + 1
            if whole != tail:
                file.truncate(size - tail + whole)

    def last_status(self) -> str | None:
        """RUNNING, FINISHED, FAILED or KILLED as last written; None for an empty journal."""
        status = None
        for entry in self.entries():
            if entry.get("kind") == "status":
                status = entry["status"]
        return status

    def pending_bytes(self) -> int:
        """Bytes not yet at the server."""
        size = self.lines_path.stat().st_size if self.lines_path.exists() else 0
        return max(0, size - int(self.state().get("offset", 0))) + sum(end - start for start, end in self.kept())

    def kept(self) -> list[tuple[int, int]]:
        """(offset, end) of the lines that were passed over because no place took their files."""
        return [(int(start), int(end)) for start, end in self.state().get("kept") or []]

    def move_aside(self) -> None:
        """Keep an unshipped journal under another name, drop a shipped or local one; the name is free after it."""
        state = self.state()
        if state.get("uri") and self.pending_bytes():
            other = Journal(self.folder, f"{self.name}.{str(state.get('token', 'old'))[:8]}")
            for mine, theirs in ((self.files, other.files), (self.lines_path, other.lines_path)):
                if mine.exists():
                    os.replace(mine, theirs)
            os.replace(self.state_path, other.state_path)
        else:
            self.remove()

    def remove(self) -> None:
        """Delete the journal and its copies."""
        self.lines_path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)
        shutil.rmtree(self.files, ignore_errors=True)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the only one who ships this journal.  Raises: BusyError at once while another process does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f".{self.name}.lock"
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BusyError(f"another process writes or ships {self.lines_path}: let it end first") from None
            yield


def journals(folder: Path) -> list[Journal]:
    """Every journal of a records folder, oldest first."""
    paths = sorted(folder.glob("*.run.json"), key=lambda path: path.stat().st_mtime)
    return [Journal(folder, path.name.removesuffix(".run.json")) for path in paths]
