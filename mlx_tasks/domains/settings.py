"""Where tuning a sampler may start, for each domain: settings that were best for that domain's own images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.domains.detector import TABLE, UNKNOWN, read_table
from mlx_tasks.errors import DataError
from mlx_tasks.samplers.grids import Grid, make_grid
from mlx_tasks.samplers.solvers import find_solver


@dataclass(frozen=True)
class SamplerSettings:
    """A solver and a grid without its length.

    Attributes:
        solver: a name of `samplers.SOLVERS`.
        grid: a name of `samplers.GRIDS`.
        sigma_first, sigma_last: noise levels of the first and the last step.
    """

    solver: str
    grid: str
    sigma_first: float
    sigma_last: float

    def make_grid(self, schedule: NoiseSchedule, calls: int) -> Grid:
        """The longest grid that costs at most `calls` denoiser calls.  Raises: ValueError if no step fits."""
        steps = find_solver(self.solver).steps_within(calls)
        first, last = (round(float(schedule.t_from_sigma(s))) for s in (self.sigma_first, self.sigma_last))
        return make_grid(self.grid, schedule, steps, t_first=first, t_last=last)


def settings_for(domain: str, table: Path = TABLE) -> SamplerSettings:
    """The settings measured best for a domain, or over all domains for "unknown".

    "Best" is of the exact denoiser of a smoothed set of that domain's images at eight calls
    (benchmarks/domain_detector.py): a start for tuning, not its result.
    Raises: DataError for a domain that the table does not have, listing those it has.
    """
    settings = read_table(table).get("settings", {})
    if domain not in settings:
        raise DataError(f"no sampler settings for domain {domain!r}; there are: {', '.join(settings) or UNKNOWN}")
    row = settings[domain]
    return SamplerSettings(row["solver"], row["grid"], float(row["sigma_first"]), float(row["sigma_last"]))
