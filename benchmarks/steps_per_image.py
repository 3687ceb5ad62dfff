"""Do images need different numbers of steps, and does giving them what they need save evaluations?

    python benchmarks/steps_per_image.py work/searched [--seeds 3]

For each seed: steps learned (least squares) and grids searched for several numbers of evaluations, and their error on
each of `--noises` fresh noises. An oracle that knows those errors gives every image the number that lowers the sum of
error and mu * evaluations, for many mu: no policy can do better with these steps. `saved` is how many evaluations
fewer it takes than the same number for all at the same mean error. Beside it a policy that sees only what a sampler
sees, the error-controlled steps, by tolerance, and what searched grids reach at its mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from record import hardware, save

hardware.prepare()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from mlx_tasks.learned_steps import gauss_newton  # noqa: E402
from mlx_tasks.learned_steps.error_controlled import Control, sample_within  # noqa: E402
from mlx_tasks.learned_steps.methods import tuned_grids  # noqa: E402
from mlx_tasks.models.bundle import Bundle, read_bundle  # noqa: E402
from mlx_tasks.rl.problem import Problem, bundle_problem, endpoint_errors  # noqa: E402
from mlx_tasks.samplers import network_denoiser  # noqa: E402
from mlx_tasks.samplers.grids import Grid  # noqa: E402

TOLERANCES = (0.01, 0.02, 0.03, 0.05)


def main() -> None:
    """Learn, draw, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noises", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--name", default="steps_per_image")
    given = parser.parse_args()
    bundle, out = read_bundle(given.bundle), []
    for seed in range(given.seeds):
        out.append({"seed": seed, **one_seed(bundle, seed, given.noises, given.steps)})
        print(out[-1], flush=True)
    config = {"noises": given.noises, "steps": given.steps, "bundle": bundle.digest, "tolerances": list(TOLERANCES)}
    print(
        save(given.name, question="Does giving images the steps they need save evaluations?", config=config, rows=out)
    )


def one_seed(bundle: Bundle, seed: int, noises: int, steps: list[int]) -> dict[str, Any]:
    """The comparison's numbers of one seed."""
    counts = {"tuning": (64, 16), "selection": (32, 16), "test": (noises, noises)}
    sets = {
        purpose: bundle_problem(bundle, "dpmpp_2m", seed, purpose, count, batch, 64)[0]
        for purpose, (count, batch) in counts.items()
    }
    test, branches = sets["test"], sets["test"].tasks[0].denoise.evaluations
    fixed: dict[str, np.ndarray] = {}
    for n in steps:
        grid = min(tuned_grids(sets["tuning"], n, 48, seed).values(), key=lambda found: found.error).grid
        assert isinstance(grid, Grid)
        learned = gauss_newton.fit(sets["tuning"], sets["selection"], [grid.sigmas]).steps
        fixed[f"searched {n}"], fixed[f"learned {n}"] = test.errors(grid), test.errors(learned)
    out: dict[str, Any] = {"fixed": {name: float(errors.mean()) for name, errors in fixed.items()}}
    out["log_spread"] = {name: float(np.log(errors).std()) for name, errors in fixed.items()}
    evaluations = branches * np.array(steps, float)
    for kind in ("searched", "learned"):
        table = np.stack([fixed[f"{kind} {n}"] for n in steps])
        out[f"oracle_{kind}"] = oracle(evaluations, table)
        if kind == "searched":
            out["error_controlled"] = [controlled(bundle, test, t, evaluations, table) for t in TOLERANCES]
    return out


def oracle(evaluations: np.ndarray, table: np.ndarray) -> list[dict[str, float]]:
    """What choosing each image's evaluations by its known errors (len(evaluations), N) gives, for several prices."""
    rows = []
    for price in np.geomspace(1e-4, 3e-2, 12):
        chosen = (table + price * evaluations[:, None]).argmin(axis=0)
        mean, error = float(evaluations[chosen].mean()), float(table[chosen, np.arange(table.shape[1])].mean())
        rows.append({"mean_nfe": mean, "error": error, "saved": 1.0 - mean / needed(evaluations, table, error)})
    return rows


def needed(evaluations: np.ndarray, table: np.ndarray, error: float) -> float:
    """Evaluations that the same number for all takes to a mean error, log-linear between those that were measured."""
    logs = np.minimum.accumulate(np.log(table.mean(axis=1)))
    return float(np.interp(-np.log(error), -logs, evaluations))


def controlled(
    bundle: Bundle, test: Problem, tolerance: float, evaluations: np.ndarray, table: np.ndarray
) -> dict[str, float]:
    """The error-controlled steps at one tolerance."""
    task, classes = test.tasks[0], len(bundle.sampler.class_names)

    def rows_of(rows: np.ndarray) -> Any:
        labels = mx.array((rows % classes).astype(np.int32)) if classes else None
        return network_denoiser(
            bundle.model, bundle.schedule, labels, bundle.sampler.guidance_scale, bundle.sampler.null_label
        )

    drawn = sample_within(rows_of, task.noise, Control(tolerance))
    errors = endpoint_errors(np.array(drawn.images), task.truth)
    mean, error = float(drawn.nfe.mean()), float(errors.mean())
    same = float(np.exp(np.interp(mean, evaluations, np.log(table.mean(axis=1)))))
    return {
        "tolerance": tolerance,
        "mean_nfe": mean,
        "spread_nfe": float(drawn.nfe.std()),
        "error": error,
        "searched_error_at_that_mean": same,
        "saved": 1.0 - mean / needed(evaluations, table, error),
    }


if __name__ == "__main__":
    main()
