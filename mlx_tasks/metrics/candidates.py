"""Which samplers are scored: every bundle with every grid it may be sampled on, and why one was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.models.bundle import Sampler
from mlx_tasks.samplers.grids import Grid, grid_from_timesteps, make_grid
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.solvers import find_solver

TEACHER_METHODS = (("ddim", "uniform"), ("dpmpp_2m", "log_snr"), ("dpmpp_2m", "karras"))
"""How the teacher is sampled: the plain way, and the two good ones that need no training."""


@dataclass(frozen=True)
class Candidate:
    """One way of drawing images.

    Attributes:
        name: unique, fit for file and metric names.
        kind: teacher, student or searched.
        bundle: its folder, relative to the workspace.
        solver: a name of SOLVERS.
        grid: the grid's name.
        timesteps: falling whole timesteps.
        guidance_scale: 1.0 where guidance is baked in.
        nfe: network evaluations an image costs, both guidance branches counted.
        refused: why it may not win, empty if it may.
        learned: the steps of the solver `learned`.
    """

    name: str
    kind: Literal["teacher", "student", "searched"]
    bundle: str
    solver: str
    grid: str
    timesteps: tuple[int, ...]
    guidance_scale: float
    nfe: int
    refused: str = ""
    learned: LearnedSteps | None = None

    def steps(self, schedule: NoiseSchedule) -> Grid | LearnedSteps:
        """As `sample_bundle` takes them."""
        return self.learned or grid_from_timesteps(schedule, self.timesteps)


@dataclass(frozen=True)
class LeftOut:
    """A combination that was not scored, and why."""

    name: str
    reason: str


def teacher_candidates(
    bundle: str, sampler: Sampler, schedule: NoiseSchedule, nfe_budgets: Sequence[int]
) -> tuple[list[Candidate], list[LeftOut]]:
    """The guided teacher on each of its grids with the most steps each budget pays for."""
    candidates, left_out = [], []
    branches = branch_count(sampler.guidance_scale)
    for solver, grid in TEACHER_METHODS:
        for budget in nfe_budgets:
            name = f"teacher-{solver}-{grid}-nfe{budget}"
            calls = budget // branches
            if calls < find_solver(solver).calls(1):
                left_out.append(LeftOut(name, f"{budget} evaluations pay for no step of {solver} with guidance"))
                continue
            steps = find_solver(solver).steps_within(calls)
            nfe = branches * find_solver(solver).calls(steps)
            if any((c.solver, c.grid, c.nfe) == (solver, grid, nfe) for c in candidates):
                left_out.append(LeftOut(name, f"the same as with {nfe} evaluations"))
                continue
            if solver == "dpmpp_2m" and steps == 1:
                left_out.append(LeftOut(name, "one step of dpmpp_2m is one step of ddim"))
                continue
            timesteps = make_grid(grid, schedule, steps).timesteps
            twin = next((c for c in candidates if (c.solver, c.timesteps) == (solver, timesteps)), None)
            if twin is not None:
                left_out.append(LeftOut(name, f"the same grid as {twin.name}"))
                continue
            candidates.append(
                Candidate(
                    f"teacher-{solver}-{grid}-nfe{nfe}",
                    "teacher",
                    bundle,
                    solver,
                    grid,
                    timesteps,
                    sampler.guidance_scale,
                    nfe,
                )
            )
    return candidates, left_out


def own_candidate(
    name: str, kind: Literal["student", "searched"], bundle: str, sampler: Sampler, refused: str = ""
) -> Candidate:
    """A bundle sampled as its sampler.json says."""
    scale, nfe = sampler.guidance_scale, sampler.nfe
    return Candidate(name, kind, bundle, sampler.solver, "own", sampler.timesteps, scale, nfe, refused, sampler.learned)


def schedule_candidates(
    bundle: str, sampler: Sampler, grids: Sequence[dict[str, Any]]
) -> tuple[list[Candidate], list[LeftOut]]:
    """The searched student on each grid that the tune stage compared.

    Args:
        grids: mappings with budget (evaluations it might cost), grid (its name), solver, timesteps and learned (steps
            or None).
    """
    candidates: list[Candidate] = []
    left_out = []
    branches = branch_count(sampler.guidance_scale)
    for row in grids:
        solver, timesteps = row["solver"], tuple(int(t) for t in row["timesteps"])
        learned = None if row["learned"] is None else LearnedSteps.from_dict(row["learned"])
        nfe = branches * find_solver(solver).calls(len(timesteps))
        name = f"searched-{row['grid']}-nfe{nfe}" + (f"-of-{row['budget']}" if nfe != row["budget"] else "")
        same = (solver, timesteps, learned)
        twin = next((c for c in candidates if (c.solver, c.timesteps, c.learned) == same), None)
        if twin is not None:
            left_out.append(LeftOut(name, f"the same grid as {twin.name}"))
            continue
        scale = sampler.guidance_scale
        candidates.append(
            Candidate(name, "searched", bundle, solver, row["grid"], timesteps, scale, nfe, learned=learned)
        )
    return candidates, left_out


def branch_count(guidance_scale: float) -> int:
    """Network evaluations of one denoiser call: 2 where guidance runs both branches."""
    return 1 if guidance_scale in (0.0, 1.0) else 2
