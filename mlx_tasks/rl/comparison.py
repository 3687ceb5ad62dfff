"""Grids against each other on noises that none of them was chosen on, and the verdict for one budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_tasks.metrics.bootstrap import bootstrap_mean
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.samplers.grids import Grid

PPO = "ppo"
RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Entry:
    """One method at one budget.

    Attributes:
        grid: what it would sample with.
        errors: (N,) distance of each test noise's result from its many-step result.
        learning_evaluations: network evaluations of one image that finding the grid cost; 0 for a default.
        learning_seconds: the same in seconds.
    """

    grid: Grid
    errors: np.ndarray
    learning_evaluations: int = 0
    learning_seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Which grid is kept, and why.

    Attributes:
        kept: name of the method.
        rival: the best of the methods other than PPO.
        difference: PPO's error less the rival's, paired over the noises; below zero PPO is better.
        text: the same in a sentence.
    """

    kept: str
    rival: str
    difference: Estimate
    text: str


def judge(entries: Mapping[str, Entry], seed: int) -> Verdict:
    """PPO's grid is kept if it beats the best of the others beyond the noise, or equals it in fewer evaluations.

    Beyond the noise: the 95 % bootstrap interval of the mean difference, paired over the noises, lies below zero.
    Otherwise the others' best is kept. Entries: one named `ppo`, and one or more others.
    """
    rival = min((name for name in entries if name != PPO), key=lambda name: float(entries[name].errors.mean()))
    ours, theirs = entries[PPO], entries[rival]
    gap = bootstrap_mean(ours.errors - theirs.errors, RESAMPLES, CONFIDENCE, seed)
    low, high = gap.interval
    figures = (
        f"error {ours.errors.mean():.4f} against {theirs.errors.mean():.4f} of {rival}, difference {gap.value:+.4f} "
        f"({CONFIDENCE:.0%} interval {low:+.4f} to {high:+.4f}, {len(ours.errors)} noises)"
    )
    fewer = theirs.grid.num_steps - ours.grid.num_steps
    if high < 0:
        return Verdict(PPO, rival, gap, f"PPO's grid is better beyond the noise and is kept: {figures}")
    if fewer > 0 and low <= 0:
        text = f"PPO's grid is as good within the noise in {fewer} evaluations fewer and is kept: {figures}"
        return Verdict(PPO, rival, gap, text)
    how = "is worse" if low > 0 else "does not differ beyond the noise"
    return Verdict(rival, rival, gap, f"PPO's grid {how}; {rival} is kept: {figures}")


def table(entries: Mapping[str, Entry], seed: int) -> dict[str, dict[str, Any]]:
    """{method: {timesteps, nfe, error, low, high, learning_evaluations, learning_seconds}}, with 95 % intervals."""
    rows = {}
    for name, entry in entries.items():
        estimate = bootstrap_mean(entry.errors, RESAMPLES, CONFIDENCE, seed)
        rows[name] = {
            "timesteps": list(entry.grid.timesteps),
            "nfe": entry.grid.num_steps,
            "error": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "learning_evaluations": entry.learning_evaluations,
            "learning_seconds": entry.learning_seconds,
        }
    return rows
