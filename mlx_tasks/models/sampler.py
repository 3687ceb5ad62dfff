"""sampler.json: how a bundle's model is sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mlx_tasks.errors import DataError
from mlx_tasks.models.levels import Level, check_timesteps, read_levels
from mlx_tasks.models.limits import MOST_CHARACTERS, check_most, whole
from mlx_tasks.samplers.learned import LearnedSteps
from mlx_tasks.samplers.solvers import SOLVERS

SAMPLER = "sampler.json"


@dataclass(frozen=True)
class Sampler:
    """How a bundle's model is sampled.

    Attributes:
        solver: a name of `samplers.solvers.SOLVERS`.
        timesteps: falling whole timesteps, one a step.
        guidance_scale: eps_u + scale * (eps_c - eps_u); 1.0 means none, or baked into the weights.
        nfe: network evaluations of one image: the solver's calls, twice if both branches run.
        resolution: image side (pixels).
        channels: colour channels.
        class_names: label i means class_names[i]; empty for a model without classes.
        null_label: the label that means "none", or None.
        learned: the steps of the solver `learned`, else None.  diffusers has no such solver: the timesteps are then the
            nearest whole ones, with which its DPM-Solver++(2M) draws images of the same noise, but not the same images.
        levels: other steps by quality level, for a server's callers to choose from.

    Raises: DataError naming the value and the rule it breaks.
    """

    solver: str
    timesteps: tuple[int, ...]
    guidance_scale: float
    nfe: int
    resolution: int
    channels: int
    class_names: tuple[str, ...] = ()
    null_label: int | None = None
    learned: LearnedSteps | None = None
    levels: Mapping[str, Level] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_values(self)
        object.__setattr__(self, "timesteps", tuple(self.timesteps))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if (self.solver == "learned") != (self.learned is not None):
            raise DataError(f"sampler.learned goes with the solver 'learned' and with no other, got {self.solver!r}")
        if self.learned is not None and self.learned.num_steps != len(self.timesteps):
            raise DataError(f"sampler.learned has {self.learned.num_steps} steps, timesteps {len(self.timesteps)}")
        if self.learned is None and (self.solver not in SOLVERS or not SOLVERS[self.solver].diffusers):
            known = ", ".join(name for name, solver in SOLVERS.items() if solver.diffusers)
            raise DataError(f"sampler.solver must be one that diffusers has too ({known}), got {self.solver!r:.80}")
        steps = self.timesteps
        check_timesteps(steps, "sampler.timesteps")
        evaluations = 1 if self.guidance_scale in (0.0, 1.0) else 2
        nfe = evaluations * SOLVERS[self.solver].calls(len(steps))
        if self.nfe != nfe:
            raise DataError(
                f"sampler.nfe must be {nfe} ({len(steps)} steps of {self.solver}, guidance {self.guidance_scale:g}), "
                f"got {self.nfe}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Sampler:
        """The sampler of a sampler.json.  Raises: DataError for missing or unknown keys, and as the class does."""
        names = {one.name for one in fields(cls)}
        values = {"learned": None, "levels": {}, **values}  # older bundles have neither
        if set(values) != names:
            raise DataError(
                f"{SAMPLER} must hold exactly {', '.join(sorted(names))}; missing {sorted(names - set(values))}, "
                f"unknown {sorted(set(values) - names)}"
            )
        learned = None if values["learned"] is None else LearnedSteps.from_dict(values["learned"])
        return cls(**{**values, "learned": learned, "levels": read_levels(values["levels"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        plain |= {"timesteps": list(self.timesteps), "class_names": list(self.class_names)}
        plain |= {"levels": {name: level.to_dict() for name, level in self.levels.items()}}
        return plain | {"learned": self.learned.to_dict() if self.learned else None}


def _check_values(sampler: Sampler) -> None:
    """Each value alone: its kind, and its size."""
    if not isinstance(sampler.solver, str):
        raise DataError(f"sampler.solver must be a name, got {sampler.solver!r:.80}")
    scale = sampler.guidance_scale
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise DataError(f"sampler.guidance_scale must be a finite number, got {scale!r:.80}")
    for name in ("nfe", "resolution", "channels"):
        if not whole(getattr(sampler, name)):
            raise DataError(f"sampler.{name} must be a whole number of at least 1, got {getattr(sampler, name)!r:.80}")
    for name in ("resolution", "channels"):
        check_most(f"sampler.{name}", getattr(sampler, name))
    if sampler.null_label is not None and not whole(sampler.null_label, 0):
        raise DataError(f"sampler.null_label must be a label or null, got {sampler.null_label!r:.80}")
    for name in ("timesteps", "class_names"):
        if not isinstance(getattr(sampler, name), list | tuple):
            raise DataError(f"sampler.{name} must be a list, got {getattr(sampler, name)!r:.80}")
    names = sampler.class_names
    check_most("the length of sampler.class_names", len(names), "class_names")
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > MOST_CHARACTERS:
            raise DataError(f"sampler.class_names must be texts of 1 to {MOST_CHARACTERS} characters, got {name!r:.80}")
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"sampler.class_names must differ, {twice!r:.80} is there twice: who asks for it means which?")
