"""What the teacher's training is made of, the same on every machine that takes part in it."""

from __future__ import annotations

from mlx_tasks.diffusion.betas import BetaSchedule
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.models.unet2d import UNet2DModel
from mlx_tasks.training.denoising import denoising_loss
from mlx_tasks.training.learner import Learner
from mlx_tasks.training.ring import Ring

NUM_TRAIN_TIMESTEPS = 1024
"""A power of two, so that every halving of the step count lands on whole timesteps, in diffusers' DDIM too."""


def named_schedule(noise_schedule: str, zero_terminal_snr: bool) -> NoiseSchedule:
    """The schedule of that name, with v-prediction; for "learned" its reference, the cosine."""
    name: BetaSchedule = "squaredcos_cap_v2"
    if noise_schedule not in ("cosine", "learned"):
        name = noise_schedule  # pyright: ignore[reportAssignmentType]  (config.py lists the names)
    return NoiseSchedule(NUM_TRAIN_TIMESTEPS, name, rescale_betas_zero_snr=zero_terminal_snr)


def teacher_learner(
    model: UNet2DModel,
    schedule: NoiseSchedule,
    *,
    min_snr_gamma: float | None,
    weight_decay: float,
    max_grad_norm: float,
    micro_batch: int,
    compiled: bool,
    ring: Ring | None = None,
) -> Learner:
    """The teacher with its loss and optimiser; numbers are those of params.yaml's `train` branch."""
    return Learner(
        model,
        denoising_loss(schedule, min_snr_gamma),
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        micro_batch=micro_batch,
        compiled=compiled,
        ring=ring,
    )
