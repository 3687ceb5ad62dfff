"""Guidance: two predictions made into one that leans away from the worse of them.

Classifier-free guidance (Ho & Salimans 2022) takes the same network without its label as the worse one, autoguidance
(Karras et al. 2024) a weaker network with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass(frozen=True)
class Guidance:
    """How strongly, at which noise levels, and what is done against its overshoot.

    Attributes:
        scale: worse + scale * (better - worse); 1 is the better prediction alone, 0 the worse.
        interval: (low, high) noise levels sigma between which guidance is on, low < sigma <= high; outside the better
            prediction stands alone and costs one evaluation. Source: Kynkaanniemi et al. 2024, Eq. 6.
        by_level: scales of single noise levels, which stand in place of `scale` and of the interval.
        rescale: 0 to 1, how far the guided prediction is brought back to the better one's standard deviation.
            Source: Lin et al. 2024, Eq. 15 and 16.
        dynamic_threshold: quantile of |x0| to which estimates are clipped and scaled down, or None. Source: Saharia et
            al. 2022 (Imagen), Section 2.3.
        threshold_max: largest |x0| that is scaled down rather than clipped.
        batched: whether both predictions are made in one batch; apart they need half the memory.
    Raises: ValueError naming the number and its rule.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, math.inf)
    by_level: Mapping[float, float] | None = None
    rescale: float = 0.0
    dynamic_threshold: float | None = None
    threshold_max: float = math.inf
    batched: bool = True

    def __post_init__(self) -> None:
        scales = (self.scale, *(self.by_level or {}).values())
        if not all(math.isfinite(scale) and scale >= 0.0 for scale in scales):
            raise ValueError(f"guidance scales must be finite and at least 0, got {list(scales)}")
        low, high = self.interval
        if not 0.0 <= low < high:
            raise ValueError(f"a guidance interval holds sigmas 0 <= low < high, got {low} and {high}")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"guidance rescale must be in [0, 1], got {self.rescale}")
        if self.dynamic_threshold is not None and not 0.0 < self.dynamic_threshold <= 1.0:
            raise ValueError(f"dynamic_threshold is a quantile in (0, 1], got {self.dynamic_threshold}")
        if not self.threshold_max >= 1.0:
            raise ValueError(
                f"threshold_max must be at least 1, the edge of the pixels' range, got {self.threshold_max}"
            )

    @property
    def on(self) -> bool:
        """Whether any level needs the worse prediction."""
        return self.scale != 1.0 or any(scale != 1.0 for scale in (self.by_level or {}).values())

    @property
    def evaluations(self) -> int:
        """Most network evaluations a call costs: 1 where one prediction is enough everywhere."""
        return 1 if {self.scale, *(self.by_level or {}).values()} <= {0.0, 1.0} else 2

    def scale_at(self, sigma: Any) -> Any:
        """The scale at a noise level; for an MLX scalar, an MLX scalar, unless one scale holds everywhere."""
        if isinstance(sigma, mx.array):
            if self.interval == (0.0, math.inf):
                return self.scale
            return mx.where((sigma > self.interval[0]) & (sigma <= self.interval[1]), self.scale, 1.0)
        if self.by_level is not None and sigma in self.by_level:
            return self.by_level[sigma]
        return self.scale if self.interval[0] < sigma <= self.interval[1] else 1.0

    def evaluations_at(self, sigma: float) -> int:
        """Network evaluations of a call at a noise level."""
        return 1 if self.scale_at(sigma) in (0.0, 1.0) else 2


def classifier_free(unconditional: mx.array, conditional: mx.array, scale: float | mx.array) -> mx.array:
    """unconditional + scale * (conditional - unconditional).

    The same number for predictions of eps, x0 or v, since at one x each is affine in the others. scale 0 is the
    unconditional branch, 1 the conditional one (their w is scale - 1).
    """
    return unconditional + scale * (conditional - unconditional)


def rescaled(guided: mx.array, conditional: mx.array, amount: float) -> mx.array:
    """guided * (amount * std(conditional) / std(guided) + 1 - amount), the deviations over each image.

    guided, conditional: (B, ...), the network's outputs.  Source: Lin et al. 2024, Eq. 15 and 16.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = mx.std(conditional, axis=axes, keepdims=True) / mx.std(guided, axis=axes, keepdims=True)
    return guided * (amount * ratio + (1.0 - amount))


def threshold(x0: mx.array, quantile: float, largest: float = math.inf) -> mx.array:
    """x0 clipped to [-s, s] and divided by s, where s is that quantile of |x0| of each image, put into [1, largest].

    x0: (B, ...).  The quantile is linear between the sorted values.  Source: Saharia et al. 2022, Section 2.3.
    """
    values = mx.sort(mx.abs(x0).reshape(len(x0), -1), axis=1)
    place = quantile * (values.shape[1] - 1)
    below = min(int(place), values.shape[1] - 2) if values.shape[1] > 1 else 0
    above = min(below + 1, values.shape[1] - 1)
    edge = values[:, below] + (place - below) * (values[:, above] - values[:, below])
    edge = mx.clip(edge, 1.0, largest).reshape(-1, *([1] * (x0.ndim - 1)))
    return mx.clip(x0, -edge, edge) / edge


def drop_labels(labels: mx.array, null_label: int, probability: float, key: mx.array) -> mx.array:
    """labels (B,) with each replaced by `null_label` with the given chance, independently."""
    dropped = mx.random.bernoulli(probability, labels.shape, key=key)
    return mx.where(dropped, mx.array(null_label, dtype=labels.dtype), labels)
