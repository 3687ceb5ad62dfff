"""Ways of spending a budget against each other on noises that none of them was chosen on, and which one is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_tasks.learned_steps.gradient import rounded
from mlx_tasks.metrics.bootstrap import bootstrap_mean
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.rl.plain_search import Found
from mlx_tasks.rl.problem import Problem
from mlx_tasks.samplers.grids import Grid, make_grid
from mlx_tasks.samplers.learned import LearnedSteps

METHODS = {
    "uniform": "evenly spaced timesteps",
    "log_snr": "even log SNR",
    "karras": "Karras' grid",
    "remembered": "the grid of the nearest images' runs",
    "log_snr_tuned": "even log SNR, ends searched",
    "karras_tuned": "Karras' grid, ends and rho searched",
    "shortest_path": "dynamic programming",
    "cma_es": "CMA-ES on the levels",
    "ppo": "PPO",
    "gradient_levels": "gradients to the levels alone",
    "gradient": "gradients to levels, levels told and weights",
    "least_squares": "least squares in levels, levels told and weights",
}
"""Every method, the plainest first: of those that do not differ beyond the noise, the plainest is kept."""
DEFAULT_GRIDS = ("uniform", "log_snr", "karras")
PPO = "ppo"
RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass(frozen=True)
class Entry:
    """One method at one budget.

    Attributes:
        steps: what it would sample with: a grid, for the comparison's solver, or learned steps.
        errors: (N,) distance of each test noise's result from its many-step result.
        learning_evaluations: network evaluations of one image that finding the steps cost; 0 for a default.
        learning_seconds: the same in seconds.
    """

    steps: Grid | LearnedSteps
    errors: np.ndarray
    learning_evaluations: int = 0
    learning_seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Which method's steps are kept, and why.

    Attributes:
        kept: name of the method.
        rival: the best of the others.
        difference: the kept one's error less the rival's, paired over the noises; below zero the kept one is better.
        text: the same in a sentence.
    """

    kept: str
    rival: str
    difference: Estimate
    text: str


def judge(entries: Mapping[str, Entry], seed: int) -> Verdict:
    """Of the methods that are not worse than the best beyond the noise: the one of fewest evaluations, then plainest.

    Beyond the noise: the 95 % bootstrap interval of the mean difference, paired over the noises, lies above zero.
    Raises: ValueError for fewer than two methods, or one that is not in METHODS.
    """
    unknown = sorted(set(entries) - set(METHODS))
    if unknown or len(entries) < 2:
        raise ValueError(f"at least two methods of {', '.join(METHODS)} are compared, got {', '.join(entries)}")
    order = list(METHODS)
    best = min(entries, key=lambda name: float(entries[name].errors.mean()))
    equal = [name for name in entries if name == best or _gap(entries, name, best, seed).interval[0] <= 0]
    kept = min(equal, key=lambda name: (entries[name].steps.num_steps, order.index(name)))
    rival = min((name for name in entries if name != kept), key=lambda name: float(entries[name].errors.mean()))
    gap = _gap(entries, kept, rival, seed)
    low, high = gap.interval
    ours, theirs = entries[kept], entries[rival]
    fewer = theirs.steps.num_steps - ours.steps.num_steps
    if high < 0:
        why = f"better than {rival} beyond the noise"
    elif fewer > 0:
        why = f"as good as {rival} within the noise, in {fewer} evaluation{'s' * (fewer > 1)} fewer"
    else:
        why = f"as good as {rival} within the noise, and plainer"
    text = (
        f"{kept} is kept, {why}: error {ours.errors.mean():.4f} against {theirs.errors.mean():.4f}, difference "
        f"{gap.value:+.4f} ({CONFIDENCE:.0%} interval {low:+.4f} to {high:+.4f}, {len(ours.errors)} noises)"
    )
    return Verdict(kept, rival, gap, text)


def _gap(entries: Mapping[str, Entry], a: str, b: str, seed: int) -> Estimate:
    return bootstrap_mean(entries[a].errors - entries[b].errors, RESAMPLES, CONFIDENCE, seed)


def table(
    entries: Mapping[str, Entry], whole: Mapping[str, Grid], solver: str, branches: int, seed: int
) -> dict[str, dict[str, Any]]:
    """{method: {solver, timesteps, learned, nfe, error, low, high, learning_evaluations, learning_seconds}}.

    Intervals are 95 %. whole: the nearest grid of whole timesteps of each method with learned steps; branches: network
    evaluations a step.
    """
    rows = {}
    for name, entry in entries.items():
        estimate = bootstrap_mean(entry.errors, RESAMPLES, CONFIDENCE, seed)
        learned = entry.steps if isinstance(entry.steps, LearnedSteps) else None
        grid = whole[name] if learned else entry.steps
        assert isinstance(grid, Grid)
        rows[name] = {
            "solver": "learned" if learned else solver,
            "timesteps": list(grid.timesteps),
            "learned": learned.to_dict() if learned else None,
            "nfe": branches * entry.steps.num_steps,
            "error": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "learning_evaluations": entry.learning_evaluations,
            "learning_seconds": entry.learning_seconds,
        }
    return rows


def compare(
    test: Problem, budget: int, found: dict[str, Found], seed: int
) -> tuple[dict[str, dict[str, Any]], Verdict]:
    """(rows by method, verdict) of one budget of steps, on the test's noises: default grids and what was found."""
    entries = {name: Entry(grid, test.errors(grid)) for name, grid in default_grids(test, budget).items()}
    for name, one in found.items():
        entries[name] = Entry(one.grid, test.errors(one.grid), one.evaluations, one.seconds)
    whole = {name: rounded(test, one.grid) for name, one in found.items() if isinstance(one.grid, LearnedSteps)}
    branches = test.tasks[0].denoise.evaluations
    return table(entries, whole, test.solver, branches, seed), judge(entries, seed)


def default_grids(problem: Problem, budget: int) -> dict[str, Grid]:
    """The grids that need no search."""
    return {name: make_grid(name, problem.schedule, budget) for name in DEFAULT_GRIDS}
