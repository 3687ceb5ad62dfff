"""What to do about a result that is worse than a set nobody drew, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GAUSSIAN = "reference-gaussian"
METRIC = "frechet_distance"


def advice(
    winner: Mapping[str, Any] | None,
    teacher: Mapping[str, Any] | None,
    references: Mapping[str, Mapping[str, Any]],
    training: Mapping[str, Any] | None,
) -> list[str]:
    """Sentences about a winner that a per-class Gaussian of the pixels beats; none where it is better.

    winner, teacher: rows of scores.json; references: set -> its metrics; training: the train stage's figures.
    """
    ours, gaussian = _distance(winner), _distance(references.get(GAUSSIAN))
    if ours is None or gaussian is None or ours <= gaussian:
        return []
    measured = f"(Frechet distance {ours:.3g} against {gaussian:.3g})"
    theirs = _distance(teacher)
    if theirs is not None and theirs <= gaussian:
        return [
            f"It is worse than a per-class Gaussian {measured}, and the teacher is not ({theirs:.3g}): distil longer "
            "(distill.updates), or allow more steps (distill.target_steps, evaluate.nfe)."
        ]
    return [f"It is worse than a per-class Gaussian {measured}: train longer (train.steps).{_cost(training)}"]


def _cost(training: Mapping[str, Any] | None) -> str:
    """What more steps cost. How many it takes cannot be told from one run, and is not guessed."""
    steps, seconds = ((training or {}).get(key) for key in ("steps", "seconds"))
    if not isinstance(steps, int) or not isinstance(seconds, int | float) or not steps or seconds <= 0:
        return ""
    return (
        f" {steps:,} steps took {_time(seconds)} here, so twice as many take {_time(2 * seconds)}; how many it takes "
        "cannot be told from one run."
    )


def _time(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def _distance(row: Mapping[str, Any] | None) -> float | None:
    value = ((row or {}).get("metrics") or {}).get(METRIC, {}).get("value")
    return float(value) if isinstance(value, int | float) else None
