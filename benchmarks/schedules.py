"""Does a learned step grid beat known ones on this bundle, and what does finding each cost?

    python benchmarks/schedules.py work/searched --seeds 3

Each seed repeats the whole comparison of the tune stage: its own noises to learn on, to choose on and to judge on. The
table gives each grid's mean error on the noises it is judged on (RMS distance to the same noise's many-step result),
the lowest and highest of the seeds, and what the grid cost to find.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from record import hardware, save

hardware.prepare()

from mlx_tasks.config import Tune  # noqa: E402
from mlx_tasks.models.bundle import Bundle, read_bundle  # noqa: E402
from mlx_tasks.rl import tuning  # noqa: E402
from mlx_tasks.rl.ppo import PpoOptions  # noqa: E402
from mlx_tasks.rl.problem import bundle_problem  # noqa: E402
from mlx_tasks.stages.tune import SELECTION_BATCHES, SOLVER, TUNING_BATCHES  # noqa: E402


def one_seed(bundle: Bundle, tune: Tune, seed: int) -> list[dict[str, Any]]:
    """The comparison's rows of one seed, each with its budget, grid name and whether the verdict kept it."""
    counts = {"tuning": TUNING_BATCHES * tune.batch_size, "selection": SELECTION_BATCHES * tune.batch_size}
    counts["test"] = tune.test_noises
    problems = {
        purpose: bundle_problem(bundle, SOLVER, seed, purpose, count, tune.batch_size, tune.reference_steps)[0]
        for purpose, count in counts.items()
    }
    options = PpoOptions(steps=tune.ppo_steps, num_envs=tune.num_envs, seed=seed)
    learner = tuning.make_learner(
        problems["tuning"], problems["selection"], tune.nfe_budgets, tune.speed_weight, options
    )
    history = list(learner.iterate())
    cost = (history[-1].evaluations, sum(record.seconds for record in history))
    rows = []
    for budget in tune.nfe_budgets:
        tuned = tuning.tuned_grids(problems["tuning"], budget, tune.search_evaluations, seed)
        exported = tuning.export_grid(learner.best, problems["selection"], tune.nfe_budgets, budget)
        methods, verdict = tuning.compare(problems["test"], budget, tuned, exported, cost, seed)
        print(f"seed {seed}, {budget} evaluations: {verdict.text}", flush=True)
        rows += [
            {"seed": seed, "budget": budget, "grid": name, **row, "kept": name == verdict.kept}
            for name, row in methods.items()
        ]
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the summary over the seeds."""
    head = f"{'NFE':>3}  {'grid':<14}{'error':>8}  {'lowest':>8}{'highest':>9}{'kept':>6}  {'evaluations':>11}{'s':>7}"
    lines = [head]
    for budget, grid in dict.fromkeys((row["budget"], row["grid"]) for row in rows):
        of = [row for row in rows if (row["budget"], row["grid"]) == (budget, grid)]
        errors = [row["error"] for row in of]
        kept = f"{sum(row['kept'] for row in of)}/{len(of)}"
        spent = statistics.mean(row["learning_evaluations"] for row in of)
        seconds = statistics.mean(row["learning_seconds"] for row in of)
        lines.append(
            f"{budget:>3}  {grid:<14}{statistics.mean(errors):>8.4f}  {min(errors):>8.4f}{max(errors):>9.4f}{kept:>6}"
            f"  {spent:>11.0f}{seconds:>7.1f}"
        )
    return lines


def main() -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle whose guidance is folded in, such as work/searched")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(Tune().nfe_budgets))
    parser.add_argument("--ppo-steps", type=int, default=Tune().ppo_steps)
    parser.add_argument("--name", default="schedules", help="name of the results file")
    given = parser.parse_args()
    tune = Tune(nfe_budgets=tuple(given.budgets), ppo_steps=given.ppo_steps)
    bundle = read_bundle(given.bundle)
    rows = [row for seed in range(given.seeds) for row in one_seed(bundle, tune, seed)]
    print("\n".join(table(rows)))
    config = {**tune.model_dump(mode="json"), "solver": SOLVER, "seeds": given.seeds, "resolution": None}
    config |= {"resolution": bundle.sampler.resolution, "unet": bundle.model.config.to_dict()}
    path = save(
        given.name, question="Does a learned step grid beat known ones, and at what cost?", config=config, rows=rows
    )
    print(f"saved {path}")


if __name__ == "__main__":
    main()
