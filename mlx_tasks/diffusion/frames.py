"""Where a network works: how it sees x = x0 + sigma * eps, what it is told of sigma, and what its output means.

Samplers know only x and sigma. Three kinds of frame cover the field: variance preserving (`NoiseSchedule`), flow
matching, and EDM's preconditioning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import mlx.core as mx
import numpy as np

from mlx_tasks.errors import DataError


class Frame(Protocol):
    """What `network_denoiser` asks of a frame. sigma is a number, or an MLX scalar through which gradients flow."""

    def input_scale(self, sigma: Any) -> Any:
        """What x is multiplied by before the network sees it."""
        ...

    def t_from_sigma(self, sigma: Any) -> Any:
        """What the network is told of a noise level."""
        ...

    def x0_from_output(self, output: mx.array, x: mx.array, sigma: Any) -> mx.array:
        """The estimate of x0 that an output (B, H, W, C) at x stands for."""
        ...


@dataclass(frozen=True)
class FlowFrame:
    """Flow matching: the network sees (1 - t) x0 + t eps, is told 1000 t, and predicts the velocity eps - x0.

    In the samplers' frame sigma = t / (1 - t); t = 1 is pure noise, which `sigma_from_flow` puts at SIGMA_MAX.
    Source: Lipman et al. 2023, Eq. 20 and 23; Liu et al. 2023.

    Attributes:
        num_train_timesteps: what t = 1 is told as.
        shift: the grid's times are moved to shift * t / (1 + (shift - 1) t), towards more noise where above 1, as
            larger images want. Source: Esser et al. 2024, Eq. 23.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0

    SIGMA_MAX = 1e7

    def __post_init__(self) -> None:
        if not self.shift > 0.0:
            raise DataError(f"shift must be above 0, got {self.shift}")

    def input_scale(self, sigma: Any) -> Any:
        """1 - t."""
        return 1.0 / (1.0 + sigma)

    def t_from_sigma(self, sigma: Any) -> Any:
        """num_train_timesteps * t."""
        return self.num_train_timesteps * (sigma / (1.0 + sigma))

    def x0_from_output(self, output: mx.array, x: mx.array, sigma: Any) -> mx.array:
        """(1 - t) x - t v."""
        return x / (1.0 + sigma) - (sigma / (1.0 + sigma)) * output

    def shifted(self, t: Any) -> Any:
        """Times t in [0, 1] moved by the shift."""
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)

    def sigma_from_flow(self, t: Any) -> Any:
        """t / (1 - t), at most SIGMA_MAX."""
        t = np.asarray(t, dtype=np.float64)
        return np.minimum(t / np.maximum(1.0 - t, 1e-300), self.SIGMA_MAX)

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """num_steps falling levels, even in time from t = 1 and then shifted, and a final 0."""
        if num_steps < 1:
            raise DataError(f"a run takes at least 1 step, got {num_steps}")
        times = self.shifted(np.linspace(1.0, 0.0, num_steps + 1))
        return tuple(float(s) for s in self.sigma_from_flow(times))


@dataclass(frozen=True)
class EdmFrame:
    """EDM's preconditioning: x0 = c_skip x + c_out F(c_in x, log(sigma) / 4).

    Attributes:
        sigma_min, sigma_max: the levels the network was trained on.
        sigma_data: standard deviation of the data.
        rho: curvature of the grid.
        prediction_type: "epsilon" is EDM's; "v_prediction" has c_out of the other sign (as diffusers has it).
    Source: Karras et al. 2022, Table 1 and Eq. 5 and 7.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max or not self.sigma_data > 0.0 or not self.rho > 0.0:
            raise DataError(
                f"0 < sigma_min < sigma_max, sigma_data > 0 and rho > 0 must hold, got {self.sigma_min}, "
                f"{self.sigma_max}, {self.sigma_data} and {self.rho}"
            )
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise DataError(f"prediction_type {self.prediction_type!r} is not supported: epsilon or v_prediction")

    def input_scale(self, sigma: Any) -> Any:
        """c_in = 1 / sqrt(sigma^2 + sigma_data^2)."""
        return 1.0 / (sigma * sigma + self.sigma_data**2) ** 0.5

    def t_from_sigma(self, sigma: Any) -> Any:
        """c_noise = log(sigma) / 4."""
        return 0.25 * (mx.log(sigma) if isinstance(sigma, mx.array) else math.log(sigma))

    def x0_from_output(self, output: mx.array, x: mx.array, sigma: Any) -> mx.array:
        """c_skip x + c_out F,  c_skip = d^2 / (s^2 + d^2),  c_out = s d / sqrt(s^2 + d^2)."""
        total = sigma * sigma + self.sigma_data**2
        sign = 1.0 if self.prediction_type == "epsilon" else -1.0
        return (self.sigma_data**2 / total) * x + (sign * self.sigma_data * sigma / total**0.5) * output

    def sigmas(self, num_steps: int) -> tuple[float, ...]:
        """num_steps falling levels from sigma_max to sigma_min, even in sigma^(1/rho), and a final 0."""
        if num_steps < 1:
            raise DataError(f"a run takes at least 1 step, got {num_steps}")
        high, low = self.sigma_max ** (1.0 / self.rho), self.sigma_min ** (1.0 / self.rho)
        return (*(float(s) for s in np.linspace(high, low, num_steps) ** self.rho), 0.0)
