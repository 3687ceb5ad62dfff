"""Finished rows of an evaluation, kept so that a killed one goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mlx_tasks.files import atomic_write_bytes, read_json, write_json


class RowStore:
    """Rows and their pictures in a folder, good for one digest of the inputs; those of another are dropped."""

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder = folder
        self._digest = digest
        self._stamp = folder / "inputs.json"
        if not self._stamp.is_file() or read_json(self._stamp) != {"inputs": digest}:
            self.clear()
            write_json(self._stamp, {"inputs": digest})

    def get(self, name: str) -> dict[str, Any] | None:
        """The row kept under `name`, or None."""
        path = self._folder / f"{name}.json"
        return read_json(path) if path.is_file() and (self._folder / f"{name}.png").is_file() else None

    def put(self, name: str, row: dict[str, Any], picture: bytes) -> dict[str, Any]:
        """Keep a row and its picture; the row as it will be read back.  The picture first: a row is whole or absent."""
        atomic_write_bytes(self._folder / f"{name}.png", picture)
        write_json(self._folder / f"{name}.json", row)
        return read_json(self._folder / f"{name}.json")

    def picture(self, name: str) -> bytes:
        """The PNG kept beside a row."""
        return (self._folder / f"{name}.png").read_bytes()

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self._folder, ignore_errors=True)
