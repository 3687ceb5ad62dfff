"""LPIPS against the lpips package itself, on random backbones and its own learned heads."""

import sys
import types

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch_references import alexnet_features, randomise, vgg16_features

from mlx_tasks.errors import DataError
from mlx_tasks.metrics.extractors.backbones import FeatureStack
from mlx_tasks.metrics.extractors.lpips import Lpips, lpips_diversity

STACKS = {"alex": alexnet_features, "vgg": vgg16_features}


@pytest.fixture(scope="module")
def package():
    """The lpips package. It takes its backbones from torchvision, whose published wheel does not import beside a CPU
    build of torch, so a module of that name stands in and gives the same public definitions from torch_references."""
    models = types.ModuleType("torchvision.models")
    models.alexnet = lambda **_: types.SimpleNamespace(features=alexnet_features())
    models.vgg16 = lambda **_: types.SimpleNamespace(features=vgg16_features())
    vision = types.ModuleType("torchvision")
    vision.models = models
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", vision)
        patch.setitem(sys.modules, "torchvision.models", models)
        import lpips

        yield lpips


def backbone(net, folder):
    """A random backbone, as a file of torchvision's names with a classifier in it."""
    features = randomise(STACKS[net](), 5)
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state | {"classifier.6.weight": torch.zeros(3, 3)}, folder / f"{net}.pth")
    return features, folder / f"{net}.pth"


@pytest.mark.parametrize("net", STACKS)
def test_the_distance_is_the_packages(package, net, tmp_path):
    features, path = backbone(net, tmp_path)
    theirs = package.LPIPS(net=net, version="0.1", pretrained=True, pnet_rand=True, verbose=False).eval()
    for mine, other in zip(theirs.net.parameters(), features.parameters(), strict=True):
        mine.data.copy_(other.data)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3, 40, 64, 3)).astype(np.uint8)
    b[2] = a[2]
    tensors = [torch.tensor(x.transpose(0, 3, 1, 2)).float() / 127.5 - 1 for x in (a, b)]
    with torch.no_grad():
        expected = theirs(*tensors).flatten().numpy()
    ours = Lpips(net, path)(a, b, batch_size=2)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)
    assert ours[2] == 0.0 and (ours[:2] > 0.01).all()


@pytest.mark.parametrize("net", STACKS)
def test_the_taps_are_those_after_each_group(net, tmp_path):
    features, path = backbone(net, tmp_path)
    taps = {"alex": (2, 5, 8, 10, 12), "vgg": (4, 9, 16, 23, 30)}[net]
    x = np.random.default_rng(1).normal(size=(2, 64, 48, 3)).astype(np.float32)
    for ours, end in zip(FeatureStack(net, path)(mx.array(x)), taps, strict=True):
        with torch.no_grad():
            expected = features[:end](torch.tensor(x.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1).numpy()
        assert np.linalg.norm(np.array(ours) - expected) < 1e-4 * np.linalg.norm(expected)


def test_diversity_is_zero_for_one_image_a_class_and_the_mean_over_pairs_else(tmp_path):
    _, path = backbone("alex", tmp_path)
    lpips, rng = Lpips("alex", path), np.random.default_rng(2)
    two = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    labels = np.repeat([0, 1], 4)
    assert lpips_diversity(lpips, two[labels], labels, seed=0, pairs=10).value == 0.0
    mixed = lpips_diversity(lpips, two[[0, 1]], None, seed=0, pairs=6)
    assert mixed.value == pytest.approx(float(lpips(two[:1], two[1:])[0]), rel=1e-4)
    with pytest.raises(DataError, match="at least two images"):
        lpips_diversity(lpips, two, np.array([0, 1]), seed=0)


def test_pairs_that_do_not_fit_are_refused(tmp_path):
    _, path = backbone("alex", tmp_path)
    with pytest.raises(DataError, match="at least 32 pixels"):
        Lpips("alex", path)(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((1, 16, 16, 3), np.uint8))
