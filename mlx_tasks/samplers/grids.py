"""Which noise levels a sampler visits. Grids hold whole timesteps, so that diffusers can be given the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mlx_tasks.diffusion.schedule import NoiseSchedule

EDM_SIGMA_MAX = 80.0
"""Where the log-SNR and Karras grids start by default (Karras et al. 2022, Table 1): a cosine schedule goes on to
20,000, and steps spent up there do nothing."""


@dataclass(frozen=True)
class Grid:
    """The visits of one sampling run.

    Attributes:
        timesteps: falling, one for each step.
        sigmas: the timesteps' noise levels and a final 0.0, one more than there are steps.
    """

    timesteps: tuple[int, ...]
    sigmas: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        """Intervals; network evaluations are the solver's business."""
        return len(self.timesteps)


def grid_from_timesteps(schedule: NoiseSchedule, timesteps: Sequence[int]) -> Grid:
    """The grid through given timesteps.  Raises: ValueError unless they are whole, in range and strictly falling."""
    steps = tuple(int(t) for t in timesteps)
    last = schedule.num_train_timesteps - 1
    if not steps or any(a != b for a, b in zip(steps, timesteps, strict=True)):
        raise ValueError(f"a grid needs whole timesteps, at least one, got {list(timesteps)}")
    if not all(0 <= t <= last for t in steps):
        raise ValueError(f"timesteps must lie in [0, {last}], got {list(steps)}")
    if any(b >= a for a, b in pairwise(steps)):
        raise ValueError(f"timesteps must fall strictly, got {list(steps)}")
    return Grid(steps, (*(float(schedule.sigmas[t]) for t in steps), 0.0))


def uniform_grid(schedule: NoiseSchedule, n: int, t_first: int | None = None, t_last: int | None = None) -> Grid:
    """n timesteps evenly spaced in time.

    Without ends: diffusers' "trailing" spacing, round(T, T - T/n, ...) - 1. With ends: linear from t_first to t_last.
    Raises: ValueError for n that does not fit.  Source: Lin et al. 2024, Table 2.
    """
    total = schedule.num_train_timesteps
    if t_first is None and t_last is None:
        _check_count(n, total - 1, 0)
        return grid_from_timesteps(schedule, [round(t) - 1 for t in np.arange(total, 0, -total / n)[:n].tolist()])
    return linspace_grid(schedule, n, t_first, t_last)


def log_snr_grid(schedule: NoiseSchedule, n: int, t_first: int | None = None, t_last: int | None = None) -> Grid:
    """n timesteps evenly spaced in log SNR (= -2 log sigma), rounded to whole timesteps.

    t_first defaults to the last timestep with sigma <= 80, t_last to 0.
    Raises: ValueError for n or ends that do not fit.  Source: Lu et al. 2022, Section 3.3.
    """
    first, last = _ends(schedule, n, t_first, t_last)
    high, low = np.log(schedule.sigmas[[first, last]])
    return rounded_grid(schedule, schedule.t_from_sigma(np.exp(np.linspace(high, low, n))), first, last)


def karras_grid(
    schedule: NoiseSchedule, n: int, rho: float = 7.0, t_first: int | None = None, t_last: int | None = None
) -> Grid:
    """n timesteps whose sigma**(1/rho) are evenly spaced, rounded to whole timesteps: dense where noise is low.

    sigma_i = (a + i/(n-1) * (b - a))**rho,  a = sigma_max**(1/rho),  b = sigma_min**(1/rho); ends as `log_snr_grid`.
    Raises: ValueError for n, rho or ends that do not fit.  Source: Karras et al. 2022, Eq. 5.
    """
    if not rho > 0:
        raise ValueError(f"rho must be positive, got {rho}")
    first, last = _ends(schedule, n, t_first, t_last)
    a, b = schedule.sigmas[[first, last]] ** (1.0 / rho)
    return rounded_grid(schedule, schedule.t_from_sigma(np.linspace(a, b, n) ** rho), first, last)


def leading_grid(schedule: NoiseSchedule, n: int, t_first: int | None = None, t_last: int | None = None) -> Grid:
    """n timesteps at the lower edges of n equal shares of the time, t_i = t_last + i * floor(span / n).

    Without ends: diffusers' "leading" spacing with no offset, from below T - T/n down to 0.
    Raises: ValueError for n or ends that do not fit.  Source: Lin et al. 2024, Table 2.
    """
    first, last = _whole_ends(schedule, n, t_first, t_last)
    return grid_from_timesteps(schedule, [last + i * ((first + 1 - last) // n) for i in reversed(range(n))])


def linspace_grid(schedule: NoiseSchedule, n: int, t_first: int | None = None, t_last: int | None = None) -> Grid:
    """n timesteps evenly spaced in time with both ends, T - 1 and 0 by default: diffusers' "linspace" spacing.

    Raises: ValueError for n or ends that do not fit.  Source: Lin et al. 2024, Table 2.
    """
    first, last = _whole_ends(schedule, n, t_first, t_last)
    return rounded_grid(schedule, np.linspace(first, last, n), first, last)


def quadratic_grid(schedule: NoiseSchedule, n: int, t_first: int | None = None, t_last: int | None = None) -> Grid:
    """n timesteps whose square roots are evenly spaced: dense where noise is low.  Ends default to T - 1 and 0.

    Raises: ValueError for n or ends that do not fit.  Source: Song et al. 2021 (DDIM), Appendix D.2.
    """
    first, last = _whole_ends(schedule, n, t_first, t_last)
    return rounded_grid(schedule, np.linspace(first**0.5, last**0.5, n) ** 2, first, last)


def beta_grid(
    schedule: NoiseSchedule, n: int, shape: float = 0.6, t_first: int | None = None, t_last: int | None = None
) -> Grid:
    """n timesteps at even quantiles of Beta(shape, shape) over time: below 1 dense at both ends, at 1 `linspace`.

    Ends default to T - 1 and 0.
    Raises: ValueError for n, shape or ends that do not fit.  Source: Lee et al. 2024, "Beta Sampling is All You Need".
    """
    if not shape > 0:
        raise ValueError(f"shape must be positive, got {shape}")
    from scipy.stats import beta  # half a second, which most runs need not spend

    first, last = _whole_ends(schedule, n, t_first, t_last)
    shares = beta.ppf(np.linspace(1.0, 0.0, n), shape, shape)
    return rounded_grid(schedule, last + (first - last) * shares, first, last)


GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform": uniform_grid,
    "log_snr": log_snr_grid,
    "karras": karras_grid,
    "leading": leading_grid,
    "linspace": linspace_grid,
    "quadratic": quadratic_grid,
    "beta": beta_grid,
}
"""Grids by name, each called as GRIDS[name](schedule, n, t_first=..., t_last=...)."""

GRID_ALIASES = {"trailing": "uniform", "exponential": "log_snr"}
"""Other names of the same grids: even in log SNR is even in log sigma."""


def make_grid(name: str, schedule: NoiseSchedule, n: int, **ends: int | None) -> Grid:
    """The named grid.  Raises: ValueError listing the names."""
    known = GRID_ALIASES.get(name, name)
    if known not in GRIDS:
        raise ValueError(f"no grid named {name!r}; there are: {', '.join((*GRIDS, *GRID_ALIASES))}")
    return GRIDS[known](schedule, n, **ends)


def _check_count(n: int, first: int, last: int) -> None:
    room = first - last + 1
    if int(n) != n or not 1 <= n <= room:
        raise ValueError(f"a grid from timestep {first} to {last} takes 1 to {room} whole steps, got n={n}")


def _ends(schedule: NoiseSchedule, n: int, t_first: int | None, t_last: int | None) -> tuple[int, int]:
    top = schedule.num_train_timesteps - 1
    first = int(np.searchsorted(schedule.sigmas, EDM_SIGMA_MAX, side="right")) - 1 if t_first is None else int(t_first)
    last = 0 if t_last is None else int(t_last)
    if not 0 <= last <= first <= top:
        raise ValueError(f"0 <= t_last <= t_first <= {top} must hold, got t_first={first}, t_last={last}")
    _check_count(n, first, last)
    return first, last


def _whole_ends(schedule: NoiseSchedule, n: int, t_first: int | None, t_last: int | None) -> tuple[int, int]:
    """As `_ends`, but from the noisiest timestep where none is given."""
    return _ends(schedule, n, schedule.num_train_timesteps - 1 if t_first is None else t_first, t_last)


def rounded_grid(schedule: NoiseSchedule, times: np.ndarray, first: int | None = None, last: int = 0) -> Grid:
    """Whole, strictly falling timesteps nearest to `times`; crowded ones are pushed apart inside [last, first].

    first defaults to the schedule's last timestep.
    """
    n = len(times)
    first = schedule.num_train_timesteps - 1 if first is None else first
    steps = [round(float(t)) for t in times]
    ceiling = first + 1
    for i in range(n):
        steps[i] = ceiling = min(steps[i], ceiling - 1)
    floor = last - 1
    for i in reversed(range(n)):
        steps[i] = floor = max(steps[i], floor + 1)
    return grid_from_timesteps(schedule, steps)
