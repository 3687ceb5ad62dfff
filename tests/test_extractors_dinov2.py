"""DINOv2 against transformers on random weights, with interpolated positions, registers and the gated MLP."""

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from test_extractors_clip import close, randomise

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.extractors.dinov2 import Dinov2, bicubic_matrix
from mlx_tasks.metrics.extractors.registry import EXTRACTORS, make_extractor

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 42, "patch_size": 14}
CASES = {
    "plain": {},
    "gated": {"use_swiglu_ffn": True},
    "no qkv bias, other ratio": {"qkv_bias": False, "mlp_ratio": 2, "layer_norm_eps": 1e-4},
    "registers": {"registers": 4},
    "two registers, gated": {"registers": 2, "use_swiglu_ffn": True},
}


def reference(folder, registers=0, **options):
    settings = SMALL | options
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**settings, num_register_tokens=registers)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    randomise(model).save_pretrained(folder)
    return model


@pytest.mark.parametrize("size", [(42, 42), (56, 70), (28, 28)])
@pytest.mark.parametrize("case", CASES)
def test_all_tokens_are_transformers(case, size, tmp_path):
    model = reference(tmp_path, **CASES[case])
    pixels = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.tensor(pixels.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    close(Dinov2(tmp_path).tokens(mx.array(pixels)), expected)


def test_the_features_are_the_class_token_of_images_squeezed_to_224(tmp_path):
    model = reference(tmp_path)
    ours = Dinov2(tmp_path)
    images = np.random.default_rng(1).integers(0, 256, (3, 20, 33, 3)).astype(np.uint8)
    with torch.no_grad():
        pixels = torch.tensor(ours.preprocessing(images).transpose(0, 3, 1, 2))
        expected = model(pixels).last_hidden_state[:, 0].numpy()
    close(ours(images, batch_size=2), expected)
    assert pixels.shape == (3, 3, 224, 224) and ours.dimension == 24 and ours.name == "dinov2_vit24x2_p14"


@pytest.mark.parametrize(("old", "new"), [(3, 7), (16, 16), (9, 4), (37, 16)])
@pytest.mark.parametrize("antialias", [False, True])
def test_bicubic_weights_are_torchs(old, new, antialias):
    x = torch.randn(1, 1, old, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = x.expand(1, 1, old, old)
    options = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    expected = torch.nn.functional.interpolate(both, (new, old), **options)[0, 0, :, 0].numpy()
    np.testing.assert_allclose(bicubic_matrix(old, new, antialias) @ x[0, 0, :, 0].numpy(), expected, atol=1e-6)


def test_the_published_files_names_and_fused_matrices_are_taken(tmp_path):
    reference(tmp_path, use_swiglu_ffn=True)
    expected = np.array(Dinov2(tmp_path).tokens(mx.ones((1, 42, 42, 3))))
    now, published = Dinov2(tmp_path)._weights, {}
    names = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    for name, value in now.items():
        array = np.array(value)
        array = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
        for new, old in names.items():
            name = name.replace(f".attention.{new}.", f".attention.{old}.")
        if "gate_proj" in name:
            other = np.array(now[name.replace("gate_proj", "up_proj")])
            name, array = name.replace("gate_proj", "weights_in"), np.concatenate([array, other])
        if "up_proj" not in name:
            published[name.replace("down_proj", "weights_out")] = np.ascontiguousarray(array)
    save_file(published, tmp_path / "model.safetensors")
    assert "encoder.layer.0.attention.attention.query.weight" in load_file(tmp_path / "model.safetensors")
    assert np.array_equal(np.array(Dinov2(tmp_path).tokens(mx.ones((1, 42, 42, 3)))), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "vit"}, "model_type must be dinov2"),
        ({"hidden_act": "swish2"}, "hidden_act='swish2'"),
        ({"num_channels": 1}, "num_channels=1"),
        ({"num_hidden_layers": 3}, "lacks encoder.layer.2"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path, change, said):
    reference(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=said):
        Dinov2(tmp_path)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_extractor_says_which_file_it_lacks_and_stands_in_for_none(name, monkeypatch, tmp_path):
    monkeypatch.delenv("MLX_TASKS_WEIGHTS", raising=False)
    with pytest.raises(DataError, match=r"no weights of .* are on this machine: get .* and put it into"):
        make_extractor(name)
    with pytest.raises(DataError, match="no extractor named 'vgg19'; there are: inception_v3_fid"):
        make_extractor("vgg19")
