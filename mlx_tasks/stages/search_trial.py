"""Stage `search_trial`: train and measure one architecture; needs the plan and no study.

work/search/trials_{g}/{slot}.json         {generation, slot, number, state, reason, architecture, values, cost,
                                           seconds}; state is COMPLETE, FAIL (with a reason) or SKIPPED (nothing left)
work/search/trials_{g}/{slot}.safetensors  the weights at the end, which the chosen student goes on from
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import mlx.core as mx

from mlx_tasks.errors import DataError, DivergedError, OutOfMemoryError
from mlx_tasks.files import write_json
from mlx_tasks.models.unet2d import UNet2DModel
from mlx_tasks.search.files import read_plan, result_path, save_weights
from mlx_tasks.search.space import Architecture
from mlx_tasks.search.study import OBJECTIVES
from mlx_tasks.search.teaching import read_teaching
from mlx_tasks.stages.context import StageContext
from mlx_tasks.training.checkpoint import clear_checkpoints
from mlx_tasks.training.memory import micro_batch_limit

logger = logging.getLogger(__name__)

_LEAST_MICRO_BATCH = 8


def run(context: StageContext, generation: int, slot: int) -> None:
    """Write one trial's result. A candidate that cannot be trained here is a result (FAIL), not an error.

    Raises: DataError if the plan has no such slot.
    """
    proposal = next((p for p in read_plan(context.work, generation) if p.slot == slot), None)
    if proposal is None:
        raise DataError(f"the plan of generation {generation} has no slot {slot}: plan again, or name another slot")
    started = time.perf_counter()
    result: dict[str, Any] = {"generation": generation, "slot": slot, "number": proposal.number}
    result |= {"architecture": None, "values": None, "cost": None}
    student = None
    if proposal.architecture is None:
        result |= {"state": "SKIPPED", "reason": "every architecture of the space has been tried"}
    else:
        result["architecture"] = proposal.architecture.as_dict()
        student, outcome = _attempt(context, proposal.architecture)
        result |= outcome
    result["seconds"] = time.perf_counter() - started
    path = result_path(context.work, generation, slot)
    save_weights(path.with_suffix(".safetensors"), student)
    write_json(path, result)
    clear_checkpoints(context.checkpoints)
    _tell(context, result)


def _attempt(context: StageContext, architecture: Architecture) -> tuple[UNet2DModel | None, dict[str, Any]]:
    """(student, what came of it). Out of memory, it goes on from its checkpoint with half the images at once."""
    search, teaching = context.config.search, read_teaching(context.work, context.config)
    micro_batch = micro_batch_limit(context.hardware.max_micro_batch)
    while True:
        try:
            student = teaching.student(architecture)
            for record in teaching.steps(student, search, search.trial_updates, micro_batch, context.checkpoints):
                context.tracker.metrics(
                    {
                        "search/loss": record.loss,
                        "search/learning_rate": record.learning_rate,
                        "search/images_per_second": record.images_per_second,
                        "search/peak_memory_mb": record.peak_memory_mb,
                    },
                    record.step,
                )
                context.progress.update(record.step, search.trial_updates, phase="trial", loss=record.loss)
            cost = teaching.cost(student, search.latency_batch)
            values = dict(zip(OBJECTIVES, (teaching.error(student), cost.latency_ms, cost.peak_memory_mb), strict=True))
            if not all(math.isfinite(value) for value in values.values()):
                return None, {"state": "FAIL", "reason": f"an objective is not finite: {values}"}
            return student, {"state": "COMPLETE", "reason": "", "values": values, "cost": cost.as_dict()}
        except OutOfMemoryError as error:
            if micro_batch <= _LEAST_MICRO_BATCH:
                return None, {"state": "FAIL", "reason": str(error)}
            micro_batch //= 2
            mx.clear_cache()
            logger.warning("trial=out-of-memory micro_batch=%d", micro_batch)
        except (DivergedError, DataError) as error:
            return None, {"state": "FAIL", "reason": str(error)}


def _tell(context: StageContext, result: dict[str, Any]) -> None:
    context.tracker.params({f"architecture.{k}": v for k, v in (result["architecture"] or {}).items()})
    context.tracker.tags({"trial_state": result["state"], "trial_reason": result["reason"]})
    if result["values"] is None:
        context.progress.say(f"{result['state']}: {result['reason']}")
        return
    context.tracker.metrics({f"search/{name}": value for name, value in result["values"].items()}, 0)
    values = result["values"]
    context.progress.say(
        f"error {values['error']:.4f}  {values['latency_ms']:.2f} ms a batch of {result['cost']['batch']}  "
        f"{values['peak_memory_mb']:.1f} MiB  {result['cost']['parameters']} parameters"
    )
