"""The U-Net against diffusers' own `UNet2DModel`: weights go both ways and the outputs are equal."""

import copy
import dataclasses

import diffusers
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from mlx_tasks import hardware
from mlx_tasks.models.folder import load_unet, save_unet
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel

TOLERANCE = 2e-5

BASE = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
CONFIGS = {
    "demo": {"num_class_embeds": 11, "act_fn": "relu"},
    "silu": {},
    "swish": {"act_fn": "swish"},
    "gelu": {"act_fn": "gelu"},
    "mish": {"act_fn": "mish"},
    "rgb_and_more_out": {"in_channels": 3, "out_channels": 6},
    "oblong": {"sample_size": [8, 16]},
    "centred": {"center_input_sample": True},
    "fourier": {"time_embedding_type": "fourier"},
    "fourier_with_time_class": {"time_embedding_type": "fourier", "class_embed_type": "timestep"},
    "sine_first_shifted": {"flip_sin_to_cos": False, "freq_shift": 1},
    "odd_time_width": {"block_out_channels": [9, 18], "norm_num_groups": 3, "attention_head_dim": 9},
    "own_time_width": {"time_embedding_dim": 24},
    "three_levels": {
        "sample_size": 16,
        "block_out_channels": [8, 16, 24],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"],
        "layers_per_block": 2,
    },
    "one_level": {
        "block_out_channels": [8],
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["UpBlock2D"],
    },
    "no_middle": {"mid_block_type": None},
    "middle_without_attention": {"add_attention": False},
    "scaled_middle": {"mid_block_scale_factor": 1.7},
    "padding_0": {"downsample_padding": 0},
    "resnet_resampling": {
        "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "resnet_resampling_without_attention": {
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "old_block_names": {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]},
    "one_wide_head": {"attention_head_dim": None},
    "many_heads": {"attention_head_dim": 2},
    "heads_narrower_than_level": {"block_out_channels": [8, 24], "attention_head_dim": 16},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift_with_middle_norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "middle_norm": {"attn_norm_num_groups": 8},
    "eps": {"norm_eps": 1e-2},
    "dropout_is_off_when_sampling": {"dropout": 0.5},
    "time_class": {"class_embed_type": "timestep"},
    "identity_class": {"class_embed_type": "identity"},
}


def settings(name: str) -> dict:
    return {**BASE, **CONFIGS[name]}


def inputs(config: UNet2DConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Noise, timesteps at both ends and between, and whatever labels the config takes."""
    random = np.random.default_rng(0)
    size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    x = random.standard_normal((3, *size, config.in_channels)).astype(np.float32)
    labels = None
    if config.class_embed_type == "timestep":
        labels = np.array([1.0, 40.0, 900.0], np.float32)
    elif config.class_embed_type == "identity":
        labels = random.standard_normal((3, config.time_embed_dim)).astype(np.float32)
    elif config.num_class_embeds is not None:
        labels = np.array([0, 4, config.num_class_embeds - 1])
    return x, np.array([1.0, 500.0, 999.0], np.float32), labels


def ours(model: UNet2DModel) -> np.ndarray:
    x, t, labels = inputs(model.config)
    return np.array(model(mx.array(x), mx.array(t), None if labels is None else mx.array(labels)))


def theirs(model: diffusers.UNet2DModel, config: UNet2DConfig) -> np.ndarray:
    x, t, labels = inputs(config)
    with torch.no_grad():
        labels = None if labels is None else torch.tensor(labels)
        y = model.eval()(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), labels).sample
    return y.permute(0, 2, 3, 1).numpy()


def from_diffusers(name: str) -> diffusers.UNet2DModel:
    """A fresh diffusers model whose norms and biases are not the ones and zeros that would hide a mistake."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**settings(name))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_that_diffusers_saved_gives_its_outputs(name, tmp_path):
    model = from_diffusers(name)
    model.save_pretrained(tmp_path / "unet")
    loaded = load_unet(tmp_path / "unet")
    expected = theirs(model, loaded.config)
    assert np.abs(expected).max() > 0.05
    np.testing.assert_allclose(ours(loaded), expected, atol=TOLERANCE * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_that_we_saved_gives_our_outputs_in_diffusers(name, tmp_path):
    config = UNet2DConfig.from_dict(settings(name))
    model = UNet2DModel(config, mx.random.key(1))
    save_unet(model, tmp_path / "unet")
    opened = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet")
    expected = ours(model)
    np.testing.assert_allclose(theirs(opened, config), expected, atol=TOLERANCE * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("kind", ["cpu", "metal"])
def test_both_devices_forms_give_diffusers_outputs(kind, tmp_path, monkeypatch):
    """The forms chosen for a GPU run on the CPU too: only the choice is replaced here."""
    model = from_diffusers("three_levels")
    model.save_pretrained(tmp_path / "unet")
    machine = dataclasses.replace(hardware.detect(), kind=kind)
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    loaded = load_unet(tmp_path / "unet")
    np.testing.assert_allclose(ours(loaded), theirs(model, loaded.config), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["demo", "scale_shift", "resnet_resampling"])
def test_gradients_are_torchs(name, tmp_path):
    """The loss is the mean square of the output; each parameter's gradient is compared under its shared name."""
    model = from_diffusers(name)
    model.save_pretrained(tmp_path / "unet")
    loaded = load_unet(tmp_path / "unet")
    x, t, labels = inputs(loaded.config)
    torch_labels, mlx_labels = (None, None) if labels is None else (torch.tensor(labels), mx.array(labels))
    model(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), torch_labels).sample.square().mean().backward()

    def loss(x: mx.array, t: mx.array) -> mx.array:
        return mx.square(loaded(x, t, mlx_labels)).mean()

    _, gradients = nn.value_and_grad(loaded, loss)(mx.array(x), mx.array(t))
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    found = dict(tree_flatten(gradients))
    assert found.keys() == expected.keys()
    scale = max(np.abs(gradient).max() for gradient in expected.values())
    for key, gradient in found.items():
        gradient = gradient.transpose(0, 3, 1, 2) if gradient.ndim == 4 else gradient
        np.testing.assert_allclose(np.array(gradient), expected[key], atol=2e-5 * scale, err_msg=key)


def test_the_same_key_draws_the_same_weights_and_another_key_others():
    config = UNet2DConfig.from_dict(settings("demo"))
    first, again, other = (UNet2DModel(config, mx.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(ours(first), ours(again))
    assert np.abs(ours(first) - ours(other)).max() > 0.01


def test_a_deep_copy_is_a_network_of_its_own():
    model = UNet2DModel(UNet2DConfig.from_dict(settings("demo")))
    before, twin = ours(model), copy.deepcopy(model)
    np.testing.assert_array_equal(ours(twin), before)
    twin.conv_out.bias = twin.conv_out.bias + 1
    np.testing.assert_array_equal(ours(model), before)


def test_drawn_weights_spread_as_torchs():
    """Kernels are uniform in +-1/sqrt(fan_in), so their standard deviation is that over sqrt(3)."""
    model = UNet2DModel(UNet2DConfig.from_dict({**settings("demo"), "block_out_channels": [16, 32]}))
    weight = np.array(model.mid_block.resnets[0].conv1.weight)
    assert weight.std() == pytest.approx((9 * 32) ** -0.5 / 3**0.5, rel=0.03)
    assert np.abs(weight).max() <= (9 * 32) ** -0.5


def test_fourier_frequencies_are_saved_and_not_trained():
    model = UNet2DModel(UNet2DConfig.from_dict(settings("fourier")))
    assert "time_proj.weight" in dict(tree_flatten(model.parameters()))
    assert "time_proj.weight" not in dict(tree_flatten(model.trainable_parameters()))


def test_dropout_needs_a_key_and_repeats_with_it():
    model = UNet2DModel(UNet2DConfig.from_dict(settings("dropout_is_off_when_sampling")))
    x, t, _ = (None if value is None else mx.array(value) for value in inputs(model.config))
    plain, first, again, other = (np.array(model(x, t, key=k)) for k in (None, *map(mx.random.key, (0, 0, 1))))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - plain).max() > 1e-3


def test_a_scalar_timestep_counts_for_every_image():
    model = UNet2DModel(UNet2DConfig.from_dict(settings("silu")))
    x = mx.array(inputs(model.config)[0])
    np.testing.assert_array_equal(np.array(model(x, 7)), np.array(model(x, mx.full((3,), 7.0))))


def test_a_side_that_the_levels_cannot_halve_is_refused():
    model = UNet2DModel(UNet2DConfig.from_dict(settings("three_levels")))
    with pytest.raises(ValueError, match=r"multiples of 4, got 16 x 18"):
        model(mx.zeros((1, 16, 18, 1)), 0)


@pytest.mark.parametrize(("name", "labels"), [("demo", None), ("silu", [1])])
def test_labels_are_refused_where_the_network_takes_none_and_the_other_way_round(name, labels):
    model = UNet2DModel(UNet2DConfig.from_dict(settings(name)))
    with pytest.raises(ValueError, match="class_labels"):
        model(mx.zeros((1, 8, 8, 1)), 0, None if labels is None else mx.array(labels))


@pytest.mark.parametrize("name", ["demo", "silu", "three_levels", "fourier"])
def test_an_image_is_the_same_bits_alone_and_in_any_batch(name):
    """A request's image may not depend on who asked at the same time."""
    model = UNet2DModel(UNet2DConfig.from_dict(settings(name)))
    generator = np.random.default_rng(0)
    x = mx.array(generator.normal(size=(7, 16, 16, model.config.in_channels)).astype(np.float32))
    t = mx.array(generator.uniform(1, 900, 7).astype(np.float32))
    labels = None if model.config.num_class_embeds is None else mx.array(generator.integers(0, 3, 7))
    together = np.array(model(x, t, labels))
    for rows in (slice(0, 1), slice(3, 4), slice(1, 3), slice(2, 7)):
        own = np.array(model(x[rows], t[rows], None if labels is None else labels[rows]))
        np.testing.assert_array_equal(own, together[rows])
