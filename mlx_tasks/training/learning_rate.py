"""Learning rates by step: plain numbers, so that a resumed run reads the same value as an uninterrupted one."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, peak: float, warmup_steps: int, floor: float = 0.1) -> float:
    """Rate of optimiser step `step` (from 0) of `steps`: linear from peak/warmup_steps, then half a cosine.

    warm-up:  peak * (step + 1) / warmup_steps                                        for step < warmup_steps
    after:    peak * (floor + (1 - floor) * (1 + cos(pi * progress)) / 2),  progress from 0 to 1 at the last step.
    A warm-up longer than half of the steps is cut to that half.
    """
    warmup_steps = min(warmup_steps, steps // 2)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def linear_decay(step: int, steps: int, peak: float, warmup_steps: int = 0) -> float:
    """Rate of step `step` (from 0): peak * (1 - step / steps), after an optional linear warm-up.

    Source: Salimans & Ho 2022, section 4 (a linear anneal to zero for each student).
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return peak * warm * (1 - step / steps)
