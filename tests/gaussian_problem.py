"""A sampling problem whose truth is known: independent Gaussian pixels of different variances."""

import mlx.core as mx
import numpy as np

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.rl.problem import Problem, Task

VARIANCES = np.geomspace(0.01, 2.0, 16).reshape(1, 4, 4, 1).astype(np.float32)
SCHEDULE = NoiseSchedule.cosine()


class GaussianDenoiser:
    """E[x0 | x] for x0 ~ N(0, VARIANCES): x * v / (v + sigma^2)."""

    evaluations = 1

    def __init__(self):
        self.variances, self.calls = mx.array(VARIANCES), 0

    def __call__(self, x, sigma):
        self.calls += 1
        return x * (self.variances / (self.variances + sigma * sigma))


def gaussian_problem(seed, batches=2, batch_size=8, solver="dpmpp_2m"):
    """Noises whose exact results are sqrt(v) * noise: the probability flow of a Gaussian only scales."""
    tasks = []
    for index in range(batches):
        noise = mx.random.normal((batch_size, 4, 4, 1), key=mx.random.key(1000 * seed + index))
        tasks.append(Task(noise, GaussianDenoiser(), np.array(noise) * np.sqrt(VARIANCES)))
    return Problem(SCHEDULE, solver, tuple(tasks))
