"""One step and its parts against closed forms, torch and the full batch."""

import itertools
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten, tree_unflatten
from training_world import digits

from mlx_tasks.config_training import Model
from mlx_tasks.diffusion.schedule import NoiseSchedule
from mlx_tasks.errors import DataError, OutOfMemoryError
from mlx_tasks.models.unet2d import UNet2DConfig, UNet2DModel
from mlx_tasks.training.batches import draw_batch, stratified
from mlx_tasks.training.denoising import denoising_loss
from mlx_tasks.training.ema import Ema, ema_decay
from mlx_tasks.training.keys import named_key
from mlx_tasks.training.ladder import TeacherOptions, ladder_plan, rung_at, rungs
from mlx_tasks.training.learner import Learner
from mlx_tasks.training.learning_rate import linear_decay, warmup_cosine
from mlx_tasks.training.memory import memory_errors, micro_batch_limit

SCHEDULE = NoiseSchedule.cosine(64)


def network(key=0):
    model = Model(block_out_channels=(8, 8), attention_levels=(False, True), attention_head_dim=8, norm_num_groups=4)
    return UNet2DModel(UNet2DConfig.build(model, 8, 1, 10, "relu"), key=mx.random.key(key))


def batch(step, size=12):
    return draw_batch(digits(), size, 64, 0, "test", step)


def test_learning_rate_has_its_values():
    rates = [warmup_cosine(step, 101, 2.0, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0) and rates[55] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[-1] == pytest.approx(0.2)
    assert all(b < a for a, b in itertools.pairwise(rates[10:]))


def test_learning_rate_after_warm_up_is_torchs_cosine():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=49, eta_min=1e-4)
    for step in range(50):
        assert warmup_cosine(step, 50, 1e-3, 0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_linear_decay_falls_to_zero_past_its_warm_up():
    assert [linear_decay(step, 4, 1.0) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert linear_decay(0, 100, 1.0, 10) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_rung_is_cut():
    assert max(warmup_cosine(step, 10, 1.0, 1000) for step in range(10)) == pytest.approx(1.0)


def test_ema_of_known_weights_is_the_closed_form():
    """average_n = d^n w_0 + (1 - d) sum d^(n - k) w_k."""
    layer = nn.Linear(1, 1)
    layer.weight = mx.array([[5.0]])
    ema, decay = Ema(layer), 0.8
    for k in range(1, 11):
        layer.weight = mx.array([[float(k)]])
        ema.update(layer, decay)
    expected = decay**10 * 5 + (1 - decay) * sum(decay ** (10 - k) * k for k in range(1, 11))
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)
    with ema.applied(layer):
        assert layer.weight.item() == pytest.approx(expected, rel=1e-6)
    assert layer.weight.item() == 10.0


def test_ema_decay_warms_up_to_its_highest():
    assert ema_decay(0, 0.999) == pytest.approx(0.1)
    assert ema_decay(90, 0.999) == pytest.approx(0.91)
    assert ema_decay(10**6, 0.999) == 0.999


def test_the_step_is_torchs_adamw_with_clipping():
    """Same gradients, same weights after five steps; decay on the matrix, none on the bias."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    inputs = rng.normal(size=(5, 6, 4)).astype(np.float32)
    layer = nn.Linear(4, 3)
    layer.update({"weight": mx.array(weight), "bias": mx.array(bias)})
    learner = Learner(layer, lambda model, b: mx.mean(model(b["x"]) ** 2), weight_decay=0.1, max_grad_norm=0.05)
    w, b = torch.nn.Parameter(torch.tensor(weight)), torch.nn.Parameter(torch.tensor(bias))
    groups = [{"params": [w], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99))
    for x in inputs:
        loss, norm = learner.step({"x": mx.array(x)}, 0.01, 0.5)
        optimizer.zero_grad()
        expected = ((torch.tensor(x) @ w.T + b) ** 2).mean()
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_([w, b], 0.05)
        optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-5)
    np.testing.assert_allclose(np.array(layer.weight), w.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(np.array(layer.bias), b.detach().numpy(), atol=2e-6)


@pytest.mark.parametrize("micro_batch", [1, 5, 11])
def test_micro_batches_add_up_to_the_full_batch(micro_batch):
    def gradients(size):
        learner = Learner(network(), denoising_loss(SCHEDULE, 5.0), micro_batch=size)
        kept = {}
        learner._apply = lambda g, rate, decay: kept.update(tree_flatten(g)) or mx.array(0.0)
        loss, _ = learner.step(batch(0), 1e-3, 0.9)
        return loss.item(), kept

    (loss, full), (loss_parts, parts) = gradients(12), gradients(micro_batch)
    assert loss_parts == pytest.approx(loss, rel=1e-5)
    scale = max(mx.max(mx.abs(g)).item() for g in full.values())
    for name, gradient in full.items():
        np.testing.assert_allclose(np.array(parts[name]), np.array(gradient), atol=1e-5 * scale, err_msg=name)


def test_a_smaller_micro_batch_holds_less_memory():
    def peak(size):
        learner = Learner(network(), denoising_loss(SCHEDULE, 5.0), micro_batch=size)
        given = batch(0, 64)
        mx.eval(given)
        mx.reset_peak_memory()
        learner.step(given, 1e-3, 0.9)
        return mx.get_peak_memory()

    assert peak(8) < 0.4 * peak(64)


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step():
    results = []
    for compiled in (False, True):
        layer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        rng = np.random.default_rng(1)
        layer.update(
            tree_unflatten(
                [
                    (n, mx.array(rng.normal(size=a.shape).astype(np.float32)))
                    for n, a in tree_flatten(layer.parameters())
                ]
            )
        )
        learner = Learner(layer, lambda model, b: mx.mean(model(b["x"]) ** 2), micro_batch=4, compiled=compiled)
        for k in range(3):
            learner.step({"x": mx.random.normal((6, 3), key=mx.random.key(k))}, 0.01 * (k + 1), 0.5)
        results.append({name: np.array(a) for name, a in learner.arrays().items()})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_one_batch_is_overfitted():
    learner = Learner(network(), denoising_loss(SCHEDULE, 5.0), weight_decay=0.0)
    fixed = batch(0, 3)
    losses = [learner.step(fixed, 1e-2, 0.9)[0].item() for _ in range(80)]
    assert losses[-1] < 0.2 * losses[0], (losses[0], losses[-1])


def test_the_loss_is_its_formula_in_numpy():
    given = batch(3, 5)
    model = network(2)
    x0, eps, t = (np.array(given[name]).astype(np.float64) for name in ("x0", "eps", "level"))
    alpha_bar = SCHEDULE.alpha_bar[t.astype(int)]
    snr = alpha_bar / (1 - alpha_bar)
    alpha, std = (np.sqrt(v)[:, None, None, None] for v in (alpha_bar, 1 - alpha_bar))
    predicted = np.array(model(mx.array((alpha * x0 + std * eps).astype(np.float32)), mx.array(t), given["labels"]))
    error = ((predicted - (alpha * eps - std * x0)) ** 2).mean(axis=(1, 2, 3))
    expected = (np.minimum(snr, 5) / (snr + 1) * error).mean()
    assert denoising_loss(SCHEDULE, 5.0)(model, given).item() == pytest.approx(expected, rel=1e-4)


def test_levels_are_uniform_and_evenly_spread():
    draws = np.stack([np.array(stratified(mx.random.key(k), 32, 64)) for k in range(400)])
    assert draws.min() == 0 and draws.max() == 63
    counts = np.bincount(draws.ravel(), minlength=64)
    assert abs(counts - 200).max() < 75
    for row in draws[:20]:
        assert (np.bincount(row // 2, minlength=32) <= 2).all()
    assert abs(draws[:, 0].mean() - 31.5) < 3


def test_a_batch_is_a_function_of_its_name():
    one, same, other = batch(5), batch(5), batch(6)
    for name in one:
        assert np.array_equal(np.array(one[name]), np.array(same[name]))
    assert not np.array_equal(np.array(one["eps"]), np.array(other["eps"]))
    keys = {tuple(np.array(named_key(*name)).tolist()) for name in [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1)]}
    assert len(keys) == 4


def options(**changes):
    values = dict(batch_size=64, learning_rate=1e-3, warmup_steps=4, ema_decay=0.99, label_dropout=0.25)
    return TeacherOptions(**(values | dict(num_train_timesteps=64, seed=0, checkpoint_every=5) | changes))


def test_the_ladder_climbs_and_warms_up_on_each_rung():
    ladder = rungs(((4, 20), (8, 30)))
    plan = ladder_plan(ladder, {4: digits(4), 8: digits(8)}, 10, options())
    assert plan.steps == 50 and [rung_at(ladder, s).resolution for s in (0, 19, 20, 49)] == [4, 4, 8, 8]
    assert plan.batch_at(19)["x0"].shape == (64, 4, 4, 1) and plan.batch_at(20)["x0"].shape == (64, 8, 8, 1)
    assert plan.learning_rate_at(0) == plan.learning_rate_at(20) == pytest.approx(2.5e-4)
    assert plan.ema_decay_at(20) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="50"):
        rung_at(ladder, 50)


def test_labels_are_dropped_as_often_as_asked_and_unknown_ones_always():
    data = digits(8)
    data.labels[:128] = -1
    plan = ladder_plan(rungs(((8, 50),)), {8: data}, 10, options())
    labels = np.concatenate([np.array(plan.batch_at(step)["labels"]) for step in range(48)])
    assert labels.min() >= 0 and labels.max() == 10
    assert (labels == 10).mean() == pytest.approx(0.5 + 0.5 * 0.25, abs=0.03)


def test_data_without_labels_has_none_in_its_batches():
    plan = ladder_plan(rungs(((8, 5),)), {8: digits(8, labelled=False)}, None, options())
    assert set(plan.batch_at(0)) == {"x0", "eps", "level"}


def test_the_micro_batch_follows_the_hardware_and_a_retry():
    assert micro_batch_limit(128, {}) == 128
    assert micro_batch_limit(128, {"MLX_TASKS_MICRO_BATCH": "32"}) == 32
    assert micro_batch_limit(16, {"MLX_TASKS_MICRO_BATCH": "32"}) == 16
    for value in ("0", "-3", "many"):
        with pytest.raises(DataError, match=value):
            micro_batch_limit(128, {"MLX_TASKS_MICRO_BATCH": value})


@pytest.mark.parametrize(
    "said",
    [
        RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer"),
        RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"),
        RuntimeError("[cuda] cudaMallocAsync failed: out of memory"),
        RuntimeError("[malloc] Unable to allocate 9 bytes."),
        MemoryError("std::bad_alloc"),
    ],
)
def test_a_failed_allocation_says_what_to_try(said):
    with pytest.raises(OutOfMemoryError, match="MLX_TASKS_MICRO_BATCH=32"), memory_errors(64):
        raise said


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="something else"), memory_errors(64):
        raise RuntimeError("something else")


def test_math_of_the_first_loss():
    """An untrained output of zero has the loss E w |v|^2, which is near E w (data and noise are near unit variance)."""
    model = network()
    model.conv_out.weight, model.conv_out.bias = (
        mx.zeros_like(model.conv_out.weight),
        mx.zeros_like(model.conv_out.bias),
    )
    given = batch(0, 64)
    alpha_bar = SCHEDULE.alpha_bar[np.array(given["level"])]
    weight = np.minimum(alpha_bar, 5 * (1 - alpha_bar))
    x0, eps = np.array(given["x0"]), np.array(given["eps"])
    second = alpha_bar * (eps**2).mean(axis=(1, 2, 3)) + (1 - alpha_bar) * (x0**2).mean(axis=(1, 2, 3))
    assert denoising_loss(SCHEDULE, 5.0)(model, given).item() == pytest.approx((weight * second).mean(), rel=0.05)
    assert math.isfinite(second.sum())
