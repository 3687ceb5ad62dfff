"""A multistep solver whose noise levels, the levels the network is told, and the weights of past outputs were learned.

It works on numbers and, so that it can be learned, on MLX scalars alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx

from mlx_tasks.errors import DataError
from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.history import History

HISTORY = 5
"""Outputs that a step may use: the newest and four before it."""


@dataclass(frozen=True)
class LearnedSteps:
    """What was learned, ready for `sample(denoise, noise, steps.sigmas, "learned", options=steps.options)`.

    Attributes:
        sigmas: n falling noise levels and a final 0.0.
        told: the n levels the network is told.
        weights: n lists of the weights of older outputs, the newest of them first: none for the first step, at most
            one for the second, and so on up to HISTORY - 1.  Those that are missing are 0.
    Raises: DataError naming the rule that is broken.
    """

    sigmas: tuple[float, ...]
    told: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", tuple(float(s) for s in self.sigmas))
        object.__setattr__(self, "told", tuple(float(s) for s in self.told))
        object.__setattr__(self, "weights", tuple(tuple(float(w) for w in row) for row in self.weights))
        n = len(self.sigmas) - 1
        numbers = [*self.sigmas, *self.told, *(w for row in self.weights for w in row)]
        if n < 1 or self.sigmas[-1] != 0.0 or any(b >= a for a, b in pairwise(self.sigmas)):
            raise DataError(f"learned sigmas must fall strictly and end at 0.0, got {list(self.sigmas)}")
        if not all(math.isfinite(v) for v in numbers) or not all(s > 0 for s in self.told):
            raise DataError("learned steps must hold finite numbers, and told levels above 0")
        most = [min(i, HISTORY - 1) for i in range(n)]
        taken = [len(row) for row in self.weights]
        if (
            len(self.told) != n
            or len(taken) != n
            or any(count > limit for count, limit in zip(taken, most, strict=True))
        ):
            raise DataError(
                f"learned steps of {n} levels take {n} told ones and at most {most} weights, got {len(self.told)} and "
                f"{taken}"
            )

    @classmethod
    def from_dict(cls, values: Any) -> LearnedSteps:
        """From `to_dict`'s values.  Raises: DataError for another shape."""
        try:
            return cls(values["sigmas"], values["told"], values["weights"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"learned steps must hold sigmas, told and weights, got {values!r:.200}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"sigmas": list(self.sigmas), "told": list(self.told), "weights": [list(row) for row in self.weights]}

    @property
    def num_steps(self) -> int:
        """Levels, and so denoiser calls."""
        return len(self.told)

    @property
    def options(self) -> dict[str, Any]:
        """As the solver `learned` takes them."""
        return {"told": self.told, "weights": self.weights}


def init(x: mx.array, sigmas: Sequence[float]) -> History:
    """No outputs yet."""
    return History(tuple(sigmas))


def step(
    denoise: Denoise,
    x: mx.array,
    state: History,
    sigma: Any,
    sigma_next: Any,
    key: mx.array | None,
    *,
    told: Sequence[Any] | None = None,
    weights: Sequence[Sequence[Any]] | None = None,
) -> tuple[mx.array, History]:
    """x' = (s'/s) x + (1 - s'/s) D0 + sum_j w_ij (D0 - D_j),  D_i = denoise(x_i, told_i).

    Step i has at most HISTORY - 1 weights, w_ij for the output j steps back. Whatever they are, a
    constant estimate is followed exactly, as by every other solver here; DPM-Solver++(2M) is w_i1 = (1 - s'/s)/2 / r,
    and what nobody learned is that.
    told: the noise level the network is told at each step; by default the true one.
    The step to sigma 0 has weights too.
    Source: Tong et al. 2025 (LD3) for the levels told; Frankel et al. 2025 (S4S) and Oganov et al. 2025 (GAS) for
    learned weights.
    Raises: ValueError unless there is one told level and one list of at most HISTORY - 1 weights a step.
    """
    steps = len(state.sigmas) - 1
    told = state.sigmas[:-1] if told is None else told
    weights = weights_of_2m(state.sigmas) if weights is None else weights
    if len(told) != steps or len(weights) != steps or any(len(row) > HISTORY - 1 for row in weights):
        raise ValueError(
            f"learned needs {steps} told levels and {steps} lists of at most {HISTORY - 1} weights, got "
            f"{len(told)} and {len(weights)}: these are the options of another grid"
        )
    index = state.index
    newest = denoise(x, told[index])
    ratio = sigma_next / sigma
    x = ratio * x + (1.0 - ratio) * newest
    for weight, (_, older) in zip(weights[index], state.past, strict=False):
        x = x + weight * (newest - older)
    return x, state.add(sigma, newest, keep=HISTORY - 1).advance()


def calls(num_steps: int) -> int:
    """Denoiser calls of a run that ends at sigma 0."""
    return num_steps


def weights_of_2m(sigmas: Sequence[float]) -> list[list[float]]:
    """The weights that make this solver DPM-Solver++(2M) on these noise levels, the last of which is 0."""
    rows: list[list[float]] = []
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        if i == 0 or following == 0.0:
            rows.append([])
            continue
        r = math.log(sigmas[i - 1] / sigma) / math.log(sigma / following)
        rows.append([(1.0 - following / sigma) / (2.0 * r)])
    return rows
