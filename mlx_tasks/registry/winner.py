"""The winner that evaluate chose, as register needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_tasks.registry.gate import Score


@dataclass(frozen=True)
class Winner:
    """One candidate of scores.json.

    Attributes:
        name: of the candidate.
        folder: its bundle.
        sampler: keys of sampler.json that it was scored with and that differ from its bundle's.
        scores: metric -> score.
    """

    name: str
    folder: Path
    sampler: dict[str, Any]
    scores: dict[str, Score]
