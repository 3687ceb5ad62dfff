"""The champion's score under a candidate's conditions: as stored where they are equal, else measured again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.registry.gate import Champion, Score
from mlx_tasks.registry.mlflow_registry import CONDITIONS_TAG, SCORES_TAG, Registry, Version

if TYPE_CHECKING:
    from mlx_tasks.data.loader import ImageSet
    from mlx_tasks.models.bundle import Bundle

Rescore = Callable[["Bundle"], dict[str, Score]]


def champion_scores(
    registry: Registry, version: Version, conditions: dict[str, Any], metrics: Sequence[str], rescore: Rescore
) -> Champion:
    """The champion as the gate takes it: its scores in these metrics, drawn and scored again only where it must be."""
    if version.json_tag(CONDITIONS_TAG) == conditions:
        stored = {name: Score.of(value) for name, value in (version.json_tag(SCORES_TAG) or {}).items()}
        if all(name in stored and stored[name].value is not None for name in metrics):
            return Champion(version.version, stored)
    from mlx_tasks.models.bundle import read_bundle

    with tempfile.TemporaryDirectory() as folder:
        try:
            bundle = read_bundle(registry.download(version, Path(folder)))
            return Champion(version.version, rescore(bundle), how="scored again")
        except DataError as error:
            return Champion(version.version, why_not=str(error))


def rescore(bundle: Bundle, test: ImageSet, setup: dict[str, Any]) -> dict[str, Score]:
    """A bundle's scores among random convolutions, against the images that evaluate scored against.

    Noise and labels are evaluate's too.

    test: the test split; setup: scores.json's.
    Raises: DataError for a bundle of another size or other classes.
    """
    from mlx_tasks.data.loader import to_uint8
    from mlx_tasks.metrics.bootstrap import centred_bootstrap
    from mlx_tasks.metrics.density_coverage import density_coverage
    from mlx_tasks.metrics.frechet import frechet_distance
    from mlx_tasks.metrics.kid import kid
    from mlx_tasks.metrics.precision_recall import precision_recall
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
    generated, real, level = space(to_uint8(np.array(drawn))), space(np.array(test.images[rows])), setup["confidence"]
    precision, recall = precision_recall(generated, real, confidence=level)
    density, coverage = density_coverage(generated, real, confidence=level)
    estimates = {
        "frechet_distance": centred_bootstrap(
            frechet_distance, generated, real, setup["resamples"], level, setup["seed"]
        ),
        "kernel_distance": kid(generated, real, level),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }
    return {name: Score(one.value, one.low, one.high) for name, one in estimates.items()}
