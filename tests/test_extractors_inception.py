"""Inception v3 of FID against its definition in torch, on random weights; preprocessing against PIL; weights files."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch_references import InceptionV3ForFid, randomise

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.extractors import inception, weights
from mlx_tasks.metrics.extractors.base import rgb_images
from mlx_tasks.metrics.extractors.inception import InceptionV3
from mlx_tasks.metrics.extractors.preprocess import Preprocessing
from mlx_tasks.metrics.frechet import frechet_distance
from mlx_tasks.metrics.random_conv import RandomConvFeatures


def close(ours, theirs, tolerance=1e-4):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def reference():
    return randomise(InceptionV3ForFid(), 0)


@pytest.fixture(scope="module")
def network(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(reference.state_dict(), path)
    return InceptionV3(path)


def photographs(count, side, seed=0):
    """Smooth colour pictures with edges."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in small])


@pytest.mark.parametrize("side", [75, 96])
def test_every_stage_equals_the_reference(network, reference, side):
    x = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        pooled, _, stages = reference(torch.tensor(x.transpose(0, 3, 1, 2)))
    h = mx.array(x)
    for conv in inception.STEM[:3]:
        h = network._conv(conv, h)
    h = inception._max_pool(h, 2)
    for conv in inception.STEM[3:]:
        h = network._conv(conv, h)
    h = inception._max_pool(h, 2)
    for name, branches in inception.BLOCKS.items():
        h = network._block(name, branches, h)
        close(h, stages[name].permute(0, 2, 3, 1).numpy())
    close(network.pooled(mx.array(x)), pooled.numpy())


def test_images_of_any_size_give_the_references_features_and_logits(network, reference):
    images = photographs(2, 48)
    prepared = torch.tensor(inception.PREPROCESSING(images).transpose(0, 3, 1, 2))
    with torch.no_grad():
        pooled, logits, _ = reference(prepared)
    features, ours = network.features_and_logits(images, batch_size=1)
    close(features, pooled.numpy())
    close(ours, logits.numpy())
    assert features.shape == (2, network.dimension)


def test_inputs_are_scaled_as_the_tensorflow_graph_scales_them():
    grey = np.array([0, 128, 255], np.uint8).reshape(3, 1, 1, 1).repeat(8, 1).repeat(8, 2)
    prepared = inception.PREPROCESSING(grey)
    np.testing.assert_allclose(prepared[:, 0, 0, 0], [-1.0, 0.0, 127 / 128], atol=1e-6)
    assert prepared.shape == (3, 299, 299, 3)


def test_floats_are_resized_channel_by_channel_and_rounded_ones_as_pil_does_images():
    image = photographs(1, 40)[0]
    plain = np.asarray(Image.fromarray(image).resize((17, 17), Image.Resampling.BICUBIC), np.float32) / 255
    identity = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    np.testing.assert_array_equal(Preprocessing(17, "bicubic", True, **identity)(image[None])[0], plain)
    channels = [
        np.asarray(Image.fromarray(image[..., c].astype(np.float32)).resize((17, 17), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    floats = Preprocessing(17, "bicubic", False, **identity)(image[None])[0]
    np.testing.assert_allclose(floats, np.stack(channels, -1) / 255, atol=1e-7)
    assert np.abs(np.clip(floats, 0, 1) - plain).max() <= 2 / 255  # PIL rounds between its two passes as well


def test_the_middle_is_cut_out_after_the_shorter_side_is_resized():
    image = photographs(1, 60)[0][:40]  # 40 x 60
    ours = Preprocessing(20, "bilinear", True, "center", (0.0,) * 3, (1.0,) * 3, resize=24)(image[None])[0]
    resized = np.asarray(Image.fromarray(image).resize((36, 24), Image.Resampling.BILINEAR), np.float32) / 255
    np.testing.assert_array_equal(ours, resized[2:22, 8:28])


def test_what_a_resize_without_antialiasing_costs(network):
    """The same photographs, shrunk by PIL's filter and by plain bilinear interpolation: nothing else differs."""
    rng = np.random.default_rng(3)
    fine = np.clip(photographs(96, 128, 4).astype(int) + rng.integers(-60, 60, (96, 128, 128, 1)), 0, 255).astype(
        np.uint8
    )
    right, other = (
        np.stack([np.asarray(Image.fromarray(i).resize((32, 32), method)) for i in fine])
        for method in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    )
    tensor = torch.tensor(fine.transpose(0, 3, 1, 2)).float()
    plain = torch.nn.functional.interpolate(tensor, (32, 32), mode="bilinear", antialias=False, align_corners=False)
    wrong = plain.round().byte().permute(0, 2, 3, 1).numpy()
    space = RandomConvFeatures(3)
    another_filter = frechet_distance(space(right), space(other))
    assert frechet_distance(space(right), space(wrong)) > 20 * another_filter


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 8, 8, 4), np.uint8), r"\(2, 8, 8, 4\): convert"),
        (np.zeros((2, 8, 8, 3), np.float32), "float32"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"\(0, 8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\)"),
    ],
)
def test_images_that_no_published_network_knows_are_refused(images, said):
    with pytest.raises(DataError, match=said):
        rgb_images(images)


def test_one_pixel_and_odd_shapes_are_resized_like_any_other():
    assert inception.PREPROCESSING(np.full((1, 1, 1, 3), 128, np.uint8)).std() == pytest.approx(0, abs=1e-6)
    assert inception.PREPROCESSING(np.zeros((1, 3, 200, 1), np.uint8)).shape == (1, 299, 299, 3)


def test_missing_weights_say_which_file_goes_where(monkeypatch, tmp_path):
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    with pytest.raises(
        DataError, match=r"no weights of inception_v3_fid.*get pt_inception.*MLX_TASKS_WEIGHTS/inception"
    ):
        InceptionV3()
    with pytest.raises(DataError, match="is not a file and holds none of pt_inception"):
        InceptionV3(tmp_path)


def test_weights_are_found_in_the_folder_that_the_environment_names(reference, monkeypatch, tmp_path):
    folder = tmp_path / "inception_v3_fid"
    folder.mkdir()
    arrays = {name: value.numpy() for name, value in reference.state_dict().items() if value.ndim}
    save_file(arrays, folder / "inception_v3_fid.safetensors")
    monkeypatch.setenv(weights.VARIABLE, str(tmp_path))
    found = InceptionV3()
    assert found.identity["weights"] == weights.file_digest(folder / "inception_v3_fid.safetensors")


def test_weights_of_other_names_or_shapes_are_listed(reference, tmp_path):
    arrays = {name: value.numpy() for name, value in reference.state_dict().items() if value.ndim}
    arrays["fc.weight"] = np.zeros((1000, 2048), np.float32)
    arrays["AuxLogits.fc.weight"] = np.zeros((1, 1), np.float32)
    del arrays["Mixed_7c.branch_pool.conv.weight"]
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(DataError) as raised:
        InceptionV3(tmp_path / "x.safetensors")
    for part in ("lacks Mixed_7c.branch_pool.conv.weight", "also has AuxLogits.fc.weight", "(1000, 2048) instead of"):
        assert part in str(raised.value)


def test_a_file_whose_name_promises_another_hash_is_refused(tmp_path):
    path = tmp_path / "vgg16-397923af.pth"
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match="begins with 397923af"):
        weights.read_weights(path)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_code_in_a_weights_file_is_not_run(tmp_path):
    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="holds no plain table of weights"):
        weights.read_weights(tmp_path / "evil.pth")
