"""The search's files, one function each way: plans, trials' results, and the weights a trial ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_write_bytes, read_json
from mlx_tasks.models.unet2d import UNet2DModel
from mlx_tasks.search.study import Proposal


def plan_folder(work: Path, generation: int) -> Path:
    """Where a generation's plan lies: study.log and trials.json."""
    return work / "search" / f"plan_{generation}"


def result_path(work: Path, generation: int, slot: int) -> Path:
    """Where a trial's result lies; its weights are beside it."""
    return work / "search" / f"trials_{generation}" / f"{slot}.json"


def read_plan(work: Path, generation: int) -> list[Proposal]:
    """A generation's proposals, in the order of their slots.  Raises: DataError if there is no such plan."""
    path = plan_folder(work, generation) / "trials.json"
    if not path.is_file():
        raise DataError(f"no plan of generation {generation} at {path}: run search_plan --generation {generation}")
    return [Proposal.from_dict(values) for values in read_json(path)["slots"]]


def read_results(work: Path, generation: int) -> list[dict[str, Any]]:
    """The results of a generation, one a slot of its plan.  Raises: DataError naming the slots that have none."""
    slots = [proposal.slot for proposal in read_plan(work, generation)]
    missing = [slot for slot in slots if not result_path(work, generation, slot).is_file()]
    if missing:
        raise DataError(
            f"generation {generation} has no result of slots {missing}: run search_trial --generation {generation} "
            f"--slot {missing[0]}"
        )
    return [read_json(result_path(work, generation, slot)) for slot in slots]


def save_weights(path: Path, student: UNet2DModel | None) -> None:
    """Write a student's weights as they are (safetensors); an empty file of that kind for a trial that has none."""
    import numpy as np
    from safetensors.numpy import save

    arrays = {} if student is None else {name: np.array(value) for name, value in tree_flatten(student.parameters())}
    atomic_write_bytes(path, save(arrays))


def load_weights(path: Path, student: UNet2DModel) -> None:
    """Give a student the weights of `save_weights`.  Raises: DataError if they are another network's."""
    if not path.is_file():
        raise DataError(f"no weights at {path}: run the trial again")
    loaded: Any = mx.load(str(path))
    weights: dict[str, mx.array] = dict(loaded)
    expected = {name: value.shape for name, value in tree_flatten(student.parameters())}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise DataError(f"{path} does not hold the weights of the chosen architecture: run the trial again")
    mx.eval(weights)
    student.update(tree_unflatten(list(weights.items())))
