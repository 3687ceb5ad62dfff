"""On Metal or CUDA: what the GPU computes is what the CPU computes. Elsewhere there is nothing to compare."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from registry_workspace import write_small_bundle

from mlx_tasks import hardware
from mlx_tasks.models.bundle import read_bundle
from mlx_tasks.samplers import bundle_noise, sample_bundle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(hardware.detect().kind == "cpu", reason="needs Metal or CUDA: this machine computes on its CPU"),
]
TOLERANCE = 1e-3
"""Of values near 1: a GPU's sums go in another order, and its exponentials round otherwise."""


def on(device: mx.Device, compute):
    """What `compute` gives there, as numpy arrays by name."""
    with mx.stream(device):
        values = compute()
        mx.eval(values)
    return {name: np.array(value) for name, value in tree_flatten(values)}


def assert_alike(compute):
    """Both devices give the same arrays."""
    here, there = on(mx.gpu, compute), on(mx.cpu, compute)
    assert here.keys() == there.keys() and here
    for name, value in here.items():
        np.testing.assert_allclose(value, there[name], atol=TOLERANCE, rtol=TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "bundle"
    write_small_bundle(folder)
    return read_bundle(folder)


def test_the_network_and_its_gradients(bundle):
    noise, labels = bundle_noise(bundle, 0, 4), mx.array([0, 1, 2, 0])
    timesteps = mx.array([10.0, 300.0, 700.0, 1000.0])

    def compute():
        loss = lambda model: model(noise, timesteps, labels).square().mean()  # noqa: E731
        value, gradients = mx.value_and_grad(lambda weights: loss(bundle.model.update(weights) or bundle.model))(
            bundle.model.trainable_parameters()
        )
        return {"loss": value, "gradients": gradients}

    assert_alike(compute)


def test_the_images_of_a_seed(bundle):
    noise, labels = bundle_noise(bundle, 0, 4), np.array([0, 1, 2, 0])
    assert_alike(lambda: {"images": sample_bundle(bundle, noise, labels).images})
