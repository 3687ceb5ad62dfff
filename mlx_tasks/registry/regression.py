"""Does a stored bundle still draw what it drew when it was registered, at the quality it was registered with?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.registry.draw import draw
from mlx_tasks.registry.reference import REFERENCE_SEED, Reference, read_reference

if TYPE_CHECKING:
    from mlx_tasks.data.loader import ImageSet
    from mlx_tasks.models.bundle import Bundle

SAME = 1e-3
"""Relative distance of the features up to which images count as the same: rounding, not another model."""
ALLOWED_RISE = 0.02
"""Relative rise of the Frechet distance from the stored one. The images are the same ones, so no noise is in it."""
LEAST_SPREAD = 0.5
"""Share of the held-out images' spread in feature space below which a set has collapsed."""


@dataclass(frozen=True)
class Check:
    """One fact that must hold.

    Attributes:
        name: what is checked.
        value: what was found.
        rule: what must hold, in words with its limit.
        passed: whether it does.
    """

    name: str
    value: float
    rule: str
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check_bundle(folder: Path, bundle: Bundle, tell: Callable[[str], None] = lambda _: None) -> list[Check]:
    """The bundle's reference images drawn again from their seeds, held against what was stored with it.

    Raises: DataError for a bundle without a reference.
    """
    reference = read_reference(folder)
    tell(f"drawing {len(reference.labels)} images from their stored seeds")
    seeds = range(REFERENCE_SEED, REFERENCE_SEED + len(reference.labels))
    images = draw(bundle, reference.labels.tolist(), list(seeds))
    return check_images(images, reference)


def check_images(images: np.ndarray, reference: Reference) -> list[Check]:
    """Checks of images (N, H, W, C) uint8 that should be those of the reference."""
    features = reference.features(images)
    stored, held_out = reference.generated, reference.held_out
    away = float(np.linalg.norm(features - stored) / np.linalg.norm(stored))
    equal = min(len(features), len(held_out))
    spread = _spread(features) / max(_spread(held_out), 1e-12)
    rows = np.linspace(0, len(held_out) - 1, equal).round().astype(int)
    distance = frechet_distance(features[:equal], held_out[rows])
    limit = (1 + ALLOWED_RISE) * reference.frechet_distance
    flat = float((images.reshape(len(images), -1).std(axis=1) == 0).mean())
    return [
        Check("same images", away, f"features within {SAME:g} of the stored ones", away <= SAME),
        Check("frechet distance", distance, f"at most {limit:.4g}, 2 % over the stored one", distance <= limit),
        Check("not collapsed", spread, f"spread at least {LEAST_SPREAD:g} of held-out images'", spread >= LEAST_SPREAD),
        Check("no flat images", flat, "no image of one colour", flat == 0.0),
    ]


def across_resolutions(
    bundle: Bundle, splits: dict[int, ImageSet], tell: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """[{resolution, frechet_distance, real, times_real, samples}]: the bundle at every resolution there is data for.

    A U-Net draws at any multiple of its stride; what it was not trained at last it draws worse, and this says how much.
    `real` is what one half of the real images scores against the other: the ruler of that resolution, as values of
    different resolutions do not compare.

    splits: resolution -> held-out images there.
    """
    from mlx_tasks.metrics.random_conv import RandomConvFeatures

    rows = []
    for resolution, split in sorted(splits.items()):
        half = len(split) // 2
        at = replace(bundle, sampler=replace(bundle.sampler, resolution=resolution))
        labels = split.labels[:half].tolist() if bundle.sampler.class_names else [-1] * half
        tell(f"drawing {half} images at {resolution} pixels")
        space = RandomConvFeatures(bundle.sampler.channels)
        drawn = space(draw(at, labels, list(range(REFERENCE_SEED, REFERENCE_SEED + half))))
        first, second = space(np.asarray(split.images[:half])), space(np.asarray(split.images[half : 2 * half]))
        distance, real = frechet_distance(drawn, first), frechet_distance(second, first)
        told = {"resolution": resolution, "frechet_distance": distance, "real": real}
        rows.append({**told, "times_real": distance / real, "samples": half})
    return rows


def _spread(features: np.ndarray) -> float:
    return float(np.sqrt(features.var(axis=0).sum()))
