"""The one door by which a model enters a sampler: `denoise(x, sigma) -> x0 estimate`, where x = x0 + sigma * eps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlx_tasks.diffusion import guidance as guiding
from mlx_tasks.diffusion.frames import Frame
from mlx_tasks.diffusion.guidance import Guidance
from mlx_tasks.diffusion.parameterization import per_image

Network = Callable[..., mx.array]
"""model(x (B, H, W, C), t (B,), class_labels (B,) | None) -> (B, H, W, C)."""


class Denoise(Protocol):
    """What a solver calls. A plain function will do; it counts as one evaluation a call.

    A denoiser whose calls cost more at some levels than at others says so by `evaluations_at(sigma)`.
    """

    @property
    def evaluations(self) -> int:
        """Most network evaluations an image costs in one call: 2 where guidance runs both branches."""
        ...

    def __call__(self, x: mx.array, sigma: float) -> mx.array:
        """Estimate of x0 from x (B, H, W, C) = x0 + sigma * eps."""
        ...


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network as a `Denoise`; made by `network_denoiser`.

    sigma may be an MLX scalar, through which gradients flow to it, or (B,), a level for each image.
    """

    model: Network
    frame: Frame
    labels: mx.array | None
    empty: mx.array | None
    guidance: Guidance
    guide: Network | None = None
    times: Mapping[float, float] | None = None

    @property
    def evaluations(self) -> int:
        """Most network evaluations an image costs in one call."""
        return self.guidance.evaluations

    def evaluations_at(self, sigma: float) -> int:
        """Network evaluations of one call at a noise level."""
        return self.guidance.evaluations_at(sigma)

    def __call__(self, x: mx.array, sigma: Any) -> mx.array:
        """The network's x0 estimate, guided if asked. It sees x in its own frame, and the timestep."""
        told = None if self.times is None or isinstance(sigma, mx.array) else self.times.get(sigma)
        t: Any = self.frame.t_from_sigma(sigma) if told is None else told
        t = t if isinstance(t, mx.array) else mx.array(float(t))
        level = per_image(sigma, x) if isinstance(sigma, mx.array) and sigma.ndim else sigma
        scaled, times = self.frame.input_scale(level) * x, mx.broadcast_to(t, (len(x),))
        x0 = self.frame.x0_from_output(self._guided(scaled, times, self.guidance.scale_at(level)), x, level)
        quantile = self.guidance.dynamic_threshold
        return x0 if quantile is None else guiding.threshold(x0, quantile, self.guidance.threshold_max)

    def _guided(self, x: mx.array, t: mx.array, scale: Any) -> mx.array:
        """The network's output at x (B, ...) in its own frame, at t (B,)."""
        single = not isinstance(scale, mx.array)
        if single and scale == 1.0:
            return self._worse_or_better(x, t, better=True)
        if single and scale == 0.0:
            return self._worse_or_better(x, t, better=False)
        if self.guide is None and self.guidance.batched:
            assert self.labels is not None and self.empty is not None, "network_denoiser checks this"
            labels = mx.concatenate([self.labels, self.empty])
            both = self.model(mx.concatenate([x, x]), mx.concatenate([t, t]), labels)
            better, worse = both[: len(x)], both[len(x) :]
        else:
            better, worse = (self._worse_or_better(x, t, better=which) for which in (True, False))
        guided = guiding.classifier_free(worse, better, scale)
        amount = self.guidance.rescale
        return guided if amount == 0.0 else guiding.rescaled(guided, better, amount)

    def _worse_or_better(self, x: mx.array, t: mx.array, *, better: bool) -> mx.array:
        if better:
            return self.model(x, t, self.labels)
        return self.model(x, t, self.empty) if self.guide is None else self.guide(x, t, self.labels)


def network_denoiser(
    model: Network,
    frame: Frame,
    class_labels: mx.array | None = None,
    guidance: Guidance | float = 1.0,
    null_label: int | None = None,
    times: Mapping[float, float] | None = None,
    guide: Network | None = None,
) -> NetworkDenoiser:
    """A network as a `Denoise` for a batch with these labels.

    Where guidance is on, both predictions are made in one batch of 2 B, which counts 2 evaluations; a scale of 1 runs
    the conditional branch alone and a scale of 0 the unconditional one.

    frame: the noise schedule it was trained with, or another frame of `diffusion.frames`.
    class_labels: (B,) integers, or None for an unconditional network; null_label: the empty label.
    guidance: a scale, or all of it.
    times: level -> timestep, where the network is told another than the level's own.
    guide: a weaker network, for autoguidance: its prediction with the same labels takes the unconditional one's place.
    Raises: ValueError for guidance with neither labels and an empty label, nor a guide.
    """
    guidance = guidance if isinstance(guidance, Guidance) else Guidance(float(guidance))
    if guidance.on and guide is None and (class_labels is None or null_label is None):
        raise ValueError(
            f"guidance_scale {guidance.scale} needs class_labels and null_label, got class_labels "
            f"{'None' if class_labels is None else 'given'} and null_label {null_label}: give both, give a guide, or "
            "use scale 1.0"
        )
    empty = None
    if class_labels is not None and null_label is not None:
        empty = mx.full(class_labels.shape, null_label, dtype=class_labels.dtype)
    return NetworkDenoiser(model, frame, class_labels, empty, guidance, guide, times)
