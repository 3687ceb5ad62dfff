"""A small image-text model: images and captions of any script in one space, behind the image-text score."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_tasks.errors import DataError
from mlx_tasks.files import atomic_write_bytes, read_json, write_json
from mlx_tasks.metrics.caption_window import WINDOW
from mlx_tasks.metrics.normal import normal

PAD = 256
"""The byte that is no byte: fills captions up to the longest."""


@dataclass(frozen=True)
class ImageTextConfig:
    """Sizes of the model, kept beside its weights.

    Attributes:
        channels: colour channels of the images.
        width: maps of the image encoder's first level, and channels of the text encoder.
        dimension: of the joint space.
        max_bytes: UTF-8 bytes of a caption that are read; what comes after is cut.
    """

    channels: int
    width: int = 16
    dimension: int = 64
    max_bytes: int = WINDOW


class ImageEncoder(nn.Module):
    """Convolutions and average pooling down to about 2x2, then one linear layer."""

    def __init__(self, config: ImageTextConfig) -> None:
        super().__init__()
        w = config.width
        self.convs = [nn.Conv2d(config.channels, w, 3, padding=1), nn.Conv2d(w, 2 * w, 3, padding=1)]
        self.convs.append(nn.Conv2d(2 * w, 2 * w, 3, padding=1))
        self.norm = nn.LayerNorm(8 * w)
        self.out = nn.Linear(8 * w, config.dimension)

    def __call__(self, images: mx.array) -> mx.array:
        """(B, dimension), not normalised.  images: (B, H, W, C) in [-1, 1], H and W multiples of 8."""
        h = images
        for conv in self.convs:
            h = nn.relu(conv(h))
            h = _pool(h, 2)
        b, height, width, c = h.shape
        if min(height, width) > 2:
            h = _pool(h, min(height, width) // 2)[:, :2, :2]
        elif min(height, width) < 2:
            h = mx.broadcast_to(h[:, :1, :1], (b, 2, 2, c))
        return self.out(self.norm(h.reshape(b, -1)))


class TextEncoder(nn.Module):
    """Bytes, embedded with their place, two convolutions over neighbours, the mean over the caption."""

    def __init__(self, config: ImageTextConfig) -> None:
        super().__init__()
        w = config.width
        self.bytes = nn.Embedding(PAD + 1, w)
        self.places = nn.Embedding(config.max_bytes, w)
        self.convs = [nn.Conv1d(w, 2 * w, 5, padding=2), nn.Conv1d(2 * w, 2 * w, 5, padding=2)]
        self.norm = nn.LayerNorm(2 * w)
        self.out = nn.Linear(2 * w, config.dimension)

    def __call__(self, tokens: mx.array) -> mx.array:
        """(B, dimension), not normalised.  tokens: (B, L) int32, PAD after the end."""
        there = (tokens != PAD)[..., None]
        h = mx.where(there, self.bytes(tokens) + self.places(mx.arange(tokens.shape[1])), 0)
        for conv in self.convs:
            h = mx.where(there, nn.relu(conv(h)), 0)
        return self.out(self.norm(h.sum(axis=1) / mx.maximum(there.sum(axis=1), 1)))


class ImageTextModel(nn.Module):
    """Both encoders and the temperature of their similarity."""

    def __init__(self, config: ImageTextConfig, seed: int = 0) -> None:
        """First weights: embeddings unit normal, kernels and matrices of variance 2 / fan-in, biases zero.

        MLX's own defaults let a signal fade under ReLU until the constant parts are all that two captions share.
        """
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        self.log_scale = mx.array(1.0)  # CLIP starts at log(1/0.07), from which this small model does not take off
        drawn = []
        for place, (name, value) in enumerate(tree_flatten(self.parameters())):
            if name.endswith(("bytes.weight", "places.weight")):
                drawn.append((name, normal(value.shape, seed, place)))
            elif value.ndim > 1:
                drawn.append((name, normal(value.shape, seed, place) * math.sqrt(2 * len(value) / value.size)))
            elif name.endswith("bias"):
                drawn.append((name, np.zeros(value.shape)))
        self.load_weights([(name, mx.array(value.astype(np.float32))) for name, value in drawn], strict=False)

    def encode_images(self, images: mx.array) -> mx.array:
        """(B, dimension) of unit length."""
        return _unit(self.image_encoder(images))

    def encode_texts(self, tokens: mx.array) -> mx.array:
        """(B, dimension) of unit length."""
        return _unit(self.text_encoder(tokens))


def contrastive_loss(model: ImageTextModel, images: mx.array, tokens: mx.array, match: mx.array) -> mx.array:
    """Symmetric InfoNCE over a batch's images and its distinct captions.

    image to text: cross-entropy of each image's caption among the U distinct ones;
    text to image: cross-entropy of each caption against an even share for each of its images.
    With few captions for many images a batch holds one caption several times; taking each once makes every image with
    it a right answer, where the plain loss would punish all but one.

    Args:
        images: (B, H, W, C).
        tokens: (U, L) distinct captions.
        match: (B, U), 1 where the image has that caption.

    Source: Radford et al. 2021, figure 3; the spread targets are Yang et al. 2022 (UniCL), Eqs. 2 and 3.
    """
    scale = mx.exp(mx.minimum(model.log_scale, math.log(100)))
    logits = scale * (model.encode_images(images) @ model.encode_texts(tokens).T)
    to_text = mx.logsumexp(logits, axis=1) - (match * logits).sum(axis=1)
    to_image = mx.logsumexp(logits, axis=0) - (match * logits).sum(axis=0) / match.sum(axis=0)
    return 0.5 * (to_text.mean() + to_image.mean())


def tokenize(captions: list[str], max_bytes: int) -> np.ndarray:
    """(B, max_bytes) int32: the captions' UTF-8 bytes, cut or filled with PAD."""
    tokens = np.full((len(captions), max_bytes), PAD, np.int32)
    for row, caption in zip(tokens, captions, strict=True):
        data = caption.encode("utf-8")[:max_bytes]
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return tokens


def similarities(model: ImageTextModel, images: np.ndarray, captions: list[str], batch_size: int = 256) -> np.ndarray:
    """(N,) cosine of each image and its caption.  images: (N, H, W, C) float in [-1, 1]."""
    unique = sorted(set(captions))
    texts = texts_array(model, unique)
    rows = np.array([unique.index(caption) for caption in captions])
    return (images_array(model, images, batch_size) * texts[rows]).sum(axis=1)


def image_text_scores(model: ImageTextModel, images: np.ndarray, captions: list[str]) -> np.ndarray:
    """(N,) image-text score of each pair: 100 * max(cos, 0); CLIPScore's form in another model's space.

    Source: Hessel et al. 2021, Eq. 1, with torchmetrics' weight of 100 instead of 2.5.
    """
    return 100 * np.maximum(similarities(model, images, captions), 0)


def images_array(model: ImageTextModel, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """(N, dimension) float64 unit vectors of images (N, H, W, C) in [-1, 1]."""
    parts = [
        np.array(model.encode_images(mx.array(images[i : i + batch_size].astype(np.float32))))
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts).astype(np.float64)


def texts_array(model: ImageTextModel, captions: list[str]) -> np.ndarray:
    """(N, dimension) float64 unit vectors of captions."""
    return np.array(model.encode_texts(mx.array(tokenize(captions, model.config.max_bytes)))).astype(np.float64)


def save_image_text(model: ImageTextModel, folder: Path, facts: dict[str, Any]) -> None:
    """Write model.safetensors and model.json (config and `facts`) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    from safetensors.numpy import save

    weights = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    atomic_write_bytes(folder / "model.safetensors", save(weights))
    write_json(folder / "model.json", {"config": asdict(model.config), **facts})


def load_image_text(folder: Path) -> ImageTextModel:
    """The model of `folder`, weights evaluated.  Raises: DataError naming what is missing or of another shape."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        model = ImageTextModel(ImageTextConfig(**read_json(folder / "model.json")["config"]))
        weights = load_file(folder / "model.safetensors")
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} holds no image-text model ({error}): run `mlx-tasks image_text`") from error
    wanted = {name: value.shape for name, value in tree_flatten(model.parameters())}
    wrong = sorted(
        name
        for name in wanted.keys() | weights.keys()
        if name not in wanted or name not in weights or wanted[name] != weights[name].shape
    )
    if wrong:
        raise DataError(f"{folder}/model.safetensors does not fit its config at: {', '.join(wrong)}")
    model.load_weights([(name, mx.array(value)) for name, value in weights.items()])
    mx.eval(model.parameters())
    return model


def _pool(h: mx.array, side: int) -> mx.array:
    """side x side average pooling; what is left over at the right and below is dropped."""
    b, height, width, c = h.shape
    height, width = height // side * side, width // side * side
    if not height or not width:
        return h
    return h[:, :height, :width].reshape(b, height // side, side, width // side, side, c).mean(axis=(2, 4))


def _unit(x: mx.array) -> mx.array:
    return x / mx.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-12)
