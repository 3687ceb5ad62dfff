"""Quality levels for a bundle that is about to be registered: what half and twice its network calls would give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.models.levels import Level
from mlx_tasks.samplers.grids import make_grid
from mlx_tasks.samplers.solvers import SOLVERS

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle, Sampler

IMAGES = 128
SEED = 3_000_017
"""Of the images that levels are judged by; no score and no reference uses them."""
ALLOWED = 1.5
"""Times the own steps' Frechet distance up to which a faster level is offered."""
WAYS = (("ddim", "uniform"), ("dpmpp_2m", "log_snr"))
"""Solvers and grids that are tried: what distilled students were made for, and what many-step models take."""


def with_levels(bundle: Bundle, real: np.ndarray, tell: Callable[[str], None] = lambda _: None) -> Sampler:
    """The bundle's sampler with the levels `fast` and `best`, as far as there are any.

    fast: the fewest calls, of half the bundle's own, whose Frechet distance is at most ALLOWED times the own steps'.
    best: the least distance of twice the own calls, if it is below the own steps'.

    real: (N, H, W, C) uint8 images that nothing is reported on (training images).
    """
    from mlx_tasks.metrics.random_conv import RandomConvFeatures
    from mlx_tasks.registry.draw import draw

    sampler = bundle.sampler
    own = SOLVERS[sampler.solver].calls(len(sampler.timesteps))
    space, names = RandomConvFeatures(sampler.channels), len(sampler.class_names)
    count = min(IMAGES, len(real))
    held = space(real[np.linspace(0, len(real) - 1, count).round().astype(int)])
    labels = [i % names if names else -1 for i in range(count)]

    def distance(changed: Sampler) -> float:
        images = draw(replace(bundle, sampler=changed), labels, list(range(SEED, SEED + count)))
        return frechet_distance(space(images), held)

    reached = distance(sampler)
    tried: list[Level] = []
    for calls in sorted({own // 2, 2 * own} - {0, own}):
        for solver, grid in WAYS:
            steps = make_grid(grid, bundle.schedule, calls).timesteps
            nfe = sampler.nfe // own * calls
            level = replace(sampler, solver=solver, timesteps=steps, learned=None, nfe=nfe)
            tried.append(Level(solver, steps, None, distance(level)))
    levels = {}
    faster = [one for one in tried if one.calls < own and _of(one) <= ALLOWED * reached]
    better = [one for one in tried if one.calls > own and _of(one) < reached]
    for name, found in (("fast", faster), ("best", better)):
        if found:
            levels[name] = best = min(found, key=_of)
            tell(f"quality {name}: {best.calls} calls, Frechet distance {_of(best):.4g} (own {reached:.4g})")
    return replace(sampler, levels=levels)


def _of(level: Level) -> float:
    assert level.frechet_distance is not None
    return level.frechet_distance
