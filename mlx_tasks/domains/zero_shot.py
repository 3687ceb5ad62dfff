"""What kind of images a set holds, by CLIP without training, where its weights are at hand; else by the detector."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_tasks.domains.detector import MAX_IMAGES, UNKNOWN, DomainGuess, detect_domain
from mlx_tasks.errors import DataError

if TYPE_CHECKING:
    from mlx_tasks.metrics.extractors.clip import Clip

logger = logging.getLogger(__name__)

CAPTIONS: dict[str, tuple[str, ...]] = {
    "portraits": ("a portrait of a person", "a close-up photo of a face", "a headshot"),
    "landscapes": ("a photo of a landscape", "a photo of mountains, sea or sky", "scenery without people"),
    "abstracts": ("an abstract painting", "a drawing of abstract shapes", "a colourful pattern"),
    "textures": ("a close-up photo of a texture", "a repeating surface pattern"),
    "digits": ("a handwritten digit", "a photo of a number"),
    "letters": ("a printed letter of the alphabet", "typeset text"),
    "general": ("a photo of an object", "a photo of an animal", "a photo of a street", "a picture"),
}
"""What each kind is called; a kind's embedding is the normalised mean of its captions' (Radford et al. 2021, 3.1.4)."""


def guess_zero_shot(images: np.ndarray, clip: Clip, captions: dict[str, tuple[str, ...]] = CAPTIONS) -> DomainGuess:
    """The kind of a set of uint8 images (N, H, W, 1 or 3) by CLIP's own probabilities, averaged over the images.

    p(k | image) = softmax_k(logit scale * cosine to kind k); unknown where no kind has a chance of a half.
    `strange` is the share of the images for which no kind has.  Raises: ValueError for no images.
    """
    if not len(images):
        raise ValueError("a kind is guessed from at least one image, got none")
    chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).round().astype(int)
    seen = _unit(clip(images[chosen]))
    kinds = np.stack([_unit(_unit(clip.embed_captions(list(words))).mean(axis=0)) for words in captions.values()])
    logits = clip.logit_scale * (seen @ kinds.T)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    each = raised / raised.sum(axis=1, keepdims=True)
    chances = {name: float(value) for name, value in zip(captions, each.mean(axis=0), strict=True)}
    best, strange = max(chances, key=lambda name: chances[name]), float((each.max(axis=1) < 0.5).mean())
    if chances[best] < 0.5:
        return DomainGuess(UNKNOWN, 1.0 - chances[best], chances, strange)
    return DomainGuess(best, chances[best], chances, strange)


def guess_domain(images: np.ndarray, weights: Path | None = None) -> DomainGuess:
    """By CLIP ViT-B/32 where its weights are found ($MLX_TASKS_WEIGHTS, or the folder given), else by the detector.

    Raises: ValueError for images that are none; DataError for a folder that is given and holds no CLIP.
    """
    from mlx_tasks.metrics.extractors.clip import Clip

    try:
        clip = Clip(weights)
        clip.tokenize(["a picture"])
    except DataError as error:
        if weights is not None:
            raise
        logger.debug("clip=absent reason=%r", str(error))
        return detect_domain(images)
    return guess_zero_shot(images, clip)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
