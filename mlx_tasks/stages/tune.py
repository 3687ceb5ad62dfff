"""Stage `tune`: steps for the searched student by every method that is asked for, compared on fresh noise.

work/schedules/schedules.json  solver; reference; noises; plan (what the time allowed, and what was left out);
                               rewards (one row an iteration of PPO);
                               rows: one for each budget and method {budget, grid, solver, timesteps, learned, nfe,
                               error, low, high, learning_evaluations, learning_seconds, kept};
                               budgets: {budget: {methods, kept, rival, difference, verdict, ppo_batches_agree}}
work/schedules/policy/         PPO's policy: safetensors and JSON
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_tasks.config import Tune
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.domains.book import SettingsBook
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, read_json, write_json
from mlx_tasks.learned_steps.methods import Effort, find_steps
from mlx_tasks.models.bundle import Bundle, read_bundle
from mlx_tasks.rl import tuning
from mlx_tasks.rl.comparison import PPO, compare
from mlx_tasks.rl.effort import Plan, make_plan
from mlx_tasks.rl.plain_search import TUNED, Found
from mlx_tasks.rl.policy import save_policy
from mlx_tasks.rl.ppo import Learner, PpoOptions
from mlx_tasks.rl.problem import Meter, Problem, bundle_problem, reference_grid
from mlx_tasks.samplers.grids import Grid, grid_from_timesteps
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.stages.context import StageContext
from mlx_tasks.training.checkpoint import clear_checkpoints

SOLVER = "dpmpp_2m"
REMEMBERED = "remembered"
PROBED_NOISES, PROBED_STEPS = 4, 2
"""Of the runs that tell what an evaluation costs."""


def run(context: StageContext) -> None:
    """Learn and compare.  Raises: DataError for a bundle whose guidance is not folded in."""
    tune, seed, bundle = context.config.tune, context.config.seed, read_bundle(context.work / "searched")
    if bundle.sampler.guidance_scale not in (0.0, 1.0):
        raise DataError(
            f"the searched student is sampled with guidance {bundle.sampler.guidance_scale:g}, two evaluations a step: "
            "fold the guidance in, as search_select does"
        )
    plan = _plan(context, bundle)
    size, counts = plan.size, plan.size.noises
    problems, reference = {}, Meter()
    for number, (purpose, count) in enumerate(counts.items()):
        context.progress.update(number, len(counts), "sets of noises", phase="many-step results")
        problems[purpose], cost = bundle_problem(bundle, SOLVER, seed, purpose, count, size.batch, size.reference_steps)
        reference = Meter(reference.evaluations + cost.evaluations, reference.seconds + cost.seconds)
    remembered, book = _remembered(context, bundle.schedule)
    told = [bundle.digest, tune.model_dump(mode="json"), seed, book, asdict(size), plan.tries, plan.methods]
    identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()

    found = {n: _find(context, problems, n, identity, remembered[n], plan) for n in tune.nfe_budgets}
    agree: dict[int, bool | None] = dict.fromkeys(tune.nfe_budgets)
    start = {budget: best_start(of_budget) for budget, of_budget in found.items()}
    learner = None
    if PPO in plan.methods:
        learner = _learn(context, problems["tuning"], problems["selection"], identity, start)
        cost = (learner.history[-1].evaluations, sum(record.seconds for record in learner.history))
        for budget in tune.nfe_budgets:
            exported = tuning.export_grid(learner.best, problems["selection"], tune.nfe_budgets, budget, start)
            grid, agree[budget] = grid_from_timesteps(bundle.schedule, exported.timesteps), exported.agree
            found[budget][PPO] = Found(grid, 0.0, len(learner.history), *cost)
    budgets, rows = _compare(context, problems["test"], found, agree)

    with atomic_folder(context.work / "schedules") as fresh:
        if learner:
            notes = {"solver": SOLVER, "budgets": list(tune.nfe_budgets), "bundle": bundle.digest}
            notes |= {"start": {str(budget): list(grid) for budget, grid in start.items()}}
            save_policy(fresh / "policy", learner.best, notes)
        schedules = {
            "solver": SOLVER,
            "rows": rows,
            "budgets": budgets,
            "reference": {
                "steps": size.reference_steps,
                "timesteps": list(reference_grid(bundle.schedule, size.reference_steps).timesteps),
                "evaluations": reference.evaluations,
                "seconds": reference.seconds,
            },
            "noises": counts,
            "plan": plan.to_dict() | {"max_minutes": tune.max_minutes},
            "settings_book": book,
            "rewards": [asdict(record) for record in learner.history] if learner else [],
        }
        write_json(fresh / "schedules.json", schedules)
    _record(context, tune, schedules)
    clear_checkpoints(context.checkpoints)


def _plan(context: StageContext, bundle: Bundle) -> Plan:
    """What the time allows; that of an earlier attempt of the same work where there is one."""
    tune, path = context.config.tune, context.checkpoints / "plan.json"
    asked = [bundle.digest, tune.model_dump(mode="json"), context.config.seed]
    kept: dict[str, Any] = read_json(path) if path.is_file() else {}
    if kept.get("asked") != asked:
        cost = Meter()
        for _ in range(2):  # the first run compiles and reads weights
            few = min(tune.batch_size, PROBED_NOISES)
            cost = bundle_problem(bundle, SOLVER, context.config.seed, "probe", few, few, PROBED_STEPS)[1]
        kept = {"asked": asked, "plan": make_plan(tune, cost.seconds / max(1, cost.evaluations)).to_dict()}
        write_json(path, kept)
    plan = Plan.from_dict(kept["plan"])
    for name, why in plan.left_out.items():
        context.progress.say(f"{name}: left out or less, {why}")
    return plan


def _remembered(context: StageContext, schedule: NoiseSchedule) -> tuple[dict[int, Grid | None], str | None]:
    """Budget -> the grid of the nearest images' runs, and the book's digest; nothing where it is not asked for."""
    budgets = context.config.tune.nfe_budgets
    if REMEMBERED not in context.config.tune.methods:
        return dict.fromkeys(budgets), None
    book = SettingsBook.load(context.root / "include" / "sampler_settings.json")
    statistics = read_json(context.work / "dataset" / "summary.json")["domain"]["statistics"]
    return {budget: book.grid_for(statistics, budget, schedule) for budget in budgets}, book.digest


def _find(
    context: StageContext,
    problems: dict[str, Problem],
    budget: int,
    identity: str,
    remembered: Grid | None,
    plan: Plan,
) -> dict[str, Found]:
    """What each method but PPO found for a budget; what a killed run had found whole is read back."""
    tune, path = context.config.tune, context.checkpoints / f"found_{budget}.json"
    kept: dict[str, Any] = read_json(path) if path.is_file() else {}
    if kept.get("identity") != identity:
        effort = Effort(plan.tries, tune.gradient_iterations, context.config.seed)
        phase = f"steps for {budget} evaluations"

        def said(method: str, iteration: int, error: float) -> None:
            context.progress.update(iteration, tune.gradient_iterations, "iterations", phase=method, error=error)
            context.tracker.metrics({f"tune/{method}_nfe{budget}_error": error}, iteration)

        results = {}
        context.progress.update(0, len(TUNED) + len(plan.methods), "methods", phase=phase)
        for name, one in find_steps(
            problems["tuning"], problems["selection"], budget, plan.methods, effort, said, remembered
        ):
            results[name] = _plain(one)
            context.progress.update(len(results), len(TUNED) + len(plan.methods), "methods", phase=phase)
        kept = {"identity": identity, "found": results}
        write_json(path, kept)
    return {name: _found(problems["tuning"], values) for name, values in kept["found"].items()}


def _plain(found: Found) -> dict[str, Any]:
    learned = found.grid.to_dict() if isinstance(found.grid, LearnedSteps) else None
    timesteps = None if isinstance(found.grid, LearnedSteps) else list(found.grid.timesteps)
    costs = {"tried": found.tried, "evaluations": found.evaluations, "seconds": found.seconds}
    return {"learned": learned, "timesteps": timesteps, "error": found.error, **costs}


def _found(problem: Problem, values: dict[str, Any]) -> Found:
    if values["learned"]:
        steps: Any = LearnedSteps.from_dict(values["learned"])
    else:
        steps = grid_from_timesteps(problem.schedule, values["timesteps"])
    return Found(steps, values["error"], values["tried"], values["evaluations"], values["seconds"])


def best_start(found: dict[str, Found]) -> tuple[int, ...]:
    """Timesteps of the best grid of searched ends, or the remembered one: what PPO starts from, as other methods do."""
    grid = min((found[name] for name in (*TUNED, REMEMBERED) if name in found), key=lambda one: one.error).grid
    assert isinstance(grid, Grid)
    return grid.timesteps


def _learn(
    context: StageContext, problem: Problem, selection: Problem, identity: str, start: dict[int, tuple[int, ...]]
) -> Learner:
    tune = context.config.tune
    options = PpoOptions(
        steps=tune.ppo_steps, num_envs=tune.num_envs, seed=context.config.seed, patience=tune.ppo_patience
    )
    learner = tuning.make_learner(problem, selection, tune.nfe_budgets, tune.speed_weight, options, start=start)
    total = options.iterations * options.steps_per_env * options.num_envs
    for record in learner.iterate(context.checkpoints / "ppo", identity):
        rewards = {"greedy_reward": record.greedy_reward, "best_reward": record.best_reward}
        if record.reward is not None:
            rewards["reward"] = record.reward
        context.tracker.metrics({f"tune/{name}": value for name, value in rewards.items()}, record.steps)
        context.progress.update(record.steps, total, "environment steps", phase="PPO", **rewards)
    return learner


def _compare(
    context: StageContext, test: Problem, found: dict[int, dict[str, Found]], agree: dict[int, bool | None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what schedules.json holds by budget, its rows)."""
    budgets, rows = {}, []
    for budget, of_budget in found.items():
        methods, verdict = compare(test, budget, of_budget, context.config.seed)
        budgets[str(budget)] = {
            "methods": methods,
            "kept": verdict.kept,
            "rival": verdict.rival,
            "difference": verdict.difference.as_dict(),
            "verdict": verdict.text,
            "ppo_batches_agree": agree[budget],
        }
        rows += [
            {"budget": budget, "grid": name, **values, "kept": name == verdict.kept} for name, values in methods.items()
        ]
        context.progress.say(f"{budget} evaluations: {verdict.text}")
    return budgets, rows


def _record(context: StageContext, tune: Tune, schedules: dict[str, Any]) -> None:
    metrics: dict[str, float | str] = {}
    for budget, entry in schedules["budgets"].items():
        methods, kept = entry["methods"], entry["kept"]
        metrics[f"nfe{budget}_kept"] = kept
        metrics[f"nfe{budget}_kept_error"] = methods[kept]["error"]
        metrics[f"nfe{budget}_tuned_error"] = min(methods[name]["error"] for name in TUNED)
        for name in (one for one in ("uniform", *tune.methods) if one in methods):
            metrics[f"nfe{budget}_{name}_error"] = methods[name]["error"]
    if schedules["rewards"]:
        last = schedules["rewards"][-1]
        metrics |= {
            "ppo_best_reward": last["best_reward"],
            "ppo_evaluations": last["evaluations"],
            "ppo_seconds": sum(record["seconds"] for record in schedules["rewards"]),
        }
    rows = [row for row in schedules["rows"] if row["grid"] != PPO]
    metrics |= {
        "search_evaluations": sum(row["learning_evaluations"] for row in rows),
        "search_seconds": sum(row["learning_seconds"] for row in rows),
    }
    path: Path = context.work / "metrics" / "tune.json"
    write_json(path, metrics)
    numbers = {f"tune/{name}": float(value) for name, value in metrics.items() if not isinstance(value, str)}
    context.tracker.metrics(numbers, tune.ppo_steps)
    context.tracker.artifact(context.work / "schedules", "schedules")
