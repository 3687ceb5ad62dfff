"""How many episodes does PPO need, from where it starts, and what do more choices bring?

    python benchmarks/ppo_episodes.py work/searched [--seeds 3] [--steps 1024] [--other OTHER/work/searched]

For each seed, on noises of their own to learn on, to choose on and to judge on: the mean error over the budgets, as a
share of that of the best grids with searched ends, after each iteration of PPO. Variants: `even` starts from the evenly
spaced grid, `searched` from those best grids, `transfer` (with --other) from the policy that was learned on another
bundle, on the evenly spaced grid. `first_reaches` is the first number of episodes at which a variant is as good as the
searched grids. `control` (for a guided bundle) also chooses orders and where guidance is on; its budgets are in
network evaluations, and it is compared with searched grids of as many.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from record import hardware, save

hardware.prepare()

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402

from mlx_tasks.learned_steps.methods import tuned_grids  # noqa: E402
from mlx_tasks.models.bundle import Bundle, read_bundle  # noqa: E402
from mlx_tasks.rl import tuning  # noqa: E402
from mlx_tasks.rl.control_environment import CONTROL_ENVIRONMENT_ID  # noqa: E402
from mlx_tasks.rl.environment import ENVIRONMENT_ID  # noqa: E402
from mlx_tasks.rl.policy import greedy_episode  # noqa: E402
from mlx_tasks.rl.ppo import PpoOptions  # noqa: E402
from mlx_tasks.rl.problem import Problem, bundle_problem  # noqa: E402
from mlx_tasks.samplers.grids import Grid, uniform_grid  # noqa: E402

Sets = dict[str, Problem]


def main() -> None:
    """Learn, judge after each iteration, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--other", type=Path, help="a bundle of another kind of images, to start a policy from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 8], help="solver steps")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--name", default="ppo_episodes")
    given = parser.parse_args()
    bundle, rows = read_bundle(given.bundle), []
    other = read_bundle(given.other) if given.other else None
    config = {"bundle": bundle.digest, "steps": given.steps, "budgets": given.budgets, "batch": given.batch}
    config |= {"other": other.digest if other else None, "guidance": bundle.sampler.guidance_scale}
    for seed in range(given.seeds):
        rows += one_seed(bundle, other, seed, given)
        print(save(given.name, question="How many episodes does PPO need?", config=config, rows=rows), flush=True)


def one_seed(bundle: Bundle, other: Bundle | None, seed: int, given: Any) -> list[dict[str, Any]]:
    """A row a variant."""
    sets, budgets = sets_of(bundle, seed, given.batch), tuple(given.budgets)
    grids = {}
    for budget in budgets:
        grid = min(tuned_grids(sets["tuning"], budget, 48, seed).values(), key=lambda found: found.error).grid
        assert isinstance(grid, Grid)
        grids[budget] = grid
    searched = {budget: float(sets["test"].errors(grid).mean()) for budget, grid in grids.items()}
    start = {budget: grid.timesteps for budget, grid in grids.items()}
    options = PpoOptions(steps=given.steps, seed=seed)
    variants: dict[str, dict[str, Any]] = {"even": {}, "searched": {"start": start}}
    if other is not None:
        theirs = sets_of(other, seed, given.batch)
        teacher = tuning.make_learner(theirs["tuning"], theirs["selection"], budgets, 0.05, options)
        list(teacher.iterate())
        variants["transfer"] = {"policy": teacher.best}
    branches = sets["test"].tasks[0].denoise.evaluations
    if branches > 1:
        variants["control"] = {"start": start, "control": True}
    rows = []
    for name, more in variants.items():
        scale = branches if name == "control" else 1
        mine = tuple(scale * budget for budget in budgets)
        learner = tuning.make_learner(sets["tuning"], sets["selection"], mine, 0.05, options, **more)

        def shares(learner: Any = learner, mine: Any = mine, scale: int = scale, more: Any = more) -> list[float]:
            of = [judge(learner.best, sets["test"], mine, scale * b, more) / searched[b] for b in budgets]
            return [float(np.mean(of)), *of]

        curve = [[0, *shares()]]
        for record in learner.iterate():
            curve.append([record.episodes, *shares()])
        reached = next((episodes for episodes, share, *_ in curve if share <= 1.0), None)
        rows.append({"seed": seed, "variant": name, "first_reaches": reached, "curve": curve, "searched": searched})
        even = {b: float(sets["test"].errors(uniform_grid(bundle.schedule, b)).mean()) for b in budgets}
        print(f"seed {seed} {name}: reaches searched grids at {reached}; ends at {curve[-1][1]:.3f} of them; "
              f"even grids are at {np.mean([even[b] / searched[b] for b in budgets]):.2f}", flush=True)  # fmt: skip
        print("   ", [(episodes, round(share, 3)) for episodes, share, *_ in curve], flush=True)
    return rows


def sets_of(bundle: Bundle, seed: int, batch: int) -> Sets:
    """Noises to learn on, to choose on and to judge on."""
    counts = {"tuning": 4 * batch, "selection": 2 * batch, "test": 8 * batch}
    return {
        purpose: bundle_problem(bundle, "dpmpp_2m", seed, purpose, count, batch, 64)[0]
        for purpose, count in counts.items()
    }


def judge(policy: Any, test: Problem, budgets: tuple[int, ...], budget: int, more: dict[str, Any]) -> float:
    """Mean error of the policy's likeliest actions, following its state on each batch of the test."""
    name = CONTROL_ENVIRONMENT_ID if more.get("control") else ENVIRONMENT_ID
    environment = gym.make(name, problem=test, budgets=budgets, start=more.get("start"))
    cases = [{"budget": budget, "task": task} for task in range(len(test.tasks))]
    return float(np.mean([greedy_episode(policy, environment, case)[1]["error"] for case in cases]))


if __name__ == "__main__":
    main()
