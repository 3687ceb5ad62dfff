"""Students: of fewer steps than their teacher (progressive), or of another shape (output)."""

from mlx_tasks.distillation.output import distill_steps, output_loss
from mlx_tasks.distillation.progressive import halving_loss, halving_steps, halving_target
from mlx_tasks.distillation.student import StudentOptions
from mlx_tasks.distillation.teacher import Velocity, guided_velocity

__all__ = [
    "StudentOptions",
    "Velocity",
    "distill_steps",
    "guided_velocity",
    "halving_loss",
    "halving_steps",
    "halving_target",
    "output_loss",
]
