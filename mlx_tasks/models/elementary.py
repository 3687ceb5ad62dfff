"""exp, sigmoid and softmax from additions and multiplications, for MLX's CPU.

MLX on Linux takes one scalar exp at a time and vectorises plain arithmetic, so these are two to four times faster there
(benchmarks/cpu_kernels.py prints the ratio). They agree with MLX's own to float32's rounding, keep NaN, and have
gradients. On a GPU use MLX's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

_LOG2_E = 1.4426950408889634
_ROUNDER = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest whole number in the low bits of the mantissa
_MAX_EXPONENT = 126.0
_TWO_TO = (1.0, 0.6931470037, 0.2402224243, 0.05550733581, 0.009671512991, 0.001326472731)


Function = Callable[..., mx.array]


def with_gradient(vjp: Callable[[Any, mx.array, mx.array], Any]) -> Callable[[Function], Function]:
    """A decorator that gives a function of arrays its own gradient.

    vjp: (primals, cotangent, output) -> the cotangent of each primal; primals is the array itself if there is one.
    """

    def decorate(function: Function) -> Function:
        custom: Any = mx.custom_function(function)
        custom.vjp(vjp)

        @functools.wraps(function)  # MLX's object has no docstring, and a model that holds it cannot be copied
        def call(*arguments: mx.array) -> mx.array:
            return custom(*arguments)

        return call

    return decorate


@with_gradient(lambda x, cotangent, y: cotangent * y)
def exp(x: mx.array) -> mx.array:
    """e**x for float32 x, clamped to [2**-126, 2**126] instead of reaching 0 and infinity; MLX's own for other formats.

    e**x = 2**n * 2**r,  n = round(x log2 e),  |r| <= 1/2;  2**n by its bits, 2**r by a polynomial of degree 5 that was
    fitted to the smallest largest relative error (1.1e-7) with its first coefficient held at 1.
    """
    if x.dtype != mx.float32:
        return mx.exp(x)
    z = mx.clip(x * _LOG2_E, -_MAX_EXPONENT, _MAX_EXPONENT)
    shifted = z + _ROUNDER
    r = z - (shifted - _ROUNDER)
    p = _TWO_TO[5] * r + _TWO_TO[4]
    for coefficient in reversed(_TWO_TO[:4]):
        p = p * r + coefficient
    return p * mx.view((mx.view(shifted, mx.int32) << 23) + (127 << 23), mx.float32)


@with_gradient(lambda x, cotangent, y: cotangent * y * (1 - y))
def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + e**-x)."""
    return 1 / (1 + exp(-x))


def _softmax_vjp(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
    weighted = cotangent * y
    return weighted - y * weighted.sum(axis=-1, keepdims=True)


@with_gradient(_softmax_vjp)
def softmax(x: mx.array) -> mx.array:
    """e**x over its sum along the last axis."""
    raised = exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)
