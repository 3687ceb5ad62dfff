"""Does a model draw its training images? Nearest training images, against how near held-out images are to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_tasks.metrics.estimate import Estimate, share
from mlx_tasks.metrics.neighbours import nearest

NEAR = 0.05
"""A generated image is suspicious when it is nearer to a training image than this share of held-out images is."""


@dataclass(frozen=True)
class Memorisation:
    """What was found.

    Attributes:
        suspicious: share of generated images nearer to a training image than 5 % of held-out ones are; about 0.05 for a
            model that copies as little as fresh real images do.
        ratio: median nearest distance of the generated over that of the held-out; 0 for copies, about 1 for fresh ones.
        p_value: one-sided, of nearest distances this short (Mann-Whitney) if both were drawn alike.
        worst: indices of the generated images that lie nearest to a training image, nearest first.
        twins: the training images they lie nearest to.
    """

    suspicious: Estimate
    ratio: float
    p_value: float
    worst: np.ndarray
    twins: np.ndarray


def memorisation(
    generated: np.ndarray, train: np.ndarray, held_out: np.ndarray, confidence: float = 0.95, kept: int = 8
) -> Memorisation:
    """Nearest-training-image distances of generated features against those of held-out ones.

    Args:
        generated: (N, D); train: (T, D), all that the model has seen; held_out: (M, D), which it has not.
        confidence: of the share's interval (Wilson's, the held-out threshold held fixed).
        kept: how many of the nearest pairs are named.

    Raises: ValueError for fewer than 20 held-out rows, where 5 % of them is none.
    Source: Meehan, Chaudhuri & Dasgupta 2020 (the C_T test, here over the whole space at once).
    """
    from scipy.stats import mannwhitneyu

    if len(held_out) < 20 or not len(generated) or not len(train):
        raise ValueError(
            f"at least 20 held-out, 1 generated and 1 training image are needed, got {len(held_out)}, "
            f"{len(generated)} and {len(train)}"
        )
    ours, twins = nearest(generated, train)
    theirs, _ = nearest(held_out, train)
    limit = np.quantile(theirs, NEAR)
    middle = float(np.median(theirs))
    order = np.argsort(ours, kind="stable")[:kept]
    return Memorisation(
        share(ours < limit, confidence),
        float(np.median(ours)) / middle if middle > 0 else float("nan"),
        float(mannwhitneyu(ours, theirs, alternative="less").pvalue),
        order,
        twins[order],
    )
