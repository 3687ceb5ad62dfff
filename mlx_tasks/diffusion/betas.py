"""Curves of beta, the noise that each training timestep adds, by diffusers' names."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

BetaSchedule = Literal["squaredcos_cap_v2", "linear", "scaled_linear", "sigmoid"]

MAX_BETA = 0.999
"""diffusers' cap, which keeps the last alpha_bar above zero."""

ZERO_SNR_ALPHA_BAR = 2.0**-24
"""What stands for alpha_bar = 0 at the last timestep of a schedule with zero terminal SNR, as in diffusers."""


def betas(name: BetaSchedule, count: int, start: float, end: float) -> np.ndarray:
    """(count,) float64.

    squaredcos_cap_v2: Nichol & Dhariwal 2021, Eq. 17, which takes no ends; linear: Ho et al. 2020, Section 4;
    scaled_linear: linear in the square root (Rombach et al. 2022); sigmoid: from -6 to 6 (Xu et al. 2022, GeoDiff).
    """
    match name:
        case "squaredcos_cap_v2":
            curve = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
            return np.array([min(1 - curve[i + 1] / curve[i], MAX_BETA) for i in range(count)])
        case "linear":
            return np.linspace(start, end, count)
        case "scaled_linear":
            return np.linspace(start**0.5, end**0.5, count) ** 2
        case "sigmoid":
            return (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, count))) + start


def alpha_bar_from_betas(betas: np.ndarray) -> np.ndarray:
    """(T,) float64: the product of 1 - beta up to each timestep, rounded to float32 where diffusers rounds.

    Near t = 0 the rounding moves sigma by up to 1e-3; so a timestep means the same noise in both.
    """
    kept = np.float32(1.0) - betas.astype(np.float32)
    return np.cumprod(kept.astype(np.float64)).astype(np.float32).astype(np.float64)


def zero_terminal_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """alpha_bar (T,) with sqrt(alpha_bar) shifted and scaled so that the last is 0 and the first stays.

    The last one is then put at ZERO_SNR_ALPHA_BAR, or lower where that would not fall, so that every sigma is finite.
    Source: Lin et al. 2024, Algorithm 1.
    """
    root = np.sqrt(alpha_bar)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    rescaled = root**2
    rescaled[-1] = min(ZERO_SNR_ALPHA_BAR, rescaled[-2] / 4.0)
    return rescaled


def betas_from_alpha_bar(alpha_bar: np.ndarray) -> np.ndarray:
    """(T,) the betas whose running product is alpha_bar: how a schedule of any shape is written as `trained_betas`."""
    return 1.0 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])
