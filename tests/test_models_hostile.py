"""Bundles that somebody else made: whatever their files say, the answer is a DataError, at once, in little memory."""

import json
import os
import struct

import mlx.core as mx
import numpy as np
import pytest
from registry_workspace import write_small_bundle
from serving_world import bundle_with_reference

from mlx_tasks.errors import DataError
from mlx_tasks.files import sha256_file
from mlx_tasks.models import limits
from mlx_tasks.models.bundle import bundle_digest, content_digest, read_bundle
from mlx_tasks.models.digests import DIGESTS, check_digests, write_digests
from mlx_tasks.models.json_file import MOST_BYTES, parse_mapping, read_mapping
from mlx_tasks.models.limits import LEAST_ROWS, image_bytes, rows_that_fit
from mlx_tasks.models.safetensors_header import read_header
from mlx_tasks.models.unet2d_config import UNet2DConfig
from mlx_tasks.registry.reference import read_reference

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return bundle_with_reference(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def bundle(made, tmp_path):
    """A copy to harm."""
    import shutil

    return shutil.copytree(made, tmp_path / "bundle")


def change(folder, file, **values):
    """Other values in a JSON file, with digests that fit."""
    path = folder / file
    told = json.loads(path.read_text())
    told.update(values)
    path.write_text(json.dumps(told))
    write_digests(folder)


# JSON


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (b"[" * 100_000, "deep"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "32 levels deep"),
        (b'{"a": NaN}', "finite numbers only, got NaN"),
        (b'{"a": -Infinity}', "finite numbers only, got -Infinity"),
        (b'{"a": 1e999}', "finite numbers only, got 1e999"),
        (b'{"a": ' + b"9" * 5000 + b"}", "up to 2"),
        (b'{"a": 9007199254740993}', "up to 2"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\udfff": 1}', "half a surrogate pair"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"", "is not JSON"),
        (b"[1]", "must hold a JSON object, got list"),
        (b" " * (MOST_BYTES + 1), "at most 8388608 bytes"),
    ],
)
def test_json_is_bounded_and_finite(text, rule, tmp_path):
    with pytest.raises(DataError, match=rule):
        parse_mapping(text, "it")
    (tmp_path / "it.json").write_bytes(text)
    with pytest.raises(DataError, match=rule):
        read_mapping(tmp_path / "it.json")


def test_diffusers_minus_infinity_passes_where_it_is_known():
    assert parse_mapping(b'{"lambda_min_clipped": -Infinity}', "it", infinite=True) == {"lambda_min_clipped": -np.inf}
    with pytest.raises(DataError, match="got NaN"):
        parse_mapping(b'{"a": NaN}', "it", infinite=True)


# safetensors


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def array(begin=0, end=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HEADERS = {
    "empty": (b"", "0 bytes"),
    "length only": (struct.pack("<Q", 8), "its header asks for 8"),
    "huge length": (struct.pack("<Q", 2**63) + b"{}", "its header asks for"),
    "no JSON": (safetensors(b"{"), "is not JSON"),
    "a list": (safetensors([]), "JSON object, got list"),
    "no offsets": (safetensors({"a": {"dtype": "F32", "shape": [1]}}), "must hold dtype, shape and data_offsets"),
    "unknown type": (safetensors({"a": array(dtype="C64")}, b"1234"), "unknown type 'C64'"),
    "negative size": (safetensors({"a": array(shape=(-1,))}, b"1234"), "whole sizes"),
    "huge size": (safetensors({"a": array(shape=(2**50, 2**50))}, b"1234"), "takes"),
    "fraction": (safetensors({"a": array(shape=(1.0,))}, b"1234"), "whole sizes"),
    "overlap": (safetensors({"a": array(), "b": array(2, 6)}, b"123456"), "overlap or leave gaps"),
    "gap": (safetensors({"a": array(), "b": array(6, 10)}, b"1234567890"), "overlap or leave gaps"),
    "same bytes": (safetensors({"a": array(), "b": array()}, b"1234"), "overlap or leave gaps"),
    "short": (safetensors({"a": array()}, b"123"), "arrays take 4 bytes"),
    "long": (safetensors({"a": array()}, b"12345"), "arrays take 4 bytes"),
    "twice": (safetensors(b'{"a":' + json.dumps(array()).encode() + b',"a":' + json.dumps(array()).encode() + b"}",
                          b"1234"), "'a' is there twice"),
    "notes": (safetensors({"__metadata__": {"a": 1}}), "names to texts"),
    "axes": (safetensors({"a": array(shape=(1,) * 9)}, b"1234"), "up to 8 whole sizes"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_does_not_hold_is_refused(name, bundle):
    data, rule = HEADERS[name]
    (bundle / WEIGHTS).write_bytes(data)
    write_digests(bundle)
    with pytest.raises(DataError, match=rule):
        read_header(bundle / WEIGHTS)
    with pytest.raises(DataError, match="is not a safetensors file"):
        read_bundle(bundle)


def test_a_header_is_that_of_the_real_library(made):
    from safetensors import safe_open

    with safe_open(made / WEIGHTS, framework="np") as file:
        theirs = {n: (file.get_slice(n).get_dtype(), tuple(file.get_slice(n).get_shape())) for n in file.keys()}
    assert read_header(made / WEIGHTS) == theirs


def test_shapes_are_compared_before_a_weight_is_read(bundle, monkeypatch):
    """A config of the same names and 32 times the weights; the file is not opened for its arrays."""
    told = json.loads((bundle / "unet/config.json").read_text())
    change(bundle, "unet/config.json", block_out_channels=[c * 32 for c in told["block_out_channels"]])
    monkeypatch.setattr(mx, "load", lambda path: pytest.fail("the weights were read"))
    with pytest.raises(DataError, match="has other shapes"):
        read_bundle(bundle)


@pytest.mark.parametrize("dtype", ["F64", "I64", "U8"])
def test_weights_of_another_type_are_refused(bundle, dtype):
    from safetensors.numpy import load_file, save_file

    kinds = {"F64": np.float64, "I64": np.int64, "U8": np.uint8}
    save_file({n: w.astype(kinds[dtype]) for n, w in load_file(bundle / WEIGHTS).items()}, bundle / WEIGHTS)
    write_digests(bundle)
    with pytest.raises(DataError, match=f"F32, F16, BF16 only, got .* {dtype}"):
        read_bundle(bundle)


# Sizes

SIZES = [
    ("sampler.json", "resolution", 4096, "resolution must be at most 2048, got 4096"),
    ("sampler.json", "resolution", "8", "resolution must be a whole number of at least 1, got '8'"),
    ("sampler.json", "resolution", 8.0, "got 8.0"),
    ("sampler.json", "resolution", True, "got True"),
    ("sampler.json", "resolution", None, "got None"),
    ("sampler.json", "channels", 10**9, "channels must be at most 512"),
    ("sampler.json", "nfe", "2", "nfe must be a whole number"),
    ("sampler.json", "guidance_scale", "1", "guidance_scale must be a finite number"),
    ("sampler.json", "timesteps", 5, "timesteps must be a list"),
    ("sampler.json", "timesteps", [[1]], "timesteps must be whole"),
    ("sampler.json", "timesteps", [True, 0], "timesteps must be whole"),
    ("sampler.json", "timesteps", list(range(20_000, 0, -1)), "length of sampler.timesteps must be at most 10000"),
    ("sampler.json", "class_names", [0, 1, 2], "class_names must be texts"),
    ("sampler.json", "class_names", ["a", "b", "a"], "class_names must differ, 'a' is there twice"),
    ("sampler.json", "class_names", ["a", "b", " "], "class_names must be texts"),
    ("sampler.json", "class_names", ["a", "b", "c" * 300], "1 to 256 characters"),
    ("sampler.json", "class_names", "abc", "class_names must be a list"),
    ("sampler.json", "null_label", "3", "null_label must be a label or null"),
    ("sampler.json", "solver", ["ddim"], "solver must be a name"),
    ("sampler.json", "levels", {"fast": {"solver": ["ddim"], "timesteps": [1]}}, "level's solver"),
    ("sampler.json", "levels", {"fast": {"solver": "ddim", "timesteps": 1}}, "level 'fast' must hold"),
    ("sampler.json", "levels", {"fast": 1}, "level 'fast' must hold"),
    ("sampler.json", "levels", {"fast": {"solver": "ddim", "timesteps": [9], "frechet_distance": "0"}}, "a number"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9, "from 2 to 100000, got 1000000000"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", "1000", "got '1000'"),
    ("scheduler/scheduler_config.json", "trained_betas", [[0.1]], "trained_betas must be a finite number"),
    ("unet/config.json", "layers_per_block", 10**9, "layers_per_block must be at most 16, got 1000000000"),
    ("unet/config.json", "in_channels", 10**9, "in_channels must be at most 512"),
    ("unet/config.json", "sample_size", 1 << 20, "sample_size must be at most 2048"),
    ("unet/config.json", "sample_size", "8", "sample_size must be a whole number"),
    ("unet/config.json", "block_out_channels", [1 << 30, 1 << 30], "block_out_channels must be at most 8192"),
    ("unet/config.json", "block_out_channels", ["8", "16"], "whole numbers"),
    ("unet/config.json", "block_out_channels", [8] * 64, "length of block_out_channels must be at most 12"),
    ("unet/config.json", "num_class_embeds", 10**12, "num_class_embeds must be at most"),
    ("unet/config.json", "time_embedding_dim", 10**9, "time_embedding_dim must be at most"),
    ("unet/config.json", "downsample_padding", 1.0, "downsample_padding must be one of"),
    ("unet/config.json", "norm_eps", [1], "norm_eps must be above 0"),
    ("unet/config.json", "act_fn", {}, "act_fn must be one of"),
    ("unet/config.json", "mid_block_type", ["UNetMidBlock2D"], "mid_block_type must be one of"),
    ("reference/reference.json", "dimension", 10**12, "features must be"),
    ("reference/reference.json", "feature_space", "inception", "feature_space must be 'random_conv', got 'inception'"),
    ("reference/reference.json", "seed", 5, "seed must be 1000003, got 5"),
    ("reference/reference.json", "generated", 10**9, "generated must be 120, got 1000000000"),
    ("model_index.json", "unet", ["diffusers", "UNet3DModel"], "unet must be"),
    ("model_index.json", "scheduler", None, "scheduler must be"),
    ("scheduler/scheduler_config.json", "_class_name", "PNDMScheduler", "scheduler must be"),
    ("reference/reference.json", "channels", "1", "channels must be a whole number"),
    ("reference/reference.json", "frechet_distance", None, "frechet_distance must be a number"),
]


@pytest.mark.parametrize(("file", "key", "value", "rule"), SIZES, ids=lambda one: str(one)[:40])
def test_a_size_that_no_model_has_is_refused_by_name(bundle, file, key, value, rule):
    change(bundle, file, **{key: value})
    with pytest.raises(DataError, match=rule):
        read_bundle(bundle)
        read_reference(bundle)


def test_what_would_not_fit_in_memory_is_told_before_it_is_allocated(monkeypatch):
    config = UNet2DConfig(sample_size=2048, block_out_channels=(224, 448), down_block_types=("AttnDownBlock2D",) * 2,
                          up_block_types=("AttnUpBlock2D",) * 2)  # fmt: skip
    with pytest.raises(DataError, match=r"4 images of 2048 x 2048 and .* would take .* GiB and may take 64 here"):
        rows_that_fit(config, 2048, 32, 1_000_000, 64 << 30)
    plain = UNet2DConfig(sample_size=64, block_out_channels=(32, 64), down_block_types=("DownBlock2D",) * 2,
                         up_block_types=("UpBlock2D",) * 2, add_attention=False)  # fmt: skip
    one = image_bytes(plain, 64)
    assert rows_that_fit(plain, 64, 32, 0, 32 * one) == 32
    assert rows_that_fit(plain, 64, 32, 0, 9 * one) == 9
    assert image_bytes(plain, 128) == 4 * one
    with pytest.raises(DataError, match="would take"):
        rows_that_fit(plain, 64, 32, 0, (LEAST_ROWS - 1) * one)
    monkeypatch.setattr(limits, "SHARE", 1e-9)
    with pytest.raises(DataError, match="would take"):
        rows_that_fit(plain, 64, 32, 0)


def test_the_estimate_of_memory_is_that_of_a_real_run():
    """Of what MLX holds at its peak: by the convolutions, and by attention."""
    from mlx_tasks.models.unet2d import UNet2DModel

    for attended, side in ((False, 64), (True, 32)):
        down, up = ("AttnDownBlock2D", "AttnUpBlock2D") if attended else ("DownBlock2D", "UpBlock2D")
        config = UNet2DConfig(sample_size=side, in_channels=1, out_channels=1, block_out_channels=(32, 64),
                              down_block_types=(down, down), up_block_types=(up, up),
                              add_attention=attended)  # fmt: skip
        model = UNet2DModel(config, mx.random.key(0))
        x = mx.random.normal((2, side, side, 1), key=mx.random.key(1))
        mx.eval(model.parameters(), x)
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(model(x, mx.full((2,), 5)))
        taken = mx.get_peak_memory() - held
        assert taken / 2 < 2 * image_bytes(config, side) < 2 * taken, attended


# Digests


def test_every_file_is_in_the_digests(made):
    told = json.loads((made / DIGESTS).read_text())
    on_disk = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()} - {DIGESTS}
    assert {*told["files"], *told["beside"]} == on_disk
    assert {name for name in told["beside"]} == {n for n in on_disk if n.startswith("reference/")}


@pytest.mark.parametrize("name", [WEIGHTS, "reference/features.safetensors", "reference/reference.json"])
def test_a_changed_byte_anywhere_is_found(bundle, name):
    data = bytearray((bundle / name).read_bytes())
    data[-2] ^= 1
    (bundle / name).write_bytes(bytes(data))
    with pytest.raises(DataError, match=f"{name} differ from digests.json"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["reference/features.safetensors", "sampler.json"])
def test_a_missing_file_is_found(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(DataError, match=f"{name} differ from digests.json"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["run.py", "unet/more.safetensors", "reference/more.json", "lineage.json"])
def test_a_file_that_no_list_names_is_refused(bundle, name):
    (bundle / name).write_text("{}")
    with pytest.raises(DataError, match=f"holds {name}, which digests.json does not list"):
        read_bundle(bundle)


def test_what_file_managers_leave_is_no_file_of_the_bundle(bundle):
    for name in (".DS_Store", "unet/._config.json", "Thumbs.db"):
        (bundle / name).write_bytes(b"\0")
    read_bundle(bundle)


@pytest.mark.parametrize("where", ["sampler.json", "unet", "reference/reference.json"])
def test_a_link_is_refused_wherever_it_leads(bundle, tmp_path, where):
    """Even to the very same bytes: who can change the target changes the bundle after it was checked."""
    (bundle / where).rename(tmp_path / "away")
    (bundle / where).symlink_to(tmp_path / "away")
    with pytest.raises(DataError, match=f"{where} is a link or a device"):
        read_bundle(bundle)


def test_a_pipe_is_refused_and_not_waited_for(bundle):
    (bundle / "sampler.json").unlink()
    os.mkfifo(bundle / "sampler.json")
    with pytest.raises(DataError, match=r"sampler\.json is a link or a device"):
        read_bundle(bundle)


def names(bundle, **changes):
    told = json.loads((bundle / DIGESTS).read_text())
    (bundle / DIGESTS).write_text(json.dumps({**told, **changes}))


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../outside.json", "unet/../sampler.json", "./sampler.json", "unet//config.json", "", "a\0b",
     "..\\outside", "digests.json", "C:\\x"],
)  # fmt: skip
def test_a_name_that_is_not_plainly_inside_is_refused(bundle, name):
    told = json.loads((bundle / DIGESTS).read_text())
    names(bundle, files={**told["files"], name: "0" * 64})
    with pytest.raises(DataError, match="must map relative file names to SHA-256 digests"):
        check_digests(bundle)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"files": {}}, "lists no file"),
        ({"files": []}, "relative file names"),
        ({"files": {"sampler.json": 1}}, "relative file names"),
        ({"files": {"sampler.json": "0" * 63}}, "relative file names"),
        ({"files": {"sampler.json": "0" * 64, "Sampler.json": "0" * 64}}, "by case alone"),
        ({"files": {"reference/x": "0" * 64}}, "wrong part"),
        ({"beside": {"x.py": "0" * 64}}, "wrong part"),
        ({"beside": None}, "relative file names"),
        ({"format": 3}, "format 2"),
        ({"format": True}, "format 2"),
        ({"algorithm": "md5"}, "algorithm sha256"),
        ({"more": 1}, "must have the keys"),
    ],
)
def test_a_list_that_says_nothing_is_refused(bundle, changes, rule):
    names(bundle, **changes)
    with pytest.raises(DataError, match=rule):
        check_digests(bundle)


def test_files_that_differ_by_case_alone_are_refused(bundle):
    (bundle / "Sampler.json").write_bytes((bundle / "sampler.json").read_bytes())
    with pytest.raises(DataError, match="differ by case alone"):
        read_bundle(bundle)


def test_what_is_added_beside_changes_no_digest_of_the_images(tmp_path):
    write_small_bundle(tmp_path / "plain", 3)
    full = bundle_with_reference(tmp_path / "full", 3)
    assert bundle_digest(full) == bundle_digest(tmp_path / "plain") == read_bundle(full).digest
    assert content_digest(full) != content_digest(tmp_path / "plain")


def test_what_is_added_beside_blesses_no_changed_weights(bundle):
    from mlx_tasks.models.digests import write_digests_beside

    change_byte = bytearray((bundle / WEIGHTS).read_bytes())
    change_byte[-1] ^= 1
    (bundle / WEIGHTS).write_bytes(bytes(change_byte))
    (bundle / "README.md").write_text("A card.")
    write_digests_beside(bundle)
    with pytest.raises(DataError, match=f"{WEIGHTS} differ"):
        read_bundle(bundle)


def first_format(bundle):
    """Digests as they were before there were formats."""
    told = json.loads((bundle / DIGESTS).read_text())
    (bundle / DIGESTS).write_text(json.dumps({"algorithm": "sha256", "files": told["files"]}))


def test_a_bundle_registered_before_there_were_formats_is_read_under_its_old_digest(bundle):
    import hashlib

    before = bundle_digest(bundle)
    first_format(bundle)
    text = json.dumps(json.loads((bundle / DIGESTS).read_text()), sort_keys=True)
    assert read_bundle(bundle).digest == before == hashlib.sha256(text.encode()).hexdigest()
    assert content_digest(bundle) == ""
    (bundle / "run.py").write_text("")
    with pytest.raises(DataError, match=r"holds run\.py, which"):
        read_bundle(bundle)


def test_a_file_larger_than_memory_is_refused_unread(bundle, monkeypatch):
    with (bundle / WEIGHTS).open("ab") as file:
        file.truncate(1 << 40)  # 1 TiB, of which the disk holds nothing
    monkeypatch.setattr("mlx_tasks.models.digests.sha256_file", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(DataError, match="as a whole would take"):
        read_bundle(bundle)


def test_a_features_file_that_does_not_fit_its_description_is_refused(bundle):
    from safetensors.numpy import load_file, save_file

    path = bundle / "reference/features.safetensors"
    good = load_file(path)
    for wrong, rule in (
        ({"generated": good["generated"][:, :1]}, "features must be"),
        ({"generated_labels": good["generated_labels"][:-1]}, "one a drawn image"),
        ({"other": good["generated_labels"]}, "one a drawn image"),
        ({"held_out": np.full_like(good["held_out"], np.nan)}, "not finite in held_out"),
    ):
        save_file({**good, **wrong}, path)
        with pytest.raises(DataError, match=rule):
            read_reference(bundle)
    assert sha256_file(path)
