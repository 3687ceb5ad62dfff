"""Quality levels of a bundle: other steps for the same network, by what they give up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError
from mlx_tasks.models.limits import check_most, whole
from mlx_tasks.samplers.grids import Grid, grid_from_timesteps
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.solvers import SOLVERS

NAMES = ("fast", "balanced", "best")
_KEYS = {"solver", "timesteps", "learned", "frechet_distance"}


@dataclass(frozen=True)
class Level:
    """Steps of one quality level.

    Attributes:
        solver: a name of `samplers.solvers.SOLVERS`.
        timesteps: falling whole timesteps, one a step.
        learned: the steps of the solver `learned`, else None.
        frechet_distance: of the level's images to held-out ones when it was measured, or None.
    Raises: DataError naming the value and the rule it breaks.
    """

    solver: str
    timesteps: tuple[int, ...]
    learned: LearnedSteps | None = None
    frechet_distance: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", tuple(self.timesteps))
        if (
            not isinstance(self.solver, str)
            or self.solver not in SOLVERS
            or (self.solver == "learned") != (self.learned is not None)
        ):
            raise DataError(f"a level's solver must be one of {', '.join(SOLVERS)}, got {self.solver!r:.80}")
        check_timesteps(self.timesteps)
        if self.learned is not None and self.learned.num_steps != len(self.timesteps):
            raise DataError(f"a level has {self.learned.num_steps} learned steps, timesteps {len(self.timesteps)}")
        distance = self.frechet_distance
        if distance is not None and (isinstance(distance, bool) or not isinstance(distance, int | float)):
            raise DataError(f"a level's frechet_distance must be a number or null, got {distance!r:.80}")

    def steps(self, schedule: NoiseSchedule) -> Grid | LearnedSteps:
        """As a sampler takes them."""
        return self.learned or grid_from_timesteps(schedule, self.timesteps)

    @property
    def calls(self) -> int:
        """Network calls of an image, guidance not counted."""
        return SOLVERS[self.solver].calls(len(self.timesteps))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "solver": self.solver,
            "timesteps": list(self.timesteps),
            "learned": self.learned.to_dict() if self.learned else None,
            "frechet_distance": self.frechet_distance,
        }


def check_timesteps(steps: tuple[int, ...], name: str = "timesteps") -> None:
    """Raises: DataError unless they are whole, not negative and strictly falling."""
    check_most(f"the length of {name}", len(steps), "timesteps")
    if not steps or not all(whole(t, 0) for t in steps) or any(b >= a for a, b in pairwise(steps)):
        raise DataError(f"{name} must be whole, not negative and strictly falling, got {list(steps)!s:.200}")


def read_levels(values: Any) -> dict[str, Level]:
    """From a bundle's JSON.  Raises: DataError for another shape or an unknown name."""
    if not isinstance(values, Mapping) or set(values) - set(NAMES):
        raise DataError(f"levels must map names among {', '.join(NAMES)} to steps, got {values!r:.80}")
    levels = {}
    for name, one in values.items():
        try:
            learned = None if one.get("learned") is None else LearnedSteps.from_dict(one["learned"])
            if set(one) - _KEYS:
                raise DataError(f"level {name!r} may hold {', '.join(sorted(_KEYS))} only, got {', '.join(one):.80}")
            levels[name] = Level(one["solver"], tuple(one["timesteps"]), learned, one.get("frechet_distance"))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"level {name!r} must hold solver, timesteps and learned: {error}") from None
    return levels
