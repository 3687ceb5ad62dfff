"""Pure maths of diffusion: noise schedules, parameterisations, losses, guidance."""

from mlx_tasks.diffusion.guidance import classifier_free, drop_labels
from mlx_tasks.diffusion.losses import min_snr_weight, weighted_mse
from mlx_tasks.diffusion.schedule import NoiseSchedule

__all__ = ["NoiseSchedule", "classifier_free", "drop_labels", "min_snr_weight", "weighted_mse"]
