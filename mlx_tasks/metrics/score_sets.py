"""Two sets of images scored against each other by one extractor, streaming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.bootstrap import centred_bootstrap
from mlx_tasks.metrics.cmmd import cmmd
from mlx_tasks.metrics.density_coverage import density_coverage
from mlx_tasks.metrics.estimate import Estimate
from mlx_tasks.metrics.fid_infinity import fid_infinity
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.image_files import ImageFiles
from mlx_tasks.metrics.kid import kid, subset_kid
from mlx_tasks.metrics.moments import Moments
from mlx_tasks.metrics.precision_recall import precision_recall
from mlx_tasks.metrics.published import in_their_span
from mlx_tasks.metrics.significance import at_equal_counts

KEPT = 20_000
"""Features kept for the scores that need every row; above that only mean and covariance are."""
PAIRS = 2_000
"""Rows up to which KID is over all pairs; above, over the published 100 subsets of 1000."""

SPAN, RESAMPLES = 512, 50
"""Directions up to which the Frechet distance gets a bootstrap interval: beyond, an interval takes minutes."""

Tell = Callable[[int, int], None]
"""tell(done, total) after each batch."""


@dataclass
class Extracted:
    """What is known of one set of images.

    Attributes:
        moments: mean and covariance of its features.
        features: (N, D) where they were kept, else None.
    """

    moments: Moments
    features: np.ndarray | None


def extract(images: ImageFiles, extractor: Any, batch_size: int, tell: Tell = lambda done, total: None) -> Extracted:
    """Features of a set, batch by batch; memory is bounded by KEPT rows, the batch and D^2.

    Raises: DataError as the reader and the extractor do.
    """
    moments, kept, done = Moments(extractor.identity), [], 0
    keep = len(images) <= KEPT
    shape: tuple[int, ...] | None = None
    for batch in images.batches(batch_size):
        if extractor.name == "random_conv" and shape not in (None, batch.shape[1:]):
            raise DataError(
                f"{images.path} holds images of {shape} and {batch.shape[1:]}, whose features do not compare: give one "
                "size to all (--resolution)"
            )
        shape = batch.shape[1:]
        features = np.asarray(extractor(batch, batch_size), np.float64)
        moments.update(features)
        if keep:
            kept.append(features)
        done += len(batch)
        tell(done, len(images))
    if moments.count < 2:
        raise DataError(f"{images.path} has {moments.count} images that decode: a score needs at least 2")
    return Extracted(moments, np.concatenate(kept) if keep else None)


def score_sets(generated: Extracted, real: Extracted, family: str, seed: int) -> tuple[dict[str, Estimate], list[str]]:
    """(scores by name, notes): what two sets say of each other; names are the published ones only for their families.

    family: inception, dinov2, clip or random. A note is said where a score is left out or of limited worth.
    """
    notes = []
    n, m, d = generated.moments.count, real.moments.count, len(generated.moments.mean)
    frechet = {"inception": "fid", "dinov2": "fd_dinov2"}.get(family, "frechet_distance")
    kernel = {"inception": "kid"}.get(family, "kernel_distance")
    scores = {frechet: Estimate(generated.moments.frechet_distance(real.moments))}
    if min(n, m) <= d:
        notes.append(
            f"{min(n, m)} images span at most {min(n, m) - 1} of {d} features: {frechet} is far above its limit and "
            f"compares only at equal counts; {kernel} is unbiased and valid"
        )
    if n != m:
        notes.append(f"the counts differ ({n} and {m}): {frechet} compares with values of the same counts only")
    a, b = generated.features, real.features
    if a is None or b is None:
        notes.append(f"over {KEPT} images, or saved statistics: scores that need every image's features are left out")
        return scores, notes
    if min(n, m) >= 3:
        if max(n, m) <= PAIRS:
            scores[kernel] = kid(a, b)
        else:
            subsets = subset_kid(a, b, seed)
            half = 1.96 * subsets.deviation / subsets.subsets**0.5
            scores[kernel] = Estimate(subsets.mean, subsets.mean - half, subsets.mean + half)
            notes.append(
                f"{kernel}: mean of {subsets.subsets} subsets of {subsets.size}, deviation {subsets.deviation:.3g}"
            )
    if n >= 2 * d + 3:
        scores[f"{frechet}_infinity"] = fid_infinity(a, b, seed)
    if family == "clip" and min(n, m) >= 3:
        scores["cmmd"] = cmmd(a, b)
    if min(n, m) > 5:
        equal_a, equal_b = at_equal_counts(seed, a, b) if n != m else (a, b)
        scores["precision"], scores["recall"] = precision_recall(equal_a, equal_b)
        scores["density"], scores["coverage"] = density_coverage(equal_a, equal_b)
        if n != m:
            notes.append(f"precision, recall, density and coverage: on {min(n, m)} of each, by seed {seed}")
    if min(d, n + m) <= SPAN:
        scores[frechet] = centred_bootstrap(frechet_distance, *in_their_span(a, b), RESAMPLES, 0.95, seed)
    return scores, notes
