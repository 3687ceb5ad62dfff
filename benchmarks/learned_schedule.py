"""Does a noise schedule learned with the model make its loss vary less, and the model better?

    python benchmarks/learned_schedule.py [--seeds 3] [--steps 800] [--resolution 8]

Each seed trains the demo's teacher on digits twice, with the cosine schedule and with a learned one, in workspaces of
their own. Both minimise the same weighted loss, so that their validation losses compare. `loss_spread` is the standard
deviation of the training loss from step to step over the last quarter, less its trend.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from record import ROOT, save

from mlx_tasks.files import read_json


def main() -> None:
    """Train, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--resolution", type=int, default=8)
    given, rows = parser.parse_args(), []
    for seed in range(given.seeds):
        for name in ("cosine", "learned"):
            rows.append({"seed": seed, "schedule": name, **trained(name, seed, given.steps, given.resolution)})
            print(rows[-1], flush=True)
    question = "Does a learned noise schedule make the loss vary less, and the model better?"
    print(save("learned_schedule", question=question, config=vars(given), rows=rows))


def trained(name: str, seed: int, steps: int, side: int) -> dict[str, Any]:
    """Validation loss and the training loss's spread of one run."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("include", "dvc.yaml", "params.yaml"):
            (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, root / part)
        chosen = {"seed": seed, "train.noise_schedule": name, "train.steps": steps}
        chosen |= {"train.resolutions": f"[{side}]", "train.sample_every": steps}
        overrides = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        run(["resolve", "--preset", "demo", *overrides, "--write"], root)
        for stage in ("validate", "train"):
            run([stage], root)
        with (root / "work" / "plots" / "train.csv").open() as file:
            losses = np.array([float(row["loss"]) for row in csv.DictReader(file)])
        last = losses[-len(losses) // 4 :]
        trend = np.polyval(np.polyfit(np.arange(len(last)), last, 1), np.arange(len(last)))
        metrics = read_json(root / "work" / "metrics" / "train.json")
        return {"validation_loss": metrics["validation_loss"][str(side)], "loss_spread": float((last - trend).std())}


def run(command: list[str], root: Path) -> None:
    """A command of mlx-tasks in a workspace.  Raises: CalledProcessError where it fails."""
    environment = os.environ | {"MLX_TASKS_LOCKS": str(root / ".locks")}
    subprocess.run([sys.executable, "-m", "mlx_tasks", *command], cwd=root, env=environment, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


if __name__ == "__main__":
    main()
