"""Kinds of values in a scheduler_config.json, so that "false" is not true and 2.5 is not 2."""

from __future__ import annotations

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
ABOVE_ZERO = frozenset({
    "clip_sample_range", "dynamic_thresholding_ratio", "flow_shift", "rho", "sample_max_value", "shift", "sigma_data",
    "timestep_scaling",
})  # fmt: skip
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
        if key in COUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < COUNTS[key]):
            _refuse(key, value, f"a whole number of at least {COUNTS[key]}")
        if key in ABOVE_ZERO and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            _refuse(key, value, "a number above 0")
        if key in CHOICES and value not in CHOICES[key]:
            _refuse(key, value, "one of " + ", ".join(CHOICES[key]))


def _refuse(key: str, value: Any, rule: str) -> None:
    raise DataError(f"scheduler_config {key} must be {rule}, got {value!r:.80}")
