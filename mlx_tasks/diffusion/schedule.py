"""How much noise each training timestep holds: the variance-preserving tables that diffusers' schedulers hold too.

x_t = alpha * x0 + std * eps,  alpha = sqrt(alpha_bar),  std = sqrt(1 - alpha_bar),  sigma = std / alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import mlx.core as mx
import numpy as np

from mlx_tasks.diffusion import parameterization
from mlx_tasks.diffusion.betas import (
    BetaSchedule,
    alpha_bar_from_betas,
    betas,
    betas_from_alpha_bar,
    zero_terminal_snr,
)
from mlx_tasks.errors import DataError

PredictionType = Literal["v_prediction", "epsilon", "sample"]

MOST_TIMESTEPS = 100_000
"""diffusers' models have 1000; tables of more are built in moments up to here."""

_UNSUPPORTED = {
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
}


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete variance-preserving schedule, equal when its parameters are; a `frames.Frame`.

    Attributes:
        num_train_timesteps: T; timesteps run from 0 (least noise) to T - 1.
        beta_schedule: diffusers' name of the betas' curve.
        beta_start, beta_end: ends of the linear curves; the cosine one takes none.
        prediction_type: what the network that was trained with it predicts.
        rescale_betas_zero_snr: whether the last timestep is made pure noise (`betas.zero_terminal_snr`).
        trained_betas: (T,) betas of any other shape, which stand in place of beta_schedule.
    """

    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "squaredcos_cap_v2"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    prediction_type: PredictionType = "v_prediction"
    rescale_betas_zero_snr: bool = False
    trained_betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        total = self.num_train_timesteps
        if isinstance(total, bool) or not isinstance(total, int) or not 2 <= total <= MOST_TIMESTEPS:
            raise DataError(f"num_train_timesteps must be a whole number from 2 to {MOST_TIMESTEPS}, got {total!r:.80}")
        for name in ("beta_start", "beta_end"):
            _number(name, getattr(self, name))
        if not isinstance(self.rescale_betas_zero_snr, bool):
            raise DataError(f"rescale_betas_zero_snr must be true or false, got {self.rescale_betas_zero_snr!r:.80}")
        _choice("beta_schedule", self.beta_schedule, get_args(BetaSchedule))
        _choice("prediction_type", self.prediction_type, get_args(PredictionType))
        if self.trained_betas is not None:
            self._check_trained_betas(self.trained_betas)
        elif self.beta_schedule != "squaredcos_cap_v2" and not 0 < self.beta_start <= self.beta_end < 1:
            raise DataError(f"0 < beta_start <= beta_end < 1 must hold, got {self.beta_start} and {self.beta_end}")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise DataError(
                "rescale_betas_zero_snr needs prediction_type 'v_prediction' or 'sample': from pure noise, a network "
                "that predicts eps says nothing about the image"
            )

    def _check_trained_betas(self, values: Sequence[float]) -> None:
        if not isinstance(values, list | tuple):
            raise DataError(f"trained_betas must be a list of numbers, got {values!r:.80}")
        for beta in values:
            _number("each of trained_betas", beta)
        object.__setattr__(self, "trained_betas", tuple(float(beta) for beta in values))
        if len(values) != self.num_train_timesteps:
            raise DataError(f"trained_betas must hold {self.num_train_timesteps} numbers, got {len(values)}")
        if not all(0.0 < beta < 1.0 for beta in values):
            raise DataError("trained_betas must lie above 0 and below 1")

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Sequence[float] | np.ndarray) -> NoiseSchedule:
        """A schedule of any shape, with v-prediction: alpha_bar (T,) falling strictly inside (0, 1).

        Raises: DataError for another shape.
        """
        table = np.asarray(alpha_bar, dtype=np.float64)
        if table.ndim != 1 or len(table) < 2 or not (table[0] < 1.0 and table[-1] > 0.0 and np.all(np.diff(table) < 0)):
            raise DataError("alpha_bar must be two or more numbers that fall strictly inside (0, 1)")
        return cls(num_train_timesteps=len(table), trained_betas=tuple(betas_from_alpha_bar(table).tolist()))

    @classmethod
    def cosine(cls, num_train_timesteps: int = 1000) -> NoiseSchedule:
        """diffusers' squaredcos_cap_v2 (Nichol & Dhariwal 2021, Eq. 17) with v-prediction."""
        return cls(num_train_timesteps=num_train_timesteps)

    @classmethod
    def from_config(cls, scheduler_config: dict[str, Any]) -> NoiseSchedule:
        """The schedule of a diffusers scheduler_config.json; absent keys take diffusers' defaults.

        Keys about how to sample (spacing, order, clipping) are not the schedule's and are left to the sampler.
        Raises: DataError naming the key and the value that cannot be represented.
        """
        name = str(scheduler_config.get("_class_name", ""))
        if "FlowMatch" in name:
            raise DataError(
                f"_class_name {name!r} is a flow-matching scheduler: only variance-preserving ones are read"
            )
        for key, neutral in _UNSUPPORTED.items():
            value = scheduler_config.get(key, neutral)
            if value != neutral:
                raise DataError(f"scheduler_config {key}={value!r:.80} is not supported: only {neutral!r} is")
        schedule = cls(
            num_train_timesteps=scheduler_config.get("num_train_timesteps", 1000),
            beta_schedule=scheduler_config.get("beta_schedule", "linear"),
            beta_start=scheduler_config.get("beta_start", 0.0001),
            beta_end=scheduler_config.get("beta_end", 0.02),
            prediction_type=scheduler_config.get("prediction_type", "epsilon"),
            rescale_betas_zero_snr=scheduler_config.get("rescale_betas_zero_snr", False),
            trained_betas=scheduler_config.get("trained_betas"),
        )
        if not schedule.alpha_bar[-1] > 0.0 or not np.all(np.isfinite(schedule.alpha_bar)):
            raise DataError(
                "scheduler_config's betas leave nothing of the image at the last timestep (alpha_bar 0): lower beta_end"
            )
        return schedule

    def to_config(self) -> dict[str, Any]:
        """scheduler_config.json for diffusers' DDIMScheduler, set to sample as our `ddim` on `uniform_grid` does."""
        return {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": self.num_train_timesteps,
            "beta_schedule": self.beta_schedule,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "trained_betas": None if self.trained_betas is None else list(self.trained_betas),
            "prediction_type": self.prediction_type,
            "timestep_spacing": "trailing",
            "steps_offset": 0,
            "set_alpha_to_one": True,
            "clip_sample": False,
            "thresholding": False,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
        }

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """(T,) float64, falling: the product of 1 - beta up to each timestep.

        A timestep means the same noise as in diffusers: to the bit for the cosine, to float32's last one for others.
        """
        curve = self.trained_betas
        if curve is None:
            named = betas(self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end)
        else:
            named = np.asarray(curve)
        table = alpha_bar_from_betas(named)
        if self.rescale_betas_zero_snr:
            table = zero_terminal_snr(table)
        table.flags.writeable = False
        return table

    @cached_property
    def sigmas(self) -> np.ndarray:
        """(T,) float64, rising: sqrt((1 - alpha_bar) / alpha_bar)."""
        table = np.sqrt((1.0 - self.alpha_bar) / self.alpha_bar)
        table.flags.writeable = False
        return table

    def sigma_from_t(self, t: Any) -> Any:
        """Noise level at a timestep (float or array), linear in log sigma between whole ones, clamped to [0, T - 1]."""
        return np.exp(np.interp(t, self._timesteps, self._log_sigmas))

    def t_from_sigma(self, sigma: Any) -> Any:
        """Timestep (fractional) of a noise level, the inverse of `sigma_from_t`; sigma <= sigmas[0] gives 0.

        An MLX array gives an MLX array, through which gradients flow.
        """
        if isinstance(sigma, mx.array):
            return self._t_from_sigma_mlx(sigma)
        return np.interp(np.log(np.maximum(sigma, 1e-30)), self._log_sigmas, self._timesteps)

    def alpha(self, t: Any) -> Any:
        """sqrt(alpha_bar) at t. An MLX array of whole timesteps gives a float32 MLX array, anything else numpy."""
        if isinstance(t, mx.array):
            return self._mlx_tables[0][t.astype(mx.int32)]
        return 1.0 / np.sqrt(1.0 + self.sigma_from_t(t) ** 2)

    def std(self, t: Any) -> Any:
        """sqrt(1 - alpha_bar) at t, as `alpha`."""
        if isinstance(t, mx.array):
            return self._mlx_tables[1][t.astype(mx.int32)]
        sigma = self.sigma_from_t(t)
        return sigma / np.sqrt(1.0 + sigma**2)

    def input_scale(self, sigma: Any) -> Any:
        """alpha: what brings x0 + sigma * eps to the unit variance that the network sees (`frames.Frame`)."""
        return 1.0 / (1.0 + sigma * sigma) ** 0.5

    def x0_from_output(self, output: mx.array, x: mx.array, sigma: Any) -> mx.array:
        """x0 from what the network predicts at x = x0 + sigma * eps (B, H, W, C)."""
        match self.prediction_type:
            case "v_prediction":
                alpha = self.input_scale(sigma)
                return parameterization.x0_from_v(alpha * x, output, alpha, sigma * alpha)
            case "epsilon":
                return x - sigma * output
            case _:
                return output

    @cached_property
    def _mlx_tables(self) -> tuple[mx.array, mx.array]:
        table = self.alpha_bar
        return mx.array(np.sqrt(table).astype(np.float32)), mx.array(np.sqrt(1.0 - table).astype(np.float32))

    def _t_from_sigma_mlx(self, sigma: mx.array) -> mx.array:
        """Linear in log sigma between whole timesteps, as numpy's interp; float32."""
        table = mx.array(self._log_sigmas.astype(np.float32))
        log_sigma = mx.clip(mx.log(sigma), table[0], table[-1])
        below = mx.clip((mx.expand_dims(log_sigma, -1) >= table).sum(axis=-1) - 1, 0, len(self._log_sigmas) - 2)
        below = mx.stop_gradient(below)
        low, high = table[below], table[below + 1]
        return below + (log_sigma - low) / (high - low)

    @cached_property
    def _timesteps(self) -> np.ndarray:
        return np.arange(self.num_train_timesteps, dtype=np.float64)

    @cached_property
    def _log_sigmas(self) -> np.ndarray:
        return np.log(self.sigmas)


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{name} must be a finite number, got {value!r:.80}")


def _choice(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DataError(f"{key} {value!r:.80} is not supported: use one of {', '.join(cast(Any, allowed))}")
