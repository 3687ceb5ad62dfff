"""Stage `tune`: step grids for the searched student, by PPO and by plain search, compared on fresh noise.

work/schedules/schedules.json  solver; reference; noises; rewards (one row an iteration of PPO);
                               rows: one for each budget and method {budget, grid, solver, timesteps, nfe, error, low,
                               high, learning_evaluations, learning_seconds, kept};
                               budgets: {budget: {methods, kept, rival, difference, verdict, ppo_batches_agree}}
work/schedules/policy/         PPO's policy: safetensors and JSON
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_tasks.config import Tune
from mlx_tasks.files import atomic_folder, read_json, write_json
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.rl import tuning
from mlx_tasks.rl.comparison import PPO
from mlx_tasks.rl.plain_search import Found
from mlx_tasks.rl.policy import save_policy
from mlx_tasks.rl.ppo import Learner, PpoOptions
from mlx_tasks.rl.problem import Meter, Problem, bundle_problem, reference_grid
from mlx_tasks.samplers.grids import grid_from_timesteps
from mlx_tasks.stages.context import StageContext
from mlx_tasks.training.checkpoint import clear_checkpoints

logger = logging.getLogger(__name__)

SOLVER = "dpmpp_2m"
TUNING_BATCHES, SELECTION_BATCHES = 4, 2
"""Batches that are learned on, and those that choose among policies and turn the policy into a grid."""


def run(context: StageContext) -> None:
    """Learn and compare.  Raises: DataError for a bundle whose guidance is not folded in."""
    tune, seed, bundle = context.config.tune, context.config.seed, read_bundle(context.work / "searched")
    counts = {
        "tuning": TUNING_BATCHES * tune.batch_size,
        "selection": SELECTION_BATCHES * tune.batch_size,
        "test": tune.test_noises,
    }
    problems, reference = {}, Meter()
    for number, (purpose, count) in enumerate(counts.items()):
        context.progress.update(number, len(counts), "sets of noises", phase="many-step results")
        problems[purpose], cost = bundle_problem(
            bundle, SOLVER, seed, purpose, count, tune.batch_size, tune.reference_steps
        )
        reference = Meter(reference.evaluations + cost.evaluations, reference.seconds + cost.seconds)
    identity = hashlib.sha256(json.dumps([bundle.digest, tune.model_dump(mode="json"), seed]).encode()).hexdigest()

    tuned = _tune_plainly(context, problems["tuning"], identity)
    learner = _learn(context, problems["tuning"], problems["selection"], identity)
    budgets, rows = _compare(context, problems, tuned, learner)

    with atomic_folder(context.work / "schedules") as fresh:
        notes = {"solver": SOLVER, "budgets": list(tune.nfe_budgets), "bundle": bundle.digest}
        save_policy(fresh / "policy", learner.best, notes)
        schedules = {
            "solver": SOLVER,
            "rows": rows,
            "budgets": budgets,
            "reference": {
                "steps": tune.reference_steps,
                "timesteps": list(reference_grid(bundle.schedule, tune.reference_steps).timesteps),
                "evaluations": reference.evaluations,
                "seconds": reference.seconds,
            },
            "noises": counts,
            "rewards": [asdict(record) for record in learner.history],
        }
        write_json(fresh / "schedules.json", schedules)
    _record(context, tune, schedules)
    clear_checkpoints(context.checkpoints)


def _tune_plainly(context: StageContext, problem: Problem, identity: str) -> dict[int, dict[str, Found]]:
    """Tuned grids by budget; those that a killed run had found already are read back."""
    tune, path = context.config.tune, context.checkpoints / "plain.json"
    kept: dict[str, Any] = read_json(path) if path.is_file() else {}
    kept = kept if kept.get("identity") == identity else {"identity": identity, "budgets": {}}
    found = {}
    for number, budget in enumerate(tune.nfe_budgets):
        context.progress.update(number, len(tune.nfe_budgets), "budgets", phase="plain search")
        if str(budget) not in kept["budgets"]:
            results = tuning.tuned_grids(problem, budget, tune.search_evaluations, context.config.seed)
            kept["budgets"][str(budget)] = {
                name: {**asdict(result), "grid": list(result.grid.timesteps)} for name, result in results.items()
            }
            write_json(path, kept)
        found[budget] = {
            name: Found(**{**values, "grid": grid_from_timesteps(problem.schedule, values["grid"])})
            for name, values in kept["budgets"][str(budget)].items()
        }
    return found


def _learn(context: StageContext, problem: Problem, selection: Problem, identity: str) -> Learner:
    tune = context.config.tune
    options = PpoOptions(steps=tune.ppo_steps, num_envs=tune.num_envs, seed=context.config.seed)
    learner = tuning.make_learner(problem, selection, tune.nfe_budgets, tune.speed_weight, options)
    total = options.iterations * options.steps_per_env * options.num_envs
    for record in learner.iterate(context.checkpoints / "ppo", identity):
        rewards = {"greedy_reward": record.greedy_reward, "best_reward": record.best_reward}
        if record.reward is not None:
            rewards["reward"] = record.reward
        context.tracker.metrics({f"tune/{name}": value for name, value in rewards.items()}, record.steps)
        context.progress.update(record.steps, total, "environment steps", phase="PPO", **rewards)
    return learner


def _compare(
    context: StageContext, problems: dict[str, Problem], tuned: dict[int, dict[str, Found]], learner: Learner
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what schedules.json holds by budget, its rows)."""
    tune, policy = context.config.tune, learner.best
    cost = (learner.history[-1].evaluations, sum(record.seconds for record in learner.history))
    budgets, rows = {}, []
    for budget in tune.nfe_budgets:
        exported = tuning.export_grid(policy, problems["selection"], tune.nfe_budgets, budget)
        methods, verdict = tuning.compare(problems["test"], budget, tuned[budget], exported, cost, context.config.seed)
        budgets[str(budget)] = {
            "methods": methods,
            "kept": verdict.kept,
            "rival": verdict.rival,
            "difference": verdict.difference.as_dict(),
            "verdict": verdict.text,
            "ppo_batches_agree": exported.agree,
        }
        rows += [
            {"budget": budget, "grid": name, "solver": SOLVER, **values, "kept": name == verdict.kept}
            for name, values in methods.items()
        ]
        context.progress.say(f"{budget} evaluations: {verdict.text}")
    return budgets, rows


def _record(context: StageContext, tune: Tune, schedules: dict[str, Any]) -> None:
    metrics: dict[str, float | str] = {}
    for budget, entry in schedules["budgets"].items():
        methods, kept = entry["methods"], entry["kept"]
        metrics[f"nfe{budget}_kept"] = kept
        metrics[f"nfe{budget}_kept_error"] = methods[kept]["error"]
        metrics[f"nfe{budget}_ppo_error"] = methods[PPO]["error"]
        metrics[f"nfe{budget}_tuned_error"] = min(methods[name]["error"] for name in tuning.TUNED)
        metrics[f"nfe{budget}_uniform_error"] = methods["uniform"]["error"]
    last = schedules["rewards"][-1]
    rows = [row for row in schedules["rows"] if row["grid"] in tuning.TUNED]
    metrics |= {
        "ppo_kept": sum(entry["kept"] == PPO for entry in schedules["budgets"].values()),
        "ppo_best_reward": last["best_reward"],
        "ppo_evaluations": last["evaluations"],
        "ppo_seconds": sum(record["seconds"] for record in schedules["rewards"]),
        "tuned_evaluations": sum(row["learning_evaluations"] for row in rows),
        "tuned_seconds": sum(row["learning_seconds"] for row in rows),
    }
    path: Path = context.work / "metrics" / "tune.json"
    write_json(path, metrics)
    numbers = {f"tune/{name}": float(value) for name, value in metrics.items() if not isinstance(value, str)}
    context.tracker.metrics(numbers, tune.ppo_steps)
    context.tracker.artifact(context.work / "schedules", "schedules")
