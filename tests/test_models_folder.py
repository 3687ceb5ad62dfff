"""A U-Net's folder: what comes back is what went, and whatever is not a whole diffusers folder is refused."""

import json
import pickle

import diffusers
import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file

from mlx_tasks.errors import DataError
from mlx_tasks.models import folder as folder_module
from mlx_tasks.models.digests import DIGESTS
from mlx_tasks.models.folder import CONFIG, WEIGHTS, load_unet, save_unet
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel

CONFIG_VALUES = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture
def model() -> UNet2DModel:
    return UNet2DModel(UNet2DConfig.from_dict(CONFIG_VALUES), mx.random.key(5))


@pytest.fixture
def saved(model, tmp_path):
    """A folder without digests, as diffusers writes it, so that a change reaches the checks behind them."""
    save_unet(model, tmp_path / "unet")
    (tmp_path / "unet" / DIGESTS).unlink()
    return tmp_path / "unet"


def change_weights(folder, change) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file(change(weights) or weights, folder / WEIGHTS)


def test_what_is_loaded_is_what_was_saved_to_the_bit(model, tmp_path):
    save_unet(model, tmp_path / "unet")
    loaded = load_unet(tmp_path / "unet")
    assert loaded.config == model.config
    before, after = dict(tree_flatten(model.parameters())), dict(tree_flatten(loaded.parameters()))
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(np.array(after[name]), np.array(value), err_msg=name)


def test_saving_twice_writes_the_same_bytes(model, tmp_path):
    for name in ("a", "b"):
        save_unet(model, tmp_path / name)
    for file in (CONFIG, WEIGHTS, DIGESTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_kernels_lie_on_disk_as_torch_orders_them(model, saved):
    weight = load_file(saved / WEIGHTS)["down_blocks.0.downsamplers.0.conv.weight"]
    expected = np.array(model.down_blocks[0].downsamplers[0].conv.weight).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(weight.numpy(), expected)


def test_attention_names_from_before_diffusers_0_17_are_read(model, saved):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(weights):
        for new, name in old.items():
            weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
        return weights

    change_weights(saved, rename)
    assert "mid_block.attentions.0.query.weight" in load_file(saved / WEIGHTS)
    x = mx.random.normal((2, 8, 8, 1), key=mx.random.key(0))
    np.testing.assert_array_equal(np.array(load_unet(saved)(x, 3)), np.array(model(x, 3)))
    theirs = diffusers.UNet2DModel.from_pretrained(saved)
    with torch.no_grad():
        y = theirs(torch.tensor(np.array(x.transpose(0, 3, 1, 2))), 3).sample.permute(0, 2, 3, 1)
    np.testing.assert_allclose(y.numpy(), np.array(model(x, 3)), atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_floats_become_float32(model, saved, dtype):
    change_weights(saved, lambda weights: {name: value.to(dtype) for name, value in weights.items()})
    weight = load_unet(saved).conv_in.weight
    assert weight.dtype == mx.float32
    np.testing.assert_allclose(np.array(weight), np.array(model.conv_in.weight), atol=2e-3)


def test_missing_and_extra_names_are_both_listed(saved):
    change_weights(saved, lambda weights: {n.replace("conv_out.bias", "conv_out.base"): v for n, v in weights.items()})
    with pytest.raises(DataError, match=r"missing conv_out\.bias; not expected conv_out\.base"):
        load_unet(saved)


def test_wrong_shapes_are_listed_with_both_shapes(saved):
    change_weights(saved, lambda weights: weights.update({"conv_out.weight": torch.zeros(2, 8, 3, 3)}))
    with pytest.raises(DataError, match=r"conv_out\.weight \(2, 3, 3, 8\) for \(1, 3, 3, 8\)"):
        load_unet(saved)


@pytest.mark.parametrize(("dtype", "name"), [(torch.int32, "I32"), (torch.float64, "F64"), (torch.bool, "BOOL")])
def test_other_types_are_refused(saved, dtype, name):
    change_weights(saved, lambda weights: weights.update({"conv_out.bias": torch.zeros(1, dtype=dtype)}))
    with pytest.raises(DataError, match=rf"must hold F32, F16, BF16 only, got conv_out\.bias {name}"):
        load_unet(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_both_ways(model, saved, value):
    change_weights(saved, lambda weights: weights.update({"conv_out.bias": torch.tensor([value])}))
    with pytest.raises(DataError, match=r"not finite in conv_out\.bias"):
        load_unet(saved)
    model.conv_out.bias = mx.array([value])
    with pytest.raises(DataError, match=r"these are not: conv_out\.bias"):
        save_unet(model, saved)
    assert load_file(saved / WEIGHTS)


class Harmful:
    """Its pickle makes a file when it is read."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_is_refused_and_not_read(saved, tmp_path):
    (saved / WEIGHTS).unlink()
    (saved / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    with pytest.raises(DataError, match=r"diffusion_pytorch_model\.bin, pickles"):
        load_unet(saved)
    (saved / WEIGHTS).write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    with pytest.raises(DataError, match="is not a safetensors file"):
        load_unet(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 5, 5000])
def test_a_truncated_file_is_refused(saved, size):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:size])
    with pytest.raises(DataError, match="is not a safetensors file"):
        load_unet(saved)


def test_a_folder_without_weights_says_what_it_holds(saved):
    (saved / WEIGHTS).unlink()
    with pytest.raises(DataError, match=r"has no diffusion_pytorch_model\.safetensors; it holds config\.json"):
        load_unet(saved)


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model-00001-of-00002.safetensors"]
)
def test_weights_in_parts_or_under_another_name_are_told_with_the_remedy(saved, name):
    (saved / WEIGHTS).rename(saved / name)
    with pytest.raises(DataError, match=rf"it holds {name}: .*max_shard_size"):
        load_unet(saved)


def test_a_file_that_mlx_wrote_is_read(model, saved):
    weights = mx.load(str(saved / WEIGHTS))
    mx.save_safetensors(str(saved / WEIGHTS), weights)
    np.testing.assert_array_equal(np.array(load_unet(saved).conv_in.weight), np.array(model.conv_in.weight))


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_config_that_is_missing_or_no_object_is_refused(saved, text):
    if text is None:
        (saved / CONFIG).unlink()
    else:
        (saved / CONFIG).write_text(text)
    with pytest.raises(DataError, match=r"config\.json"):
        load_unet(saved)


def test_a_config_with_an_unknown_key_is_refused(saved):
    values = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps({**values, "transformer_layers": 2}))
    with pytest.raises(DataError, match="transformer_layers"):
        load_unet(saved)


def test_a_changed_file_differs_from_its_digest(model, tmp_path):
    save_unet(model, tmp_path / "unet")
    change_weights(tmp_path / "unet", lambda weights: weights.update({"conv_out.bias": torch.ones(1)}))
    with pytest.raises(DataError, match=f"{WEIGHTS} differ from {DIGESTS}"):
        load_unet(tmp_path / "unet")


def test_a_failed_save_leaves_the_old_folder(model, tmp_path, monkeypatch):
    save_unet(model, tmp_path / "unet")
    before = (tmp_path / "unet" / WEIGHTS).read_bytes()

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "atomic_write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_unet(UNet2DModel(model.config, mx.random.key(6)), tmp_path / "unet")
    assert (tmp_path / "unet" / WEIGHTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]
    load_unet(tmp_path / "unet")
