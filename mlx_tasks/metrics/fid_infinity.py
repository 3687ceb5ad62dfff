"""The Frechet distance of infinitely many images, extrapolated from several counts."""

from __future__ import annotations

import numpy as np

from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.metrics.frechet import frechet_distance

POINTS = 15


def fid_infinity(
    generated: np.ndarray, real: np.ndarray, seed: int, smallest: int | None = None, confidence: float = 0.95
) -> Estimate:
    """Intercept of a straight line through the distances of random subsets, against 1/N.

    The bias of a Frechet distance falls as 1/N to first order and differs between models, so that neither a small count
    nor equal counts take it out of a comparison; the intercept does.

    Args:
        generated: (N, D); subsets of 15 sizes, evenly spaced from `smallest` to N, are drawn without replacement.
        real: (M, D), all of them each time: their own bias stays, the same for every model.
        seed: of the subsets.
        smallest: of the sizes; by default the larger of N / 10 and D + 1, below which covariances are singular.
        confidence: of the interval, which is Student's for the intercept.

    Raises: ValueError unless 2 <= smallest < N / 2: two thirds of a line need two ends.
    Source: Chong & Forsyth 2020, Section 4 (random instead of Sobol points).
    """
    from scipy.stats import linregress, t

    n, dimension = generated.shape
    low = max(n // 10, dimension + 1) if smallest is None else smallest
    if not 2 <= low < n / 2:
        raise ValueError(
            f"an extrapolation needs subsets from 2 to under half of the images: {n} images of {dimension} features "
            f"give smallest={low}; use at least {2 * (dimension + 1) + 1} images"
        )
    generator = np.random.Generator(np.random.PCG64([seed, n]))
    sizes = np.linspace(low, n, POINTS).round().astype(int)
    distances = [frechet_distance(generated[generator.permutation(n)[:size]], real) for size in sizes]
    line = linregress(1.0 / sizes, distances)
    half = float(t.ppf(0.5 + confidence / 2, POINTS - 2) * line.intercept_stderr)
    value = float(line.intercept)
    return Estimate(value, value - half, value + half)
