"""DPM-Solver and DPM-Solver++ of orders 1 to 3, single-step: groups of intervals, each solved from the group's start.

A group of k intervals costs k calls and is of order k; its inner points are the grid's own, so that a grid of n steps
costs n calls whatever its groups are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import mlx.core as mx

from mlx_tasks.samplers.denoiser import Denoise


class Group(NamedTuple):
    """Where a group stands.

    Attributes:
        orders: of every interval: 1 at the start of a group, rising inside it.
        index: intervals that have been taken.
        start: x at the group's start.
        outputs: (sigma, output) of the group so far, oldest first.
    """

    orders: tuple[int, ...]
    index: int
    start: mx.array
    outputs: tuple[tuple[float, mx.array], ...]


def group_orders(num_steps: int, order: int, to_zero: bool) -> tuple[int, ...]:
    """The automatic choice: groups of `order` while they fit, then a smaller one; what ends at sigma 0 stands alone.

    7 steps of order 3 that end at 0: 1 2 3 1 2 3 1.  6: 1 2 3 1 2 1.  8: 1 2 3 1 2 3 1 1.
    Source: Lu et al. 2022a, Section 3.4 ("DPM-Solver-fast"), which ends above 0; at 0 only first order is finite.
    """
    whole, rest = divmod(num_steps - to_zero, order)
    orders = [k for _ in range(whole) for k in range(1, order + 1)]
    return (*orders, *range(1, rest + 1), *([1] if to_zero else []))


def init(x: mx.array, sigmas: Sequence[float]) -> tuple[int, bool]:
    """How many intervals there are, and whether they end at 0; the groups follow from both and the order."""
    return len(sigmas) - 1, sigmas[-1] == 0.0


def step(
    denoise: Denoise,
    x: mx.array,
    state: Group | tuple[int, bool],
    sigma: float,
    sigma_next: float,
    key: mx.array | None,
    *,
    order: int = 2,
    predict: Literal["x0", "eps"] = "x0",
    groups: Sequence[int] | None = None,
) -> tuple[mx.array, Group]:
    """From the group's start to sigma_next with the outputs of all its points so far, h from the start:

    x0:   x' = exp(-h) x_s - [g D0 + g/2 D1]                 (order 2),  g = exp(z) - 1,  z = -h
          x' = exp(-h) x_s - [g D0 + (g/z - 1) D1]           (order 3),
    eps:  x' = x_s - sigma' [the same with z = h].
    D0 is the output at the group's start, D1 the slope in half_log_snr, times h, to its newest point.
    groups: the order of every interval, where it is not the automatic choice: 1 starts a group.
    Source: Lu et al. 2022a, Algorithms 1 and 2 (the inner points are the grid's); Lu et al. 2022b, Algorithm 1.
    """
    if isinstance(state, Group):
        group = state
    else:
        group = Group(tuple(groups or group_orders(state[0], order, state[1])), 0, x, ())
    rank = group.orders[group.index]
    denoised = denoise(x, sigma)
    output = denoised if predict == "x0" else (x - denoised) / sigma
    start, outputs = (x, ()) if rank == 1 else (group.start, group.outputs)
    outputs = (*outputs, (sigma, output))
    following = Group(group.orders, group.index + 1, start, outputs)
    if sigma_next == 0.0:
        return denoised, following
    sigma_start, first = outputs[0]
    h = math.log(sigma_start / sigma_next)
    z = -h if predict == "x0" else h
    growth = math.expm1(z)
    change = growth * first
    if rank > 1:
        slope = (output - first) * (h / math.log(sigma_start / sigma))
        change = change + (0.5 * growth if rank == 2 else growth / z - 1.0) * slope
    if predict == "x0":
        return (sigma_next / sigma_start) * start - change, following
    return start - sigma_next * change, following


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps
