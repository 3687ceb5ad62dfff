"""The forms made for a slow CPU equal the plain ones: values, and gradients of every argument."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch

from mlx_tasks.models import elementary
from mlx_tasks.models.attention import plain_attention
from mlx_tasks.models.convolution import rearranged_conv, strided_conv, tap_conv
from mlx_tasks.models.layers import double, group_norm, halve


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


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (2, 6), (16, 4)])
def test_the_rearranged_strided_convolution_is_the_strided_one(before, height, width):
    x, weight = normal(0, 2, height, width, 5), normal(1, 7, 3, 3, 5)
    plain = values_and_gradients(lambda x, w: strided_conv(x, w, before), x, weight)
    assert plain[0].shape == (2, height // 2, width // 2, 7)
    assert_same(values_and_gradients(lambda x, w: rearranged_conv(x, w, before), x, weight), plain)


def test_the_strided_convolution_is_torchs_with_padding_1():
    x, weight = normal(0, 2, 8, 8, 5), normal(1, 7, 3, 3, 5)
    images, kernel = (torch.tensor(np.array(a.transpose(0, 3, 1, 2))) for a in (x, weight))
    expected = torch.nn.functional.conv2d(images, kernel, stride=2, padding=1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(np.array(strided_conv(x, weight, 1)), expected, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (2, 2), (3, 3), (3, 2), (1, 4)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_convolution_by_taps_is_the_convolution(h, w, batch):
    x, weight = normal(0, batch, 6, 9, 4), normal(1, 5, h, w, 4)
    assert_same(values_and_gradients(tap_conv, x, weight), values_and_gradients(mx.conv2d, x, weight))


def test_a_convolution_by_taps_reads_views_as_they_are():
    """A transposed and sliced input has another layout in memory and the same values."""
    x, weight = normal(0, 3, 9, 12, 4).transpose(0, 2, 1, 3)[1:, ::2], normal(1, 5, 3, 3, 4)
    assert_same(values_and_gradients(tap_conv, x, weight), values_and_gradients(mx.conv2d, x, weight))


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
