"""A number with its uncertainty, and the intervals that need no resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A measured value and the interval around it.

    Attributes:
        value: the plain estimate.
        low: lower end of the interval, None for a number that has none.
        high: upper end of the interval, None likewise.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """{value, low, high}."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high).  Raises: ValueError for a number that has none."""
        if self.low is None or self.high is None:
            raise ValueError(f"the value {self.value} has no interval")
        return self.low, self.high


def normal_quantile(confidence: float) -> float:
    """Half-width, in deviations, of a two-sided normal interval: 1.96 for 0.95.  Raises: ValueError outside (0, 1)."""
    from scipy.special import ndtri

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    return float(ndtri(0.5 + confidence / 2))


def share(hits: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The share of true entries with Wilson's interval.

    Args:
        hits: (N,) booleans, treated as independent.
        confidence: level of the interval.

    Raises: ValueError for no entries.
    Source: Wilson 1927; unlike the normal interval it stays inside [0, 1] and is honest near the ends.
    """
    n = len(hits)
    if n == 0:
        raise ValueError("a share of no entries has no value")
    z, p = normal_quantile(confidence), float(np.mean(hits))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))
