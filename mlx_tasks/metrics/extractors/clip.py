"""CLIP's two towers under transformers' config keys and weight names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_tasks.errors import DataError
from mlx_tasks.files import read_json
from mlx_tasks.metrics.extractors.preprocess import Preprocessing
from mlx_tasks.metrics.extractors.transformer import (
    ACTIVATIONS,
    Weights,
    as_arrays,
    attention,
    layer_norm,
    linear,
    read_config,
    take,
)
from mlx_tasks.metrics.extractors.weights import Source, check_names, file_digest, find_weights, read_weights

logger = logging.getLogger(__name__)

FILES = ("model.safetensors", "pytorch_model.bin")
SOURCES = {
    f"clip_{short}": Source(f"clip_{short}", FILES, f"openai/{hub} with its config.json and tokenizer", f"openai/{hub}")
    for short, hub in {
        "vit_b32": "clip-vit-base-patch32",
        "vit_b16": "clip-vit-base-patch16",
        "vit_l14": "clip-vit-large-patch14",
        "vit_l14_336": "clip-vit-large-patch14-336",
    }.items()
}
_KNOWN = {(768, 12, 32, 224): "vit_b32", (768, 12, 16, 224): "vit_b16"}
_KNOWN |= {(1024, 24, 14, 224): "vit_l14", (1024, 24, 14, 336): "vit_l14_336"}
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_VISION = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_VISION |= {"image_size": 224, "patch_size": 32, **_SHARED}
_TEXT = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
_TEXT |= {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407, **_SHARED}


class Clip:
    """Images and captions in one space; as an `Extractor`, the image tower's projected embeddings, not normalised.

    Source: Radford et al. 2021; keys, names and the choice of the end token as in transformers.
    """

    def __init__(self, path: Path | str | None = None, name: str = "clip_vit_b32") -> None:
        """A folder with config.json and model.safetensors (or pytorch_model.bin), or the published model `name`.

        Raises: DataError where the files cannot be had, a config key is not supported, or names or shapes differ.
        """
        if name not in SOURCES:
            raise DataError(f"no published CLIP named {name!r}; there are: {', '.join(SOURCES)}")
        file = find_weights(SOURCES[name], path)
        self.folder = file.parent
        config = read_config(self.folder)
        self.vision = take(config.get("vision_config") or {}, _VISION, {"num_channels": 3}, "vision_config")
        self.text = take(config.get("text_config") or {}, _TEXT, {}, "text_config")
        self.dimension = int(config.get("projection_dim", 512))
        weights = {n: v for n, v in read_weights(file).items() if not n.endswith("position_ids")}
        check_names(weights, self._expected(), file)
        self._digest = file_digest(file)
        self._weights = as_arrays(weights, ("patch_embedding.weight",))
        self.preprocessing = _preprocessing(self.folder, self.vision["image_size"])
        size = tuple(self.vision[k] for k in ("hidden_size", "num_hidden_layers", "patch_size", "image_size"))
        self.name = f"clip_{_KNOWN.get(size, '{}x{}_p{}_{}'.format(*size))}"

    @property
    def identity(self) -> dict[str, Any]:
        """Name, preprocessing and the weights' SHA-256."""
        return {"name": self.name, "weights": self._digest, "preprocessing": self.preprocessing.as_dict()}

    def __call__(self, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """(N, dimension) float32 embeddings of images (N, H, W, 1 or 3) uint8."""
        parts = []
        for start in range(0, len(images), batch_size):
            embedded = self.encode_images(mx.array(self.preprocessing(images[start : start + batch_size])))
            parts.append(np.array(embedded))
        return np.concatenate(parts)

    def embed_captions(self, captions: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """(N, dimension) float32 embeddings of captions, each cut to the context as the reference cuts it.

        Raises: DataError where the folder has no tokenizer, or for no captions.
        """
        if not len(captions):
            raise DataError("at least one caption is needed, got none")
        tokens = self.tokenize(captions)
        parts = [
            np.array(self.encode_tokens(mx.array(tokens[start : start + batch_size])))
            for start in range(0, len(tokens), batch_size)
        ]
        return np.concatenate(parts)

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """(N, context) int32 tokens, the end token kept where a caption is cut; that some were cut is logged once."""
        context = self.text["max_position_embeddings"]
        encodings = [e.ids for e in self._tokenizer.encode_batch(list(captions))]
        cut = sum(len(ids) > context for ids in encodings)
        if cut and not self._told:
            logger.warning("clip=%s captions_cut=%d context=%d: longer ones lose their end", self.name, cut, context)
            self._told = True
        end = encodings[0][-1]
        rows = [ids if len(ids) <= context else [*ids[: context - 1], end] for ids in encodings]
        return np.array([[*ids, *[end] * (context - len(ids))] for ids in rows], np.int32)

    def encode_images(self, pixels: mx.array) -> mx.array:
        """(B, dimension) of preprocessed images (B, side, side, 3)."""
        w, cfg = self._weights, self.vision
        patch, prefix = cfg["patch_size"], "vision_model.embeddings"
        x = mx.conv2d(pixels, w[f"{prefix}.patch_embedding.weight"], stride=patch)
        x = x.reshape(len(pixels), -1, cfg["hidden_size"])
        head = mx.broadcast_to(w[f"{prefix}.class_embedding"], (len(pixels), 1, cfg["hidden_size"]))
        x = mx.concatenate([head, x], axis=1) + w[f"{prefix}.position_embedding.weight"]
        x = layer_norm(w, "vision_model.pre_layrnorm", x, cfg["layer_norm_eps"])
        x = _encode(w, "vision_model", x, cfg, causal=False)[:, 0]
        return linear(w, "visual_projection", layer_norm(w, "vision_model.post_layernorm", x, cfg["layer_norm_eps"]))

    def encode_tokens(self, tokens: mx.array) -> mx.array:
        """(B, dimension) of tokens (B, L), L up to the context: the output at the first end token."""
        w, cfg = self._weights, self.text
        length = tokens.shape[1]
        x = w["text_model.embeddings.token_embedding.weight"][tokens]
        x = x + w["text_model.embeddings.position_embedding.weight"][:length]
        x = _encode(w, "text_model", x, cfg, causal=True)
        x = layer_norm(w, "text_model.final_layer_norm", x, cfg["layer_norm_eps"])
        # configs from before 2023 say 2, which is no end token; the highest number in a row then is
        legacy = cfg["eos_token_id"] == 2
        ends = mx.argmax(tokens if legacy else (tokens == cfg["eos_token_id"]).astype(mx.int32), axis=1)
        return linear(w, "text_projection", x[mx.arange(len(tokens)), ends])

    @property
    def logit_scale(self) -> float:
        """The learned temperature's inverse, exp of the stored number."""
        return float(np.exp(np.array(self._weights["logit_scale"])))

    @cached_property
    def _tokenizer(self) -> Any:
        return _read_tokenizer(self.folder)

    _told = False

    def _expected(self) -> dict[str, tuple[int, ...]]:
        v, t, p = self.vision, self.text, self.dimension
        width, patches = v["hidden_size"], (v["image_size"] // v["patch_size"]) ** 2
        shapes: dict[str, tuple[int, ...]] = {
            "logit_scale": (),
            "visual_projection.weight": (p, width),
            "text_projection.weight": (p, t["hidden_size"]),
            "vision_model.embeddings.class_embedding": (width,),
            "vision_model.embeddings.patch_embedding.weight": (width, 3, v["patch_size"], v["patch_size"]),
            "vision_model.embeddings.position_embedding.weight": (patches + 1, width),
            "text_model.embeddings.token_embedding.weight": (t["vocab_size"], t["hidden_size"]),
            "text_model.embeddings.position_embedding.weight": (t["max_position_embeddings"], t["hidden_size"]),
        }
        for name, size in (
            ("vision_model.pre_layrnorm", width),
            ("vision_model.post_layernorm", width),
            ("text_model.final_layer_norm", t["hidden_size"]),
        ):
            shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
        return shapes | _layer_shapes("vision_model", v) | _layer_shapes("text_model", t)


def _encode(weights: Weights, tower: str, x: mx.array, cfg: dict[str, Any], causal: bool) -> mx.array:
    activation, epsilon = ACTIVATIONS[cfg["hidden_act"]], cfg["layer_norm_eps"]
    for i in range(cfg["num_hidden_layers"]):
        name = f"{tower}.encoder.layers.{i}"
        h = layer_norm(weights, f"{name}.layer_norm1", x, epsilon)
        x = x + attention(weights, f"{name}.self_attn", h, cfg["num_attention_heads"], causal, _PROJECTIONS)
        h = layer_norm(weights, f"{name}.layer_norm2", x, epsilon)
        x = x + linear(weights, f"{name}.mlp.fc2", activation(linear(weights, f"{name}.mlp.fc1", h)))
    return x


def _layer_shapes(tower: str, cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner = cfg["hidden_size"], cfg["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(cfg["num_hidden_layers"]):
        name = f"{tower}.encoder.layers.{i}"
        layers = {f"self_attn.{part}": (width, width) for part in _PROJECTIONS}
        layers |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        for layer, shape in layers.items():
            shapes |= {f"{name}.{layer}.weight": shape, f"{name}.{layer}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{name}.{norm}.weight": (width,), f"{name}.{norm}.bias": (width,)}
    return shapes


def _preprocessing(folder: Path, side: int) -> Preprocessing:
    """Shorter side by bicubic, the middle cut out; mean and std of preprocessor_config.json where there is one."""
    found = folder / "preprocessor_config.json"
    told = read_json(found) if found.is_file() else {}
    mean, std = (tuple(told.get(key, default)) for key, default in (("image_mean", _MEAN), ("image_std", _STD)))
    return Preprocessing(side, "bicubic", True, "center", mean, std)


def _read_tokenizer(folder: Path) -> Any:
    """tokenizer.json, or CLIP's byte-pair encoding from vocab.json and merges.txt."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise DataError(
            f"{folder} has no tokenizer: put tokenizer.json there, or vocab.json and merges.txt, of the same model"
        )
    start, end = "<|startoftext|>", "<|endoftext|>"
    bpe = models.BPE.from_file(str(vocabulary), str(merges), unk_token=end, end_of_word_suffix="</w>")
    tokenizer = Tokenizer(bpe)
    tokenizer.add_special_tokens([start, end])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    numbers = read_json(vocabulary)
    ends = ((name, numbers[name]) for name in (end, start))
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return tokenizer
