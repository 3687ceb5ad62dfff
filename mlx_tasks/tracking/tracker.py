"""What a stage may record, whoever keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Tracker(Protocol):
    """Where a stage's records go. Calls return at once; none raises because a server is away."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run behind this tracker, or None where there is none."""
        ...

    def params(self, values: dict[str, Any]) -> None:
        """Record parameters once."""
        ...

    def tags(self, values: dict[str, str]) -> None:
        """Record tags; a later value replaces an earlier one."""
        ...

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record `group/name` -> value at an optimiser step (0 for a stage's final figures)."""
        ...

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Record an image.  pixels: (H, W) or (H, W, C) uint8."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or a folder as it is now."""
        ...
