"""What every stage is handed: its params, its folders, the hardware, and where to tell what happens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_tasks.config import Config
from mlx_tasks.hardware import Hardware
from mlx_tasks.progress import Progress
from mlx_tasks.tracking.tracker import Tracker


@dataclass(frozen=True)
class StageContext:
    """One stage's surroundings.

    Attributes:
        target: the stage's DVC target, for example `train` or `search_trial@0-1`.
        config: the resolved tree.
        root: the workspace (the folder of dvc.yaml).
        hardware: what this machine computes with.
        tracker: where params, metrics, images and artifacts are recorded.
        progress: how far the stage is.
    """

    target: str
    config: Config
    root: Path
    hardware: Hardware
    tracker: Tracker
    progress: Progress

    @property
    def work(self) -> Path:
        """Folder of every stage's outs."""
        return self.root / "work"

    @property
    def checkpoints(self) -> Path:
        """Folder of this stage's checkpoints: outside its outs, because DVC removes outs before it runs a stage."""
        return self.root / ".checkpoints" / self.target
