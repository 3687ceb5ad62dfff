"""The champion's score under a candidate's conditions: as stored where they are equal, else measured again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.registry.gate import CHAMPION_METRIC, Champion, Score
from mlx_tasks.registry.mlflow_registry import CONDITIONS_TAG, SCORES_TAG, Registry, Version

if TYPE_CHECKING:
    from mlx_tasks.data.loader import ImageSet
    from mlx_tasks.models.bundle import Bundle

Rescore = Callable[["Bundle"], Score]


def champion_score(registry: Registry, version: Version, conditions: dict[str, Any], rescore: Rescore) -> Champion:
    """The champion as the gate takes it."""
    if version.json_tag(CONDITIONS_TAG) == conditions:
        stored = Score.of((version.json_tag(SCORES_TAG) or {}).get(CHAMPION_METRIC))
        if stored.value is not None:
            return Champion(version.version, stored)
    from mlx_tasks.models.bundle import read_bundle

    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle = read_bundle(registry.download(version, Path(folder)))
            return Champion(version.version, rescore(bundle), how="scored again")
        except DataError as error:
            return Champion(version.version, None, str(error))


def rescore(bundle: Bundle, test: ImageSet, setup: dict[str, Any]) -> Score:
    """A bundle's Frechet distance to the held-out images that evaluate scored against, from the same noise and labels.

    test: the test split; setup: scores.json's.
    Raises: DataError for a bundle of another size or other classes.
    """
    from mlx_tasks.data.loader import to_uint8
    from mlx_tasks.metrics.bootstrap import centred_bootstrap
    from mlx_tasks.metrics.frechet import frechet_distance
    from mlx_tasks.metrics.random_conv import RandomConvFeatures
    from mlx_tasks.metrics.references import held_out_rows
    from mlx_tasks.samplers.bundle_sampler import bundle_noise, sample_bundle

    sampler = bundle.sampler
    theirs = (sampler.resolution, sampler.channels, list(sampler.class_names))
    ours = (setup["resolution"], setup["channels"], list(setup["classes"]))
    if theirs != ours:
        raise DataError(
            f"it draws {theirs[0]} x {theirs[0]} x {theirs[1]} images of {len(theirs[2])} classes, the candidate "
            f"{ours[0]} x {ours[0]} x {ours[1]} of {len(ours[2])}, or classes of other names"
        )
    count = setup["samples"]
    rows = held_out_rows(len(test), count, setup["seed"])
    labels = test.labels[rows] if ours[2] else None
    drawn = sample_bundle(bundle, bundle_noise(bundle, setup["noise_seed"], range(count)), labels).images
    space = RandomConvFeatures(ours[1], setup["feature_space"]["seed"])
    estimate = centred_bootstrap(
        frechet_distance,
        space(to_uint8(np.array(drawn))),
        space(np.array(test.images[rows])),
        setup["resamples"],
        setup["confidence"],
        setup["seed"],
    )
    return Score(estimate.value, estimate.low, estimate.high)
