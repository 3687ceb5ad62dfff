"""What a network may predict, and each prediction from the others: exact algebra at one noise level.

x = alpha * x0 + std * eps,  v = alpha * eps - std * x0,  alpha^2 + std^2 = 1.

Every argument is an array; `alpha` and `std` broadcast against the images (`per_image` shapes one value an image).
Source: Salimans & Ho 2022, Appendix D (their sigma is our std).
"""

from __future__ import annotations

import mlx.core as mx


def per_image(values: mx.array, images: mx.array) -> mx.array:
    """values (B,) shaped (B, 1, ..., 1) to broadcast against images (B, ...)."""
    return values.reshape(-1, *([1] * (images.ndim - 1)))


def x_from_x0_eps(x0: mx.array, eps: mx.array, alpha: mx.array, std: mx.array) -> mx.array:
    """The noised image: alpha * x0 + std * eps."""
    return alpha * x0 + std * eps


def v_from_x0_eps(x0: mx.array, eps: mx.array, alpha: mx.array, std: mx.array) -> mx.array:
    """v = alpha * eps - std * x0."""
    return alpha * eps - std * x0


def x0_from_v(x: mx.array, v: mx.array, alpha: mx.array, std: mx.array) -> mx.array:
    """x0 = alpha * x - std * v."""
    return alpha * x - std * v


def eps_from_v(x: mx.array, v: mx.array, alpha: mx.array, std: mx.array) -> mx.array:
    """eps = std * x + alpha * v."""
    return std * x + alpha * v


def x0_from_eps(x: mx.array, eps: mx.array, alpha: mx.array, std: mx.array) -> mx.array:
    """x0 = (x - std * eps) / alpha; loses digits where alpha is near 0."""
    return (x - std * eps) / alpha


def eps_from_x0(x: mx.array, x0: mx.array, alpha: mx.array, std: mx.array) -> mx.array:
    """eps = (x - alpha * x0) / std; loses digits where std is near 0."""
    return (x - alpha * x0) / std


def v_from_x0(x: mx.array, x0: mx.array, alpha: mx.array, std: mx.array) -> mx.array:
    """v = (alpha * x - x0) / std: what a network must predict for `x0_from_v` to give x0."""
    return (alpha * x - x0) / std


def v_from_eps(x: mx.array, eps: mx.array, alpha: mx.array, std: mx.array) -> mx.array:
    """v = (eps - std * x) / alpha."""
    return (eps - std * x) / alpha
