"""What a step grid is judged on: noises, the model that denoises them, and where very many steps take each of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.samplers.bundle_sampler import bundle_noise
from mlx_tasks.samplers.denoiser import Denoise, network_denoiser
from mlx_tasks.samplers.driver import sample
from mlx_tasks.samplers.grids import Grid, grid_from_timesteps, log_snr_grid, uniform_grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.solvers import find_solver

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle


@dataclass
class Meter:
    """What learning has cost so far.

    Attributes:
        evaluations: network evaluations of one image each.
        seconds: time spent; added by whoever times a piece of work.
    """

    evaluations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Task:
    """One batch of noises.

    Attributes:
        noise: (B, H, W, C) unit normal.
        denoise: the model with this batch's labels.
        truth: (B, H, W, C) float32, the result of very many steps from the same noise.
        unguided: the model's conditional branch alone, where `denoise` is guided.
    """

    noise: mx.array
    denoise: Denoise
    truth: np.ndarray
    unguided: Denoise | None = None


@dataclass(frozen=True)
class Problem:
    """Batches of noise that one model and one solver are to bring to their many-step results in few steps.

    Attributes:
        schedule: the model's noise schedule.
        solver: a solver of one network evaluation a step.
        tasks: the batches.
        meter: counts the network evaluations that go through `errors` and the environment.
    Raises: DataError for another solver, or no batches.
    """

    schedule: NoiseSchedule
    solver: str
    tasks: tuple[Task, ...]
    meter: Meter = field(default_factory=Meter)
    _uniform: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        calls = find_solver(self.solver).calls
        if calls(7) != 7:
            raise DataError(f"the solver must take one evaluation a step, {self.solver} takes {calls(7)} for 7 steps")
        if not self.tasks:
            raise DataError("a schedule is tuned on at least one batch of noises")

    def errors(self, grid: Grid | LearnedSteps, tasks: Sequence[int] | None = None) -> np.ndarray:
        """(N,) root mean square distance of each noise's result from its truth, over all tasks or the given ones.

        A grid is taken by the problem's solver, learned steps bring their own.
        """
        chosen = self.tasks if tasks is None else [self.tasks[i] for i in tasks]
        return np.concatenate([self._task_errors(task, grid) for task in chosen])

    def error(self, timesteps: Sequence[int], tasks: Sequence[int] | None = None) -> float:
        """The mean of `errors` of a grid through those timesteps."""
        return float(self.errors(grid_from_timesteps(self.schedule, timesteps), tasks).mean())

    def uniform_error(self, num_steps: int, task: int) -> float:
        """The error of the evenly spaced grid on one task, found once."""
        if (num_steps, task) not in self._uniform:
            self._uniform[num_steps, task] = float(self.errors(uniform_grid(self.schedule, num_steps), [task]).mean())
        return self._uniform[num_steps, task]

    def _task_errors(self, task: Task, grid: Grid | LearnedSteps) -> np.ndarray:
        drawn = sample(task.denoise, task.noise, grid, self.solver)
        self.meter.evaluations += drawn.nfe * len(task.noise)
        return endpoint_errors(np.array(drawn.images), task.truth)


def endpoint_errors(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(B,) root mean square over the pixels of each image's distance from its truth, in units of the pixels' range / 2.

    images, truth: (B, H, W, C).
    """
    gap = images.astype(np.float64) - truth.astype(np.float64)
    return np.sqrt((gap**2).mean(axis=tuple(range(1, gap.ndim))))


def make_task(
    noise: mx.array, denoise: Denoise, schedule: NoiseSchedule, solver: str, reference_steps: int, meter: Meter
) -> Task:
    """A batch with its truth: the same solver in `reference_steps` steps, evenly spaced in log SNR."""
    start = time.perf_counter()
    drawn = sample(denoise, noise, reference_grid(schedule, reference_steps), solver)
    meter.evaluations += drawn.nfe * len(noise)
    truth = np.array(drawn.images)
    meter.seconds += time.perf_counter() - start
    return Task(noise, denoise, truth)


def reference_grid(schedule: NoiseSchedule, reference_steps: int) -> Grid:
    """The grid of the many-step result: log-SNR over the whole schedule, whose error falls fastest with the steps."""
    return log_snr_grid(schedule, reference_steps, t_first=_start(schedule), t_last=0)


def _start(schedule: NoiseSchedule) -> int:
    """The last timestep with sigma <= 200: above it an image is noise to 1 part in 200 and steps do nothing."""
    return int(np.searchsorted(schedule.sigmas, 200.0, side="right")) - 1


def noise_seed(seed: int, purpose: str) -> int:
    """A seed of 32 bits for a purpose (tuning, selection, test), so that no two purposes share a noise."""
    digest = hashlib.blake2b(f"{seed}/schedule/{purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def bundle_problem(
    bundle: Bundle, solver: str, seed: int, purpose: str, count: int, batch_size: int, reference_steps: int
) -> tuple[Problem, Meter]:
    """(problem, what its truths cost): `count` noises of a purpose, in batches, classes taking turns.

    Raises: DataError for a bundle whose guidance is not folded in.
    """
    reference, tasks = Meter(), []
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        noise = bundle_noise(bundle, noise_seed(seed, purpose), indices)
        scale, labels, empty = bundle.sampler.guidance_scale, _labels(bundle, indices), bundle.sampler.null_label
        denoise = network_denoiser(bundle.model, bundle.schedule, labels, scale, empty)
        task = make_task(noise, denoise, bundle.schedule, solver, reference_steps, reference)
        if denoise.evaluations > 1:
            task = replace(task, unguided=network_denoiser(bundle.model, bundle.schedule, labels))
        tasks.append(task)
    return Problem(bundle.schedule, solver, tuple(tasks)), reference


def _labels(bundle: Bundle, indices: Sequence[int]) -> mx.array | None:
    classes, empty = len(bundle.sampler.class_names), bundle.sampler.null_label
    if classes:
        return mx.array([i % classes for i in indices], dtype=mx.int32)
    return None if empty is None else mx.full((len(indices),), empty, dtype=mx.int32)
