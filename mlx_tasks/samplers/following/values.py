"""Kinds of values in a scheduler_config.json, so that "false" is not true and 2.5 is not 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlx_tasks.errors import DataError

SWITCHES = frozenset({
    "clip_sample", "euler_at_final", "lower_order_final", "rescale_betas_zero_snr", "set_alpha_to_one",
    "skip_prk_steps", "stochastic_sampling", "thresholding", "use_beta_sigmas", "use_dynamic_shifting",
    "use_exponential_sigmas", "use_flow_sigmas", "use_karras_sigmas",
})  # fmt: skip
COUNTS = {"num_train_timesteps": 1, "original_inference_steps": 1, "solver_order": 1, "steps_offset": 0}
"""Whole numbers, and the least."""
MOST = 100_000
"""Largest whole number."""
NUMBERS = {
    **dict.fromkeys(("clip_sample_range", "flow_shift", "sample_max_value", "shift", "sigma_data"), (1e-6, 1e6)),
    "dynamic_thresholding_ratio": (1e-6, 1.0),
    "lambda_min_clipped": (-math.inf, 1e6),
    "rho": (0.1, 1000.0),
    "shift_terminal": (0.0, 0.999999),
    "sigma_max": (0.0, 1e6),
    "sigma_min": (0.0, 1e6),
    "timestep_scaling": (1e-6, 1e6),
}
"""Numbers, and between what: beyond, powers of them are no numbers any more."""
OR_NULL = frozenset({"flow_shift", "shift_terminal"})
CHOICES = {
    "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "sigma_schedule": ("karras", "exponential"),
    "time_shift_type": ("exponential", "linear"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
}


def check_values(values: Mapping[str, Any]) -> None:
    """Raises: DataError naming the first key whose value is of another kind."""
    for key, value in values.items():
        if value is None and key in OR_NULL:
            continue
        if key in SWITCHES and not isinstance(value, bool):
            _refuse(key, value, "true or false")
        if key in COUNTS and not _within(value, int, COUNTS[key], MOST):
            _refuse(key, value, f"a whole number from {COUNTS[key]} to {MOST}")
        if key in NUMBERS and not _within(value, (int, float), *NUMBERS[key]):
            _refuse(key, value, "a number from {:g} to {:g}".format(*NUMBERS[key]))
        if key in CHOICES and value not in CHOICES[key]:
            _refuse(key, value, "one of " + ", ".join(CHOICES[key]))


def _within(value: Any, kinds: Any, low: float, high: float) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def _refuse(key: str, value: Any, rule: str) -> None:
    raise DataError(f"scheduler_config {key} must be {rule}, got {value!r:.80}")
