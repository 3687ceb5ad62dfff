"""The forms made for a slow CPU equal the plain ones: values, and gradients of every argument."""

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

from mlx_tasks import hardware
from mlx_tasks.models import elementary
from mlx_tasks.models.attention import plain_attention
from mlx_tasks.models.convolution import (
    HalvingConv,
    cpu_strided_conv,
    double,
    doubling_conv,
    halve,
    phased_doubling_conv,
    rearranged_conv,
    strided_conv,
)
from mlx_tasks.models.layers import group_norm


def normal(seed: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def values_and_gradients(function, *arguments: mx.array) -> list[np.ndarray]:
    """The function's value, then the gradient of its product with fixed noise in each argument."""
    value = function(*arguments)
    noise = normal(99, *value.shape)
    gradients = mx.grad(lambda *a: (function(*a) * noise).sum(), argnums=tuple(range(len(arguments))))(*arguments)
    return [np.array(a) for a in (value, *gradients)]


def assert_same(ours: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 2e-6) -> None:
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("form", [rearranged_conv, cpu_strided_conv])
@pytest.mark.parametrize(("height", "width"), [(10, 10), (4, 8), (18, 6)])
def test_the_strided_convolution_of_the_cpu_is_the_strided_one(form, height, width):
    x, weight = normal(0, 2, height, width, 5), normal(1, 7, 3, 3, 5)
    plain = values_and_gradients(strided_conv, x, weight)
    assert plain[0].shape == (2, height // 2 - 1, width // 2 - 1, 7)
    assert_same(values_and_gradients(form, x, weight), plain)


@pytest.mark.parametrize("kind", ["cpu", "metal"])
@pytest.mark.parametrize("before", [0, 1])
def test_halving_is_torchs_with_each_of_diffusers_paddings(before, kind, monkeypatch):
    machine = dataclasses.replace(hardware.detect(), kind=kind)
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    layer = HalvingConv(5, before)
    x = normal(0, 2, 8, 6, 5)
    image, kernel = (torch.tensor(np.array(a.transpose(0, 3, 1, 2))) for a in (x, layer.weight))
    image = image if before else torch.nn.functional.pad(image, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(image, kernel, stride=2, padding=before).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(np.array(layer(x)), expected, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (3, 8)])
def test_the_convolution_in_four_phases_is_that_of_the_doubled_image(height, width):
    x, weight = normal(0, 2, height, width, 5), normal(1, 7, 3, 3, 5)
    plain = values_and_gradients(doubling_conv, x, weight)
    assert plain[0].shape == (2, 2 * height, 2 * width, 7)
    assert_same(values_and_gradients(phased_doubling_conv, x, weight), plain)


def test_the_doubling_convolution_is_torchs():
    x, weight = normal(0, 2, 4, 6, 5), normal(1, 7, 3, 3, 5)
    image, kernel = (torch.tensor(np.array(a.transpose(0, 3, 1, 2))) for a in (x, weight))
    doubled = torch.nn.functional.interpolate(image, scale_factor=2.0, mode="nearest")
    expected = torch.nn.functional.conv2d(doubled, kernel, padding=1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(np.array(phased_doubling_conv(x, weight)), expected, atol=2e-5)


@pytest.mark.parametrize("groups", [1, 4, 12])
def test_the_group_norm_is_torchs(groups):
    x, weight, bias = normal(0, 3, 4, 6, 12) * 3 + 5, normal(1, 12), normal(2, 12)
    ours = values_and_gradients(lambda x, w, b: group_norm(x, w, b, groups, 1e-5), x, weight, bias)
    images = torch.tensor(np.array(x.transpose(0, 3, 1, 2)), requires_grad=True)
    scale, shift = (torch.tensor(np.array(a), requires_grad=True) for a in (weight, bias))
    y = torch.nn.functional.group_norm(images, groups, scale, shift, 1e-5).permute(0, 2, 3, 1)
    (y * torch.tensor(np.array(normal(99, 3, 4, 6, 12)))).sum().backward()
    expected = [y.detach(), images.grad.permute(0, 2, 3, 1), scale.grad, shift.grad]
    assert_same(ours, [a.numpy() for a in expected], 5e-6)


def test_plain_attention_is_mlxs():
    q, k, v = (3 * normal(seed, 2, 3, 10, 8) for seed in range(3))
    fast = values_and_gradients(lambda *a: mx.fast.scaled_dot_product_attention(*a, scale=0.35), q, k, v)
    assert_same(values_and_gradients(lambda *a: plain_attention(*a, scale=0.35), q, k, v), fast, 1e-5)


def test_exp_is_right_to_float32s_rounding():
    """Relative error: 2**-23 of the polynomial, and the rounding of x log2 e, which grows with |x|."""
    x = np.linspace(-80, 80, 100_001, dtype=np.float32)
    error = np.abs(np.array(elementary.exp(mx.array(x))) / np.exp(x.astype(np.float64)) - 1)
    assert error[np.abs(x) <= 1].max() < 4e-7
    assert error.max() < 6e-6
    assert elementary.exp(mx.array(0.0)).item() == 1.0


@pytest.mark.parametrize("function", [elementary.exp, elementary.sigmoid, elementary.softmax])
def test_nan_stays_nan_and_extremes_stay_finite(function):
    """A diverged training must show as NaN; a saturated one must not."""
    assert np.isnan(np.array(function(mx.array([float("nan"), 1.0])))[0])
    assert np.isfinite(np.array(function(mx.array([-3e38, -200.0, 200.0, 3e38])))).all()


@pytest.mark.parametrize(
    ("ours", "mlx"), [(elementary.exp, mx.exp), (elementary.sigmoid, mx.sigmoid), (elementary.softmax, mx.softmax)]
)
def test_elementary_functions_are_mlxs_with_gradients(ours, mlx):
    x = 4 * normal(0, 5, 33)
    plain = mlx if mlx is not mx.softmax else lambda x: mx.softmax(x, axis=-1)
    assert_same(values_and_gradients(ours, x), values_and_gradients(plain, x))


def test_doubling_repeats_pixels_and_halving_takes_it_back():
    x = normal(0, 2, 3, 4, 5)
    expected = np.array(x).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(np.array(double(x)), expected)
    np.testing.assert_allclose(np.array(halve(double(x))), np.array(x), atol=1e-6)
    pooled = nn.AvgPool2d(2)(double(x) * normal(1, 2, 6, 8, 5))
    np.testing.assert_allclose(np.array(halve(double(x) * normal(1, 2, 6, 8, 5))), np.array(pooled), atol=1e-6)
