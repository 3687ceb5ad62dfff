"""The quality gate of the halving: a student may be a stated fraction worse than its many-step teacher, no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_tasks.metrics.bootstrap import centred_bootstrap
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.random_conv import RandomConvFeatures

Draw = Callable[[mx.array, mx.array | None], mx.array]
"""(noise (N, H, W, C), labels (N,) or None) -> images (N, H, W, C) in [-1, 1]."""

_RESAMPLES = 50
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """Whether a student passes, and the sentence that says why."""

    accepted: bool
    reason: str


class Judge:
    """Measures samplers against one set of real images, all from the same noise and labels, at equal counts.

    Attributes:
        noise: (N, H, W, C), where every sampler starts.
        labels: (N,) those of the real images, or None.
    """

    def __init__(self, real: np.ndarray, noise: mx.array, labels: mx.array | None, seed: int) -> None:
        """real: (N, H, W, C) uint8.  Raises: ValueError where the counts differ."""
        if len(real) != len(noise) or (labels is not None and len(labels) != len(noise)):
            raise ValueError(f"counts must be equal: {len(real)} real images, {len(noise)} noises")
        self.noise, self.labels, self._seed = noise, labels, seed
        self._features = RandomConvFeatures(real.shape[-1])
        self._real = self._features(real)

    def frechet_distance(self, draw: Draw) -> Estimate:
        """Frechet distance of what `draw` makes from the real images, with a 95 % bootstrap interval.

        Images are clipped to [-1, 1], as whoever looks at them sees them.
        """
        images = np.clip(np.array(draw(self.noise, self.labels), dtype=np.float32), -1, 1)
        return centred_bootstrap(
            frechet_distance, self._features(images), self._real, _RESAMPLES, _CONFIDENCE, self._seed
        )


def judge_student(student: float, teacher: float, max_quality_loss: float) -> Verdict:
    """Accepted if  student <= (1 + max_quality_loss) * teacher  in Frechet distance; NaN is never accepted.

    student, teacher: Frechet distances from the same real images, noise and count.
    """
    limit = (1 + max_quality_loss) * teacher
    rule = f"{1 + max_quality_loss:g} times the many-step teacher's {teacher:.4g}"
    if student <= limit:
        return Verdict(True, f"frechet_distance {student:.4g} is within {limit:.4g}, {rule}")
    return Verdict(False, f"frechet_distance {student:.4g} is above {limit:.4g}, {rule}")
