"""Stage `search_select`: the Pareto front of all trials, the student chosen from it, trained on.

work/search/study/study.log    the study, told everything
work/search/study/trials.json  every trial: number, generation's slot, state, reason, architecture, values
work/search/study/pareto.json  {objectives, rule, limit, front: [numbers], chosen: {...}, trials: [...], teacher: {...}}
work/searched/                 the chosen student as a bundle, the teacher's guidance folded into its weights
"""

from __future__ import annotations

import time
from typing import Any

from mlx_tasks.catalog import SEARCH_GENERATIONS
from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_folder, write_json
from mlx_tasks.models.bundle import Sampler, write_bundle
from mlx_tasks.models.unet2d import UNet2DModel
from mlx_tasks.samplers.grids import uniform_grid
from mlx_tasks.search import study as studies
from mlx_tasks.search.files import load_weights, plan_folder, read_results, result_path
from mlx_tasks.search.pareto import choose, pareto_front
from mlx_tasks.search.space import Architecture, Space
from mlx_tasks.search.teaching import Teaching, read_teaching
from mlx_tasks.stages.context import StageContext
from mlx_tasks.training.checkpoint import clear_checkpoints
from mlx_tasks.training.memory import micro_batch_limit

SOLVER, NUM_STEPS = "dpmpp_2m", 8
"""How the bundle is sampled until a schedule has been tuned for it."""


def run(context: StageContext) -> None:
    """Choose and train on.  Raises: DataError if no trial is complete; as training raises."""
    started = time.perf_counter()
    config, last, space = context.config, SEARCH_GENERATIONS - 1, Space.of(context.config)
    results = [r for g in range(SEARCH_GENERATIONS) for r in read_results(context.work, g)]
    with atomic_folder(context.work / "search" / "study") as fresh:
        studies.copy_log(plan_folder(context.work, last) / "study.log", fresh / "study.log")
        study = studies.open_study(fresh / "study.log", space, config.seed, SEARCH_GENERATIONS)
        studies.tell(study, space, results)
        trials = _with_costs(studies.rows(study, space), results)
        front, chosen = _choose(trials, config.search.max_quality_loss)
        write_json(fresh / "trials.json", {"trials": trials, "refused": studies.refusals(study)})

        teaching = read_teaching(context.work, context.config)
        batch = config.search.latency_batch
        student = _train_on(context, teaching, chosen)
        teacher_cost, cost, error = teaching.teacher_cost(batch), teaching.cost(student, batch), teaching.error(student)
        pareto = {
            "objectives": list(studies.OBJECTIVES),
            "rule": f"the fastest of the front within {config.search.max_quality_loss:g} of the best error",
            "limit": min(_error(t) for t in trials if t["values"]) * (1 + config.search.max_quality_loss),
            "front": front,
            "chosen": {
                "number": chosen["number"],
                "architecture": chosen["architecture"],
                "trial": chosen["values"],
                "final": {"error": error, **cost.as_dict()},
            },
            "trials": trials,
            "teacher": {"error": 0.0, "guidance_scale": teaching.scale, **teacher_cost.as_dict()},
        }
        write_json(fresh / "pareto.json", pareto)
    _write_student(context, teaching, student, pareto)
    states = [trial["state"] for trial in trials]
    metrics = {
        "trials": len(trials),
        "complete": states.count("COMPLETE"),
        "failed": states.count("FAIL"),
        "front": len(front),
        "chosen_trial": chosen["number"],
        "trial_error": chosen["values"]["error"],
        "error": error,
        "latency_ms": cost.latency_ms,
        "peak_memory_mb": cost.peak_memory_mb,
        "parameters": cost.parameters,
        "teacher_latency_ms": teacher_cost.latency_ms,
        "teacher_peak_memory_mb": teacher_cost.peak_memory_mb,
        "teacher_parameters": teacher_cost.parameters,
        "speedup": teacher_cost.latency_ms / cost.latency_ms,
        "seconds": time.perf_counter() - started,
    }
    write_json(context.work / "metrics" / "search.json", metrics)
    context.tracker.metrics({f"search/{name}": float(value) for name, value in metrics.items()}, 0)
    context.tracker.artifact(context.work / "search" / "study", "search")
    clear_checkpoints(context.checkpoints)
    context.progress.say(
        f"{len(front)} of {len(trials)} trials on the front; trial {chosen['number']} {chosen['architecture']}; "
        f"error {error:.4f}, {metrics['speedup']:.2f} times as fast as the teacher"
    )


def _with_costs(trials: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The study's rows with what only the results hold: generation, parameters, seconds."""
    by_number = {result["number"]: result for result in results}
    table = []
    for trial in trials:
        result = by_number[trial["number"]]
        table.append(
            {
                **trial,
                "generation": result["generation"],
                "parameters": result["cost"]["parameters"] if result["cost"] else None,
                "seconds": result["seconds"],
            }
        )
    return table


def _choose(trials: list[dict[str, Any]], max_quality_loss: float) -> tuple[list[int], dict[str, Any]]:
    """(trial numbers of the front, the chosen trial)."""
    complete = [trial for trial in trials if trial["values"]]
    if not complete:
        reasons = "; ".join(f"trial {trial['number']}: {trial['reason'] or trial['state']}" for trial in trials)
        raise DataError(f"no trial of the search is complete: {reasons}; widen the space or lower the learning rate")
    values = [[trial["values"][name] for name in studies.OBJECTIVES] for trial in complete]
    front = [complete[index]["number"] for index in pareto_front(values)]
    return front, complete[choose(values, max_quality_loss)]


def _error(trial: dict[str, Any]) -> float:
    return trial["values"]["error"]


def _train_on(context: StageContext, teaching: Teaching, chosen: dict[str, Any]) -> UNet2DModel:
    """The chosen trial's student, from where its trial left it."""
    search = context.config.search
    student = teaching.student(Architecture.from_dict(chosen["architecture"]))
    path = result_path(context.work, chosen["generation"], chosen["slot"]).with_suffix(".safetensors")
    load_weights(path, student)
    micro_batch = micro_batch_limit(context.hardware.max_micro_batch)
    steps = teaching.steps(student, search, search.final_updates, micro_batch, context.checkpoints, part="final")
    for record in steps:
        context.tracker.metrics(
            {
                "search/loss": record.loss,
                "search/learning_rate": record.learning_rate,
                "search/images_per_second": record.images_per_second,
                "search/peak_memory_mb": record.peak_memory_mb,
            },
            record.step,
        )
        context.progress.update(record.step, search.final_updates, phase="chosen student", loss=record.loss)
    return student


def _write_student(context: StageContext, teaching: Teaching, student: UNet2DModel, pareto: dict[str, Any]) -> None:
    source = teaching.teacher.sampler
    grid = uniform_grid(teaching.teacher.schedule, NUM_STEPS)
    sampler = Sampler(
        solver=SOLVER,
        timesteps=grid.timesteps,
        guidance_scale=1.0,
        nfe=NUM_STEPS,
        resolution=source.resolution,
        channels=source.channels,
        class_names=source.class_names,
        null_label=source.null_label,
    )
    lineage = {
        "made_by": "search",
        "teacher": teaching.teacher.digest,
        "folded_guidance_scale": teaching.scale,
        "trial": pareto["chosen"]["number"],
        "architecture": pareto["chosen"]["architecture"],
        "updates": {"trial": context.config.search.trial_updates, "final": context.config.search.final_updates},
        "seed": context.config.seed,
    }
    write_bundle(context.work / "searched", student, teaching.teacher.schedule, sampler, lineage)
