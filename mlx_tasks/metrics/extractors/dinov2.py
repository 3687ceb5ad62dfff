"""DINOv2 under transformers' config keys and weight names: the features behind FD-DINOv2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.extractors.preprocess import Preprocessing
from mlx_tasks.metrics.extractors.transformer import (
    ACTIVATIONS,
    as_arrays,
    attention,
    layer_norm,
    linear,
    read_config,
    take,
)
from mlx_tasks.metrics.extractors.weights import Source, check_names, file_digest, find_weights, read_weights

FILES = ("model.safetensors", "pytorch_model.bin")
SOURCES = {
    f"dinov2_vit{short}14": Source(
        f"dinov2_vit{short}14", FILES, f"facebook/dinov2-{hub} with its config.json", f"facebook/dinov2-{hub}"
    )
    for short, hub in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items()
}
_KNOWN = {(384, 12): "s", (768, 12): "b", (1024, 24): "l", (1536, 40): "g"}
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
}
_DEFAULTS |= {"layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 14, "use_swiglu_ffn": False, "qkv_bias": True}
_DEFAULTS |= {"model_type": "dinov2", "num_register_tokens": 0}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_PUBLISHED_NAMES = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".mlp.weights_out.": ".mlp.down_proj.",
}
SIDE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Dinov2:
    """A vision transformer with layer scale; the `Extractor`'s features are the class token after the last norm.

    Images are squeezed to 224 x 224 by PIL's bicubic filter, as the published FD-DINOv2 does; the position embeddings,
    which are those of a larger image, are interpolated as transformers does: bicubic, with antialiasing in the variant
    with registers.

    Source: Oquab et al. 2023; Darcet et al. 2024 (registers); Stein et al. 2023 for the Frechet distance.
    """

    def __init__(self, path: Path | str | None = None, name: str = "dinov2_vitl14") -> None:
        """A folder with config.json and model.safetensors, or the published model `name`.

        Raises: DataError as `Clip` does.
        """
        if name not in SOURCES:
            raise DataError(f"no published DINOv2 named {name!r}; there are: {', '.join(SOURCES)}")
        file = find_weights(SOURCES[name], path)
        config = read_config(file.parent)
        self.config = take(config, _DEFAULTS, {"num_channels": 3}, "config")
        if self.config["model_type"] not in ("dinov2", "dinov2_with_registers"):
            raise DataError(
                f"config.model_type must be dinov2 or dinov2_with_registers, got {self.config['model_type']!r}"
            )
        if self.config["model_type"] == "dinov2":
            self.config["num_register_tokens"] = 0
        elif "num_register_tokens" not in config:
            self.config["num_register_tokens"] = 4
        self.dimension = self.config["hidden_size"]
        weights = _renamed(read_weights(file))
        weights.pop("embeddings.mask_token", None)  # of the training's masked patches alone
        check_names(weights, self._expected(), file)
        self._digest = file_digest(file)
        self._weights = as_arrays(weights, ("patch_embeddings.projection.weight",))
        self.preprocessing = Preprocessing(SIDE, "bicubic", True, "none", _MEAN, _STD)
        size = _KNOWN.get((self.dimension, self.config["num_hidden_layers"]))
        registers = "_reg" if self.config["num_register_tokens"] else ""
        sized = f"{self.dimension}x{self.config['num_hidden_layers']}_p"
        self.name = f"dinov2_vit{size or sized}{self.config['patch_size']}{registers}"

    @property
    def identity(self) -> dict[str, Any]:
        """Name, preprocessing and the weights' SHA-256."""
        return {"name": self.name, "weights": self._digest, "preprocessing": self.preprocessing.as_dict()}

    def __call__(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """(N, dimension) float32 class tokens of images (N, H, W, 1 or 3) uint8."""
        parts = [
            np.array(self.tokens(mx.array(self.preprocessing(images[i : i + batch_size])))[:, 0])
            for i in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts)

    def tokens(self, pixels: mx.array) -> mx.array:
        """(B, 1 + registers + patches, dimension) after the last norm.  pixels: (B, H, W, 3), whole patches."""
        w, cfg = self._weights, self.config
        b, height, width, _ = pixels.shape
        patch, epsilon = cfg["patch_size"], cfg["layer_norm_eps"]
        kernel = w["embeddings.patch_embeddings.projection.weight"]
        x = mx.conv2d(pixels, kernel, stride=patch) + w["embeddings.patch_embeddings.projection.bias"]
        x = x.reshape(b, -1, self.dimension)
        x = mx.concatenate([mx.broadcast_to(w["embeddings.cls_token"], (b, 1, self.dimension)), x], axis=1)
        x = x + self._positions(height // patch, width // patch)
        if cfg["num_register_tokens"]:
            shape = (b, cfg["num_register_tokens"], self.dimension)
            registers = mx.broadcast_to(w["embeddings.register_tokens"], shape)
            x = mx.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)
        for i in range(cfg["num_hidden_layers"]):
            name = f"encoder.layer.{i}"
            h = layer_norm(w, f"{name}.norm1", x, epsilon)
            h = attention(w, f"{name}.attention", h, cfg["num_attention_heads"], False, _PROJECTIONS)
            x = x + w[f"{name}.layer_scale1.lambda1"] * h
            h = self._mlp(f"{name}.mlp", layer_norm(w, f"{name}.norm2", x, epsilon))
            x = x + w[f"{name}.layer_scale2.lambda1"] * h
        return layer_norm(w, "layernorm", x, epsilon)

    def _mlp(self, name: str, x: mx.array) -> mx.array:
        w = self._weights
        if self.config["use_swiglu_ffn"]:
            gated = nn.silu(linear(w, f"{name}.gate_proj", x)) * linear(w, f"{name}.up_proj", x)
            return linear(w, f"{name}.down_proj", gated)
        return linear(w, f"{name}.fc2", ACTIVATIONS[self.config["hidden_act"]](linear(w, f"{name}.fc1", x)))

    def _positions(self, rows: int, columns: int) -> mx.array:
        """(1, 1 + rows * columns, dimension), interpolated where the patches are not those of the training."""
        stored = self._weights["embeddings.position_embeddings"]
        side = math.isqrt(stored.shape[1] - 1)
        if (rows, columns) == (side, side):
            return stored
        antialias = self.config["model_type"] == "dinov2_with_registers"
        down, across = (mx.array(bicubic_matrix(side, new, antialias).astype(np.float32)) for new in (rows, columns))
        grid = stored[0, 1:].reshape(side, side, self.dimension)
        grid = mx.einsum("ri,cj,ijd->rcd", down, across, grid).reshape(1, rows * columns, self.dimension)
        return mx.concatenate([stored[:, :1], grid], axis=1)

    def _expected(self) -> dict[str, tuple[int, ...]]:
        cfg, width = self.config, self.dimension
        patch, positions = cfg["patch_size"], (cfg["image_size"] // cfg["patch_size"]) ** 2 + 1
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.cls_token": (1, 1, width),
            "embeddings.position_embeddings": (1, positions, width),
            "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
            "embeddings.patch_embeddings.projection.bias": (width,),
            "layernorm.weight": (width,),
            "layernorm.bias": (width,),
        }
        if cfg["num_register_tokens"]:
            shapes["embeddings.register_tokens"] = (1, cfg["num_register_tokens"], width)
        inner = int(width * cfg["mlp_ratio"])
        layers: dict[str, tuple[int, int]] = {f"attention.{part}": (width, width) for part in _PROJECTIONS}
        if cfg["use_swiglu_ffn"]:
            inner = (int(inner * 2 / 3) + 7) // 8 * 8
            layers |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
        else:
            layers |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for i in range(cfg["num_hidden_layers"]):
            name = f"encoder.layer.{i}"
            for layer, shape in layers.items():
                shapes[f"{name}.{layer}.weight"] = shape
                if cfg["qkv_bias"] or layer.split(".")[-1] not in _PROJECTIONS[:3]:
                    shapes[f"{name}.{layer}.bias"] = shape[:1]
            shapes |= {f"{name}.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
            shapes |= {f"{name}.layer_scale{j}.lambda1": (width,) for j in (1, 2)}
        return shapes


def bicubic_matrix(old: int, new: int, antialias: bool) -> np.ndarray:
    """(new, old) weights of bicubic interpolation along one axis, pixel centres at half numbers.

    Keys' cubic with a = -0.75 and edges repeated, as torch's plain bicubic; with antialiasing a = -0.5, the kernel
    widened where the axis shrinks and cut off at the edges, as PIL and torch's antialiased one.
    """
    scale, matrix = old / new, np.zeros((new, old))
    a, wide = (-0.5, max(scale, 1.0)) if antialias else (-0.75, 1.0)
    for i in range(new):
        centre = (i + 0.5) * scale
        if antialias:
            first, last = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), old)
            places = np.arange(first, last)
            weights = _cubic((places + 0.5 - centre) / wide, a)
            matrix[i, places] = weights / weights.sum()
        else:
            base = math.floor(centre - 0.5)
            for place in range(base - 1, base + 3):
                matrix[i, min(max(place, 0), old - 1)] += _cubic(np.array(place + 0.5 - centre), a)
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981, Eq. 15."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _renamed(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Today's names for the published files' ones; their fused gate and value matrices are cut in two."""
    found: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        name = name.removeprefix("dinov2.").removeprefix("dinov2_with_registers.")
        for old, new in _PUBLISHED_NAMES.items():
            name = name.replace(old, new)
        if ".mlp.weights_in." in name:
            half = len(value) // 2
            found[name.replace("weights_in", "gate_proj")] = value[:half]
            found[name.replace("weights_in", "up_proj")] = value[half:]
        else:
            found[name] = value
    return found
