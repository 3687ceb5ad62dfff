"""The levels whose local errors along the many-step trajectory add up to least: a shortest path, no search.

A run through levels v_1 > ... > v_n is judged by what each of its steps, started on the many-step trajectory, misses
that trajectory by at its end. All of those misses are linear in the trajectory's points and the network's outputs on
it, so their sizes come from Gram matrices, and the best run of DPM-Solver++(2M) is found exactly among the levels.

A miss at a high level matters less, because the steps after it pull it back to the images: for Gaussian data a miss
along an axis of variance v shrinks by sqrt(v / (v + sigma^2)) on the way to the end. The misses are measured so, along
the principal axes of the many-step results. Their squares add up, as those of independent errors do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

from mlx_tasks.rl.problem import Meter, Problem, Task
from mlx_tasks.samplers import dpm_multistep
from mlx_tasks.samplers.grids import Grid, grid_from_timesteps


@dataclass(frozen=True)
class Trajectory:
    """Many-step runs over a set of noises.

    Attributes:
        grid: the M levels.
        grams: (M + 1, 2 M + 2, 2 M + 2) mean inner products a pixel, as misses at each level and at the end count, of:
            the points x_0 .. x_(M-1), the outputs D_0 .. D_(M-1), the unit noise, the end.
    """

    grid: Grid
    grams: np.ndarray


def record(problem: Problem, grid: Grid, meter: Meter, tasks: Sequence[int] | None = None) -> Trajectory:
    """Follow DPM-Solver++(2M) along a fine grid and keep what the shortest path needs: M evaluations an image."""
    chosen = list(problem.tasks) if tasks is None else [problem.tasks[i] for i in tasks]
    vectors = np.concatenate([_follow(task, grid) for task in chosen], axis=1)
    meter.evaluations += vectors.shape[1] * grid.num_steps * chosen[0].denoise.evaluations
    return Trajectory(grid, _grams(vectors, np.array(grid.sigmas)))


def shortest_path(trajectory: Trajectory, n: int) -> tuple[int, ...]:
    """Indices into the trajectory's levels of the n whose misses add up to least.

    Source: Chen et al. 2024 (GITS), Eq. 10, which takes Euler's steps, counts all misses alike and adds their sizes;
    here each step is that of DPM-Solver++(2M), which depends on two levels, so the program's state is a pair of them.
    Raises: ValueError unless 1 <= n <= the number of levels.
    """
    count = trajectory.grid.num_steps
    if not 1 <= n <= count:
        raise ValueError(f"a path through {count} levels has 1 to {count} of them, got n={n}")
    begin, first, second, finish = misses(trajectory)
    if n == 1:
        return (int(np.argmin(begin + finish)),)
    best = begin[:, None] + first  # [i, k]: came to k from i
    came: list[np.ndarray] = []
    for _ in range(n - 2):
        total = best[:, :, None] + second  # [h, i, k]
        came.append(total.argmin(axis=0))
        best = total.min(axis=0)
    i, k = np.unravel_index(int(np.argmin(best + finish[None, :])), best.shape)
    path = [int(k), int(i)]
    for back in reversed(came):
        path.append(int(back[path[-1], path[-2]]))
    return tuple(reversed(path))


def best_grid(problem: Problem, trajectory: Trajectory, n: int) -> Grid:
    """The path's grid of n steps."""
    path = shortest_path(trajectory, n)
    return grid_from_timesteps(problem.schedule, [trajectory.grid.timesteps[i] for i in path])


def misses(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean square misses: of starting at k (M,), of a first step i to k (M, M), of a later one h, i to k
    (M, M, M), and of ending at k (M,).  Steps that do not fall are infinite."""
    levels, count = np.array(trajectory.grid.sigmas[:-1]), trajectory.grid.num_steps
    begin, first = np.empty(count), np.full((count, count), np.inf)
    second = np.full((count, count, count), np.inf)
    noise, end = 2 * count, 2 * count + 1
    for k, level in enumerate(levels):
        gram = trajectory.grams[k]
        started = math.sqrt(1.0 + level**2)
        begin[k] = started**2 * gram[noise, noise] - 2 * started * gram[k, noise] + gram[k, k]
        # from i = 0 .. k-1: miss = a x_i + b m_i + c (m_i - m_h) - x_k,  b = 1 - a,  c = b / (2 r)
        fall = np.log(levels[:k] / level)
        a = level / levels[:k]
        b = 1.0 - a
        points, outputs = gram[:k, :k], gram[count : count + k, count : count + k]
        across = gram[:k, count : count + k]  # [x_i, m_h]
        to_point, to_output = gram[k, :k], gram[k, count : count + k]
        own = np.diag(across)
        square = a**2 * np.diag(points) + b**2 * np.diag(outputs) + gram[k, k] + 2 * a * b * own
        square = square - 2 * a * to_point - 2 * b * to_output
        first[:k, k] = square
        gap = np.diag(outputs)[:, None] + np.diag(outputs)[None, :] - 2 * outputs  # [h, i]
        between = np.log(levels[:k, None] / levels[None, :k])
        c = b[None, :] * fall[None, :] / (2.0 * np.where(between > 0, between, 1.0))
        along = a * (own - across.T) + b * (np.diag(outputs) - outputs) - (to_output[None, :] - to_output[:, None])
        steps = square[None, :] + c**2 * gap + 2 * c * along
        second[:k, :k, k] = np.where(np.arange(k)[:, None] < np.arange(k)[None, :], steps, np.inf)
    gram = trajectory.grams[-1]
    outputs = gram[count : 2 * count, count : 2 * count]
    finish = np.diag(outputs) - 2 * gram[count : 2 * count, end] + gram[end, end]
    return tuple(np.maximum(square, 0.0) for square in (begin, first, second, finish))  # type: ignore[return-value]


def _follow(task: Task, grid: Grid) -> np.ndarray:
    """(2 M + 2, B, pixels) float32: points, outputs, noise, end."""
    x = task.noise * math.sqrt(1.0 + grid.sigmas[0] ** 2)
    state = dpm_multistep.init(x, grid.sigmas)
    points, outputs = [], []
    for sigma, following in pairwise(grid.sigmas):
        points.append(np.array(x))
        x, state = dpm_multistep.step(task.denoise, x, state, sigma, following, None, order=2)
        mx.eval(x, state.past[0][1])
        outputs.append(np.array(state.past[0][1]))
    vectors = [*points, *outputs, np.array(task.noise), np.array(x)]
    return np.stack([v.reshape(len(v), -1) for v in vectors])


def _grams(vectors: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Inner products along the axes of the ends, each axis as much as its misses at a level are left at the end."""
    ends = vectors[-1].astype(np.float64)
    images, pixels = ends.shape
    centred = ends - ends.mean(axis=0)
    shrinkage = float(ledoit_wolf_shrinkage(ends)) if images > 1 else 1.0
    mean_variance = (centred**2).mean() * images / max(1, images - 1)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    variances = (1 - shrinkage) * singular**2 / max(1, images - 1) + shrinkage * mean_variance
    rest = shrinkage * mean_variance  # of every axis that the images do not span
    flat = vectors.reshape(len(vectors), -1).astype(np.float64)
    whole = flat @ flat.T
    along = vectors.astype(np.float64) @ axes.T  # (V, B, axes)
    grams = np.empty((len(sigmas), len(vectors), len(vectors)))
    for index, sigma in enumerate(sigmas):
        left = rest / (rest + sigma**2) if sigma else 1.0
        extra = variances / (variances + sigma**2) - left if sigma else np.zeros_like(variances)
        weighted = (along * extra).reshape(len(vectors), -1)
        grams[index] = left * whole + weighted @ along.reshape(len(vectors), -1).T
    return grams / (images * pixels)
