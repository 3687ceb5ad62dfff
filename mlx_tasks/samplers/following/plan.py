"""One run as a diffusers scheduler takes it, in our samplers' terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlx_tasks.diffusion.frames import Frame
from mlx_tasks.diffusion.guidance import threshold
from mlx_tasks.samplers.driver import Callback, Samples, sample

Adjust = Callable[[mx.array, mx.array, float], mx.array]
"""adjust(estimate, x, sigma): what a scheduler makes of the network's estimate before it uses it."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        frame: the frame the network was trained in.
        sigmas: falling levels, one more than there are steps; the last may be above 0.
        timesteps: what the network is told at each level but the last.
        solver, options: as `sample` takes them.
        start: the run begins at start * noise.
        end: its result is multiplied by this: diffusers' frame, where the last level is above 0.
        adjust: what is made of each estimate, or None.
        between: what the network is told at levels between the steps, where the solver calls it there.
        idle: keys of the config that its class does not have, and that diffusers passes over too.
    """

    frame: Frame
    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    start: float = 1.0
    end: float = 1.0
    adjust: Adjust | None = None
    between: Mapping[float, float] = field(default_factory=dict)
    idle: tuple[str, ...] = ()

    @property
    def times(self) -> Mapping[float, float]:
        """Level -> timestep, for `network_denoiser(..., times=plan.times)`."""
        return {**self.between, **dict(zip(self.sigmas, self.timesteps, strict=False))}

    def sample(
        self,
        denoise: Callable[[mx.array, float], mx.array],
        noise: mx.array,
        key: mx.array | None = None,
        callback: Callback | None = None,
    ) -> Samples:
        """The images that diffusers' scheduler draws from the same noise (B, H, W, C), to rounding."""
        door = denoise if self.adjust is None else _Adjusted(denoise, self.adjust)
        drawn = sample(door, noise, self.sigmas, self.solver, key, callback, self.options, start=self.start)
        return Samples(drawn.images * self.end, drawn.nfe)


class _Adjusted:
    """A denoiser whose estimates are adjusted; it costs what it did."""

    def __init__(self, denoise: Callable[[mx.array, float], mx.array], adjust: Adjust) -> None:
        self._denoise, self._adjust = denoise, adjust
        self.evaluations: int = getattr(denoise, "evaluations", 1)

    def evaluations_at(self, sigma: float) -> int:
        """As the denoiser's own."""
        own = getattr(self._denoise, "evaluations_at", None)
        return self.evaluations if own is None else own(sigma)

    def __call__(self, x: mx.array, sigma: float) -> mx.array:
        return self._adjust(self._denoise(x, sigma), x, sigma)


def clipping(values: Mapping[str, Any]) -> Callable[[mx.array], mx.array] | None:
    """What `thresholding` (first) or `clip_sample` of a config does to an estimate; None where both are off."""
    if values.get("thresholding"):
        quantile = float(values.get("dynamic_thresholding_ratio", 0.995))
        largest = float(values.get("sample_max_value", 1.0))
        return lambda x0: threshold(x0, quantile, largest)
    if values.get("clip_sample"):
        bound = float(values.get("clip_sample_range", 1.0))
        return lambda x0: mx.clip(x0, -bound, bound)
    return None


def adjusting(clip: Callable[[mx.array], mx.array] | None) -> Adjust | None:
    """The same for `Plan.adjust`."""
    return None if clip is None else lambda estimate, x, sigma: clip(estimate)


def unit_start(sigma: float) -> float:
    """sqrt(1 + sigma^2): from noise of unit variance in a variance-preserving frame."""
    return math.sqrt(1.0 + sigma**2)
