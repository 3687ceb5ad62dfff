"""How does each solver's error fall with its calls, and what does a step cost beyond the network?

    python benchmarks/solver_order.py

The exact denoiser of pixels near -1 or +1 (two Gaussians of 0.3) has a flow that Heun at 4,000 steps gives to float32.
Its error at equal calls, and the fitted order, per solver; then the driver's own time a step, with a denoiser that is
one multiplication.
"""

from __future__ import annotations

import numpy as np
from record import interleaved, save, spread

from mlx_tasks import hardware

hardware.prepare()

import mlx.core as mx  # noqa: E402

from mlx_tasks.diffusion import NoiseSchedule  # noqa: E402
from mlx_tasks.samplers import SOLVERS, keyed_noise, network_denoiser, sample, uniform_grid  # noqa: E402

SPREAD, SIGMA_FIRST, SIGMA_LAST = 0.3, 10.0, 0.1
CALLS, NOISES, STEPS, REPEATS = (4, 8, 16, 32, 64, 128), 64, 50, 15
DETERMINISTIC = {name: solver for name, solver in SOLVERS.items() if not solver.stochastic}


def two_modes(x: mx.array, sigma: float) -> mx.array:
    """The exact denoiser of pixels drawn near -1 or +1."""
    variance = SPREAD**2 + sigma**2
    return (SPREAD**2 * x + sigma**2 * mx.tanh(x / variance)) / variance


def errors() -> list[dict]:
    """Root mean squared error of each solver at each number of calls, and the order of the last three."""
    noise = keyed_noise(0, NOISES, (8, 8, 1))
    levels = lambda steps: np.geomspace(SIGMA_FIRST, SIGMA_LAST, steps + 1)  # noqa: E731
    truth = sample(two_modes, noise, levels(4000), "heun").images
    rows = []
    for name, solver in DETERMINISTIC.items():
        found = {}
        for calls in CALLS:
            steps = calls // 2 if solver.calls(2) == 3 else calls  # no level here is 0, so Heun's last step takes two
            drawn = sample(two_modes, noise, levels(steps), name)
            found[drawn.nfe] = float(mx.sqrt(mx.mean((drawn.images - truth) ** 2)))
        last = list(found.items())[-3:]
        order = -np.polyfit(np.log([c for c, _ in last]), np.log([e for _, e in last]), 1)[0]
        rows.append({"solver": name, "declared_order": solver.order, "order": float(order), "error_at_calls": found})
    return rows


def step_costs() -> list[dict]:
    """Microseconds of one step around a denoiser that does next to nothing."""
    schedule = NoiseSchedule.cosine()
    noise, grid = keyed_noise(0, 16, (16, 16, 1)), uniform_grid(schedule, STEPS)
    denoise = network_denoiser(lambda x, t, labels: 0.5 * x, schedule)
    runs = {name: (lambda name=name: sample(denoise, noise, grid, name)) for name in DETERMINISTIC}
    seconds = interleaved(runs, repeats=REPEATS)
    return [
        {"solver": name, "microseconds_a_step": spread([1e6 * s / STEPS for s in taken])}
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    rows = [*errors(), *step_costs()]
    for row in rows:
        print(row)
    print(
        save(
            "solver_order",
            question="How does each solver's error fall with its calls, and what does a step cost beyond the network?",
            config={"spread": SPREAD, "sigmas": [SIGMA_FIRST, SIGMA_LAST], "noises": NOISES, "steps": STEPS},
            rows=rows,
        )
    )
