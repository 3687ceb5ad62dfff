"""A run of learned steps that keeps what it passed, so that a run of nearly the same steps starts where they part."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from mlx_tasks.samplers import learned
from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.driver import Counted, SamplerDivergedError
from mlx_tasks.samplers.history import History
from mlx_tasks.samplers.learned import LearnedSteps


class KeptRun:
    """One batch brought from noise to images by learned steps, and kept on the way.

    Attributes:
        images: (B, H, W, C) float, the same bits as `sample` gives.
        evaluations: network evaluations of one image that it took.
    Raises: SamplerDivergedError as `sample`.
    """

    def __init__(self, denoise: Denoise, noise: mx.array, steps: LearnedSteps) -> None:
        self._denoise, self._noise, self._steps = denoise, noise, steps
        self._passed: list[tuple[mx.array, History]] = []
        self.images, self.evaluations = self._run(steps, 0, self._passed)

    def part(self, steps: LearnedSteps) -> tuple[mx.array, int]:
        """(images (B, H, W, C) of as many other steps, network evaluations that took).

        What comes before the first number that differs is not drawn again, and where it is a weight or the next level,
        the network's output there is taken as well.  Raises: SamplerDivergedError as `sample`.
        """
        ours, theirs = self._steps, steps
        if ours.sigmas[0] != theirs.sigmas[0]:
            return self._run(steps, 0)
        for i in range(ours.num_steps):
            if ours.told[i] != theirs.told[i]:
                return self._run(steps, i)
            if ours.sigmas[i + 1] != theirs.sigmas[i + 1] or ours.weights[i] != theirs.weights[i]:
                return self._run(steps, i, output=self._passed[i + 1][1].past[0][1])
        return self.images, 0

    def _run(
        self,
        steps: LearnedSteps,
        index: int,
        passed: list[tuple[mx.array, History]] | None = None,
        output: mx.array | None = None,
    ) -> tuple[mx.array, int]:
        """From step `index` on, whose output is taken if it is given; `passed` is filled if it is given."""
        counted = Counted(self._denoise)
        if index:
            x, state = self._passed[index]
            state = state._replace(sigmas=steps.sigmas)
        else:
            x = self._noise * math.sqrt(1.0 + steps.sigmas[0] ** 2)
            state = learned.init(x, steps.sigmas)
        for i in range(index, steps.num_steps):
            if passed is not None:
                passed.append((x, state))
            denoise: Any = counted if output is None or i > index else lambda x, sigma: output
            x, state = learned.step(denoise, x, state, steps.sigmas[i], steps.sigmas[i + 1], None, **steps.options)
            total = x.sum()
            mx.eval(x, total)
            if not math.isfinite(float(total)):
                raise SamplerDivergedError(i, steps.sigmas[i])
        if passed is not None:
            passed.append((x, state))
        return x, counted.evaluations
