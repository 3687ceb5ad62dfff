"""Latencies of scored rows, all measured by one process on one machine: two machines' milliseconds do not compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import mlx.core as mx

from mlx_tasks.metrics.bench import Row
from mlx_tasks.metrics.candidates import Candidate
from mlx_tasks.metrics.drawing import Drawer
from mlx_tasks.metrics.latency import measure_latency

LATENCY_REPEATS = 3


def timed_rows(candidates: Sequence[Candidate], rows: Sequence[Row], drawer: Drawer, batch: int) -> Iterator[Row]:
    """Each candidate's row with its latency, one after the other.

    Equal work is timed once, for all grids of one bundle that cost the same: it must not race by chance.
    rows: the candidates', in their order; batch: images of a timed run.
    """
    measured: dict[tuple[Any, ...], dict[str, Any]] = {}
    for candidate, row in zip(candidates, rows, strict=True):
        started = time.perf_counter()
        work = (candidate.bundle, candidate.nfe, candidate.guidance_scale, _work(candidate.solver))
        if work not in measured:
            measured[work] = asdict(measure_latency(_run(drawer, candidate, batch), batch, LATENCY_REPEATS))
        yield with_latency(row, measured[work], time.perf_counter() - started)


def with_latency(row: Row, latency: dict[str, Any], seconds: float) -> Row:
    """A row with its latency (as of `Latency`) and the images a second that follow; seconds: what measuring took."""
    low, middle, high = latency["low_ms"], latency["median_ms"], latency["high_ms"]
    metrics = row["metrics"] | {
        "latency_ms": {"value": middle, "low": low, "high": high},
        "images_per_second": {"value": 1000 / middle, "low": 1000 / high, "high": 1000 / low},
    }
    return row | {
        "metrics": metrics,
        "latency_ms": middle,
        "latency": latency,
        "seconds": row["seconds"] + seconds,
    }


def _run(drawer: Drawer, candidate: Candidate, batch: int) -> Callable[[], None]:
    def run() -> None:
        mx.eval(drawer.draw(candidate, range(batch), batch).images)

    return run


def _work(solver: str) -> str:
    """Solvers of the same work by one name: learned steps are multistep ones with other numbers."""
    return "dpmpp_2m" if solver == "learned" else solver
