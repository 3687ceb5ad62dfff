"""From what a request says about steps to how its images are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx_tasks.errors import DataError
from mlx_tasks.samplers.grids import GRID_ALIASES, GRIDS, make_grid
from mlx_tasks.samplers.solvers import ALIASES, SOLVERS, find_solver
from mlx_tasks.serving.engine import Plan

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

MOST_EVALUATIONS = 200
QUALITIES = {
    "fast": "fast",
    "balanced": "balanced",
    "best": "best",
    "auto": "balanced",
    "standard": "balanced",
    "low": "fast",
    "medium": "balanced",
    "high": "best",
    "hd": "best",
    "xhigh": "best",
    "max": "best",
}
"""Quality levels, and the words that OpenAI's clients have for them; a model that lacks one is drawn its own way."""
OWN, CUSTOM = "own", "custom"


def plan_name(
    bundle: Bundle, quality: str | None = None, steps: int | None = None, guidance: float | None = None
) -> str:
    """What a plan of these is called: "own", a level that the bundle has, or "custom"."""
    if steps is not None or guidance is not None:
        return CUSTOM
    level = QUALITIES.get(quality or "", "")
    return level if level in bundle.sampler.levels else OWN


def make_plan(
    bundle: Bundle,
    quality: str | None = None,
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    guidance: float | None = None,
) -> Plan:
    """How to draw with a bundle: its own way, a quality level's, or so many steps of a solver on a named grid.

    A level that the bundle was not registered with is its own way, which `plan_name` tells.
    steps: network calls of an image, guidance not counted; solver: dpmpp_2m unless told; grid: log_snr unless told.
    guidance: a scale in place of the bundle's.
    Raises: DataError naming the value, the rule and what there is.
    """
    plan = Plan.own(bundle)
    if steps is None and (solver or grid):
        raise DataError("steps: a solver or a grid goes with a number of steps: give steps, or a quality alone")
    if steps is not None:
        if quality is not None:
            raise DataError("quality: it picks the steps, so give either quality or steps")
        plan = _stepped(bundle, steps, solver or "dpmpp_2m", grid or "log_snr", plan)
    elif quality is not None:
        if quality not in QUALITIES:
            raise DataError(f"quality: one of {', '.join(QUALITIES)}, got {quality!r}")
        level = bundle.sampler.levels.get(QUALITIES[quality])
        if level is not None:
            plan = Plan(level.steps(bundle.schedule), level.solver, plan.guidance)
    if guidance is not None:
        if guidance != 1.0 and bundle.sampler.null_label is None:
            raise DataError(f"guidance: this model was trained without an empty class, so only 1.0, got {guidance:g}")
        plan = Plan(plan.steps, plan.solver, float(guidance))
    return plan


def _stepped(bundle: Bundle, calls: int, solver: str, grid: str, own: Plan) -> Plan:
    name = ALIASES.get(solver, solver)
    if name not in SOLVERS or name == "learned":
        names = ", ".join(key for key in (*SOLVERS, *ALIASES) if key != "learned")
        raise DataError(f"solver: one of {names}, got {solver!r}")
    if grid not in GRIDS and grid not in GRID_ALIASES:
        raise DataError(f"grid: one of {', '.join((*GRIDS, *GRID_ALIASES))}, got {grid!r}")
    if not 1 <= calls <= MOST_EVALUATIONS:
        raise DataError(f"steps: 1 to {MOST_EVALUATIONS} network calls, got {calls}")
    try:
        intervals = find_solver(name).steps_within(calls)
        return Plan(make_grid(grid, bundle.schedule, intervals), name, own.guidance)
    except ValueError as error:
        raise DataError(f"steps: {error}") from None
