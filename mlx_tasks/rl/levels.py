"""From an action to the next whole timestep, so that no sequence of actions makes a grid that is not one."""

from __future__ import annotations

import math
from collections.abc import Sequence

REACH = 2.0
"""How far an action of +-1 moves the step's length, in logits of the fraction of time that it takes."""


def default_fraction(index: int, num_steps: int) -> float:
    """The share of the time left that level `index` (from 0) of a grid takes where the action is 0.

    All of them together give the midpoint grid t_k = T (1 - (k + 1/2) / n) - 1, evenly spaced and half a step from
    either end: 1 / (2 n) for the first level, 1 / (n - k + 1/2) for level k.
    """
    return 1.0 / (2 * num_steps) if index == 0 else 1.0 / (num_steps - index + 0.5)


def fractions_of(timesteps: Sequence[int], total: int) -> tuple[float, ...]:
    """The share of the time left that each level of a known grid takes: what `next_timestep` takes as its defaults."""
    before = (total, *(t + 1 for t in timesteps[:-1]))
    return tuple(1.0 - (t + 1) / left for t, left in zip(timesteps, before, strict=True))


def next_timestep(action: float, index: int, num_steps: int, previous: int, default: float | None = None) -> int:
    """Timestep of level `index`: the time left after `previous`, shortened by a fraction that the action moves.

    u = (previous + 1) * (1 - sigmoid(logit(default) + REACH * action)),  t = round(u) - 1, put into
    [num_steps - 1 - index, previous - 1], which leaves a distinct timestep for each level still to come.

    action: clipped to [-1, 1]; above 0 the step is longer than the default.
    previous: timestep of the level before; the number of training timesteps for the first level.
    default: the fraction at action 0, where it is not that of the evenly spaced grid.
    Raises: ValueError for an action that is not a number, or where not enough timesteps are left.
    """
    if math.isnan(action):
        raise ValueError("an action must be a number, got nan")
    floor = num_steps - 1 - index
    if not 0 <= index < num_steps or floor > previous - 1:
        raise ValueError(f"level {index} of {num_steps} does not fit below timestep {previous}")
    default = default_fraction(index, num_steps) if default is None else min(max(default, 1e-6), 1.0 - 1e-6)
    logit = math.log(default / (1.0 - default)) + REACH * min(1.0, max(-1.0, action))
    start = previous if index == 0 else previous + 1
    time = start / (1.0 + math.exp(logit))  # start * (1 - sigmoid(logit))
    return min(max(round(time) - 1, floor), previous - 1)


def median_grid(grids: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """One grid for several: of those of the commonest length (the longer on a tie), the lower median level by level.

    The medians of strictly falling sequences fall strictly, and the lower one is a timestep that was chosen.
    Raises: ValueError for no grids.
    """
    if not grids:
        raise ValueError("the median of no grids has no value")
    lengths = [len(grid) for grid in grids]
    length = max(set(lengths), key=lambda n: (lengths.count(n), n))
    kept = [grid for grid in grids if len(grid) == length]
    return tuple(sorted(levels)[(len(kept) - 1) // 2] for levels in zip(*kept, strict=True))
