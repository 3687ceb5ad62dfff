"""UNet2DConfig: diffusers' keys and defaults, and every value we do not compute is refused by name."""

import inspect
import json

import diffusers
import pytest

from mlx_tasks.config_training import Model
from mlx_tasks.errors import DataError
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel

SMALL = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}


def test_keys_and_defaults_are_diffusers():
    parameters = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    theirs = {name: p.default for name, p in parameters.items() if name != "self"}
    ours = {name: p.default for name, p in inspect.signature(UNet2DConfig).parameters.items()}
    assert ours == theirs


def test_a_dict_comes_back_as_it_went_and_is_json():
    config = UNet2DConfig.from_dict({**SMALL, "num_class_embeds": 3})
    assert UNet2DConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_diffusers_own_notes_are_passed_over():
    assert UNet2DConfig.from_dict({**SMALL, "_class_name": "UNet2DModel", "_diffusers_version": "0.1"}).in_channels == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("time_embedding_type", "learned"),
        ("down_block_types", ["SkipDownBlock2D", "DownBlock2D"]),
        ("up_block_types", ["UpBlock2D", "KUpBlock2D"]),
        ("up_block_types", ["UpBlock2D"]),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("block_out_channels", [8, 16, 24]),
        ("block_out_channels", 8),
        ("block_out_channels", [8, 16.0]),
        ("downsample_padding", 2),
        ("downsample_padding", True),
        ("downsample_type", "fir"),
        ("upsample_type", None),
        ("act_fn", "tanh"),
        ("act_fn", None),
        ("resnet_time_scale_shift", "spatial"),
        ("class_embed_type", "projection"),
        ("num_train_timesteps", 1000),
        ("norm_num_groups", 5),
        ("norm_num_groups", None),
        ("attn_norm_num_groups", 5),
        ("attention_head_dim", 17),
        ("attention_head_dim", 0),
        ("layers_per_block", 0),
        ("in_channels", 1.5),
        ("dropout", 1.0),
        ("norm_eps", 0),
        ("mid_block_scale_factor", 0),
        ("freq_shift", 4),
        ("center_input_sample", "yes"),
        ("sample_size", 9),
        ("sample_size", [8, 8, 8]),
        ("sample_size", -8),
        ("num_class_embeds", True),
        ("time_embedding_dim", "wide"),
    ],
)
def test_what_is_not_supported_is_refused_by_key(key, value):
    with pytest.raises(DataError, match=key):
        UNet2DConfig.from_dict({**SMALL, key: value})


def test_the_refusal_holds_the_value():
    with pytest.raises(DataError, match=r"act_fn must be one of .*relu.*, got 'tanh'"):
        UNet2DConfig.from_dict({**SMALL, "act_fn": "tanh"})


def test_unknown_keys_and_other_networks_are_refused():
    with pytest.raises(DataError, match="cross_attention_dim"):
        UNet2DConfig.from_dict({**SMALL, "cross_attention_dim": 64})
    with pytest.raises(DataError, match="UNet2DConditionModel"):
        UNet2DConfig.from_dict({**SMALL, "_class_name": "UNet2DConditionModel"})


def test_the_pipelines_own_network_follows_params():
    model = Model(block_out_channels=(16, 24, 32), attention_levels=(False, True, False), attention_head_dim=8)
    config = UNet2DConfig.build(model, resolution=16, channels=3, num_classes=10, act_fn="relu")
    assert config.down_block_types == ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    assert config.up_block_types == ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    assert (config.in_channels, config.out_channels, config.sample_size, config.stride) == (3, 3, 16, 4)
    assert (config.num_class_embeds, config.act_fn, config.add_attention) == (11, "relu", True)
    attended = [hasattr(block, "attentions") for block in UNet2DModel(config).down_blocks]
    assert attended == [False, True, False]


def test_without_classes_the_network_takes_no_labels():
    assert UNet2DConfig.build(Model(), 8, 1, 0, "relu").num_class_embeds is None


def test_without_attention_levels_the_middle_has_none_either():
    config = UNet2DConfig.build(Model(attention_levels=(False, False)), 8, 1, 2, "relu")
    assert not config.add_attention
    assert not any("Attn" in name for name in (*config.down_block_types, *config.up_block_types))


def test_a_resolution_that_the_levels_cannot_halve_is_refused():
    with pytest.raises(DataError, match=r"sample_size must be a multiple of 2, .* got 15"):
        UNet2DConfig.build(Model(), 15, 1, 2, "relu")


def test_the_activation_must_be_chosen_before():
    with pytest.raises(DataError, match="act_fn"):
        UNet2DConfig.build(Model(), 8, 1, 2)
