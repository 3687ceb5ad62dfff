"""A noise schedule learned with the model: each noise level is visited as often as its loss varies.

A schedule is monotone in time and says how often a level is drawn in training; what is minimised does not depend on it
once every draw is weighted by what it is drawn too often or too seldom (Kingma et al. 2021, Section 5.1). What depends
on it is the variance of that estimate, and the schedule with the least is known: its density over log sigma goes with
the root of the second moment of the weighted loss there. So it is learned by measuring that moment.
Source: Kingma et al. 2021, Section 5.2 (least variance); Nichol & Dhariwal 2021, Eq. 18 (the same over timesteps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_tasks.diffusion.schedule import NoiseSchedule

BINS = 32
FLOOR = 0.2
"""Share of the draws that goes as in the reference schedule, so that no level is forgotten."""


@dataclass(frozen=True)
class LearnedSchedule:
    """What is drawn, and how it is weighted.

    Attributes:
        schedule: the schedule, of as many timesteps as the reference.
        importance: (T,) weight of the loss at each timestep: the reference's density over this one's.
    """

    schedule: NoiseSchedule
    importance: np.ndarray


def edges(reference: NoiseSchedule) -> np.ndarray:
    """(BINS + 1,) ends of the bins: even in log sigma over the reference's range."""
    low, high = np.log(reference.sigmas[[0, -1]]).tolist()
    return np.linspace(low, high, BINS + 1)


def reference_mass(reference: NoiseSchedule) -> np.ndarray:
    """(BINS,) share of the reference's time that it spends in each bin."""
    places = np.interp(edges(reference), np.log(reference.sigmas), np.linspace(0.0, 1.0, len(reference.sigmas)))
    return np.diff(places)


def learned_schedule(reference: NoiseSchedule, moments: Sequence[float]) -> LearnedSchedule:
    """The schedule of least variance among those over the reference's range that keep FLOOR of its draws.

    moments: (BINS,) second moment of the weighted loss per image in each bin, as `schedule_learning` measures it.
    Density of a bin: reference density * sqrt(moment), normalised.  Raises: ValueError for other moments.
    """
    second = np.asarray(moments, dtype=np.float64)
    if second.shape != (BINS,) or not np.all(np.isfinite(second)) or not np.all(second >= 0.0) or not second.sum() > 0:
        raise ValueError(f"{BINS} finite moments of at least 0 are needed, not all 0, got {list(moments)}")
    old = reference_mass(reference)
    best = old * np.sqrt(second)
    mass = (1.0 - FLOOR) * best / best.sum() + FLOOR * old
    bins, count = edges(reference), len(reference.sigmas)
    logs = np.interp(np.linspace(0.0, 1.0, count), np.concatenate([[0.0], np.cumsum(mass) / mass.sum()]), bins)
    place = np.clip(np.searchsorted(bins, logs, side="right") - 1, 0, BINS - 1)
    schedule = NoiseSchedule.from_alpha_bar(1.0 / (1.0 + np.exp(2.0 * logs)))
    return LearnedSchedule(schedule, (old / mass)[place])
