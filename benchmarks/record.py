"""What every benchmark shares: repeats in turn, a median with its spread, a file that says where it was measured."""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlx_tasks import hardware  # noqa: E402
from mlx_tasks.files import write_json  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def interleaved(contestants: dict[str, Callable[[], Any]], *, repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each repeat of each contestant, taken in turn so that the machine's moods fall on all alike."""
    for _ in range(warmup):
        for run in contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the lowest and highest of the repeats."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "repeats": len(values)}


def ratio(of: list[float], to: list[float]) -> dict[str, float]:
    """The ratio repeat by repeat (the two were taken in turn), as `spread`."""
    return spread([a / b for a, b in zip(of, to, strict=True)])


def shown(argument: str) -> str:
    """A command's argument without what is this machine's alone: a path from its checkout or workspace on."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    if path.is_relative_to(ROOT):
        return str(path.relative_to(ROOT))
    if "work" in path.parts[1:]:
        return "/".join(["WORKSPACE", *path.parts[len(path.parts) - 1 - path.parts[::-1].index("work") :]])
    return "FOLDER"


def save(name: str, *, question: str, config: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Write benchmarks/results/NAME.json: the question, the numbers, and what they were measured on."""
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "question": question,
            "command": " ".join(["python benchmarks/" + Path(sys.argv[0]).name, *map(shown, sys.argv[1:])]),
            "commit": commit.stdout.strip(),
            "device": hardware.detect().as_dict(),
            "versions": {"python": platform.python_version(), **{p: version(p) for p in ("mlx", "numpy", "torch")}},
            "config": config,
            "rows": rows,
        },
    )
    return path
