"""The teacher's loss: v-prediction at random timesteps, weighted by signal-to-noise ratio."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_tasks.diffusion.losses import min_snr_weight, weighted_mse
from mlx_tasks.diffusion.parameterization import per_image, v_from_x0_eps, x_from_x0_eps
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.training.learner import Batch, Loss


def denoising_loss(schedule: NoiseSchedule, min_snr_gamma: float | None) -> Loss:
    """(model, batch) -> mean of w(t) * |v - model(x_t, t, label)|^2,  w = min(snr, gamma) / (snr + 1).

    Without a gamma w is 1.

    batch: x0, eps (B, R, R, C), level (B,) whole timesteps, labels (B,) if the model takes them; where the schedule is
    learned also alpha, std and importance (B,), which stand in place of the schedule's own and multiply w.
    Source: Salimans & Ho 2022, Appendix D (v); Hang et al. 2023 (w).
    """

    def loss(model: nn.Module, batch: Batch) -> mx.array:
        x0, eps, t = batch["x0"], batch["eps"], batch["level"]
        alpha, std = (batch["alpha"], batch["std"]) if "alpha" in batch else (schedule.alpha(t), schedule.std(t))
        alpha_b, std_b = per_image(alpha, x0), per_image(std, x0)
        x = x_from_x0_eps(x0, eps, alpha_b, std_b)
        predicted = model(x, t.astype(mx.float32), batch.get("labels"))
        weight = None if min_snr_gamma is None else min_snr_weight(alpha, std, min_snr_gamma)
        if "importance" in batch:
            weight = batch["importance"] if weight is None else weight * batch["importance"]
        return weighted_mse(predicted, v_from_x0_eps(x0, eps, alpha_b, std_b), weight)

    return loss
