"""CLIP against transformers on random weights: both towers, every option of their configs, and the tokenizer."""

import json
import logging

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file

from mlx_tasks.domains.detector import UNKNOWN
from mlx_tasks.domains.examples import draw
from mlx_tasks.domains.zero_shot import CAPTIONS as CAPTIONS_OF_KINDS
from mlx_tasks.domains.zero_shot import guess_domain, guess_zero_shot
from mlx_tasks.errors import DataError
from mlx_tasks.metrics.clip_score import clip_score, clip_scores, r_precision
from mlx_tasks.metrics.cmmd import cmmd
from mlx_tasks.metrics.extractors.clip import Clip

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VISION |= {"image_size": 24, "patch_size": 8}
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
TEXT |= {"vocab_size": 70, "max_position_embeddings": 11, "eos_token_id": 69, "bos_token_id": 68}
CASES = {
    "quick gelu, end token": ({}, {}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "legacy end token": ({}, {"eos_token_id": 2}),
    "other sizes and norms": (
        {"patch_size": 6, "num_attention_heads": 2, "layer_norm_eps": 1e-3, "num_hidden_layers": 3},
        {"layer_norm_eps": 1e-3, "num_attention_heads": 1, "max_position_embeddings": 9, "num_hidden_layers": 1},
    ),
}


def close(ours, theirs, tolerance=1e-4):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            norm = "norm" in name and name.endswith("weight")
            scale = 1.0 if "embedding" in name else value.shape[-1] ** -0.5 if value.ndim > 1 else 0.2
            if name != "logit_scale":
                value.copy_(1 + 0.2 * drawn if norm else scale * drawn)
    return model.eval()


def reference(folder, vision=None, text=None, projection=20):
    config = transformers.CLIPConfig(
        vision_config=VISION | (vision or {}), text_config=TEXT | (text or {}), projection_dim=projection
    )
    model = randomise(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_both_towers_are_transformers(case, tmp_path):
    model = reference(tmp_path, *CASES[case])
    ours = Clip(tmp_path)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(3, 24, 24, 3)).astype(np.float32)
    length = ours.text["max_position_embeddings"]
    tokens = rng.integers(3, 60, (4, length))
    tokens[:, 0] = 68
    for row, end in zip(tokens, (length - 1, 2, 5, 7), strict=True):
        row[end:] = 69
    with torch.no_grad():
        told = model(
            input_ids=torch.tensor(tokens), pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), return_dict=True
        )
        image_features = model.visual_projection(model.vision_model(torch.tensor(pixels.transpose(0, 3, 1, 2)))[1])
        text_features = model.text_projection(model.text_model(torch.tensor(tokens))[1])
    images, texts = ours.encode_images(mx.array(pixels)), ours.encode_tokens(mx.array(tokens))
    close(images, image_features.numpy())
    close(texts, text_features.numpy())
    unit = [np.array(x) / np.linalg.norm(np.array(x), axis=1, keepdims=True) for x in (images, texts)]
    close(ours.logit_scale * unit[0] @ unit[1].T, told.logits_per_image.numpy())


def test_a_tower_of_the_published_size_is_transformers(tmp_path):
    """ViT-B/32's image tower as it is published, one image; a small text tower beside it."""
    published = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    model = reference(tmp_path, published | {"image_size": 224, "patch_size": 32}, projection=512)
    ours = Clip(tmp_path)
    assert ours.name == "clip_vit_b32" and ours.dimension == 512
    image = np.random.default_rng(1).integers(0, 256, (1, 50, 40, 3)).astype(np.uint8)
    picture = Image.fromarray(image[0]).resize((224, 280), Image.Resampling.BICUBIC).crop((0, 28, 224, 252))
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((np.asarray(picture) / 255 - mean) / std).astype(np.float32)
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(torch.tensor(pixels.transpose(2, 0, 1)[None]))[1])
    close(ours(image), expected.numpy())


def test_a_batch_is_its_images_one_by_one(tmp_path):
    reference(tmp_path)
    ours, rng = Clip(tmp_path), np.random.default_rng(2)
    images = rng.integers(0, 256, (5, 30, 30, 1)).astype(np.uint8)
    close(ours(images, batch_size=2), np.concatenate([ours(images[i : i + 1]) for i in range(5)]), 1e-5)


BASE = sorted({chr(c) for c in range(33, 127)} | {chr(c) for c in [*range(161, 173), *range(174, 256)]})


@pytest.fixture
def with_tokenizer(tmp_path):
    """A byte-pair vocabulary of CLIP's form: bytes, bytes at a word's end, a few merges, the two special tokens."""
    extra = [chr(256 + i) for i in range(68)]  # the printable stand-ins that byte-level encodings use for the rest
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("o", "f</w>"), ("'", "s</w>")]
    words = [*BASE, *extra, *(f"{c}</w>" for c in [*BASE, *extra]), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    size = {"vocab_size": len(words), "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2}
    reference(tmp_path, text=size | {"max_position_embeddings": 14})
    return tmp_path


CAPTIONS = [
    "a photo of a cat",
    "",
    "The DOG's  bowl,\n and 42 cats!",
    "ein Bär über Zürich",
    "кот и собака",
    "猫と犬",
    "a 🐈 emoji",
    "cat " * 30,
    "x<|endoftext|>y",
]


def test_tokens_are_those_of_transformers_in_any_script(with_tokenizer):
    theirs = transformers.CLIPTokenizer.from_pretrained(with_tokenizer)
    expected = theirs(CAPTIONS, padding="max_length", max_length=14, truncation=True)["input_ids"]
    assert Clip(with_tokenizer).tokenize(CAPTIONS).tolist() == expected


def test_a_tokenizer_json_gives_the_same_tokens(with_tokenizer):
    from_parts = Clip(with_tokenizer).tokenize(CAPTIONS)
    transformers.CLIPTokenizer.from_pretrained(with_tokenizer).save_pretrained(with_tokenizer)
    assert (with_tokenizer / "tokenizer.json").is_file()
    assert np.array_equal(Clip(with_tokenizer).tokenize(CAPTIONS), from_parts)


def test_captions_that_are_cut_keep_their_end_and_are_told_of_once(with_tokenizer, caplog):
    clip = Clip(with_tokenizer)
    with caplog.at_level(logging.WARNING):
        tokens = clip.tokenize(CAPTIONS)
        clip.tokenize(CAPTIONS)
    assert tokens[7, -1] == tokens[1, 1] == tokens.max()
    assert sum("captions_cut" in record.message for record in caplog.records) == 1


def test_captions_without_a_tokenizer_or_without_captions_are_errors(tmp_path, with_tokenizer):
    with pytest.raises(DataError, match="at least one caption"):
        Clip(with_tokenizer).embed_captions([])
    (with_tokenizer / "vocab.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer.json there, or vocab.json and merges.txt"):
        Clip(with_tokenizer).embed_captions(["a"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_config": {"num_channels": 4}}, r"vision_config.num_channels=4"),
        ({"text_config": {"hidden_act": "relu"}}, r"text_config.hidden_act='relu'"),
        ({"vision_config": {"num_attention_heads": 5}}, "multiple of num_attention_heads 5"),
        ({"projection_dim": 99}, r"visual_projection.weight \(20, 32\) instead of \(99, 32\)"),
        ({"vision_config": {"num_hidden_layers": 1}}, "also has vision_model.encoder.layers.1"),
    ],
)
def test_a_config_that_is_not_supported_or_does_not_fit_is_named(tmp_path, change, said):
    reference(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=said):
        Clip(tmp_path)


def test_old_files_with_position_ids_and_pickled_tables_load_too(tmp_path):
    model = reference(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    expected = np.array(Clip(tmp_path).encode_images(mx.ones((1, 24, 24, 3))))
    save_file(
        weights | {"vision_model.embeddings.position_ids": np.zeros((1, 10), np.int64)}, tmp_path / "model.safetensors"
    )
    assert np.array_equal(np.array(Clip(tmp_path).encode_images(mx.ones((1, 24, 24, 3)))), expected)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    close(np.array(Clip(tmp_path).encode_images(mx.ones((1, 24, 24, 3)))), expected, 1e-6)


def test_clip_score_is_a_hundred_cosines_cut_at_zero():
    images, captions = np.array([[2.0, 0], [0, 1], [1, 1]]), np.array([[1.0, 0], [0, -3], [1, 0]])
    np.testing.assert_allclose(clip_scores(images, captions), [100, 0, 100 / 2**0.5])
    found = clip_score(images, captions)
    assert found.value == pytest.approx((100 + 100 / 2**0.5) / 3) and found.low < found.value < found.high


def test_r_precision_counts_whose_own_caption_is_nearest():
    rng = np.random.default_rng(3)
    centres = np.eye(4)
    groups = np.repeat(np.arange(4), 25)
    images = centres[groups] + 0.05 * rng.normal(size=(100, 4))
    assert r_precision(images, centres[groups], groups).value == 1.0
    assert r_precision(images[::-1], centres[groups], groups).value == 0.0
    with pytest.raises(ValueError, match="two different"):
        r_precision(images, centres[groups], np.zeros(100))


def test_cmmd_of_clip_embeddings_sees_another_set_of_pictures(tmp_path):
    reference(tmp_path)
    clip, rng = Clip(tmp_path), np.random.default_rng(4)
    dark, bright = rng.integers(0, 120, (40, 24, 24, 3)), rng.integers(130, 256, (20, 24, 24, 3))
    dark, bright = (clip(x.astype(np.uint8)) for x in (dark, bright))
    assert cmmd(dark[:20], bright).low > cmmd(dark[:20], dark[20:]).high


def test_a_kind_of_images_is_guessed_with_transformers_own_probabilities(with_tokenizer):
    kinds = {"cats": ("a photo of a cat",), "dogs": ("a dog of 42 cats",), "none": ("x",)}
    clip, images = Clip(with_tokenizer), np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    model = transformers.CLIPModel.from_pretrained(with_tokenizer).eval()
    pixels = torch.tensor(clip.preprocessing(images)).permute(0, 3, 1, 2)
    tokens = torch.tensor(clip.tokenize([words[0] for words in kinds.values()])).long()
    with torch.no_grad():
        expected = model(input_ids=tokens, pixel_values=pixels).logits_per_image.softmax(dim=-1).mean(dim=0).numpy()
    found = guess_zero_shot(images, clip, kinds)
    np.testing.assert_allclose(list(found.chances.values()), expected, atol=1e-4)
    best = max(found.chances, key=lambda name: found.chances[name])
    assert found.name == (best if found.chances[best] >= 0.5 else UNKNOWN)
    assert guess_domain(images, with_tokenizer).chances.keys() == CAPTIONS_OF_KINDS.keys()


def test_without_weights_the_detector_guesses(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TASKS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    images = draw("digits", "test", 64, 16, np.random.default_rng(0))
    assert guess_domain(images).name == "digits"
    with pytest.raises(DataError):
        guess_domain(images, tmp_path / "nowhere")
