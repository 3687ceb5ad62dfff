"""Which way of choosing the steps is best, by budget, and what does finding them cost?

    python benchmarks/schedules.py work/searched --seeds 3
    python benchmarks/schedules.py work/teacher --guidance 1.0 --guidance 1.5 --name schedules_teacher

Each seed repeats the whole comparison: its own noises to learn on, to choose on and to judge on, and PPO once for all
budgets. The table gives each method's mean error on the noises it is judged on (RMS distance to the same noise's
many-step result), the lowest and highest of the seeds, and what finding the steps cost. With classifier-free guidance a
step costs two evaluations, and a budget is one of steps.
Finished seeds are kept in the results file as they come, so that a run that was cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import RESULTS, hardware, save

hardware.prepare()

import numpy as np  # noqa: E402

from mlx_tasks.config import Tune  # noqa: E402
from mlx_tasks.learned_steps.methods import Effort, find_steps  # noqa: E402
from mlx_tasks.models.bundle import Bundle, read_bundle  # noqa: E402
from mlx_tasks.rl import tuning  # noqa: E402
from mlx_tasks.rl.comparison import METHODS, PPO, compare  # noqa: E402
from mlx_tasks.rl.effort import SELECTION_BATCHES, TUNING_BATCHES  # noqa: E402
from mlx_tasks.rl.environment import StepGridEnv  # noqa: E402
from mlx_tasks.rl.plain_search import Found  # noqa: E402
from mlx_tasks.rl.policy import greedy_episode  # noqa: E402
from mlx_tasks.rl.ppo import PpoOptions  # noqa: E402
from mlx_tasks.rl.problem import Problem, bundle_problem  # noqa: E402
from mlx_tasks.samplers.grids import grid_from_timesteps  # noqa: E402
from mlx_tasks.stages.tune import SOLVER, best_start  # noqa: E402

QUESTION = "Which way of choosing the steps is best, and at what cost?"


def one_seed(bundle: Bundle, tune: Tune, seed: int) -> list[dict[str, Any]]:
    """The comparison's rows of one seed."""
    counts = {"tuning": TUNING_BATCHES * tune.batch_size, "selection": SELECTION_BATCHES * tune.batch_size}
    counts["test"] = tune.test_noises
    problems = {
        purpose: bundle_problem(bundle, SOLVER, seed, purpose, count, tune.batch_size, tune.reference_steps)[0]
        for purpose, count in counts.items()
    }
    effort = Effort(tune.search_evaluations, tune.gradient_iterations, seed)
    every = {
        budget: dict(find_steps(problems["tuning"], problems["selection"], budget, tune.methods, effort))
        for budget in tune.nfe_budgets
    }
    start = {budget: best_start(found) for budget, found in every.items()}
    policy, cost = None, (0, 0.0)
    if PPO in tune.methods:
        options = PpoOptions(steps=tune.ppo_steps, num_envs=tune.num_envs, seed=seed, patience=tune.ppo_patience)
        learner = tuning.make_learner(
            problems["tuning"], problems["selection"], tune.nfe_budgets, tune.speed_weight, options, start=start
        )
        history = list(learner.iterate())
        policy, cost = learner.best, (history[-1].evaluations, sum(record.seconds for record in history))
    rows = []
    for budget, found in every.items():
        if policy is not None:
            exported = tuning.export_grid(policy, problems["selection"], tune.nfe_budgets, budget, start)
            found[PPO] = Found(grid_from_timesteps(bundle.schedule, exported.timesteps), 0.0, 1, *cost)
        methods, verdict = compare(problems["test"], budget, found, seed)
        print(f"seed {seed}, {budget} steps: {verdict.text}", flush=True)
        rows += [{"budget": budget, "grid": name, **row, "kept": name == verdict.kept} for name, row in methods.items()]
        if policy is not None:
            rows.append(
                {
                    "budget": budget,
                    "grid": "ppo_state",
                    **_state_conditioned(policy, problems["test"], budget, tune, start),
                }
            )
    return rows


def _state_conditioned(policy: Any, test: Problem, budget: int, tune: Tune, start: Any) -> dict[str, Any]:
    """PPO choosing by what it sees of each batch of the test, as it was trained to."""
    environment = StepGridEnv(test, tune.nfe_budgets, tune.speed_weight, start=start)
    infos = [greedy_episode(policy, environment, {"budget": budget, "task": i})[1] for i in range(len(test.tasks))]
    errors = [info["error"] for info in infos]
    return {
        "nfe": float(np.mean([info["nfe"] for info in infos])) * test.tasks[0].denoise.evaluations,
        "error": float(np.mean(errors)),
        "learning_evaluations": 0,
        "learning_seconds": 0.0,
        "kept": False,
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the summary over the seeds."""
    lines = [
        f"{'steps':>5}  {'method':<15}{'error':>8}  {'lowest':>8}{'highest':>9}{'kept':>6}{'evaluations':>13}{'s':>7}"
    ]
    order = [*METHODS, "ppo_state"]
    keys = {(row["guidance"], row["budget"], row["grid"]) for row in rows}
    for guidance, budget, grid in sorted(keys, key=lambda key: (key[0], key[1], order.index(key[2]))):
        of = [r for r in rows if (r["guidance"], r["budget"], r["grid"]) == (guidance, budget, grid)]
        errors = [row["error"] for row in of]
        kept = f"{sum(row['kept'] for row in of)}/{len(of)}"
        spent = statistics.mean(row["learning_evaluations"] for row in of)
        seconds = statistics.mean([row["learning_seconds"] for row in of if row["learning_seconds"] is not None] or [0])
        lines.append(
            f"{budget:>5}  {grid:<15}{statistics.mean(errors):>8.4f}  {min(errors):>8.4f}{max(errors):>9.4f}{kept:>6}"
            f"{spent:>13.0f}{seconds:>7.1f}" + (f"  guidance {guidance:g}" if guidance != 1.0 else "")
        )
    return lines


def main() -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle, such as work/searched")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="to share seeds between machines")
    parser.add_argument("--budgets", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10], help="solver steps")
    parser.add_argument("--methods", nargs="+", default=["shortest_path", "cma_es", "ppo", "gradient", "least_squares"])
    parser.add_argument("--ppo-steps", type=int, default=Tune().ppo_steps)
    parser.add_argument("--iterations", type=int, default=Tune().gradient_iterations)
    parser.add_argument(
        "--guidance", type=float, action="append", help="scales to repeat it at (default: the bundle's)"
    )
    parser.add_argument("--name", default="schedules", help="name of the results file")
    given = parser.parse_args()
    tune = Tune(
        nfe_budgets=tuple(given.budgets),
        methods=tuple(given.methods),
        ppo_steps=given.ppo_steps,
        gradient_iterations=given.iterations,
    )
    bundle = read_bundle(given.bundle)
    config = {**tune.model_dump(mode="json"), "solver": SOLVER, "resolution": bundle.sampler.resolution}
    config |= {"channels": bundle.sampler.channels, "unet": bundle.model.config.to_dict(), "bundle": bundle.digest}
    path = RESULTS / f"{given.name}.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    rows: list[dict[str, Any]] = old.get("rows", []) if old.get("config") == json.loads(json.dumps(config)) else []
    for guidance in given.guidance or [bundle.sampler.guidance_scale]:
        branches = 1 if guidance in (0.0, 1.0) else 2
        sampler = replace(
            bundle.sampler,
            guidance_scale=guidance,
            nfe=branches * len(bundle.sampler.timesteps),
            learned=None,
            solver=SOLVER,
        )
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            if any((row["guidance"], row["seed"]) == (guidance, seed) for row in rows):
                continue
            fresh = one_seed(replace(bundle, sampler=sampler), tune, seed)
            rows += [{"guidance": guidance, "seed": seed, **row} for row in fresh]
            save(given.name, question=QUESTION, config=config, rows=rows)
    print("\n".join(table(rows)))
    print(f"saved {path}")


if __name__ == "__main__":
    main()
