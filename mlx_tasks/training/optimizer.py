"""AdamW that decays matrices and kernels and leaves biases and norm scales alone."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers as optim


class AdamW(optim.AdamW):
    """MLX's AdamW with bias correction; arrays of fewer than two axes are not decayed.

    beta_2 is 0.99: over the few hundred steps of a rung or a student, 0.999 would still remember the start.
    """

    def __init__(self, weight_decay: float) -> None:
        super().__init__(0.0, betas=[0.9, 0.99], weight_decay=weight_decay, bias_correction=True)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """One array's update: AdamW for two axes or more, Adam for fewer."""
        if parameter.ndim < 2:
            return super(optim.AdamW, self).apply_single(gradient, parameter, state)
        return super().apply_single(gradient, parameter, state)
