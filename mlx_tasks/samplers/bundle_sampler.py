"""Sampling from a bundle: the model, schedule, grid, solver and guidance that a bundle names, in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_tasks.diffusion.guidance import Guidance
from mlx_tasks.samplers.denoiser import network_denoiser
from mlx_tasks.samplers.driver import Samples, sample
from mlx_tasks.samplers.grids import Grid, grid_from_timesteps
from mlx_tasks.samplers.learned import LearnedSteps

if TYPE_CHECKING:
    from mlx_tasks.models.bundle import Bundle

Labels = mx.array | np.ndarray | Sequence[int] | None


def keyed_noise(seed: int, indices: Sequence[int] | range | int, shape: Sequence[int]) -> mx.array:
    """Unit normal noise (B, *shape), each image's from a key of its own, made of the seed and the image's index.

    So image i of a seed is the same alone, in any batch, and in any order. indices: those of the images, or a count.
    Raises: ValueError unless seed and indices fit in 32 bits.
    """
    wanted = range(indices) if isinstance(indices, int) else indices
    for name, value in (("seed", seed), *(("index", i) for i in wanted)):
        if not 0 <= value < 2**32:
            raise ValueError(f"{name} must be in [0, 2**32), got {value}")
    if not len(wanted):
        return mx.zeros((0, *shape))
    keys = mx.array([[seed, int(i)] for i in wanted], dtype=mx.uint32)
    return mx.vmap(lambda key: mx.random.normal(tuple(shape), key=key))(keys)


def bundle_noise(bundle: Bundle, seed: int, indices: Sequence[int] | range | int) -> mx.array:
    """`keyed_noise` of the bundle's image shape."""
    sampler = bundle.sampler
    return keyed_noise(seed, indices, (sampler.resolution, sampler.resolution, sampler.channels))


def sample_bundle(
    bundle: Bundle,
    noise: mx.array,
    class_labels: Labels = None,
    grid: Grid | LearnedSteps | Sequence[float] | None = None,
    solver: str | None = None,
    batch_size: int = 64,
    guidance_scale: float | Guidance | None = None,
    callback: Any = None,
    keys: mx.array | None = None,
    options: dict[str, Any] | None = None,
) -> Samples:
    """Images from noise, with what the bundle says unless told otherwise.

    noise: (B, H, W, C) unit normal; class_labels: (B,) integers; None for a model without classes, and for one with an
    empty label, which then draws of any class, unguided.
    batch_size: images sampled together (guidance doubles what the network sees).
    callback: callback(step_index, sigma, x0_estimate) of each chunk in turn.
    guidance_scale: a scale, or all of guidance.
    keys: (B, 2) uint32, one an image, for solvers that draw noise; options: the solver's own numbers.
    Returns: Samples with float images, not clipped.
    Raises: ValueError for labels that do not match the noise or the classes, and as `sample` does.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    labels = check_labels(bundle, class_labels, len(noise))
    steps = own_steps(bundle) if grid is None else grid
    scale = bundle.sampler.guidance_scale if guidance_scale is None else guidance_scale
    if class_labels is None:
        scale = 1.0
    chunks, nfe = [], 0
    for start in range(0, len(noise), batch_size):
        part = slice(start, start + batch_size)
        denoise = network_denoiser(
            bundle.model,
            bundle.schedule,
            None if labels is None else labels[part],
            scale,
            bundle.sampler.null_label,
        )
        key = None if keys is None else keys[part]
        drawn = sample(denoise, noise[part], steps, solver or bundle.sampler.solver, key, callback, options)
        chunks.append(drawn.images)
        nfe = drawn.nfe
    return Samples(mx.concatenate(chunks) if chunks else noise, nfe)


def own_steps(bundle: Bundle) -> Grid | LearnedSteps:
    """The steps that the bundle names: those it learned, or a grid of whole timesteps."""
    return bundle.sampler.learned or grid_from_timesteps(bundle.schedule, bundle.sampler.timesteps)


class Strip(NamedTuple):
    """What a model believed on the way.

    Attributes:
        images: (B, K, H, W, C) float: x0 estimates at K chosen steps, the finished image last.
        sigmas: (K,) the noise levels the estimates were made at; 0.0 for the finished image.
    """

    images: mx.array
    sigmas: tuple[float, ...]


def denoising_strip(
    bundle: Bundle,
    noise: mx.array,
    class_labels: Labels = None,
    grid: Grid | LearnedSteps | Sequence[float] | None = None,
    solver: str | None = None,
    columns: int = 8,
    guidance_scale: float | None = None,
) -> Strip:
    """The x0 estimates along one run, at most `columns` of them, evenly chosen, the finished image last.

    Raises: ValueError unless columns >= 2, and as `sample_bundle` does.
    """
    if columns < 2:
        raise ValueError(f"a strip needs at least 2 columns, got {columns}")
    estimates: list[mx.array] = []
    levels: list[float] = []

    def keep(_: int, sigma: float, denoised: mx.array) -> None:
        estimates.append(denoised)
        levels.append(sigma)

    drawn = sample_bundle(
        bundle, noise, class_labels, grid, solver, max(1, len(noise)), guidance_scale=guidance_scale, callback=keep
    )
    chosen = sorted({round(i) for i in np.linspace(0, len(levels) - 1, min(columns - 1, len(levels)))})
    images = mx.stack([*(estimates[i] for i in chosen), drawn.images], axis=1)
    return Strip(images, (*(levels[i] for i in chosen), 0.0))


def check_labels(bundle: Bundle, class_labels: Labels, count: int) -> mx.array | None:
    """Labels (count,) as int32; the empty one where none are given and there is one.

    Raises: ValueError for another count, or labels outside the bundle's classes.
    """
    if class_labels is None:
        empty = bundle.sampler.null_label
        return None if empty is None else mx.full((count,), empty, dtype=mx.int32)
    labels = np.asarray(class_labels)
    if labels.shape != (count,):
        raise ValueError(f"one label an image is needed: {count} noises, labels of shape {labels.shape}")
    names = len(bundle.sampler.class_names)
    highest = names - 1 if bundle.sampler.null_label is None else max(names - 1, bundle.sampler.null_label)
    if names and count and not (labels.min() >= 0 and labels.max() <= highest):
        raise ValueError(f"labels must lie in [0, {highest}], got {labels.min()} to {labels.max()}")
    return mx.array(labels.astype(np.int32))
