"""Sampling that stops where more steps would no longer matter: each image leaves the batch by itself.

After each step the estimate of the image is at hand. How much it changed in the step tells how far it still is from the
many-step result. How well it tells was measured on noises of their own, and the margin that makes the promise hold is
set on yet others, by playing the very rule of stopping on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json, write_json
from mlx_tasks.samplers import dpm_multistep
from mlx_tasks.samplers.denoiser import Denoise
from mlx_tasks.samplers.history import History

DenoiseRows = Callable[[np.ndarray], Denoise]
"""Rows of the batch -> their denoiser: labels go with the images that are left."""
_LEAST = 1e-6


@dataclass(frozen=True)
class QualitySamples:
    """What a run gives.

    Attributes:
        images: (B, H, W, C) float.
        nfe: (B,) network evaluations each image took.
        early: (B,) whether it left before the last step, and so under the promise.
        expected: (B,) the error expected when it left, from the change of its last step; NaN where there was none.
    """

    images: mx.array
    nfe: np.ndarray
    early: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class QualityGuidedSampler:
    """DPM-Solver++(2M) on a grid, with what changes of the estimate say about the error that is left.

    Attributes:
        sigmas: falling levels, the last 0.
        lines: (offset, slope) a step from the second: log(error) is about offset + slope * log(change).
        changes, errors: (steps - 1, N) of noises that the lines were not fitted on: they set the margin.
    """

    sigmas: tuple[float, ...]
    lines: tuple[tuple[float, float], ...]
    changes: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]

    @classmethod
    def calibrate(
        cls, denoise: DenoiseRows, noise: mx.array, truth: np.ndarray, sigmas: Sequence[float]
    ) -> QualityGuidedSampler:
        """Learn on noises (N, H, W, C) whose many-step results are known: lines on one half, margins on the other.

        Raises: DataError for fewer than 20 noises.
        """
        count = len(noise)
        if count < 20:
            raise DataError(f"at least 20 noises are needed, half of them for margins, got {count}")
        levels = tuple(float(s) for s in sigmas)
        changes, errors = [], []
        for change, estimate in _run(denoise(np.arange(count)), noise, levels):
            changes.append(np.maximum(change, _LEAST))
            errors.append(np.maximum(_rms(np.array(estimate) - truth), _LEAST))
        half, lines = count // 2, []
        for change, error in zip(changes[1:], errors[1:], strict=True):
            x, y = np.log(change[:half]), np.log(error[:half])
            slope = float(np.cov(x, y)[0, 1] / max(np.var(x, ddof=1), 1e-12))
            lines.append((float(y.mean() - slope * x.mean()), slope))
        kept = [tuple(tuple(map(float, row[half:])) for row in values[1:]) for values in (changes, errors)]
        return cls(levels, tuple(lines), kept[0], kept[1])

    def expected(self, step: int, change: np.ndarray) -> np.ndarray:
        """(B,) the error expected of images whose estimates changed by `change` in the step-th call (from 2)."""
        offset, slope = self.lines[step - 2]
        return np.exp(offset + slope * np.log(np.maximum(change, _LEAST)))

    def margin(self, tolerance: float, coverage: float, patience: int, minimum: int, maximum: int) -> float:
        """How far below the tolerance an expected error must be: expected <= tolerance * exp(-margin).

        The smallest margin with which, on the noises kept for it, (those stopped early with an error above the
        tolerance + 1) / (N + 1) is at most 1 - coverage, and so with all larger ones (conformal risk control,
        Angelopoulos et al. 2024): on other noises at most that share is expected to be stopped too early.  Infinite
        where no margin does, and then nothing is stopped.
        """
        changes, errors = np.array(self.changes), np.array(self.errors)
        expected = np.stack([self.expected(step + 2, row) for step, row in enumerate(changes)])
        best = math.inf
        for margin in np.linspace(5.0, -2.0, 281):
            leaves = _leaving(expected <= tolerance * math.exp(-margin), patience, minimum, maximum)
            early = leaves < maximum
            error = errors[np.minimum(leaves, maximum) - 2, np.arange(errors.shape[1])]
            missed = int((early & (error > tolerance)).sum())
            if (missed + 1) / (errors.shape[1] + 1) > 1.0 - coverage:
                break
            best = float(margin)
        return best

    def sample(
        self,
        denoise: DenoiseRows,
        noise: mx.array,
        tolerance: float,
        *,
        coverage: float = 0.9,
        patience: int = 1,
        minimum: int = 2,
        maximum: int | None = None,
    ) -> QualitySamples:
        """Draw; an image leaves once its expected error was below the margin in `patience` steps running.

        tolerance: RMS distance to the many-step result; coverage: of the images, at least this share is not stopped
        with a larger one; minimum, maximum: steps an image takes at least and at most.
        The last step's estimate is the image. Those that are left go on as a smaller batch: no call is wasted.
        Raises: DataError for limits that contradict each other.
        """
        steps = len(self.sigmas) - 1
        most = steps if maximum is None else min(maximum, steps)
        if tolerance <= 0 or patience < 1 or not 2 <= minimum <= most or not 0 < coverage < 1:
            raise DataError(
                f"tolerance must be above 0, coverage in (0, 1), patience at least 1 and 2 <= minimum <= maximum "
                f"({most}), got {tolerance}, {coverage}, {patience}, {minimum}"
            )
        limit = tolerance * math.exp(-self.margin(tolerance, coverage, patience, minimum, most))
        rows, count = np.arange(len(noise)), len(noise)
        images: list[mx.array | None] = [None] * count
        nfe, kept = np.zeros(count, int), np.zeros(count, int)
        early, expected = np.zeros(count, bool), np.full(count, np.nan)
        x = noise * math.sqrt(1.0 + self.sigmas[0] ** 2)
        state, before = dpm_multistep.init(x, self.sigmas), None
        for step in range(1, most + 1):
            run = denoise(rows)
            x, state = dpm_multistep.step(run, x, state, self.sigmas[step - 1], self.sigmas[step], None, order=2)
            estimate = state.past[0][1]
            mx.eval(x, estimate)
            cost = getattr(run, "evaluations_at", lambda _: 1)
            nfe[rows] += cost(self.sigmas[step - 1])
            done = np.full(len(rows), step == most)
            if before is not None:
                expected[rows] = self.expected(step, _rms(np.array(estimate) - np.array(before)))
                kept[rows] = np.where(expected[rows] <= limit, kept[rows] + 1, 0)
                leaving = (kept[rows] >= patience) & (step >= minimum) & ~done
                early[rows[leaving]] = True
                done |= leaving
            for place in np.flatnonzero(done):
                images[rows[place]] = estimate[int(place)]
            if done.all():
                break
            left = mx.array(np.flatnonzero(~done))
            rows, x, before = rows[~done], x[left], estimate[left]
            state = _rows_of(state, left)
        return QualitySamples(mx.stack([image for image in images if image is not None]), nfe, early, expected)

    def save(self, path: Path | str) -> None:
        """Write it as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> QualityGuidedSampler:
        """What `save` wrote.  Raises: DataError for another file."""
        try:
            told: dict[str, Any] = read_json(Path(path))
            tables = [tuple(tuple(row) for row in told[name]) for name in ("lines", "changes", "errors")]
            return cls(tuple(told["sigmas"]), *tables)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is no saved QualityGuidedSampler ({error!r})") from None


def _leaving(good: np.ndarray, patience: int, minimum: int, maximum: int) -> np.ndarray:
    """(N,) the step (calls made) at which each image leaves; good: (steps - 1, N), from the second call on."""
    leaves, run = np.full(good.shape[1], maximum), np.zeros(good.shape[1], int)
    for row, step in zip(good, range(2, maximum), strict=False):
        run = np.where(row, run + 1, 0)
        leaves = np.where((run >= patience) & (step >= minimum) & (leaves == maximum), step, leaves)
    return leaves


def _run(denoise: Denoise, noise: mx.array, sigmas: tuple[float, ...]) -> Any:
    """(change of the estimate (B,), estimate) of each step of the whole run."""
    x = noise * math.sqrt(1.0 + sigmas[0] ** 2)
    state, before = dpm_multistep.init(x, sigmas), None
    for sigma, following in pairwise(sigmas):
        x, state = dpm_multistep.step(denoise, x, state, sigma, following, None, order=2)
        estimate = state.past[0][1]
        mx.eval(x, estimate)
        change = np.full(len(noise), np.nan) if before is None else _rms(np.array(estimate) - np.array(before))
        before = estimate
        yield change, estimate


def _rows_of(state: History, rows: mx.array) -> History:
    return state._replace(past=tuple((sigma, output[rows]) for sigma, output in state.past))


def _rms(gap: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(gap.astype(np.float64)).mean(axis=tuple(range(1, gap.ndim))))
