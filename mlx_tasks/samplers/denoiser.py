"""The one door by which a model enters a sampler: `denoise(x, sigma) -> x0 estimate`, where x = x0 + sigma * eps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from mlx_tasks.diffusion import parameterization
from mlx_tasks.diffusion.guidance import classifier_free
from mlx_tasks.diffusion.schedule import NoiseSchedule

Network = Callable[..., mx.array]
"""model(x (B, H, W, C), t (B,), class_labels (B,) | None) -> (B, H, W, C)."""


class Denoise(Protocol):
    """What a solver calls. A plain function will do; it counts as one evaluation a call."""

    @property
    def evaluations(self) -> int:
        """Network evaluations an image costs in one call: 2 where guidance runs both branches."""
        ...

    def __call__(self, x: mx.array, sigma: float) -> mx.array:
        """Estimate of x0 from x (B, H, W, C) = x0 + sigma * eps."""
        ...


@dataclass(frozen=True)
class NetworkDenoiser:
    """A variance-preserving network as a `Denoise`; made by `network_denoiser`.

    sigma may be an MLX scalar, through which gradients flow to it.
    """

    model: Network
    schedule: NoiseSchedule
    labels: mx.array | None
    guidance_scale: float
    evaluations: int
    times: Mapping[float, float] | None = None

    def __call__(self, x: mx.array, sigma: float) -> mx.array:
        """The network's x0 estimate, guided if asked. It sees alpha * x, which has unit variance, and the timestep."""
        alpha = 1.0 / (1.0 + sigma * sigma) ** 0.5
        told = None if self.times is None or isinstance(sigma, mx.array) else self.times.get(sigma)
        t = self.schedule.t_from_sigma(sigma) if told is None else told
        times = mx.broadcast_to(t if isinstance(t, mx.array) else mx.array(float(t)), (self.evaluations * len(x),))
        scaled = alpha * x
        if self.evaluations == 1:
            output = self.model(scaled, times, self.labels)
        else:
            both = self.model(mx.concatenate([scaled, scaled]), times, self.labels)
            output = classifier_free(both[len(x) :], both[: len(x)], self.guidance_scale)
        match self.schedule.prediction_type:
            case "v_prediction":
                return parameterization.x0_from_v(scaled, output, alpha, sigma * alpha)
            case "epsilon":
                return x - sigma * output
            case _:
                return output


def network_denoiser(
    model: Network,
    schedule: NoiseSchedule,
    class_labels: mx.array | None = None,
    guidance_scale: float = 1.0,
    null_label: int | None = None,
    times: Mapping[float, float] | None = None,
) -> NetworkDenoiser:
    """A network as a `Denoise` for a batch with these labels.

    Guidance other than 1 runs both branches in one batch of 2 B and counts 2 evaluations; a scale of 1 runs the
    conditional branch alone and a scale of 0 the unconditional one.

    class_labels: (B,) integers, or None for an unconditional network; null_label: the empty label.
    times: level -> timestep, where the network is told another than the level's own.
    Raises: ValueError for guidance without labels or without an empty label.
    """
    if guidance_scale == 1.0:
        return NetworkDenoiser(model, schedule, class_labels, 1.0, 1, times)
    if class_labels is None or null_label is None:
        raise ValueError(
            f"guidance_scale {guidance_scale} needs class_labels and null_label, got class_labels "
            f"{'None' if class_labels is None else 'given'} and null_label {null_label}: give both, or use scale 1.0"
        )
    empty = mx.full(class_labels.shape, null_label, dtype=class_labels.dtype)
    if guidance_scale == 0.0:
        return NetworkDenoiser(model, schedule, empty, 0.0, 1, times)
    return NetworkDenoiser(model, schedule, mx.concatenate([class_labels, empty]), guidance_scale, 2, times)
